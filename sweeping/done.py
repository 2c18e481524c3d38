"""The points that results/NN.csv has already: a grid leaves them out, and a search goes on from them."""

import math
from pathlib import Path

import optuna
from optuna.trial import TrialState

from sweeping.agents import command_line
from sweeping.queue import distributions
from sweeping.results import read_results

# Two points that differ only in these are the same point: they say where a run is computed, and what is kept of it.
FREE = [
    *("out", "resume", "config", "device", "threads", "wandb", "wandb_project", "wandb_entity"),
    *("figure_every", "checkpoint_every", "save_model", "test"),
]
DERIVED = ["arm", "safeguards", "data"]  # compared by the flags they stand for, and by the designs' fingerprint


def is_of(row, flags, prints):
    """Whether a row of results/NN.csv is of the point with these resolved flags: all but FREE and DERIVED equal, on the same designs."""
    same = all(row.get(k) == str(v) for k, v in flags.items() if k not in (*FREE, *DERIVED))
    return same and row["data_sha256"] == prints[flags["problem"]]["sha256"]


def skip_done(points, program, results, prints):
    """The points without those that are in results/NN.csv already, finished or diverged."""
    have = [row for row in read_results(Path(results)) if row["status"] in ("finished", "diverged")]
    resolved = [vars(program.parse(command_line(point))) for point in points]
    return [point for point, flags in zip(points, resolved, strict=True) if not any(is_of(row, flags, prints) for row in have)]


def known_trials(config, point, program, results, prints):
    """The rows of results/NN.csv that a search has made already, as trials for Optuna: its model and hyperband go on from them.

    Such a row belongs to a search of this name, has the same designs, lies in the ranges of what varies, and has the flags of `point` (any
    of the search) with these values. One that cannot be read is not taken.
    """
    space, found = distributions(config["parameters"]), []
    for row in read_results(Path(results)):
        try:
            flags = vars(program.parse(command_line({**point, **{k: row[k] for k in space}})))
            if not is_of(row, flags, prints) or row["sweep"].rpartition("-")[0] != config["name"]:
                continue
            reports = {int(step): float(value) for step, value in (pair.split(":") for pair in row["reports"].split())}
            last = reports[max(reports)] if reports else None
            state, value = {
                "finished": (TrialState.COMPLETE, float(row["objective"] or "nan")),
                "stopped early": (TrialState.PRUNED, last),
                "diverged": (TrialState.FAIL, None),
            }[row["status"]]
            if any(map(math.isnan, [*reports.values(), value or 0])):
                continue
            found.append(
                optuna.trial.create_trial(
                    state=state,
                    value=value,
                    params={k: flags[k] for k in space},
                    distributions=space,
                    intermediate_values=reports,
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError):  # a value out of range, or a damaged row
            continue
    return found
