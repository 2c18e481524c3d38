"""Every flag of train.py: what it means, its default, what is allowed. Sweeps and reports read them here, too.

    parse(["--problem=toy", "--lr=0.001"])      # a Namespace with every flag resolved, or an InputError of one line

W&B passes --flag=value, booleans as True and False, null as None, infinity as inf: every flag takes those.
"""

import argparse
import json
import math
import os
from pathlib import Path

import torch

import data
from data import InputError
from pruning import PROFILES, STRATEGIES

ABOUT = """Train a least-volume autoencoder whose needless latent dimensions are pruned while it trains.

    python train.py --problem beams2d --strategy plummet
"""


def number(kind, low, high=math.inf, open_low=False, open_high=False):
    """An argparse type: an int or a float within a range; open: the end itself is not allowed."""

    def convert(text):
        try:
            value = math.inf if kind is int and text == "inf" else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
        if not low <= value <= high or (open_low and value == low) or (open_high and value == high):
            allowed = f"{low} {'<' if open_low else '<='} value {'<' if open_high else '<='} {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; allowed: {allowed}")
        return value

    return convert


SHARE = number(float, 0, 1, open_low=True, open_high=True)
POSITIVE = number(float, 0, open_low=True, open_high=True)
COUNT = number(int, 0, 2**31)
AT_LEAST_ONE = number(int, 1, 2**31)


