"""The points that results/NN.csv has already: a grid leaves them out, and a search goes on from them."""

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


def skip_done(points, program, results, prints):
    """The points without those that are in results/NN.csv already: all flags the same, same data, finished or diverged."""
    resolved = [vars(program.parse(command_line(point))) for point in points]
    own = [k for k in resolved[0] if k not in (*FREE, *DERIVED)]
    have = {
        tuple(row.get(k) for k in own) + (row["data_sha256"],)
        for row in read_results(Path(results))
        if row["status"] in ("finished", "diverged")
    }

    def key(flags):
        return tuple(str(flags[k]) for k in own) + (prints[flags["problem"]]["sha256"],)

    return [point for point, flags in zip(points, resolved, strict=True) if key(flags) not in have]


def known_trials(config, point, program, results, prints):
    """The rows of results/NN.csv that a search has made already, as trials for Optuna: its model and hyperband go on from them.

    Such a row has the same designs, the flags of `point` (any of the search) in what does not vary, and lies in the ranges of what does.
    """
    space, flags = distributions(config["parameters"]), vars(program.parse(command_line(point)))
    own = {k: str(v) for k, v in flags.items() if k not in (*FREE, *DERIVED, *space)}
    found = []
    for row in read_results(Path(results)):
        if row["data_sha256"] != prints[flags["problem"]]["sha256"] or any(row.get(k) != v for k, v in own.items()):
            continue
        reports = {int(step): float(value) for step, value in (pair.split(":") for pair in row.get("reports", "").split())}
        if row["status"] == "finished" and row.get("objective"):
            state, value = TrialState.COMPLETE, float(row["objective"])
        elif row["status"] == "stopped early":
            state, value = TrialState.PRUNED, reports[max(reports)] if reports else None
        else:
            state, value = TrialState.FAIL, None
        try:
            found.append(
                optuna.trial.create_trial(
                    state=state,
                    params={k: type(flags[k])(row[k]) for k in space},
                    distributions=space,
                    value=value,
                    intermediate_values=reports,
                )
            )
        except ValueError:  # out of range: another search's
            continue
    return found
