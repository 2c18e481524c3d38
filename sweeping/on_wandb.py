"""The W&B backend of a sweep: unmodified `wandb agent`s, their runs that were interrupted, and the results of those that finished."""

import os
import sys
from pathlib import Path

import yaml

from sweeping.agents import command_line, first_line, labels, say, stop_level
from sweeping.create import SweepError
from sweeping.results import is_locked, read_json, record_result

TRIES = 10  # how often a run is continued: one that crashes each time must not come back for ever


def agent_folder(record, slot):
    """The folder of one `wandb agent`: its own, so that agents of one machine, or one SLURM array, never write to each other's files."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return (Path(".sweeps") / record["id"] / (f"agent-{task}-{slot}" if task else f"agent-{slot}")).resolve()


def of_wandb(path, read):
    """read(sweep) for the sweep entity/project/id on W&B. Raises SweepError where W&B does not give it."""
    import wandb

    try:
        return read(wandb.Api().sweep(path))
    except Exception as error:  # wandb raises its own, requests' and ValueError, also while the sweep is read
        raise SweepError(f"SWEEP {path}: W&B does not give it ({first_line(error)})") from None


def started_runs(record):
    """The runs that `wandb agent`s of this machine have started: run id -> the file with its point."""
    found = sorted((Path(".sweeps") / record["id"]).glob("agent-*/wandb/sweep-*/config-*.yaml"))
    return {path.stem.removeprefix("config-"): path for path in found}


def point_of(path):
    return {k: v["value"] for k, v in yaml.safe_load(path.read_text()).items() if k != "wandb_version"}


def stopped_early(record):
    """Runs of this machine that W&B's hyperband stopped: they are over, though their folders look like those of interrupted ones."""
    return {run_id for run_id, path in started_runs(record).items() if path.with_suffix(".stopped").exists()}


def is_resumable(folder, state="crashed"):
    """Whether a run of this machine can be continued, by its folder and its state on W&B.

    One that failed by itself left rows behind that are newer than its checkpoint; one that was stopped wrote its checkpoint last.
    """
    checkpoints = list(folder.glob("checkpoint*.pt"))
    if not checkpoints or (folder / "summary.json").exists():
        return False
    newest = max(path.stat().st_mtime_ns for path in checkpoints)
    return state != "failed" or newest >= (folder / "metrics.csv").stat().st_mtime_ns


def interrupted(record):
    """Commands that continue the runs which were stopped on this machine: W&B's server does not hand them out again."""
    commands, stopped = [], stopped_early(record)
    for run_id, path in started_runs(record).items():
        point, tries = point_of(path), path.with_suffix(".tries")
        folder = Path(point.get("out", "runs")) / run_id
        count = len(tries.read_text()) if tries.exists() else 0
        if run_id not in stopped and is_resumable(folder) and not is_locked(folder) and count < TRIES:
            tries.write_text("x" * (count + 1))
            command = [sys.executable, record["config"]["program"], *command_line(point), "--resume=auto"]
            entity, project, sweep = record["path"].split("/")
            env = {"WANDB_RUN_ID": run_id, "WANDB_SWEEP_ID": sweep, "WANDB_ENTITY": entity, "WANDB_PROJECT": project}
            commands.append(("program", command, {**env, "WANDB_SWEEP_PARAM_PATH": str(path.resolve()), **labels(record)}))
    return commands


def agent_command(record, slot, count):
    """The `wandb agent` of one slot."""
    folder = agent_folder(record, slot)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "wandb", "agent", *(["--count", str(count)] if count else []), record["path"]]
    return ("wandb", command, {"WANDB_DIR": str(folder), **labels(record)})


def record_results(record, seen):
    """Tell of the runs that `wandb agent`s of this machine have started and finished, and put those that are over into results/NN.csv.

    seen: run id -> "new", "at work" or "over"; those found at the first call are not told of again.
    """
    first = record["id"] not in seen
    seen[record["id"]] = "over"
    for run_id, path in started_runs(record).items():
        if run_id not in seen:
            seen[run_id] = "over" if path.with_suffix(".stopped").exists() else "new"
            first or say(f"run {run_id} started (log: {path.parents[2].name}.log)")
        if seen[run_id] == "over":
            continue
        folder = Path(point_of(path).get("out", "runs")) / run_id
        status, at_work = (read_json(folder / "summary.json") or {}).get("status"), is_locked(folder)
        stopped = seen[run_id] == "at work" and not (status or at_work or stop_level()) and is_resumable(folder, "failed")
        if stopped and "early_terminate" in record["config"]:  # and nobody here asked for it: W&B's hyperband did, through its agent
            path.with_suffix(".stopped").touch()
            status = "stopped early"
        if at_work:
            seen[run_id] = "at work"
        if status:
            record_result(record, folder, status)
            seen[run_id] = "over"
            first or say(f"run {run_id} {status}")
