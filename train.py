"""Train a least-volume autoencoder (LVAE) and prune the latent dimensions that the designs do not need.

    python train.py --problem beams2d --strategy plummet     # EngiBench's designs, or the bundled ones
    python train.py --problem toy --toy_dims 2               # images of two known factors: the fastest first run

Minimised is rec + w_v * vol: rec is the mean squared error of the pixels, vol the volume of the latent set (see
volume). The decoder has a bounded Lipschitz constant. Without it the volume would shrink by scaling alone, and mean
nothing (Chen & Fuge, Least Volume, ICLR 2024, arXiv 2404.17773, section 3). Every few epochs the latents are rotated to
their principal axes. What is flat then is pruned. Further axes are trimmed that are worth little (pruning.py).
"""

import argparse
import contextlib
import copy
import datetime
import difflib
import functools
import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch takes seconds to import: Ctrl-C ends them without a traceback

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.adam import adam
from tqdm import tqdm

import data
import record
from lvae import Autoencoder, InputError, need
from pruning import INF, PROFILES, SAFEGUARDS, STRATEGIES, Pruner
from record import LEGACY

# ---- Flags -----------------------------------------------------------------------------------------------------------


def ranged(kind, low, high=math.inf, open_low=False, open_high=False):
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


def did_you_mean(word, known, show=repr):
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {show(close[0])}?" if close else ""


def one_of(*choices):
    """An argparse type: one of these words."""

    def convert(text):
        if text not in choices:
            guess = did_you_mean(text, choices)
            raise argparse.ArgumentTypeError(f"{text!r} is unknown{guess}; allowed: {', '.join(choices)}")
        return text

    convert.choices = choices
    return convert


