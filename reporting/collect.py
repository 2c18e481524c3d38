"""Finished and unfinished runs, from folders or from W&B, and what a sweep's YAML asked. report.py and gallery.py read through this.

    from reporting.collect import local_runs, study; study("01", local_runs("runs"))     # -> header, runs used, runs left out and why

A run that is broken or half-written is a Run too, with its status and the cause: the report lists it and goes on.
"""

import contextlib
import csv
import fcntl
import itertools
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from reporting.stats import ALPHA

SWEEPS = Path(__file__).parent.parent / "sweeps"
LEVEL = dict(plummet="plummet_threshold", pca_cdf="cdf_threshold", lognorm="percentile", probabilistic="temperature")
CATEGORICAL = ("problem", "strategy", "safeguards")  # a run whose value of these is not in the YAML's list belongs to another sweep
NEEDED = ("problem", "strategy", "seed")  # flags without which a run belongs nowhere
BORROWS = {"01b": ("01b", "01")}  # 01's runs are the fourth level of each strategy


class InputError(ValueError):
    """Bad input, as data.InputError; not imported from there, since data.py imports torch, which takes longer than a report."""


@dataclass
class Run:
    """One run as found. status: finished | diverged | running | stopped | broken; metrics: column -> (epochs,) float, NaN where empty."""

    id: str
    where: str
    status: str
    cause: str = ""
    flags: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    machine: dict = field(default_factory=dict)
    git: str | None = None
    sweep: str = ""  # the id of the sweep it was made for, 01b_strategy_sensitivity-k3x9wq
    started: str = ""
    summary: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    pruning: list = field(default_factory=list)

    def value(self, name):
        """A number of the summary, NaN where it has none."""
        return number(self.summary.get(name))


@dataclass
class Study:
    """A sweep's YAML and the runs that answer it. arm: run.where -> label of its arm; points: how many the YAML asks for."""

    name: str
    title: str
    question: str
    hypothesis: str
    rule: str
    margin: float  # log(1 + N / 100) for `margin N %` in the rule, else 0
    alpha: float  # N / 100 for `two-sided, N %` or `below N %` in the rule, else stats.ALPHA
    parameters: dict
    early_terminate: dict
    points: int
    runs: list  # all that belong, whatever their status
    left_out: list  # (run, why)
    notes: list  # what the choice of runs did, in words
    arm: dict

    @property
    def done(self):
        return [run for run in self.runs if run.status == "finished"]

    @property
    def problems(self):
        return sorted({run.flags["problem"] for run in self.runs if run.flags})


def number(value):
    """float(value), NaN for anything that is none (None, "", text, a truncated cell)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


# ------------------------------------------------------------------------------------------------------------- run folders


def local_runs(root):
    """Every run below the folder `root`, by its config.json (or by what else a run leaves, if that is missing)."""
    root = Path(root)
    if root.suffix == ".csv" and root.is_file():
        return [_from_row(row, root) for row in _rows(root)]
    if not root.is_dir():
        raise InputError(f"--runs {root}: no such folder; allowed: a folder with run folders anywhere below it, or a results/NN.csv")
    names = ("config.json", "metrics.csv", "summary.json")
    folders = sorted({path.parent for name in names for path in root.rglob(name) if "wandb" not in path.relative_to(root).parts})
    return [read_run(folder) for folder in folders]


def read_run(folder):
    """The run in `folder`. Never raises: what cannot be read becomes status broken, with the cause."""
    run = Run(id=folder.name, where=str(folder), status="broken")
    try:
        config = json.loads((folder / "config.json").read_text())
        run.flags, run.data = dict(config["flags"]), dict(config["data"])
        for key in NEEDED:
            if key not in run.flags:
                raise KeyError(f"no flag {key}")
        run.id, run.started, run.git = str(config.get("id", folder.name)), str(config.get("started") or ""), config.get("git")
        run.sweep = str(config.get("sweep") or "")
        run.versions, run.machine = dict(config.get("versions") or {}), dict(config.get("machine") or {})
    except FileNotFoundError:
        run.cause = "no config.json"
        return run
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        run.cause = f"config.json cannot be used ({type(error).__name__}: {error})"
        return run
    rows = _rows(folder / "metrics.csv")
    run.metrics = {key: np.array([number(row[key]) for row in rows]) for key in (rows[0] if rows else ())}
    run.pruning = _rows(folder / "pruning.csv")
    try:
        run.summary = dict(json.loads((folder / "summary.json").read_text()))
    except FileNotFoundError:
        run.status = "running" if _locked(folder) else "stopped"
        run.cause = f"{len(rows)} of {run.flags.get('n_epochs', '?')} epochs"
        return run
    except (OSError, ValueError, TypeError) as error:
        run.cause = f"summary.json cannot be read ({type(error).__name__})"
        return run
    return _settle(run)


def _settle(run):
    """Give a run with a summary its status: the summary's, if the record agrees with it."""
    run.status, run.cause = str(run.summary.get("status")), str(run.summary.get("cause") or "")
    if run.status == "diverged":
        return run
    epochs = run.metrics.get("epoch", np.array([]))
    if run.status != "finished":
        run.status, run.cause = "broken", f"summary.json says status {run.summary.get('status')!r}; allowed: finished, diverged"
    elif not run.value("val_rec") > 0 or not math.isfinite(run.value("val_rec")):
        run.status, run.cause = "broken", f"summary.json has val_rec {run.summary.get('val_rec')!r}, not a positive number"
    elif not len(epochs) or ("epoch" in run.summary and epochs[-1] != run.value("epoch")):
        last = int(epochs[-1]) if len(epochs) else "nowhere"
        run.status, run.cause = "broken", f"metrics.csv ends at epoch {last}, summary.json at {run.summary.get('epoch')}"
    return run


