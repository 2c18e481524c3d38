"""Six studies, on W&B or without it: create a sweep from its YAML, start agents on it, look at it, stop it, go on.

    python sweep.py create 01 --problem beams2d --seeds 1 --epochs 500     # make sweep-01 PROBLEM=beams2d SEEDS=1 EPOCHS=500
    python sweep.py agent --n 5                                            # make agents N=5
    python sweep.py status | list | stop | resume | sync | dashboard       # make status ...

Expect: one line that says which backend was chosen and why, one that says what was created; then a line for each run that starts or ends.
State is in .sweeps/, runs are in runs/, finished ones add a row to results/NN.csv, and points that are there are not run again.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sweeping import agents, on_wandb
from sweeping.create import STATE, SweepError, check_data, create, expand, save
from sweeping.queue import Queue, TrialState, is_alive

# ------------------------------------------------------------------------------------------------------------- the sweeps' records


def load_record(name, storage=None):
    """The record of a sweep by its id or the beginning of it, its W&B path (entity/project/id), or, with STORAGE, from the database."""
    known = [json.loads(path.read_text()) for path in STATE.glob("*/sweep.json")]
    found = [r for r in known if name in (r["id"], r.get("path"))] or [r for r in known if r["id"].startswith(name)]
    if len(found) > 1:
        raise SweepError(f"SWEEP {name}: begins several sweeps: {', '.join(sorted(r['id'] for r in found))}; say which")
    if found:
        return found[0]
    if name.count("/") == 2:
        return join_wandb(name)
    if storage:
        try:
            record = Queue({"id": name, "storage": storage}).record
        except KeyError:
            raise SweepError(f"SWEEP {name}: not in that STORAGE") from None
        save(record)
        return record
    raise SweepError(f"SWEEP {name}: unknown here; allowed: an id of `make list`, entity/project/id of W&B, or an id with its STORAGE")


def join_wandb(path):
    """A sweep that another machine created on W&B. One made by `wandb sweep` by hand has no fingerprint: its data are whatever is here."""
    config = on_wandb.of_wandb(path, lambda sweep: dict(sweep.config))
    frozen = re.search(r"\[data: (.*)\]", config.get("description") or "")
    entries = [entry.split() for entry in frozen[1].split("; ")] if frozen else []
    prints = {p: {"source": source, "toy_dims": int(dims), "sha256": sha} for p, source, dims, sha in entries}
    name = config.get("name") or path.split("/")[2]
    record = {"id": f"{name}-{path.split('/')[2]}", "name": name, "backend": "wandb", "path": path, "config": config, "data": prints}
    record |= {"results": f"results/{name.split('_')[0]}.csv", "created": time.strftime("%Y-%m-%d %H:%M:%S")}
    record["runs"] = len(expand(config)) if config["method"] == "grid" else config.get("run_cap")
    save(record)
    return record


def records(args):
    """The sweeps a command is about, in order: SWEEP=, else the current ones."""
    try:
        names = args.sweep.split() if args.sweep else (STATE / "current").read_text().split()
    except OSError:
        raise SweepError("no current sweep; create one: make sweep-01") from None
    found = [load_record(name, args.storage) for name in names]
    if len({r["backend"] for r in found}) > 1:
        raise SweepError(f"SWEEP {args.sweep}: some are on W&B and some are local; give those of one backend")
    return found


# ----------------------------------------------------------------------------------------------------------------------- commands


def agent(args):
    """Start agents on the current sweeps, and work through them in order."""
    found = records(args)
    if not args.checked:
        for record in found:
            check_data(record)
    agents.handle_signals()
    local = found[0]["backend"] == "local"
    if local and args.n == 1:
        slot, of = (int(x) for x in args.slot.split("/"))
        code = agents.work([Queue(r) for r in found], agents.surroundings(slot, of), f"agent {slot + 1}", args.count)
        if not args.checked:
            status(args, found)
        sys.exit(code or int(not args.checked and any(counts(r)["failed"] for r in found)))
    slots, seen = [], {}
    unfinished = [] if local else [command for r in found for command in on_wandb.interrupted(r)]
    for k in range(args.n):
        env = agents.surroundings(k, args.n)
        if local:
            limit = ["--count", str(args.count)] if args.count else []
            command = [sys.executable, __file__, "agent", "--checked", "--slot", f"{k}/{args.n}", *limit]
            command += ["--sweep", args.sweep] if args.sweep else []
            commands = [("local", command, {})]
        else:
            commands = unfinished[k :: args.n] + [on_wandb.agent_command(r, k, args.count) for r in found]
        log = None if local else open(f"{on_wandb.agent_folder(found[0], k)}.log", "a")  # noqa: SIM115  the agents' for their whole life
        slots.append(agents.Slot(env, commands, log))

    def record_results():
        for r in found:
            on_wandb.record_results(r, seen)

    code = agents.launch(slots, 0.1 if local else 1, (lambda: None) if local else record_results)
    status(args, found)
    sys.exit(code or int(any(counts(r)["failed"] for r in found)))


def counts(record):
    """What has become of a sweep's runs: how many of each kind, why some failed, the best value by problem, the seconds a run takes."""
    kinds = ("finished", "stopped early", "diverged", "failed", "running", "interrupted")
    c = {**dict.fromkeys(kinds, 0), "causes": [], "best": {}, "seconds": [], "stopped": False}
    lower = record["config"]["metric"].get("goal") != "maximize"

    def best(problem, value, run):
        if problem not in c["best"] or (value < c["best"][problem][0]) == lower:
            c["best"][problem] = (value, run)

    if record["backend"] == "wandb":
        metric, early = record["config"]["metric"]["name"], on_wandb.stopped_early(record)
        state, runs = on_wandb.of_wandb(record["path"], lambda sweep: (sweep.state, list(sweep.runs)))
        c["stopped"] = state in ("PAUSED", "CANCELED", "STOPPED")
        for r in runs:
            summary = dict(r.summary)
            if r.state in ("running", "pending"):
                c["running"] += 1
            elif summary.get("status") == "diverged":
                c["diverged"] += 1
            elif r.id in early:
                c["stopped early"] += 1
            elif on_wandb.is_resumable(Path(r.config.get("out", "runs")) / r.id, r.state):
                c["interrupted"] += 1
            elif r.state == "finished":
                c["finished"] += 1
                c["seconds"].append(summary.get("seconds", 0))
                if isinstance(summary.get(metric), int | float):
                    best(r.config.get("problem"), summary[metric], r.id)
            else:
                c["failed"] += 1
                c["causes"].append(f"{r.id} {r.state}")
        return c
    queue = Queue(record)
    c["stopped"] = queue.stopped()
    for t in queue.trials():
        run = t.user_attrs["run"]
        if t.state == TrialState.RUNNING:
            c["running" if is_alive(t.user_attrs["held"]) else "interrupted"] += 1
        elif t.state == TrialState.COMPLETE:
            c["finished"] += 1
            c["seconds"].append((t.datetime_complete - t.datetime_start).total_seconds())
            best(run["point"].get("problem"), t.value, run["id"])
        elif t.state == TrialState.PRUNED:
            c["stopped early"] += 1
        elif t.state == TrialState.FAIL:
            cause = t.user_attrs.get("cause", "")
            c["diverged" if cause.startswith("diverged") else "failed"] += 1
            c["causes"].append(f"{run['id']} {cause}")
    return c