def boolean(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a boolean; allowed: True, False")
    return text.lower() in ("true", "1")


SHARE = ranged(float, 0, 1, open_low=True, open_high=True)
POSITIVE = ranged(float, 0, open_low=True, open_high=True)
NOT_NEGATIVE = ranged(float, 0, open_high=True)
COUNT = ranged(int, 0, 2**31)
AT_LEAST_ONE = ranged(int, 1, 2**31)

# Every flag: (type, default, what it means). None: not given; then the text says what holds. Sweeps use the same names.
FLAGS = {
    "the most used": dict(
        problem=(one_of(*data.PROBLEMS), "beams2d", "designs to learn"),
        strategy=(one_of(*STRATEGIES), "plummet", "which flat dimensions to prune; none: never prune nor trim"),
        data=(str, "auto", "where designs come from: auto | hub | hub:v1 | sample | a path to .npz or .npy"),
        latent_dim=(ranged(int, 1, 10000), 100, "latent dimensions to start with"),
        trim_share=(NOT_NEGATIVE, 0.01, "trim what is worth less than this share of the designs' variance; off: 0"),
        trim_rec=(POSITIVE, None, "trim while val_rec <= this error instead; off unless given"),
        n_epochs=(AT_LEAST_ONE, None, "epochs to train; not given: 100, or fewer: 6000 steps"),
        seed=(ranged(int, 0, 2**31), 1, "seed of weights, batches and draws"),
        safeguards=(one_of(*PROFILES), "moderate", "profile of the five safeguards; flags given as well override it"),
        wandb=(one_of("auto", "online", "offline", "disabled"), "auto", "auto: online when logged in, else offline"),
    ),
    "strategies": dict(
        plummet_threshold=(SHARE, 0.05, "plummet: prune std below this share of the cliff's edge"),
        cdf_threshold=(ranged(float, 0, 1, True), 0.999, "pca_cdf: share of the variance that the kept ones hold"),
        percentile=(SHARE, 0.2, "lognorm: prune below this quantile of the fitted log-normal"),
        alpha=(ranged(float, 0, 1), 0.0, "lognorm: weight of the current spectrum; 0: the reference's alone"),
        temperature=(POSITIVE, 0.25, "probabilistic: width of the sigmoid in log std"),
        midpoint=(SHARE, 0.02, "probabilistic: share of the largest std pruned with p = 1/2"),
        pruning_epoch=(COUNT, None, "first epoch that may prune; not given: a tenth of n_epochs, 400 steps at least"),
        beta=(ranged(float, 0, 1, open_high=True), 0.9, "momentum of the latent statistics; 0: the last batch alone"),
    ),
    "safeguards of the strategies (not given: the profile's)": dict(
        k_consecutive=(AT_LEAST_ONE, None, "prune what was proposed in this many epochs in a row; off: 1"),
        recon_tol=(ranged(float, 0), None, "none while val_rec > (1 + tol) * its best since pruning_epoch; off: inf"),
        cooldown_epochs=(COUNT, None, "epochs without pruning after a pruning; off: 0"),
        max_prune_per_epoch=(ranged(int, 1), None, "at most this many at once, smallest std first; off: inf"),
        min_active_dims=(COUNT, None, "never fewer than this, trimmed ones included; off: 0 (one is always kept)"),
    ),
    "model and loss": dict(
        volume=(one_of("log", "geometric"), "log", "the volume of the active dimensions, or the paper's, of all"),
        w_v=(NOT_NEGATIVE, 1e-5, "weight of the volume loss; off: 0"),
        rotate_every=(COUNT, 5, "epochs between rotations of the latents to their principal axes; off: 0"),
        lipschitz=(POSITIVE, 10.0, "Lipschitz bound of the decoder before its sigmoid"),
        eta=(POSITIVE, 1e-4, "added to each std in the volume loss and in the strategies"),
        polynomial_schedule_n=(COUNT, None, "epochs over which w_v rises from 0; off: 0; not given: pruning_epoch"),
        polynomial_schedule_p=(NOT_NEGATIVE, 2.0, "power of that rise"),
    ),
    "optimisation": dict(
        batch_size=(ranged(int, 2), 32, "designs a step; incomplete batches are dropped, unless it is all there is"),
        lr=(POSITIVE, 2e-3, "peak learning rate of Adam; falls along a cosine"),
        mirror=(boolean, True, "mirror half of photonics2d, each epoch others: they solve the swapped wavelengths"),
        n_train=(COUNT, 0, "train on the first so many training designs; 0: all"),
        toy_dims=(ranged(int, 1, 6), 3, "independent factors of --problem toy"),
        arm=(str, None, 'several flags in one string, "strategy=plummet,plummet_threshold=0.05"'),
    ),
    "machine": dict(
        device=(str, "auto", "auto | cpu | cuda | cuda:N; auto: a GPU if there is one"),
        precision=(one_of("auto", "fp32", "bf16"), "auto", "auto: bf16 where the hardware multiplies matrices in it"),
        threads=(ranged(int, 0, 1024), 0, "CPU threads; 0: $OMP_NUM_THREADS or all cores"),
    ),
    "files and W&B": dict(
        out=(str, "runs", "folder in which the run's folder is made"),
        keep=(one_of("best", "last"), "best", "weights of least val_rec after the last pruning, or of the last epoch"),
        save_model=(boolean, True, "write model.pt, the compact model"),
        test=(boolean, False, "also report test_rec: for final models only"),
        figure_every=(COUNT, 0, "draw the figures every so many epochs, too; off: 0 (at the end only)"),
        checkpoint_every=(COUNT, 0, "epochs between checkpoints; 0: about a minute"),
        resume=(str, None, "continue this run folder, or `auto`: the unfinished run of these flags, if any"),
        config=(str, None, "run a run's config.json again; flags given as well override it"),
        wandb_project=(str, "lvae-pruning", "W&B project"),
        wandb_entity=(str, None, "W&B user or team; not given: your default"),
    ),
}
DEFAULTS = {flag: default for group in FLAGS.values() for flag, (_, default, _) in group.items()}


class Parser(record.Parser):
    def error(self, message):  # raised, for parse() is called from Python, too
        for word in message.partition("unrecognized arguments: ")[2].split():
            message += did_you_mean(word.split("=")[0], [f"--{flag}" for flag in DEFAULTS], str)
        raise InputError(message.removeprefix("argument "))


@functools.cache
def parser():
    """All flags. Those not given are None in the Namespace: parse() fills them in."""
    p = Parser(__doc__, prog="train.py", allow_abbrev=False)
    for title, flags in FLAGS.items():
        group = p.add_argument_group(title)
        for flag, (kind, default, text) in flags.items():
            text += f": {' | '.join(kind.choices)}" if hasattr(kind, "choices") else ""
            text += "" if default is None else f" ({default})"
            extra = dict(nargs="?", const=True) if kind is boolean else {}
            extra["type"] = lambda value, kind=kind: None if value == "None" else kind(value)  # W&B's null: not given
            group.add_argument(f"--{flag}", metavar="", help=text, **extra)
    return p


def given(argv):
    """The flags that stand in argv, by name."""
    return {key: value for key, value in vars(parser().parse_args(argv)).items() if value is not None}


def parse(argv, recorded=None):
    """Flags -> Namespace with every flag, or InputError. Reads nothing but its arguments.

    recorded: flags of a config.json that is run again or continued. Of two values the first counts of: flag, --arm,
    --safeguards, recorded, default.
    """
    flags, arm = given(argv), {}
    if "arm" in flags:
        pairs = [part.partition("=") for part in flags["arm"].split(",")]
        for key, equals, _ in pairs:
            if not equals or key.strip() not in DEFAULTS or key.strip() in ("arm", "config", "resume"):
                raise InputError(f"--arm {flags['arm']}: {key.strip()!r} is not flag=value of a known flag")
        arm = given([f"--{key.strip()}={value.strip()}" for key, _, value in pairs])
    for twice in sorted(set(arm) & set(flags)):
        raise InputError(f"--{twice}: given as a flag and in --arm; give it once")
    chosen = arm | flags
    profile = PROFILES[chosen["safeguards"]] if "safeguards" in chosen else {}
    values = DEFAULTS | PROFILES[DEFAULTS["safeguards"]] | (recorded or {}) | profile | chosen
    if "min_active_dims" not in chosen:  # a profile's min_active_dims suits wider models
        values["min_active_dims"] = min(values["min_active_dims"], values["latent_dim"])
    args = argparse.Namespace(**values)
    if args.min_active_dims > args.latent_dim:
        raise InputError(f"--min_active_dims {args.min_active_dims}: must not exceed --latent_dim {args.latent_dim}")
    return args


def read_flags(flag, path):
    """The flags in a run's config.json, through their own types. Its arm and profile stand in the flags they set."""
    try:
        config = json.loads(record.read_text(path))
        mine = DEFAULTS.keys() - {"out", "resume", "config", "arm"}
        gone = sorted(config["flags"].keys() - DEFAULTS.keys())
        recorded = LEGACY | {key: value for key, value in config["flags"].items() if key in mine}
        found = given([f"--{key}={value}" for key, value in recorded.items()])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--{flag} {path}: not the config.json of a run ({type(error).__name__}: {error})") from None
    if gone:
        advice = f"its commit, {config.get('git')}, has them"
        raise InputError(f"--{flag} {path}: has flags that are no more: {', '.join(gone)}; {advice}")
    if flag == "config" and config.get("extended"):  # its learning rate followed one cosine, then another
        del found["n_epochs"]
    return found


def resolve(argv):
    """The flags of this start, and those of the run that it repeats or continues."""
    args = parse(argv)
    resume = None if args.resume == "auto" else args.resume
    own = Path(args.out) / (record.run_id() or "")
    if record.run_id() and (own / "config.json").exists():  # an agent that starts its run again means that run
        argv, resume = [*argv, f"--resume={own}"], own
    elif args.config and resume is not None:
        raise InputError(f"--config {args.config}: not together with --resume {resume}, which has its own")
    if resume is not None:
        return parse(argv, read_flags("resume", Path(resume) / "config.json"))
    if not args.config:
        return args
    recorded = read_flags("config", args.config)
    if "n_epochs" not in recorded and "n_epochs" not in given(argv):
        text = "was made longer while it ran, and cannot be run again; to start afresh, give --n_epochs"
        raise InputError(f"--config {args.config}: {text}")
    return parse(argv, recorded)


# ---- The bounded decoder, the LVAE, the volume loss ------------------------------------------------------------------


class _Normalised(torch.autograd.Function):
    """x @ (weight / norm).T + bias, the gradient of the norm included: d norm / d weight = outer(u, v).

    x (B, inputs), weight (outputs, inputs), bias and u (outputs,), v (inputs,), norm (). Autograd would make the outer
    product a matrix of its own, and a training step would take longer.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, u, v, norm):
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        ctx.wide = weight.numel() > x.numel()  # the smaller of the two is divided
        x, weight = (x / norm, weight) if ctx.wide else (x, weight / norm)
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight, u, v, norm)
        return F.linear(x, weight, bias.to(dtype))

    @staticmethod
    def backward(ctx, grad):
        x, weight, u, v, norm = ctx.saved_tensors
        grad_x, grad_weight = grad @ weight, (grad.T @ x).to(u.dtype)
        if ctx.wide:
            grad_norm = -(grad_x.to(u.dtype) * x).sum() / norm
            grad_x = grad_x / norm
        else:
            grad_norm = -(grad_weight * weight).sum() / norm
            grad_weight /= norm
        return grad_x, grad_weight.addr_(u, grad_norm * v), grad.to(u.dtype).sum(0), None, None, None


class BoundedLinear(nn.Linear):
    """A Linear whose weight is divided by its largest singular value: a 1-Lipschitz map (Miyato et al., 2018).

    One power iteration a training step keeps up with the weight. torch's own spectral_norm does the same, but under
    autocast in bf16, which rounds the vectors away.
    """

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("u", torch.randn(outputs))
        self.register_buffer("v", torch.randn(inputs))
        for _ in range(30):
            self._iterate()

    @torch.no_grad()
    def _iterate(self):
        self.v.copy_(F.normalize(self.weight.T @ self.u, dim=0))
        image = self.weight @ self.v
        self.u.copy_(F.normalize(image, dim=0))
        return image.norm()  # u @ weight @ v

    @torch.no_grad()
    def norm(self):
        """The weight's largest singular value, as the power iteration knows it: a number, without its gradient."""
        return self.u @ (self.weight @ self.v)

    def forward(self, x):  # (B, inputs) -> (B, outputs)
        with torch.autocast(x.device.type, enabled=False):
            norm = self._iterate() if self.training else self.norm()
        return _Normalised.apply(x, self.weight, self.bias, self.u.clone(), self.v.clone(), norm)


class LVAE(Autoencoder):
    """The autoencoder in training: a free encoder, and a decoder of Lipschitz bound `lipschitz` before its sigmoid."""

    linear = BoundedLinear


def volume(std, active, kind, eta):
    """The volume loss of the latent set: a scalar of its widths std (latent_dim,); active: bool (latent_dim,).

    geometric: exp(mean_i log(std_i + eta)) over all dimensions, pruned ones at the std they had (Chen & Fuge). Pruning
    leaves it and its gradient as they were, but its pull on a dimension depends on how many there are.
    log: sum_i log(std_i + eta) over the active dimensions. A dimension feels the same pull however many others there
    are, so that the answer does not depend on latent_dim.
    """
    log = (std + eta).log()
    return log.mean().exp() if kind == "geometric" else torch.where(active, log, 0.0).sum()


@torch.no_grad()
def compact(model, pruner, z, held, flags, conditions=None):
    """What model.pt holds: the lvae.CompactLVAE of a trained LVAE, as plain tensors, numbers and lists.

    z, held (N, latent_dim): the latents of the training designs, and of the validation designs, by which the bandwidth
    of their density is chosen; conditions {name: (N,)}: those of the training designs.
    """
    from tools.design import bandwidth, regression

    dims, state = pruner.active.nonzero()[:, 0], {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            norm = layer.norm() if isinstance(layer, BoundedLinear) else 1.0
            state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight / norm, layer.bias.clone()
    for key in (f"encoder.{len(model.encoder) - 1}.{kind}" for kind in ("weight", "bias")):
        state[key] = state[key][dims]
    # The pruned latents are constants: what they contribute to the first layer of the decoder goes into its bias.
    frozen = torch.where(pruner.active, 0.0, pruner.mean)
    state["decoder.0.bias"] += model.lipschitz * state["decoder.0.weight"] @ frozen
    state["decoder.0.weight"] = state["decoder.0.weight"][:, dims]
    z, held = (latents[:, dims].float().cpu() for latents in (z, held))
    found = dict(latents=z.contiguous(), bandwidth=bandwidth(z, held))
    found["known"] = regression(conditions, z.double()) if conditions else None
    state = {key: value.cpu().contiguous() for key, value in state.items()}
    return dict(flags=flags, shape=list(model.shape), dims=dims.tolist(), state=state) | found


# ---- Training --------------------------------------------------------------------------------------------------------


class Adam:
    """torch's fused Adam, by its functional form: torch.optim.Adam itself imports the compiler.

    That takes a second of each start: python -X importtime -c "import torch; torch.optim.Adam([torch.ones(1)])"
    """

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.means, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self, lr):
        """One step down the gradients, which are used up."""
        state = ([p.grad for p in self.parameters], self.means, self.squares, [], self.steps)
        fixed = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0, amsgrad=False, maximize=False, fused=True)
        adam(self.parameters, *state, lr=lr, **fixed)
        for p in self.parameters:
            p.grad = None

    def state_dict(self):
        return dict(means=self.means, squares=self.squares, steps=self.steps)

    def load_state_dict(self, state):
        self.means, self.squares, self.steps = (state[key] for key in ("means", "squares", "steps"))