def _from_row(row, path):
    """A row of results/NN.csv -> Run: what is left of a study whose machine is lost. Such a run has no curves and no proposals."""
    run = Run(id=row.get("id", ""), where=f"{path}:{row.get('id')}", status="broken", started=row.get("recorded", ""))
    if not row.get("problem") or not row.get("strategy"):
        run.cause = "a row without problem or strategy"
        return run
    run.flags = {key: value for key, value in row.items() if key not in ("id", "name", "sweep", "status", "cause", "recorded", "host")}
    run.sweep = row.get("sweep", "")
    run.data = {"source": row.get("data_source"), "sha256": row.get("data_sha256")}
    run.git, run.machine, run.summary = row.get("git") or None, {"cpu": row.get("host")}, dict(row)
    run.status, run.cause = {"stopped early": "stopped"}.get(row["status"], row["status"]), row.get("cause", "")
    if run.status == "finished" and not run.value("val_rec") > 0:
        run.status, run.cause = "broken", f"val_rec is {row.get('val_rec')!r}"
    return run


def _rows(path):
    """Rows of a CSV as dicts; an unfinished last line, and any line with the wrong number of cells, is left out."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(whole.splitlines()))
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:] if len(line) == len(lines[0])] if lines else []


def _locked(folder):
    """True if a process is at work in the folder (train.py holds an exclusive lock on its file `lock`)."""
    with contextlib.suppress(FileNotFoundError), open(folder / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------- W&B


def wandb_runs(path, api=None):
    """Runs of a W&B sweep, entity/project/sweep id. pruning.csv is not on W&B, so that those runs have no proposals."""
    if len(path.split("/")) != 3:
        raise InputError(f"--wandb {path}: allowed: entity/project/sweep id")
    if api is None:
        import wandb

        api = wandb.Api()
    try:
        return [_from_wandb(found) for found in api.sweep(path).runs]
    except Exception as error:  # wandb raises its own, requests' and ValueError for a sweep that is not there
        raise InputError(f"--wandb {path}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:160]})") from None


def _from_wandb(found):
    """A W&B run object -> Run."""
    config = dict(found.config)
    run = Run(id=found.id, where="/".join(found.path), status="broken", started=str(found.created_at or ""))
    run.flags = {key: value for key, value in config.items() if not key.startswith("_")}
    run.data, run.git = dict(config.get("_data") or {}), config.get("_git")
    run.sweep = str(getattr(found, "group", None) or "")
    run.versions, run.machine = dict(config.get("_versions") or {}), dict(config.get("_machine") or {})
    missing = [key for key in NEEDED if key not in run.flags]
    if missing:
        run.cause = f"its config has no {', '.join(missing)}"
        return run
    rows = [row for row in found.scan_history() if row.get("epoch") is not None and row.get("val_rec") is not None]
    columns = sorted({key for row in rows for key in row if not key.startswith("_")})
    run.metrics = {key: np.array([number(row.get(key)) for row in rows]) for key in columns}
    run.summary = {key: value for key, value in dict(found.summary).items() if not key.startswith("_")}
    if found.state == "finished" or run.summary.get("status") in ("finished", "diverged"):
        return _settle(run)
    states = dict(running="running", pending="running", killed="stopped", preempted="stopped", preempting="stopped")
    run.status, run.cause = (
        states.get(found.state, "broken"),
        f"W&B says {found.state}, {len(rows)} of {run.flags.get('n_epochs', '?')} epochs",
    )
    return run


# --------------------------------------------------------------------------------------------------------------- the study


def header(path):
    """(YAML as a dict, {keyword: text}) of a sweep file: comment lines `# Keyword: text`, continued by indented comment lines."""
    text = Path(path).read_text()
    found, keyword = {}, None
    for line in text.splitlines():
        if not line.startswith("#"):
            if line.strip():
                break
            continue
        body = line[1:]
        start = re.match(r" ?([A-Z][A-Za-z ]{2,30}): *(.*)", body)
        if start:
            keyword = start[1].strip().lower()
            found[keyword] = start[2].strip()
        elif keyword and re.match(r" {2,}\S", body):
            found[keyword] = f"{found[keyword]} {body.strip()}".strip()
        else:
            keyword = None
    return yaml.safe_load(text) or {}, found


def arm_of(name, run):
    """The label of a run's arm in sweep `name`."""
    strategy, level = run.flags["strategy"], run.flags.get(LEVEL.get(run.flags["strategy"]))
    if name == "01":
        return strategy
    if name == "02":
        return str(run.flags.get("safeguards"))
    return strategy if level is None else f"{strategy} {number(level):g}"


