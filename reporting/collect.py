"""Finished and unfinished runs, from folders, from results/NN.csv or from W&B. report.py reads through this.

    from reporting.collect import local_runs; local_runs("runs")     # -> a list of Run

A run that is broken or half-written is a Run too, with its status and the cause: the report lists it and goes on.
"""

import csv
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from record import is_locked
from reporting.stats import instability

HELD = ("k_consecutive", "recon_tol", "cooldown", "cap", "floor", "pruned")  # what comes of a dimension that is proposed
SUMS = [f"sum_{key}" for key in ("proposed", *HELD)]  # of the columns of pruning.csv over the run
RESULT_METRICS = [
    *("epoch", "rec_loss", "val_rec", "val_vol_loss", "val_total_loss", "active_dims", "best_val_rec", "best_epoch"),
    *("pca_rec", "pca_ratio", "prune_events", "seconds", "test_rec"),
    "objective",  # of a search: the metric's best over the run, as its engine sees it
    *("rise", "epochs_above", "collapses", *SUMS),
]
LEVEL = dict(plummet="plummet_threshold", pca_cdf="cdf_threshold", lognorm="percentile", probabilistic="temperature")
# What a row of results/NN.csv holds besides flags and metrics
BOOKKEEPING = (
    *("id", "name", "sweep", "status", "cause"),
    *("reports", "data_source", "data_sha256", "metrics_sha256", "git", "host", "cpu", "recorded"),
)


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


def flags_of(found):
    """A run's flags as a dict. Raises KeyError or TypeError without those that say where it belongs."""
    flags = {key: value for key, value in dict(found).items() if not isinstance(value, dict | list)}
    named = all(isinstance(flags[key], str) and flags[key] for key in ("problem", "strategy"))
    if not named or not math.isfinite(number(flags["seed"])):
        raise TypeError("problem and strategy must be text, seed a number")
    return flags


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
        # 01b is read with 01, and 04 to 06 with one another: the other sweeps of the same edition count, too
        edition = re.fullmatch(r"\d\d[a-z]?(|-.+)\.csv", root.name)
        others = sorted(
            p for p in root.parent.glob("*.csv") if edition and re.fullmatch(rf"\d\d[a-z]?{re.escape(edition[1])}\.csv", p.name)
        )
        return [_from_row(row, path) for path in others or [root] for row in _rows(path)]
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
        run.flags, run.data = flags_of(config["flags"]), dict(config["data"])
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
    for name in SUMS if (folder / "pruning.csv").exists() else ():
        run.summary[name] = sum(number(row.get(name.removeprefix("sum_"))) for row in run.pruning)
    _unsteady(run)
    try:
        run.summary |= json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        run.status = "running" if is_locked(folder) else "stopped"
        run.cause = f"{len(rows)} of {run.flags.get('n_epochs', '?')} epochs"
        return run
    except (OSError, ValueError, TypeError) as error:
        run.cause = f"summary.json cannot be read ({type(error).__name__})"
        return run
    return _settle(run)


def _unsteady(run):
    """Add a run's rise, epochs_above and collapses from pruning_epoch on to its summary (stats.instability)."""
    if "val_rec" in run.metrics and "epoch" in run.metrics:
        run.summary |= instability(run.metrics["epoch"], run.metrics["val_rec"], number(run.flags.get("pruning_epoch")))


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
    run.sweep = row.get("sweep") or path.stem + "-"
    try:
        found = {key: value for key, value in row.items() if key not in (*BOOKKEEPING, *RESULT_METRICS)}
        run.flags = flags_of({key: None if value == "None" else value for key, value in found.items()})
    except (KeyError, TypeError) as error:
        run.cause = f"its row has no use ({type(error).__name__}: {error})"
        return run
    run.data = {"source": row.get("data_source"), "sha256": row.get("data_sha256")}
    run.git, run.machine = row.get("git") or None, {"cpu": row.get("cpu") or row.get("host")}
    run.summary = {key: row.get(key) for key in RESULT_METRICS}
    run.status, run.cause = row.get("status", ""), row.get("cause", "")
    if run.status == "stopped early":
        run.status, run.cause = "stopped", f"stopped early after epoch {row.get('epoch')}"
    elif run.status not in ("finished", "diverged"):
        run.status, run.cause = "broken", f"its row says status {run.status!r}"
    elif run.status == "finished" and not 0 < run.value("val_rec") < math.inf:
        run.status, run.cause = "broken", f"val_rec is {row.get('val_rec')!r}"
    return run


def _rows(path):
    """Rows of a CSV as dicts; an unfinished last line, and any line with the wrong number of cells, is left out."""
    try:
        text = path.read_text(errors="replace").replace("\0", "")
        lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    except (OSError, csv.Error):
        return []
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:] if len(line) == len(lines[0])] if lines else []


# ---------------------------------------------------------------------------------------------------------------------- W&B


def wandb_runs(path, api=None):
    """Runs of a W&B sweep, entity/project/sweep id. pruning.csv is not on W&B, so that those runs have no proposals."""
    if len(path.split("/")) != 3:
        raise InputError(f"--wandb {path}: allowed: entity/project/sweep id")
    try:
        if api is None:
            import wandb

            api = wandb.Api()
        return [_from_wandb(found) for found in api.sweep(path).runs]
    except Exception as error:  # wandb raises its own, requests' and ValueError for a sweep that is not there
        raise InputError(f"--wandb {path}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:160]})") from None


def _from_wandb(found):
    """A W&B run object -> Run."""
    config = dict(found.config)
    run = Run(id=found.id, where="/".join(found.path), status="broken", started=str(found.created_at or ""))
    run.data, run.git = dict(config.get("_data") or {}), config.get("_git")
    run.sweep = str(getattr(found, "group", None) or "")
    run.versions, run.machine = dict(config.get("_versions") or {}), dict(config.get("_machine") or {})
    try:
        run.flags = flags_of({key: value for key, value in config.items() if not key.startswith("_")})
    except (KeyError, TypeError) as error:
        run.cause = f"its config cannot be used ({type(error).__name__}: {error})"
        return run
    rows = [row for row in found.scan_history() if row.get("epoch") is not None and row.get("val_rec") is not None]
    columns = sorted({key for row in rows for key in row if not key.startswith("_")})
    run.metrics = {key: np.array([number(row.get(key)) for row in rows]) for key in columns}
    _unsteady(run)
    run.summary |= {key: value for key, value in dict(found.summary).items() if not key.startswith("_")}
    if found.state == "finished" or run.summary.get("status") in ("finished", "diverged"):
        return _settle(run)
    states = dict(running="running", pending="running", killed="stopped", preempted="stopped", preempting="stopped")
    run.status, run.cause = (
        states.get(found.state, "broken"),
        f"W&B says {found.state}, {len(rows)} of {run.flags.get('n_epochs', '?')} epochs",
    )
    return run