class Trainer:
    """Model, optimiser, pruner and designs on their device."""

    def __init__(self, args, designs, device):
        torch.manual_seed(args.seed)
        self.args, self.device = args, device
        self.train, self.val = designs.train.to(device), designs.val.to(device)
        self.model = LVAE(self.train.shape[2:], args.latent_dim, args.lipschitz).to(device)
        variance = F.mse_loss(self.val, self.train.mean(0).expand_as(self.val)).item()
        self.pruner = Pruner(args.latent_dim, args, device, variance)
        self.optimizer = Adam(self.model.parameters())
        self.batch = min(args.batch_size, len(self.train))
        self._forget_best()

    def _forget_best(self):
        self.best = dict(val_rec=INF, epoch=-1, weights=None)  # since the last pruning; weights: with --keep best

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16")

    def w_v(self, epoch):
        n, args = self.args.polynomial_schedule_n, self.args
        # Until the model is better than the mean design by a tenth, the log volume would flatten what has yet to learn
        if args.volume == "log" and 0.9 * self.pruner.variance < self.pruner.least < INF:
            return 0.0
        # The log volume is a sum, its weight is for 100 latents. Unless it falls with the width, wide models fall flat
        wide = min(1.0, 100 / args.latent_dim) if args.volume == "log" else 1.0
        return args.w_v * wide * (min(1.0, epoch / n) ** args.polynomial_schedule_p if n else 1.0)

    def volume(self, z):
        return volume(self.pruner.batch_std(z), self.pruner.active, self.args.volume, self.args.eta)

    def steps(self, epoch, w_v):
        """The training steps of an epoch (from 0). Returns the means of rec, vol and total loss (3,), on the device.

        Everything random is drawn from a generator seeded by (seed, epoch): a resumed run needs no random state to go
        on bit for bit. Nothing is read back from the device before the epoch is over.
        """
        args = self.args
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
        steps = len(self.train) // self.batch
        order = torch.randperm(len(self.train), generator=generator)[: steps * self.batch]
        order = order.view(steps, self.batch).to(self.device)
        lr = args.lr * (0.51 + 0.49 * math.cos(math.pi * epoch / args.n_epochs))  # cosine, down to 2 %
        share = 0.5 if args.mirror and args.problem == "photonics2d" else 0.0
        mirrored = (torch.rand(steps, self.batch, 1, 1, 1, generator=generator) < share).to(self.device)
        sums = torch.zeros(3, device=self.device)
        self.model.train()
        for batch, flip in zip(order, mirrored, strict=True):
            x = self.train[batch]
            x = torch.where(flip, x.flip(3), x)
            with self.autocast():
                z = self.model.encode(x)
                self.pruner.update(z.detach())
                rec = F.mse_loss(self.model.decode(self.pruner.mask(z)), x)
            vol = self.volume(z)
            loss = rec + w_v * vol
            loss.backward()
            self.optimizer.step(lr)
            sums += torch.stack((rec.detach(), vol.detach(), loss.detach()))
        return sums / steps

    @torch.no_grad()
    def rotate(self):
        """Turn the active latents to the principal axes of the training designs, largest variance first, in float64.

        With latents of covariance V diag(l) V^T and R = V^T: the encoder's last layer W becomes R W, the decoder's
        first W R^T. The model computes what it did, and an orthogonal map leaves the singular values, and so the bound.
        By Hadamard's inequality prod_i std_i >= sqrt(det covariance), with equality on these axes alone: no basis has
        less volume. Adam's means rotate likewise; R^2 gives mean squares of gradients whose entries are uncorrelated.
        """
        active, encoder, decoder = self.pruner.active, self.model.encoder[-1], self.model.decoder[0]
        self.model.eval()
        with self.autocast():
            z = torch.cat([self.model.encode(x) for x in self.train.split(256)])
        z = z[:, active].double().cpu()  # not every GPU has float64
        if not z.isfinite().all():
            return
        mean = z.mean(0)
        values, vectors = torch.linalg.eigh((z - mean).T @ (z - mean) / len(z))
        R = vectors.T.flip(0)  # (k, k), rows: axes

        def turn(rows, R):  # the active ones of rows (latent_dim, ...)
            rows[active] = (R @ rows[active].double().cpu()).to(rows)

        turn(decoder.v, R)
        adam = self.optimizer
        for p, first, second in zip(adam.parameters, adam.means, adam.squares, strict=True):
            if any(p is turned for turned in (encoder.weight, encoder.bias, decoder.weight)):
                for x, by in ((p, R), (first, R), (second, R.square())):
                    turn(x.T if p is decoder.weight else x, by)  # its columns are the latents
        self.pruner.std[active] = values.flip(0).clamp_min(0).sqrt().to(self.pruner.std)
        self.pruner.mean[active] = (R @ mean).to(self.pruner.mean)

    def epoch(self, epoch):
        """Train an epoch, validate, rotate, prune, trim. Returns (row of metrics.csv, row of pruning.csv or None)."""
        args, start, w_v = self.args, time.perf_counter(), self.w_v(epoch)
        losses = self.steps(epoch, w_v)
        rec_loss, vol_loss, total_loss, val_rec, val_vol = torch.stack((*losses, *self.validate(self.val))).tolist()
        if args.rotate_every and (epoch + 1) % args.rotate_every == 0:
            self.rotate()
        bound, dims = data.PROBLEMS[args.problem].get("bound"), int(self.pruner.active.sum())
        proposal = self.pruner.step(epoch, val_rec, self.error_without)
        changed = proposal["pruned"] + proposal["trimmed"] - proposal["restored"] if proposal else 0
        if proposal and any(proposal[key] for key in ("pruned", "trimmed", "restored")):
            self._forget_best()  # val_rec of this epoch was measured before
        elif val_rec < self.best["val_rec"]:
            weights = copy.deepcopy(self.state("model", "pruner")) if args.keep == "best" else None
            self.best = dict(val_rec=val_rec, epoch=epoch, weights=weights)
        row = dict(epoch=epoch, rec_loss=rec_loss, vol_loss=vol_loss, total_loss=total_loss)
        row |= dict(val_rec=val_rec, val_vol_loss=val_vol, val_total_loss=val_rec + w_v * val_vol)
        row |= dict(active_dims=int(self.pruner.active.sum()), w_v=w_v, pruned=changed)
        # What an optimiser may minimise, the error or the dimensions: only after pruning had a tenth of the run to act
        late = epoch >= args.pruning_epoch + args.n_epochs // 10
        row["val_rec_pruned"] = val_rec if late else None
        row["dims_within"] = (dims if val_rec <= bound else args.latent_dim) if late and bound else None
        row["epoch_seconds"] = time.perf_counter() - start
        return row, proposal

    @torch.no_grad()
    def reconstruct(self, x):
        """Designs (N, 1, H, W) -> their latents (N, latent_dim) and reconstructions (N, 1, H, W)."""
        self.model.eval()
        latents, images = [], []
        with self.autocast():
            for batch in x.split(256):
                latents.append(self.pruner.mask(self.model.encode(batch)))
                images.append(self.model.decode(latents[-1]))
        return torch.cat(latents), torch.cat(images)

    def error_without(self, dims):
        """val_rec with the latents `dims` at their mean, as if they were pruned."""
        active = self.pruner.active.clone()
        self.pruner.active[dims] = False
        val_rec = self.validate(self.val)[0].item()
        self.pruner.active.copy_(active)
        return val_rec

    def validate(self, x):
        """Mean squared error and volume of designs x, as 0-d tensors."""
        z, images = self.reconstruct(x)
        return F.mse_loss(images, x), self.volume(z)

    def state(self, *parts):
        """The state of these parts. What reconstruct() depends on are "model" and "pruner"."""
        return {part: getattr(self, part).state_dict() for part in parts}

    def load_state(self, state):
        for part in state.keys() & {"model", "optimizer", "pruner"}:
            getattr(self, part).load_state_dict(state[part])