def study(name, runs):
    """Choose from `runs` those that answer sweep `name` (01, 01b, ... 06). Raises InputError if there is no such sweep."""
    paths = sorted(SWEEPS.glob(f"{name}_*.yaml"))
    if len(paths) != 1:
        allowed = ", ".join(sorted(p.name.split("_")[0] for p in SWEEPS.glob("[0-9]*.yaml")))
        raise InputError(f"--sweep {name}: no such sweep; allowed: {allowed or 'none, sweeps/ is empty'}")
    spec, words = header(paths[0])
    spec = _as_created(spec, name, runs)
    parameters = spec.get("parameters", {})
    varied = {key: p["values"] for key, p in parameters.items() if len(p.get("values", ())) > 1}
    ranges = {key for key, p in parameters.items() if "min" in p}
    level = re.search(r"(?:two-sided,|below) (\d+(?:\.\d+)?) ?%", words.get("rule", ""))
    margin = re.search(r"margin (\d+(?:\.\d+)?) ?%", words.get("rule", ""))
    points = spec["run_cap"] if "run_cap" in spec else math.prod(map(len, varied.values()))
    used, left_out, notes = [], [], []
    for run in runs:
        owner = _owner(run)
        if owner and owner not in BORROWS.get(name, (name,)):
            continue  # it says itself that it belongs to another sweep
        # A broken run may have no flags at all: it is listed wherever it was found
        wrong = [k for k in CATEGORICAL if k in run.flags and not _in_sweep(k, run.flags[k], parameters, search="run_cap" in spec)]
        if wrong and not owner:  # PROBLEM= and SET= may have changed a list, too
            left_out.append((run, f"{wrong[0]} {run.flags[wrong[0]]} is not in this sweep"))
        else:
            used.append(run)
    used = _same_settings(used, parameters, varied.keys() | ranges, left_out, notes)
    arms = {run.where: arm_of(name, run) for run in used if run.flags}
    if name in ("04", "05", "06") and len({run.flags.get("safeguards") for run in used if run.flags}) > 1:
        arms = {run.where: str(run.flags.get("safeguards")) for run in used if run.flags}
    used = _one_a_point(used, arms, varied.keys() | ranges, left_out)
    if "run_cap" in spec:
        points *= max(1, len({run.flags["problem"] for run in used if run.flags}))  # created once a problem
    title = paths[0].stem.partition("_")[2].replace("_", " ")
    asked = {key: words.get(key) or "not stated in the YAML" for key in ("question", "hypothesis", "rule")}
    log_margin = math.log1p(float(margin[1]) / 100) if margin else 0.0
    return Study(
        name,
        title,
        **asked,
        margin=log_margin,
        alpha=float(level[1]) / 100 if level else ALPHA,
        parameters=parameters,
        points=points,
        early_terminate=spec.get("early_terminate") or {},
        runs=used,
        left_out=left_out,
        notes=notes,
        arm=arms,
    )