def status(args, found=None):
    """One line a sweep: done / running / failed / left, best so far, ETA; and a line for each run that failed."""
    for record in found or records(args):
        c = counts(record)
        over = c["finished"] + c["stopped early"] + c["diverged"] + c["failed"]
        left = record["runs"] - over - c["running"] if record["runs"] else None
        kinds = ", ".join(f"{c[key]} {key}" for key in ("finished", "stopped early", "diverged", "failed"))
        parts = [f"{over}/{record['runs'] or '?'} over ({kinds})", f"{c['running']} running"]
        if left is not None:
            parts.append(f"{left} left" + (f" ({c['interrupted']} of them interrupted)" if c["interrupted"] else ""))
        metric = record["config"]["metric"]["name"]
        parts += [f"best {metric} {value:.6g} on {p} (run {run})" for p, (value, run) in sorted(c["best"].items())]
        if c["seconds"] and c["running"] and left is not None:
            seconds = statistics.median(c["seconds"]) * (left + c["running"] / 2) / c["running"]
            parts.append(f"about {seconds / 3600:.1f} h to go" if seconds > 3600 else f"about {seconds / 60:.0f} min to go")
        print(f"{record['id']} ({record['backend']}{', stopped' if c['stopped'] else ''}): " + ", ".join(parts))
        for cause in c["causes"]:
            print(f"  failed: {cause}")