def pca_errors(train, x):
    """Mean squared errors (rank + 1,) of designs x (N, 1, H, W) behind their first 0, 1, 2, ... principal components.

    The components are those of `train`. They are eigenvectors of the covariance; the smaller of its two forms is taken,
    and is faster than an SVD.
    """
    train, x = train.flatten(1).double(), x.flatten(1).double()
    mean = train.mean(0)
    train, x = train - mean, x - mean
    small = len(train) < train.shape[1]
    values, vectors = torch.linalg.eigh(train @ train.T if small else train.T @ train)
    components = vectors.T[values > 1e-12 * values[-1]].flip(0)  # beyond the rank there is only rounding
    if small:
        components = F.normalize(components @ train, dim=1)
    explained = (x @ components.T).square().mean(0) / x.shape[1]
    return (x.square().mean() - F.pad(explained.cumsum(0), (1, 0))).clamp_min(0)


# ---- Main ------------------------------------------------------------------------------------------------------------

# A run's length where n_epochs is not given: so many epochs, or as many as make so many steps if those are fewer
EPOCHS, STEPS = 100, 6000


class Stop:
    """Turns SIGINT and SIGTERM into a wish that the loop looks at between epochs; a second SIGINT interrupts at once.

    Before the loop there is nothing to save, and something may hang: the process ends there and then.
    """

    def __init__(self):
        self.code, self.looping = None, False
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number, _frame):
        if self.code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = 128 + number
        if not self.looping:
            with contextlib.suppress(OSError):
                os.write(2, b"stopped before the first epoch\n")
            os._exit(self.code)