def _owner(run):
    """The number of the sweep that a run was made for, 01b of 01b_strategy_sensitivity-k3x9wq or 01b-trial_..., "" if for none."""
    number = re.match(r"(\d\d[a-z]?)[-_]", run.sweep)
    return number[1] if number else ""


def _as_created(spec, name, runs):
    """The sweep as sweep.py created it (PROBLEM=, SEEDS=, SET= narrow it), if all runs are of one that is known here; else its file."""
    ids = {run.sweep for run in runs if _owner(run) == name}
    try:
        return json.loads((Path(".sweeps") / ids.pop() / "sweep.json").read_text())["config"] if len(ids) == 1 else spec
    except (OSError, ValueError, KeyError, TypeError):
        return spec


def _in_sweep(key, value, parameters, search):
    """Can a run of this sweep have the value? STRATEGY= may change a fixed strategy; a search goes problem by problem."""
    p = parameters.get(key, {})
    if key == "problem" and "value" in p and not search:
        return value == p["value"]
    return len(p.get("values", ())) < 2 or value in p["values"]


def _same(a, b):
    return a == b or math.isclose(number(a), number(b), rel_tol=1e-9)


def _same_settings(runs, parameters, varied, left_out, notes):
    """Runs that agree in every flag that the sweep does not vary: the YAML's value where some run has it, else the most common."""
    skip = set(varied) | {"arm", "problem", "seed"}
    fixed = {key: p.get("value", (p.get("values") or [None])[0]) for key, p in parameters.items() if key not in skip}
    for key in ("n_epochs", "latent_dim", "lr", "w_v", "batch_size", "pruning_epoch", "beta", "eta", "lipschitz", *LEVEL.values()):
        if key not in skip:
            fixed.setdefault(key, None)
    in_arms = " ".join(map(str, parameters.get("arm", {}).get("values", ())))  # what an arm sets differs on purpose
    for key, wanted in fixed.items():
        owner = next((s for s, level in LEVEL.items() if level == key), None)
        if key in ("data", "save_model") or f"{key}=" in in_arms or (owner and in_arms):
            continue
        mine = [run for run in runs if key in run.flags and (owner is None or run.flags["strategy"] == owner)]
        values = Counter(str(run.flags[key]) for run in mine)
        if not values:
            continue
        target = next((v for v in values if wanted is not None and _same(v, str(wanted))), values.most_common(1)[0][0])
        if wanted is not None and not _same(target, str(wanted)):
            notes.append(f"{key} is {target} in these runs; the sweep's file says {wanted}.")
        runs = _drop(runs, [r for r in mine if not _same(str(r.flags[key]), target)], f"other {key}", key, left_out)
    for problem in {run.flags.get("problem") for run in runs if run.flags}:
        mine = [run for run in runs if run.flags.get("problem") == problem]
        digests = Counter(run.data.get("sha256") for run in mine)
        if len(digests) > 1:
            target = digests.most_common(1)[0][0]
            runs = _drop(runs, [run for run in mine if run.data.get("sha256") != target], "other designs than most runs", None, left_out)
    return runs


def _drop(runs, dropped, why, key, left_out):
    ids = {id(run) for run in dropped}
    left_out += [(run, f"{why} ({run.flags[key]})" if key else why) for run in dropped]
    return [run for run in runs if id(run) not in ids]


def _one_a_point(runs, arms, varied, left_out):
    """At most one run a point of the sweep: the finished one, and of several the one that started last."""
    rank = dict(finished=3, running=2, stopped=1, diverged=2, broken=0)
    points = {}
    for run in sorted(runs, key=lambda run: (rank[run.status], run.started, run.where)):
        if run.flags:
            numbers = tuple(str(run.flags.get(key)) for key in sorted(varied - {"arm"}))
            points.setdefault((run.flags["problem"], arms[run.where], str(run.flags["seed"]), numbers), []).append(run)
    kept = {id(same[-1]) for same in points.values()}
    for run in itertools.chain.from_iterable(same[:-1] for same in points.values()):
        left_out.append((run, "another run of the same point is used"))
    return [run for run in runs if not run.flags or id(run) in kept]
