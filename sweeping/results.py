"""What came of a run: its folder as it grows, and the row of results/NN.csv that outlives it.

results/01.csv      one row a run that is over: flags, metrics, hashes; sweeping/create.py leaves out the points that are there
"""

import contextlib
import csv
import datetime
import fcntl
import json
import math
import os
from pathlib import Path

HELD = ("k_consecutive", "recon_tol", "cooldown", "cap", "floor", "pruned")  # what comes of a dimension that is proposed
SUMS = [f"sum_{key}" for key in ("proposed", *HELD)]  # of the columns of pruning.csv over the run
RESULT_METRICS = [
    *("epoch", "rec_loss", "val_rec", "val_vol_loss", "val_total_loss", "active_dims", "best_val_rec", "best_epoch"),
    *("pca_rec", "pca_ratio", "prune_events", "seconds", "test_rec"),
    "objective",  # of a search: the metric's best over the run, as its engine sees it
    *("rise", "epochs_above", "collapses", *SUMS),  # reporting/collect.py: curves and proposals in numbers, for the page of 02
]


def history(folder, metric):
    """The values of a metric in a growing metrics.csv, oldest first; the last line may be unfinished. Empty cells and NaN do not count."""
    with contextlib.suppress(OSError):
        lines = (folder / "metrics.csv").read_text().split("\n")[:-1]
        if lines and metric in (header := lines[0].split(",")):
            cells = [line.split(",")[header.index(metric)] for line in lines[1:]]
            return [float(cell) for cell in cells if cell and math.isfinite(float(cell))]
    return []


def objective(config, values):
    """A search minimises (or maximises) the metric's best over the run, as W&B does; elsewhere the run's last value counts."""
    if config["method"] == "grid":
        return values[-1]
    return max(values) if config["metric"].get("goal") == "maximize" else min(values)


def last_row(folder):
    """The last whole row of metrics.csv as a dict."""
    with contextlib.suppress(OSError):
        lines = (folder / "metrics.csv").read_text().split("\n")[:-1]
        if len(lines) > 1:
            return dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    return {}


def read_json(path):
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None


def is_locked(folder):
    """True if a process is at work in a run folder (train.py holds an exclusive lock on its file `lock`)."""
    with contextlib.suppress(FileNotFoundError), open(folder / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextlib.contextmanager
def results_table(record):
    """The rows of results/NN.csv, a dict each, under a lock; what the caller makes of the list is written back, whole or not at all."""
    path = Path(record["results"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(Path(".sweeps") / f"{path.stem}.results.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = read_results(path)
        before = list(rows)
        yield rows
        if rows != before:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            temporary = path.with_name(path.name + ".tmp")
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)


def read_results(path):
    with contextlib.suppress(FileNotFoundError), open(path, newline="") as file:
        return list(csv.DictReader(file))
    return []


def finished_rows(path):
    return [row for row in read_results(path) if row["status"] == "finished"]


def record_result(record, folder, status):
    """Put a run into results/NN.csv: flags, metrics, hashes. A run that is there already is replaced.

    One of a search gets what a new search needs to go on from it (done.py), too: `objective` and `reports`, the metric at hyperband's
    bands and at the end, step:value.
    """
    from reporting.collect import read_run  # which imports this module
    from sweeping.queue import bands  # Optuna, which who only reads need not wait for

    config, summary = read_json(folder / "config.json") or {}, read_json(folder / "summary.json") or {}
    metrics = {**last_row(folder), **read_run(folder).summary}
    row = {"id": folder.name, "name": config.get("name", ""), "sweep": record["id"], "status": status, "cause": summary.get("cause") or ""}
    row |= {key: str(value) for key, value in sorted(config.get("flags", {}).items())}
    row |= {key: str(metrics[key]) if metrics.get(key) is not None else "" for key in RESULT_METRICS}
    search = record["config"] if "run_cap" in record.get("config", {}) else None
    if search and (values := history(folder, search["metric"]["name"])):
        row["objective"] = repr(objective(search, values))
        steps = [*bands(search.get("early_terminate"), len(values)), len(values)]
        row["reports"] = " ".join(f"{step}:{values[step - 1]!r}" for step in dict.fromkeys(steps))
    fingerprint = config.get("data", {})
    row |= {"data_source": fingerprint.get("source", ""), "data_sha256": fingerprint.get("sha256", "")}
    row |= {"metrics_sha256": summary.get("metrics_sha256", ""), "git": config.get("git") or ""}
    row |= {key: config.get("machine", {}).get(key, "") for key in ("host", "cpu")}
    row |= {"recorded": datetime.datetime.now().isoformat(timespec="seconds")}
    with results_table(record) as rows:
        rows[:] = [r for r in rows if r["id"] != row["id"]] + [row]