def schedule(args, n_train):
    """Settle the flags that follow the number of training designs, where they were not given."""
    steps = max(1, n_train // args.batch_size)  # an epoch
    if args.n_epochs is None:
        args.n_epochs = min(EPOCHS, math.ceil(STEPS / steps))
    if args.pruning_epoch is None:  # not before step 400: photonics2d learns nothing in the first 100
        args.pruning_epoch = min(args.n_epochs // 2, max(args.n_epochs // 10, math.ceil(400 / steps)))
    if args.polynomial_schedule_n is None:
        args.polynomial_schedule_n = args.pruning_epoch
    n, first = args.polynomial_schedule_n, f"--pruning_epoch {args.pruning_epoch}"
    warn = functools.partial(print, "warning:", file=sys.stderr)
    if args.batch_size > n_train:
        warn(f"--batch_size {args.batch_size} is above the {n_train} training designs: each step takes all of them")
    if args.strategy != "none" and args.pruning_epoch >= args.n_epochs:
        warn(f"{first} is not before --n_epochs {args.n_epochs}: never prunes")
    elif args.strategy != "none" and args.pruning_epoch < n:
        warn(f"{first} comes before w_v is reached (--polynomial_schedule_n {n})")


def settle(args):
    """Settle what `auto` means for device, precision and threads; returns the torch.device."""
    n = torch.cuda.device_count()
    there = ["auto", "cpu", "cpu:0", *["cuda"] * (n > 0), *(f"cuda:{i}" for i in range(n))]
    need(args.device in there, f"--device {args.device}: not usable here; allowed: {', '.join(there)}")
    if args.device == "auto":
        args.device = "cuda" if n else "cpu"
    if args.precision == "auto":  # bf16 where the hardware multiplies in it: emulated, it is ten times slower than fp32
        gpu = args.device.startswith("cuda")
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else torch.cpu._is_amx_tile_supported()
        args.precision = "bf16" if fast else "fp32"
    if args.threads or "OMP_NUM_THREADS" not in os.environ:  # torch does not know of a container's CPU quota
        torch.set_num_threads(args.threads or min(torch.get_num_threads(), record.cores()))
    args.threads = torch.get_num_threads()
    return torch.device(args.device)


def train(args):
    """Train a run to its end, or until it is stopped. Returns the exit code."""
    designs = data.load(args.problem, args.data, args.toy_dims, args.n_train)
    print(f"data: {designs.about}", flush=True)
    args.data = designs.fingerprint["source"] if args.data == "auto" else args.data
    if args.test and len(designs.test) < 2:
        there = f"{len(designs.test)} designs in the test split of --data {args.data}"
        raise InputError(f"--test: {there}; at least 2 are needed")
    schedule(args, len(designs.train))
    folder, old = record.locate(args, designs.fingerprint)
    device = settle(args)
    if old and (status := record.status(folder)):
        record.tidy(folder)  # killed after its summary
        print(f"{folder}: this run is {status} already")
        return 3 if status == "diverged" else 0
    stop = Stop()
    run = record.open_run(folder, old, args, designs.fingerprint, device)
    trainer, first = Trainer(args, designs, device), 0
    if old and (state := run.restore(device)):
        trainer.load_state(state)
        best, first = state["best"], state["epoch"] + 1
        older = isinstance(best, tuple)  # val_rec, epoch
        trainer.best = dict(val_rec=best[0], epoch=best[1], weights=None) if older else best
        print(f"{run.config['name']}: continuing at epoch {first}", flush=True)
    tracker = record.NoWandb()
    try:
        tracker = record.open_wandb(args, run)
        code, cause, epoch = fit(trainer, run, tracker, stop, first)
        if code in (0, 3):
            summary = dict(status="diverged" if cause else "finished", cause=cause)
            summary |= dict(id=run.id, name=run.config["name"], epoch=epoch)
            if code == 0:
                summary |= conclude(trainer, designs, run)
                tracker.images(run.folder / "figures", epoch)
            run.finish(summary, tracker, code)
            report(run, summary, args, len(designs.train))
        else:
            python = os.path.relpath(sys.executable)  # of .venv, which need not be activated
            print(f"\nstopped; continue with: {python} train.py --resume {run.folder}", flush=True)
            tracker.finish({}, code)
    except OSError as error:
        tracker.finish({}, 4)
        raise OSError(f"{run.folder}: {error}; what was written is kept") from None
    return code


def fit(trainer, run, tracker, stop, first):
    """The epochs from `first` on. Returns (exit code, why it diverged or None, last epoch)."""
    args, started, tty = trainer.args, time.monotonic(), sys.stderr.isatty()
    saved, shape = started, "{percentage:3.0f}%|{bar:20}| {desc}"
    bar = tqdm(range(first, args.n_epochs), total=args.n_epochs, initial=first, disable=not tty, bar_format=shape)
    stop.looping = True
    for epoch in bar:
        row, proposal = trainer.epoch(epoch)
        judged = {key: row[key] for key in ("rec_loss", "vol_loss", "total_loss", "val_rec")}
        if not all(map(math.isfinite, judged.values())):
            return 3, f"epoch {epoch}: {', '.join(f'{key} {value}' for key, value in judged.items())}", epoch
        run.append("metrics.csv", row)
        if proposal:
            run.append("pruning.csv", proposal)
        tracker.log(row)
        eta = (time.monotonic() - started) / (epoch - first + 1) * (args.n_epochs - epoch - 1)
        line = f"epoch {epoch:5d} ({epoch + 1}/{args.n_epochs})  val_rec {row['val_rec']:.6f}  "
        line += f"vol {row['vol_loss']:.5f}  dims {row['active_dims']:4d}  pruned {row['pruned']:3d}  "
        line += f"{row['epoch_seconds']:6.2f} s/epoch  ETA {datetime.timedelta(seconds=round(eta))}"
        if tty:
            bar.set_description_str(line, refresh=False)
        else:
            print(line, flush=True)
        if args.figure_every and (epoch + 1) % args.figure_every == 0:
            draw(trainer, run.folder)
            tracker.images(run.folder / "figures", epoch)
        if epoch + 1 == args.n_epochs:
            break
        due = (epoch + 1) % args.checkpoint_every == 0 if args.checkpoint_every else time.monotonic() - saved > 60
        code = stop.code  # once: a signal may come while the checkpoint is written
        if due or code:
            run.checkpoint(trainer.state("model", "optimizer", "pruner") | dict(epoch=epoch, best=trainer.best))
            saved = time.monotonic()
        if code:
            return code, None, epoch
    return 0, None, args.n_epochs - 1


def draw(trainer, folder, pca=None):
    from tools import figures

    figures.draw(trainer, folder, pca)


def conclude(trainer, designs, run):
    """What is measured once, at the end, on the weights that are kept. Returns the entries of the summary."""
    args, best, metrics = trainer.args, trainer.best, record.read_csv(run.folder / "metrics.csv")
    last_val_rec = trainer.validate(trainer.val)[0].item()
    trainer.load_state(best["weights"] or {})
    val_rec, val_vol = (value.item() for value in trainer.validate(trainer.val))  # after the last pruning
    dims, pca = int(trainer.pruner.active.sum()), pca_errors(designs.train, designs.val)
    pca = pca[min(dims, len(pca) - 1)].item()
    at = best["epoch"] if best["weights"] else -1  # no weights: --keep last, or pruned in the very last epoch
    summary = dict(rec_loss=float(metrics["rec_loss"].iloc[at]), val_rec=val_rec)
    summary |= dict(val_vol_loss=val_vol, val_total_loss=val_rec + trainer.w_v(args.n_epochs - 1) * val_vol)
    summary |= dict(active_dims=dims, last_val_rec=last_val_rec)
    if not math.isfinite(best["val_rec"]):  # pruned in the very last epoch: no epoch has the dimensions that are left
        best = dict(val_rec=val_rec, epoch=args.n_epochs - 1)
    summary |= dict(best_val_rec=best["val_rec"], best_epoch=best["epoch"], prune_events=trainer.pruner.events)
    summary |= dict(pca_rec=pca, pca_ratio=val_rec / pca if pca > 1e-12 else None)  # 1e-12: rounding
    summary |= dict(seconds=round(metrics["epoch_seconds"].astype(float).sum(), 1), metrics_sha256=run.metrics_digest())
    if args.test:
        summary["test_rec"] = trainer.validate(designs.test.to(trainer.device))[0].item()
    draw(trainer, run.folder, pca)
    if args.save_model:
        z, held = (trainer.reconstruct(x)[0] for x in (trainer.train, trainer.val))
        flags, buffer = json.loads(record.to_json(vars(args))), io.BytesIO()
        torch.save(compact(trainer.model, trainer.pruner, z, held, flags, designs.conditions["train"]), buffer)
        record.write_atomically(run.folder / "model.pt", buffer.getvalue())
    return summary


def report(run, summary, args, n_train):
    """Print what was found, what to make of it, and where it is."""
    if summary["status"] == "diverged":
        print(f"diverged: {summary['cause']}; a smaller --lr may help", file=sys.stderr)
        return
    kept, ratio = summary["active_dims"], summary["pca_ratio"]
    print(f"\n{summary['name']}: {kept} of {args.latent_dim} latent dimensions kept, val_rec {summary['val_rec']:.3g}")
    shown = f"ratio {ratio:.3g}" if ratio else "ratio n/a: PCA's error is 0 to rounding"
    print(f"PCA with as many dimensions: {summary['pca_rec']:.3g} ({shown})")
    if ratio is None or ratio > 1:
        each = max(1, n_train // args.batch_size)
        steps = args.n_epochs * each
        cause = f"{n_train} designs to train on are few"
        if steps < STEPS:
            cause = f"{steps:,} steps are few: try --n_epochs {math.ceil(STEPS / each)}, which makes {STEPS:,}"
        elif n_train > 1000:
            cause = f"the pull on the volume (--w_v {args.w_v:g})"
        print(f"worse than PCA; the likely cause: {cause}")
    proposals = record.read_csv(run.folder / "pruning.csv").to_dict("records")
    if proposals and int(proposals[-1]["epoch"]) == args.n_epochs - 1:
        held = {key: int(proposals[-1][key]) for key in SAFEGUARDS}
        if more := sum(held.values()):
            why = ", ".join(f"{key} {n}" for key, n in held.items() if n)
            advice = "more --n_epochs would let them go, or a weaker safeguard (--safeguards none: none)"
            print(f"{more} more were proposed in the last epoch and held back ({why}); {advice}")
    print(f"run      {run.folder}\nfigures  {run.folder / 'figures'}")


def main(argv=None):
    """Train as the flags say (those of the command line, if none are given). Returns the exit code: docs/records.md."""
    return record.guarded("train.py", lambda: train(resolve(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold characters that the terminal's encoding lacks
    record.leave(main())