def list_sweeps(args):
    """Every sweep of this folder, newest last; * marks the current ones."""
    current = (STATE / "current").read_text().split() if (STATE / "current").exists() else []
    found = sorted((json.loads(p.read_text()) for p in STATE.glob("*/sweep.json")), key=lambda r: r["created"])
    for r in found:
        mark, runs = "*" if r["id"] in current else " ", r["runs"] or "?"
        print(f"{mark} {r['id']:45s} {r['backend']:6s} {r['created']}  {runs:>4} runs  {r.get('path', '')}".rstrip())
    if not found:
        print("no sweeps yet; create one: make sweep-01")


def stop(args, value=True):
    """Hand out no new runs; those that run are finished. `resume` undoes it."""
    for record in records(args):
        if record["backend"] == "local":
            Queue(record).stop(value)
        else:
            flag = "--stop" if value else "--resume"
            done = subprocess.run([sys.executable, "-m", "wandb", "sweep", flag, record["path"]], capture_output=True, text=True)
            if done.returncode:
                raise SweepError(f"W&B: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
        print(f"{record['id']}: " + ("stopped; running runs are finished, make resume goes on" if value else "goes on"))


def resume(args):
    """After a stop, a crash or a reboot: hand out runs again, and start agents."""
    stop(args, False)
    agent(args)


def sync(args):
    """Upload the runs that were logged offline. W&B keeps count of what is uploaded: a second call uploads only what is new."""
    found = sorted(str(p) for p in Path(args.out).glob("*/wandb/offline-run-*") if p.is_dir())
    if not found:
        print(f"nothing to upload: no offline runs in {args.out}/*/wandb")
        return
    sys.exit(subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *found]).returncode)


def dashboard(args):
    """Optuna's dashboard on the (first) current local sweep."""
    record = records(args)[0]
    if record["backend"] != "local":
        raise SweepError(f"{record['id']}: is on W&B, look there: {record['path']}")
    command = shutil.which("optuna-dashboard", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    if not command:
        raise SweepError("optuna-dashboard: not installed; pip install optuna-dashboard")
    os.execv(command, [command, record["storage"] or str(STATE / record["id"] / "journal.log")])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(function, name=None):
        sub = commands.add_parser(name or function.__name__, help=function.__doc__.splitlines()[0])
        sub.set_defaults(function=function)
        if function not in (create, list_sweeps, sync):
            sub.add_argument("--sweep", help="sweeps, by the beginning of their ids, or entity/project/id on W&B (the current ones)")
        if function not in (list_sweeps, sync):
            sub.add_argument("--storage", help="postgresql+psycopg://... for several machines without a common disk (a file journal)")
        return sub

    new = command(create)
    new.add_argument("sweep", help="01, 01b, 02 ... or a .yaml file")
    new.add_argument("--backend", choices=["wandb", "local"], help="(wandb when logged in, else local)")
    new.add_argument("--problem", help="only this problem")
    new.add_argument("--seeds", type=int, help="only the first so many seeds")
    new.add_argument("--epochs", type=int, help="so many epochs; pruning_epoch is scaled by the same factor, and nothing else is")
    new.add_argument("--strategy", help="the winner of 01, for the later sweeps")
    new.add_argument("--set", metavar='"a=1 b=2,3"', help="fix any flag as it is, or vary it over the values listed")
    new.add_argument("--edition", help="results go to results/NN-EDITION.csv (trial, if EPOCHS or SET leave the file's values)")
    new.add_argument("--project", help="W&B project (train.py's default)")
    new.add_argument("--entity", help="W&B entity (yours)")
    for sub in (command(agent), command(resume)):
        sub.add_argument("--n", type=int, default=1, help="agents on this machine (1)")
        sub.add_argument("--count", type=int, help="at most so many runs by each agent")
        sub.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)  # the launcher has checked the data for all its agents
        sub.add_argument("--slot", default="0/1", help=argparse.SUPPRESS)  # which of the launcher's agents this is
    command(status)
    command(list_sweeps, "list")
    command(stop)
    command(sync).add_argument("--out", default="runs", help="folder of the runs (runs)")
    command(dashboard)
    args = parser.parse_args(argv)
    try:
        for flag in ("n", "count"):
            if getattr(args, flag, None) is not None and getattr(args, flag) < 1:
                raise SweepError(f"--{flag} {getattr(args, flag)}: must be at least 1")
        args.function(args)
    except ValueError as error:  # SweepError, and the InputError of data.py and of the program
        print(f"sweep.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