def boolean(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a boolean; allowed: True, False")
    return text.lower() in ("true", "1")


class Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse prints its usage first and exits; we say one line
        raise InputError(message.removeprefix("argument "))


DEFAULTS = {}  # flag -> default, filled by parser()


def parser():
    """All flags. Those not given are absent from the Namespace: parse() fills them in."""
    p = Parser(prog="train.py", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def add(flag, kind, default, text, choices=None):
        DEFAULTS[flag] = default
        extra = dict(nargs="?", const=True) if kind is boolean else {}

        def convert(value):  # W&B passes null as None: not given
            return None if value == "None" else kind(value)

        if choices:
            text += f": {' | '.join(choices)}"
        p.add_argument(
            f"--{flag}", type=convert, choices=[*choices, None] if choices else None, metavar="", help=f"{text} ({default})", **extra
        )

    # What is studied
    add("problem", str, "beams2d", "designs to learn", list(data.PROBLEMS))
    add("strategy", str, "plummet", "which dimensions to prune; none: never prune", list(STRATEGIES))
    add("safeguards", str, "moderate", "a profile of the five safeguards below; a flag given as well overrides it", list(PROFILES))
    add("arm", str, None, 'several flags in one string, "strategy=plummet,plummet_threshold=0.05"; None: none')
    add("data", str, "auto", "where designs come from: auto | hub | sample | a path to .npz or .npy")
    add("toy_dims", number(int, 1, 6), 3, "independent factors of --problem toy")

    # Strategies
    add("plummet_threshold", SHARE, 0.05, "plummet: prune std below this share of the cliff's edge")
    add("cdf_threshold", number(float, 0, 1, open_low=True), 0.999, "pca_cdf: keep the dimensions that hold this share of the variance")
    add("percentile", SHARE, 0.2, "lognorm: prune below this quantile of the fitted log-normal")
    add("alpha", number(float, 0, 1), 0.0, "lognorm: weight of the current spectrum in the fit; 0: the reference's alone")
    add("temperature", POSITIVE, 0.25, "probabilistic: width of the sigmoid in log std")
    add("midpoint", SHARE, 0.02, "probabilistic: share of the largest std pruned with p = 1/2")
    add("pruning_epoch", COUNT, 500, "first epoch at whose end dimensions may be pruned")
    add("beta", number(float, 0, 1, open_high=True), 0.9, "momentum of the latent statistics; 0: the last batch alone")

    # Safeguards: a profile sets them, a flag overrides it
    add("k_consecutive", AT_LEAST_ONE, None, "prune what was proposed in this many epochs in a row; off: 1")
    add("recon_tol", number(float, 0), None, "no pruning while val_rec > (1 + tol) * its best since pruning_epoch; off: inf")
    add("cooldown_epochs", COUNT, None, "epochs without pruning after a pruning; off: 0")
    add("max_prune_per_epoch", number(int, 1), None, "at most this many at once, smallest std first; off: inf")
    add("min_active_dims", COUNT, None, "never fewer than this; off: 0 (one is always kept)")

    # Model and loss
    add("latent_dim", number(int, 1, 10000), 250, "latent dimensions to start with")
    add("lipschitz", POSITIVE, 10.0, "Lipschitz bound of the decoder before its sigmoid")
    add("w_v", number(float, 0, open_high=True), 0.01, "weight of the volume loss; off: 0")
    add("eta", POSITIVE, 1e-4, "added to each std in the volume loss and in the strategies")
    add("polynomial_schedule_n", COUNT, 100, "epochs over which w_v rises from 0; off: 0")
    add("polynomial_schedule_p", number(float, 0, open_high=True), 2.0, "power of that rise")

    # Optimisation
    add("n_epochs", AT_LEAST_ONE, 2500, "epochs to train")
    add("batch_size", number(int, 2), 64, "designs a step; incomplete last batches are dropped unless they are all there is")
    add("lr", POSITIVE, 2e-3, "peak learning rate of Adam; falls along a cosine")
    add("seed", number(int, 0, 2**31), 1, "seed of weights, batches and draws")

    # Machine
    add("device", str, "auto", "auto | cpu | cuda | cuda:N; auto: a GPU if there is one")
    add("precision", str, "auto", "auto: bf16 where the hardware multiplies matrices in it", ["auto", "fp32", "bf16"])
    add("threads", number(int, 0, 1024), 0, "CPU threads; 0: $OMP_NUM_THREADS or all cores")

    # Record
    add("out", str, "runs", "folder in which the run's folder is made")
    add("save_model", boolean, False, "write model.pt, the compact model")
    add("test", boolean, False, "also report test_rec: for final models only")
    add("figure_every", COUNT, 0, "draw the figures every so many epochs, too; off: 0 (at the end only)")
    add("checkpoint_every", COUNT, 0, "epochs between checkpoints; 0: about a minute")
    add("resume", str, None, "continue this run folder, or `auto`: the unfinished run of these flags, if any; off: None")
    add("config", str, None, "run a record again: a run's config.json; flags given as well override it; off: None")
    add("wandb", str, "auto", "auto: online when logged in, else offline", ["auto", "online", "offline", "disabled"])
    add("wandb_project", str, "lvae-pruning", "W&B project")
    add("wandb_entity", str, None, "W&B user or team; None: your default")
    return p


def _parse_arm(text, p):
    """'a=1,b=2' -> {'a': 1, 'b': 2}, through the flags' own types."""
    pairs = [part.partition("=") for part in text.split(",")]
    for key, equals, _ in pairs:
        if not equals or key.strip() not in DEFAULTS or key.strip() in ("arm", "config", "resume"):
            raise InputError(f"--arm {text}: {key.strip()!r} is not flag=value of a known flag")
    return {k: v for k, v in vars(p.parse_args([f"--{key.strip()}={value.strip()}" for key, _, value in pairs])).items() if v is not None}


def _parse_record(flag, path, p):
    """The flags in a run's config.json, through the flags' own types. Its arm and profile stand in the flags they set."""
    try:
        config = json.loads(path.read_text())
        argv = [f"--{k}={v}" for k, v in config["flags"].items() if k in DEFAULTS and k not in ("out", "resume", "config", "arm")]
        recorded = {k: v for k, v in vars(p.parse_args(argv)).items() if v is not None}
        # Its learning rate followed one cosine, then another: not the run of its flags
        return recorded | dict(n_epochs=None) if flag == "config" and config.get("extended") else recorded
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--{flag} {path}: not the config.json of a run ({type(error).__name__}: {error})") from None


def parse(argv):
    """Flags -> Namespace with every flag resolved, or InputError.

    Precedence: flag, --arm, --safeguards, the record (--config, --resume), default.
    """
    p = parser()
    given = {key: value for key, value in vars(p.parse_args(argv)).items() if value is not None}
    recorded = {}
    own = Path(given.get("out", DEFAULTS["out"])) / os.environ.get("WANDB_RUN_ID", "")
    if "WANDB_RUN_ID" in os.environ and (own / "config.json").exists():
        given["resume"] = str(own)  # an agent that starts its run again means that one
    if given.get("resume", "auto") != "auto":
        if "config" in given and "WANDB_RUN_ID" not in os.environ:
            raise InputError(f"--config {given['config']}: not together with --resume {given['resume']}, which has a record of its own")
        recorded = _parse_record("resume", Path(given["resume"]) / "config.json", p)
    elif "config" in given:
        recorded = _parse_record("config", Path(given["config"]), p)
    arm = _parse_arm(given["arm"], p) if "arm" in given else {}
    twice = sorted(set(arm) & set(given))
    if twice:
        raise InputError(f"--{twice[0]}: given as a flag and in --arm; give it once")
    chosen = {**arm, **given}
    profile = PROFILES[chosen["safeguards"]] if "safeguards" in chosen else {}
    args = argparse.Namespace(**{**DEFAULTS, **PROFILES[DEFAULTS["safeguards"]], **recorded, **profile, **chosen})

    if args.n_epochs is None:
        raise InputError(f"--config {args.config}: was made longer while it ran, and cannot be run again; to start afresh, give --n_epochs")
    if "min_active_dims" not in chosen:
        args.min_active_dims = min(args.min_active_dims, args.latent_dim)  # a profile's floor suits wider models
    if args.min_active_dims > args.latent_dim:
        raise InputError(f"--min_active_dims {args.min_active_dims}: must not exceed --latent_dim {args.latent_dim}")
    try:
        available = {"cpu": True, "cuda": torch.cuda.is_available()}
        if args.device != "auto" and not available.get(torch.device(args.device).type):
            raise RuntimeError
        if args.device.startswith("cuda:") and int(args.device[5:]) >= torch.cuda.device_count():
            raise RuntimeError
    except RuntimeError:
        usable = ", ".join(["auto", *(name for name, there in available.items() if there)])
        raise InputError(f"--device {args.device}: not usable here; allowed: {usable}") from None
    return args
