"""Six sweeps, on W&B or without it: create a sweep from its YAML, start agents on it, look at it, stop it, go on.

    python sweep.py create 01 --problem toy --seeds 1 --epochs 500       # make sweep-01 PROBLEM=toy SEEDS=1 EPOCHS=500
    python sweep.py agent --n 5                                          # make agents N=5
    python sweep.py status | list | stop | resume | sync | dashboard     # make status ...

State is in .sweeps/, runs are in runs/, finished ones add a row to results/NN.csv, and points that are there are not
run again. From the top: a sweep's file, creating it, its rows, an agent, the commands. Its queue: sweeps/queue.py.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch takes seconds to import: Ctrl-C ends them without a traceback

import argparse
import collections
import contextlib
import copy
import ctypes
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pandas
import torch
import yaml
from optuna.trial import TrialState, create_trial

import data
import record
from lvae import InputError, first_line, need
from pruning import STRATEGIES
from record import FREE_FLAGS, SEARCHED, Parser, cores, is_locked, read_csv, read_json, slug, write_atomically
from sweeps import queue as engine
from sweeps.queue import STATE, Queue, ask_wandb, bands, corners, distributions, levels, queue_of, redacted, say

FILES = Path(__file__).parent / "sweeps"
NOW = "%Y-%m-%d %H:%M:%S"
# What STRATEGY= puts into the arms of 04 and 06 beside the default: the strategy's most aggressive level in 01b
AGGRESSIVE = {"plummet": 0.1, "pca_cdf": 0.95, "lognorm": 0.4, "probabilistic": 1.0}
# Points that differ only in these are one point: where it is computed, what is kept, and what is compared otherwise
NOT_COMPARED = {*FREE_FLAGS, "threads", "safeguards", "data"}
LONGEST = 900  # seconds that agents wait for a database that is away
DESIGNS = {"problem": None, "data": "auto", "toy_dims": 3, "n_train": 0}  # the flags that choose them
OVER = ("finished", "stopped early", "diverged", "failed")
NUMBER, SCALAR = int | float, str | int | float | None


# ------------------------------------------------------------------------------------------------------ a sweep's file
class Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not its last value, and so are aliases: nested, they never end."""

    def compose_node(self, parent, index):
        need(not self.check_event(yaml.AliasEvent), "aliases (*name) are not taken: write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [str(key.value) for key, _ in node.value]
        need(len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: a key is given twice in {', '.join(keys)}")
        return super().construct_mapping(node, deep)


def read_yaml(name):
    """A sweep's file, by its path or its number (01, 01b, ...) -> (path, config). Raises InputError."""
    files = {p.stem.split("_")[0]: p for p in sorted(FILES.glob("*_*.yaml"))}
    need(name in files or Path(name).suffix, f"sweep {name}: unknown; allowed: {', '.join(files)}, or a .yaml file")
    path = files.get(name, Path(name))
    try:
        config = {"name": path.stem} | yaml.load(record.read_text(path), Loader)
        check_config(config)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    return path, config


def check_config(config):
    """Refuse a sweep's file that lacks something, or has what we and W&B would take otherwise than it is meant."""
    kinds = {"method": str, "metric": dict, "parameters": dict, "program": str, "name": str}
    bad = ", ".join(k for k, kind in kinds.items() if not isinstance(config.get(k), kind))
    need(not bad, f"needs {bad}")
    need(slug(config["name"]) == config["name"], f"name {config['name']!r}: allowed: letters, digits, . _ - inside it")
    runs, search = config.get("run_cap", 1), config["method"] in ("bayes", "random") and "run_cap" in config
    need(search or config["method"] == "grid", "method must be grid, or bayes or random with a run_cap")
    need(isinstance(runs, int) and runs > 0, f"run_cap {runs}: must be a number of runs, at least 1")
    for key, p in config["parameters"].items():
        found, listed = levels(p), bool({"value", "values"} & set(p))
        plain = isinstance(found, list) and all(isinstance(v, SCALAR if listed else NUMBER) for v in found)
        fits = plain and (0 < len(found) == len(set(map(str, found))) if listed else search and len(found) == 2)
        need(fits, f"parameter {key} needs value or values, each once; a search also min and max (1.0e-4, not 1e-4)")
    named = "problem" in config["parameters"] and isinstance(config["metric"].get("name"), str)
    need(named, "needs a parameter problem, and a metric with a name")
    bands(config.get("early_terminate"), 1)


def expand(config):
    """The points of a grid, a dict of flags each, the first parameter of the file varying slowest."""
    lists = [levels(p) for p in config["parameters"].values()]
    n = math.prod(map(len, lists))
    need(n <= 100_000, f"the grid has {n:,} points; allowed: at most 100,000")
    return [dict(zip(config["parameters"], point, strict=True)) for point in itertools.product(*lists)]


def command_line(point):
    """The arguments W&B's agent passes for a point: --flag=value, in alphabetical order, as Python prints values."""
    return [f"--{key}={point[key]!s}" for key in sorted(point)]


def load_program(path):
    """The program of a sweep as a module: its parser() and parse() say which flags and values it takes."""
    need(path.endswith(".py") and Path(path).exists(), f"program {path}: no such file")
    sys.path.insert(0, str(Path(path).resolve().parent))
    return importlib.import_module(Path(path).stem)


def narrow(config, args, program):
    """Apply PROBLEM, STRATEGY, SEEDS, EPOCHS and SET to a sweep's parameters, in this order.

    Returns whether EPOCHS or SET gave one of them a value that the file (with STRATEGY's arms) does not have.
    """
    parameters, search = config["parameters"], config["method"] != "grid"
    if args.problem:
        only = parameters["problem"].get("value", args.problem)
        need(search or args.problem == only, f"PROBLEM {args.problem}: this sweep is about {only} only")
        parameters["problem"] = {"value": args.problem}
    if args.strategy:
        choose_strategy(parameters, args.strategy, vars(program.parse([])))
    file = {k: levels(p) for k, p in parameters.items()}
    if args.seeds is not None:
        seeds = levels(parameters.get("seed", {}))
        need(1 <= args.seeds <= len(seeds), f"SEEDS {args.seeds}: allowed: 1 to {len(seeds)}")
        parameters["seed"] = {"values": seeds[: args.seeds]}
    if args.epochs is not None:
        start, n = (parameters.get(key, {}) for key in ("pruning_epoch", "n_epochs"))
        if "value" not in n or start != {"value": None}:  # else it follows n_epochs by itself
            one = start and n.get("value")
            need(one, f"EPOCHS {args.epochs}: needs a file with one value of n_epochs, and with a pruning_epoch")
            for k in start.keys() - {"distribution"}:
                v, ratio = start[k], args.epochs / n["value"]
                start[k] = [x and round(x * ratio) for x in v] if k == "values" else round(v * ratio)
        parameters["n_epochs"] = {"value": args.epochs}
    for item in (args.set or "").split():
        key, _, text = item.partition("=")
        need(key != "problem" or not search, f"SET {item}: a search is made for each problem; say PROBLEM={text}")
        values = list(dict.fromkeys(map(record.plain, [text] if key == "arm" else text.split(","))))  # arms have commas
        parameters[key] = {"value": values[0]} if len(values) == 1 else {"values": values}
    free = {*FREE_FLAGS, *record.AUTO} - {"arm"}
    return any(not set(levels(p)) <= set(file.get(k, [])) for k, p in parameters.items() if k not in free)


def choose_strategy(parameters, strategy, defaults):
    """STRATEGY=: narrow strategies (01) or arms (01b) to it, replace the one (02, 03, 05) or the arms (04, 06)."""
    need(strategy in (*AGGRESSIVE, "none"), f"STRATEGY {strategy}: unknown; allowed: {', '.join(AGGRESSIVE)}, none")
    if "arm" not in parameters:
        return parameters.update(strategy={"value": strategy})
    arms = [arm for arm in levels(parameters["arm"]) if arm.split(",")[0] == f"strategy={strategy}"]
    need(arms or strategy != "none", "STRATEGY none: it has no level to compare")
    if not arms:
        flag = STRATEGIES[strategy][1]
        arms = [f"strategy={strategy},{flag}={x}" for x in (defaults[flag], AGGRESSIVE[strategy])]
        parameters.pop(flag, None)
    parameters["arm"] = {"values": arms}


# -------------------------------------------------------------------------------------------------------- creating it
def resolve(points, program):
    """Each point's flags, a Namespace, as the program resolves them: it must take every point's command line."""
    try:
        return [program.parse(command_line(point)) for point in points]
    except ValueError as error:  # the program may be another than train.py, with an error of its own
        raise InputError(str(error)) from None


@functools.cache  # create() empties it: a file may have been replaced since
def n_train(*which):
    return len(data.load(*which).train)


def settled(points, program):
    """The flags of each point as its row has them: with those, too, that follow the number of designs, n_train()."""
    found = resolve(points, program)
    if hasattr(program, "schedule"):
        with contextlib.redirect_stderr(io.StringIO()):  # each run gives its own warnings
            for args in found:
                program.schedule(args, n_train(*(vars(args)[k] for k in DESIGNS)))
    return list(map(vars, found))


def check_pruning(args, flags):
    """Refuse SET or EPOCHS with which runs end before they may prune, or prune before w_v is reached."""
    asked = f"EPOCHS {args.epochs}" if args.epochs else f"SET {args.set}"
    if not args.epochs and not re.search(r"\b(n_epochs|pruning_epoch)=", args.set or ""):
        return
    for f in flags:
        start, n, risen = f.get("pruning_epoch"), f.get("n_epochs"), f.get("polynomial_schedule_n")
        if f.get("strategy", "none") != "none" and None not in (start, n):
            need(start < n, f"{asked}: pruning would start at epoch {start}, and the run ends at {n}; allowed: more")
            late = f"pruning would start at {start}, before the schedule of w_v ends at {risen}"
            need(not args.epochs or (risen or 0) <= start, f"{asked}: {late}; allowed: more, or a smaller one by SET")


def freeze_data(parameters):
    """Resolve `data: auto` for the whole sweep. Returns its designs: the arguments of data.load, and their hash."""
    asked = [levels(parameters.get(k, {"value": v})) for k, v in DESIGNS.items()]
    if asked[1] == ["auto"]:
        found = {data.load(*which).fingerprint["source"] for which in itertools.product(*asked)}
        asked[1] = ["hub" if found == {"hub"} else "sample"]
        parameters["data"] = {"value": asked[1][0]}
    return [[*which, data.load(*which).fingerprint["sha256"]] for which in itertools.product(*asked)]


def code_of(program):
    """What can change a result besides flags and designs: {file or package: its hash or version}."""
    names = [Path(program), *(Path(program).parent / f"{name}.py" for name in ("lvae", "pruning", "data"))]
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in names if p.exists()}
    return found | {package: importlib.metadata.version(package) for package in ("torch", "numpy")}


def is_on(sweep, flags, sha256):
    """Whether these are the designs that a run with these flags has in a sweep; one of `wandb sweep` has no own."""
    mine = [str(key) for key in (*(flags.get(k) or v for k, v in DESIGNS.items()), sha256)]
    return not sweep["data"] or mine in [list(map(str, known)) for known in sweep["data"]]


def other_designs(sweep, folder):
    """What the designs of a run are, where they are not its sweep's; else None."""
    config = read_json(folder / "config.json") or {}
    now = config.get("data", {}).get("sha256")
    return None if not now or is_on(sweep, config["flags"], now) else f"its designs ({now[:12]}) are not the sweep's"


def check_data(sweep):
    """Refuse to work on a sweep whose designs are not the ones it was created with."""
    for *which, then in sweep["data"]:
        now = data.load(*which).fingerprint["sha256"]
        other = f"{which[0]} from {which[1]} is {now[:12]} here, but was {then[:12]} when it was created"
        need(now == then, f"sweep {sweep['id']}: {other}; get the same designs, or create the sweep anew")


def check_code(sweep):
    """Refuse to go on with a sweep on other code than its first runs had; `--changed` takes the new one for its own."""
    now, then = code_of(sweep["config"]["program"]), sweep.get("code", {})
    other = "; ".join(f"{k} is {now.get(k, 'gone')} here, but was {v}" for k, v in then.items() if now.get(k) != v)
    advice = "go back, or say --changed (CHANGED=1) if no result can differ"
    need(not other, f"sweep {sweep['id']}: {other} when it was created; {advice}")


def choose_backend():
    """wandb where this machine is logged in to W&B, else local."""
    online = os.environ.get("WANDB_MODE", "online") == "online"
    return "wandb" if online and record.logged_in(record.wandb_server()) else "local"


def plan(path, config, args, program, backend):
    """What `create` is about to create: (sweep, its points, none for a search, Optuna's trials that it starts from)."""
    changed, grid = narrow(config, args, program), config["method"] == "grid"
    edition = f"-{args.edition}" if args.edition else "-trial" if changed else ""
    name = re.sub("(_|$)", rf"{edition}\1", config["name"], count=1)
    config["name"] = f"{name}-{args.problem}" if args.problem and not grid else name
    parameters, points = config["parameters"], expand(config) if grid else []
    resolved = resolve(points or corners(config), program)
    first, flags = resolved[0], list(map(vars, resolved))
    check_pruning(args, flags)
    if config["metric"]["name"] == "dims_within":
        lack = sorted({f["problem"] for f in flags if "bound" not in data.PROBLEMS.get(f["problem"], {})})
        need(not lack, f"PROBLEM {', '.join(lack)}: has no bound, so no dims_within")
    if getattr(first, "precision", None) == "auto":  # as this machine would, for all: bf16 and fp32 are not comparable
        program.settle(first)
        parameters["precision"] = {"value": first.precision}
    where = {"wandb_project": args.project, "wandb_entity": args.entity} if backend == "local" else {}
    parameters |= {flag: {"value": value} for flag, value in where.items() if value}
    sweep = {"name": config["name"], "backend": backend, "results": f"results/{path.stem.split('_')[0]}{edition}.csv"}
    sweep |= {"config": config, "data": freeze_data(parameters), "code": code_of(config["program"])}
    sweep |= {"created": time.strftime(NOW)}
    known = known_trials(sweep, program) if backend == "local" and not grid else []  # W&B's search knows only its runs
    points = expand(config)[: config.get("run_cap")] if grid else []
    left = skip_done(sweep, points, program)
    skipped = len(points) - len(left) + len(known)
    return sweep | {"runs": len(left) if grid else config["run_cap"] - len(known), "skipped": skipped}, left, known


def create(args):
    """Check a sweep, freeze its data, put it where the agents find it, and make it the current one."""
    n_train.cache_clear()
    path, config = read_yaml(args.sweep)
    program = load_program(config["program"])
    backend = args.backend or choose_backend()
    usable = not args.storage or (backend == "local" and args.storage.startswith("postgresql"))
    need(usable, f"STORAGE {args.storage}: allowed: postgresql+psycopg://... with BACKEND=local")
    plain = not args.edition or args.edition.replace("-", "").isalnum()
    need(plain, f"EDITION {args.edition}: allowed: letters, digits and -")
    # one of our searches is made for each of EngiBench's problems; one of your own has the problem that it names
    ours = path.resolve().parent == FILES.resolve() and config["method"] != "grid"
    each = data.CONDITIONS if ours and not args.problem else [args.problem]
    asked = [argparse.Namespace(**vars(args) | {"problem": problem}) for problem in each]
    plans = [plan(path, copy.deepcopy(config), a, program, backend) for a in asked]  # all, before one exists
    print(f"backend: {backend} (W&B where you are logged in; else, or with BACKEND=local, this folder)")
    created = []
    for sweep, points, known in plans:
        if sweep["skipped"]:
            print(f"{sweep['name']}: {sweep['skipped']} points are in {sweep['results']} already")
        if sweep["runs"] < 1:
            print(f"{sweep['name']}: nothing is left to run")
            continue
        if backend == "wandb":
            create_on_wandb(sweep, points, args, program)
        else:
            sweep |= {"id": f"{sweep['name']}-{secrets.token_hex(3)}", "storage": args.storage}
            Queue(sweep, create=True).fill(points, known)
        save(sweep)
        created.append(sweep["id"])
        print(f"created {sweep['id']}: {describe(sweep, points)}\nresults go to {sweep['results']}")
        for other in (s for s in known_sweeps() if s["id"] != sweep["id"] and s["config"] == sweep["config"]):
            print(f"note: {other['id']} is the same sweep: agents on both would make its runs twice")
    if created:
        write_atomically(STATE / "current", "\n".join(created) + "\n")
        with open(STATE / "current.log", "a") as file:  # which a job that was submitted before looks up
            print(int(time.time()), *created, file=file)
        print(f"next: make agents N={min(5, cores())}")


def describe(sweep, points):
    """What was created: the runs as a product, about the hours that they take one agent by results/, the designs."""
    counts = {k: len(levels(p)) for k, p in sweep["config"]["parameters"].items() if len(levels(p)) > 1}
    product = " x ".join(f"{n} {k}" for k, n in sorted(counts.items(), key=lambda c: c[0] != "problem"))
    shape = f" = {product}" if product and points and sweep["runs"] == math.prod(counts.values()) else ""
    known = []
    for path in sorted(Path("results").glob("*.csv")):
        with contextlib.suppress(InputError, KeyError):  # damaged, or of other columns: in nobody's way
            known.append((rows := read_csv(path)).loc[rows["status"] == "finished", ["problem", "n_epochs", "seconds"]])
    known = pandas.concat([pandas.DataFrame(columns=["problem", "n_epochs", "seconds"]), *known]).set_index("problem")
    usual = known.apply(pandas.to_numeric, errors="coerce").groupby("problem").median().T
    of = [(p.get("n_epochs"), *usual[p["problem"]]) for p in points if p["problem"] in usual]
    hours = sum(seconds * (n or epochs) / epochs for n, epochs, seconds in of) / 3600
    about = f", about {hours:.1f} h for one agent by the rows in results/" if hours else ""
    designs = ", ".join(f"{problem} from {source} ({sha256[:12]})" for problem, source, *_, sha256 in sweep["data"])
    return f"{sweep['runs']} runs{shape}{about}; {designs}"


def create_on_wandb(sweep, points, args, program):
    import wandb

    config, project = sweep["config"], args.project or program.parse([]).wandb_project
    if sweep["skipped"]:  # the server multiplies a grid out by itself: what is left of it becomes one list of arms
        varied = [k for k, p in config["parameters"].items() if len(levels(p)) > 1]
        arms = [",".join(p[k] if k == "arm" else f"{k}={p[k]!s}" for k in varied) for p in points]
        fixed = {k: p for k, p in config["parameters"].items() if k not in varied}
        config["parameters"] = fixed | {"arm": {"values": arms}}
    # The fingerprints travel in the description: the server refuses keys it does not know.
    config["description"] = f"{config.get('description', '')} [data: {json.dumps(sweep['data'])}]".strip()
    failure = "cannot create the sweep; BACKEND=local needs no server"
    sweep_id = ask_wandb(failure, lambda: wandb.sweep(config, entity=args.entity, project=project))
    entity = args.entity or ask_wandb(failure, lambda: wandb.Api().default_entity)
    sweep |= {"path": f"{entity}/{project}/{sweep_id}", "id": f"{sweep['name']}-{sweep_id}"}


def save(sweep):
    (STATE / sweep["id"]).mkdir(mode=0o700, parents=True, exist_ok=True)  # it may hold a database's password
    write_atomically(STATE / sweep["id"] / "sweep.json", json.dumps(sweep, indent=1) + "\n")


# -------------------------------------------------------------------------------------------- its rows: results/NN.csv
def is_of(row, flags, sweep, program):
    """Whether a row is of the point with these resolved flags, on the sweep's designs.

    A flag that the row lacks has the value that means the behaviour from before the flag existed (LEGACY).
    """
    legacy = getattr(program, "LEGACY", {})
    mine = {k: row.get(k) or str(legacy.get(k, "")) for k in flags if k not in NOT_COMPARED}
    return mine == {k: str(flags[k]) for k in mine} and is_on(sweep, flags, row["data_sha256"])


def skip_done(sweep, points, program):
    """The points without those that are in results/NN.csv already, finished or diverged."""
    rows = read_csv(Path(sweep["results"])).to_dict("records") if points else []
    have = [row for row in rows if row["status"] in ("finished", "diverged")]
    flags = settled(points, program) if have else points
    return [point for point, f in zip(points, flags, strict=True) if not any(is_of(r, f, sweep, program) for r in have)]


def known_trials(sweep, program):
    """The rows that a search has made already, as Optuna's trials: its model and hyperband go on from them."""
    states = {"finished": TrialState.COMPLETE, "stopped early": TrialState.PRUNED, "diverged": TrialState.FAIL}
    space, point, found = distributions(sweep["config"]["parameters"]), corners(sweep["config"])[0], []
    for row in read_csv(Path(sweep["results"])).to_dict("records"):
        with contextlib.suppress(KeyError, ValueError):  # out of range, or damaged
            (flags,) = settled([{**point, **{k: row[k] for k in space}}], program)
            same = (row.get("metric") or SEARCHED[1]) == sweep["config"]["metric"]["name"]
            if same and is_of(row, flags, sweep, program) and row["sweep"].rpartition("-")[0] == sweep["name"]:
                reports = {int(k): float(v) for k, v in (pair.split(":") for pair in row["reports"].split())}
                state = states[row["status"]]
                value = float(row["objective"]) if state == TrialState.COMPLETE else None
                trial = {"params": {k: flags[k] for k in space}, "distributions": space, "intermediate_values": reports}
                found.append(create_trial(state=state, value=value, **trial))
    return found


def history(folder, metric):
    """The values of a metric in a growing metrics.csv, oldest first. Empty cells and NaN do not count."""
    cells = [cell for cell in read_csv(folder / "metrics.csv").get(metric, []) if cell]
    values = [record.number(cell) for cell in cells]
    bad = [cell for cell, value in zip(cells, values, strict=True) if math.isnan(value) and cell.lower() != "nan"]
    need(not bad, f"{folder / 'metrics.csv'}: {metric} is no number: {bad[:1]!s:.60}; delete or mend the line")
    return [value for value in values if math.isfinite(value)]


def objective(config, values):
    """A search takes the metric's best over the run, as W&B does; elsewhere the run's last value counts."""
    best = max if config["metric"].get("goal") == "maximize" else min
    return values[-1] if config["method"] == "grid" else best(values)


def add_row(sweep, folder, status):
    """Put a run into results/NN.csv: flags, metrics, hashes. A run that is there already is replaced.

    One of a search gets what a new search needs to go on from it (known_trials), too: `objective`, and `reports`, the
    metric at hyperband's bands and at the end, step:value.
    """
    from report import ORIGIN, RESULT_METRICS, read_run

    config, summary = (read_json(folder / name) or {} for name in ("config.json", "summary.json"))
    metrics, search, path = read_csv(folder / "metrics.csv"), sweep.get("config", {}), Path(sweep["results"])
    found = (metrics.iloc[-1].to_dict() if len(metrics) else {}) | read_run(folder) | summary
    row = {"id": folder.name, "name": config.get("name"), "sweep": sweep["id"], "status": status}
    row |= {"cause": summary.get("cause")} | {k: str(v) for k, v in sorted(config.get("flags", {}).items())}
    row |= {key: found.get(key) for key in RESULT_METRICS}
    if "run_cap" in search and (values := history(folder, search["metric"]["name"])):
        rule = search.get("early_terminate") or {}
        rule = rule if "min_iter" in rule else None  # W&B has rules of other kinds, too
        steps = dict.fromkeys([*bands(rule, len(values)), len(values)])
        reports = " ".join(f"{step}:{values[step - 1]!r}" for step in steps)
        row |= {"objective": repr(objective(search, values)), "reports": reports, "metric": search["metric"]["name"]}
    found |= {f"data_{key}": value for key, value in config.get("data", {}).items()} | config.get("machine", {})
    found |= {"git": record.made_by(config), "recorded": time.strftime("%Y-%m-%dT%H:%M:%S")}
    row |= {key: found.get(key) for key in ORIGIN}
    table = pandas.DataFrame([{k: "" if v is None else str(v) for k, v in row.items()}])
    path.parent.mkdir(parents=True, exist_ok=True)
    STATE.mkdir(exist_ok=True)
    with engine.FileLock(STATE / f"{path.stem}.results.lock"):
        rows = read_csv(path)
        table = pandas.concat([rows[rows["id"] != folder.name], table]) if len(rows) else table
        write_atomically(path, table.fillna("").to_csv(index=False, lineterminator="\n"))


# ---------------------------------------------------------------- agents: claim a run, start it, watch it, settle it
stops = []  # the signals received so far; the handlers only take note, so that nothing is interrupted halfway


def stop_level():
    """0: go on; 1 (Ctrl-C): finish the current runs; 2 (Ctrl-C twice, SIGTERM): stop them now, resumably."""
    return 2 if any(s != signal.SIGINT for s in stops) else min(2, len(stops))


def folder_of(run):
    """Where the program puts a run of the queue."""
    return Path(run["point"].get("out", "runs")) / run["id"]


class Agent:
    """One of the `n` agents of this process: what it knows of itself, and of the run that it works on."""

    crashed = None  # of all: run id -> how it crashed before its first epoch

    def __init__(self, sweeps, slot, n, count):
        self.name, self.env, self.left, self.exit = f"agent {slot + 1}", surroundings(slot, n), count, 0
        self.queues, self.trial = [queue_of(sweep) for sweep in sweeps], None
        # since when its queue does not answer, when to ask it again, whether it may have runs yet
        self.away, self.again, self.busy = 0, 0, True

    def say(self, text):
        say(f"{self.name}: run {self.id} {text}")


def work(sweeps, n, count, patience, leave):
    """Let n agents work through the sweeps in order until nothing is left in any. Returns the exit code."""
    agents, Agent.crashed, told = [Agent(sweeps, slot, n, count) for slot in range(n)], {}, 0
    while True:
        if told < stop_level():
            told = stop_level()
            say(("", "finishing the runs at work; Ctrl-C again stops them", "stopping all runs, resumably")[told])
        had_runs = any(a.trial for a in agents)
        for a in agents:
            try:
                ended = a.trial and (a.child or start(a)) and tend(a)
                if time.monotonic() < a.again and (a.away or not ended):
                    continue  # it costs much to look at queue and run at each turn
                if a.trial:
                    look(a, patience)
                if ended:
                    settle(a)
                    a.trial = None
                if not a.trial:
                    claim(a)
                    a.busy = had_runs or a.trial or (not a.exit and any(queue.is_busy() for queue in a.queues))
                a.away, a.again = 0, time.monotonic() + 1
            except Exception as error:
                fail(a, error)
        if not had_runs and not any(a.trial for a in agents):
            able = [a for a in agents if not a.exit and a.left > 0]
            asked = not any(a.away for a in able)  # else it is not known whether runs wait
            if stop_level() or (leave and asked) or not any(a.busy for a in able):
                return 128 + stops[-1] if stops else max(a.exit for a in agents)
        time.sleep(0.2)


def fail(a, error):
    """What became of an error about one run or the queue: it ends the run's try, or agent a, or is waited for."""
    running = a.trial and a.child and a.child.poll() is None
    said = redacted(error if isinstance(error, InputError) else first_line(error))
    if not isinstance(error, (*engine.AWAY, OSError, InputError)):  # a fault of ours: say where
        say(redacted("".join(traceback.format_exception(error))))
    a.away = a.away or time.monotonic()
    away = time.monotonic() - a.away
    if running or (isinstance(error, engine.AWAY) and away < LONGEST and stop_level() < 2):  # wait
        pause = min(60, max(1, away))
        a.again = time.monotonic() + pause
        say(f"{a.name}: no answer from its queue, asking again in {pause:.0f} s ({said})")
    elif isinstance(error, (*engine.AWAY, OSError)):  # the agent ends
        say(f"{a.name}: stops, and nothing is lost: cannot write, or read ({said})")
        a.exit = 4
    elif a.trial:  # the run's try ends: a damaged file of it
        a.say(f"cannot go on: {said}")
        try:
            a.queue.end(a.trial, TrialState.WAITING, crashed=said)
        except Exception as worse:  # of the queue itself: other agents, and their programs, go on
            say(f"{a.name}: stops: {redacted(first_line(worse))}")
            a.exit = 4 if isinstance(worse, (*engine.AWAY, OSError)) else 2
        a.trial = None
    else:  # the agent ends: the sweep itself is at fault
        say(f"{a.name}: {said}")
        a.exit = 2
    if a.exit:  # others may take what it holds: this process lives on, and its locks with it
        a.trial = None
        for queue in a.queues:
            if queue.hold:
                queue.hold.release()


def claim(a):
    """Take a run of the first sweep that has one, if there is one now and agent a is to go on."""
    if stop_level() or a.exit or a.left < 1:
        return
    for queue in a.queues:
        check_code(queue.sweep)
        if trial := queue.claim():
            a.queue, a.trial, a.left, run = queue, trial, a.left - 1, trial.user_attrs["run"]
            a.id, a.point, a.folder, a.log = run["id"], run["point"], folder_of(run), queue.folder / f"{run['id']}.log"
            a.child, a.code, a.started = None, None, math.inf  # the program's process, exit code and start
            a.beaten, a.deadline, a.stopped_early, a.killed, a.hung = time.monotonic(), math.inf, False, False, False
            return


def start(a):
    """Start the program on its run, unless that is over, or agents are asked to stop. Returns False: not yet."""
    if stop_level() or (a.folder / "summary.json").exists():
        return True
    if is_locked(a.folder):  # a dead agent's program is still ending
        return False
    sweep, verb = a.queue.sweep, "continued" if (a.folder / "metrics.csv").exists() else "started"
    command = [sys.executable, a.queue.config["program"], *command_line(a.point), "--resume=auto"]
    tags = f"sweep-{Path(sweep['results']).stem},{sweep['config']['method']}"
    env = {k: v for k, v in a.env.items() if k != "WANDB_SERVICE"} | {"WANDB_RUN_ID": a.id, "WANDB_TAGS": tags}
    env |= {"WANDB_RUN_GROUP": sweep["id"], "WANDB_NOTES": sweep["config"].get("description", "")}
    if sweep["backend"] == "wandb":
        env |= dict(zip(("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_SWEEP_ID"), sweep["path"].split("/"), strict=True))
    with open(a.log, "a") as log:
        print("$", *command, file=log, flush=True)
        streams, parent = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}, os.getpid()
        # in a group of its own, out of reach of the terminal's Ctrl-C
        group = {"process_group": 0, "preexec_fn": lambda: die_with(parent)}
        a.child, a.started = subprocess.Popen(command, env=env, **streams, **group), time.time()
    varied = [k for k, p in a.queue.config["parameters"].items() if len(levels(p)) > 1 and k in a.point]
    a.say(f"{verb}: {' '.join(f'{k}={a.point[k]}' for k in varied)} (log: {a.log})")
    return True


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up here: after a fork it may not be


def die_with(parent):
    """Linux kills this process when its parent dies: no program goes on without the agent that watches over it."""
    if _prctl:
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def tend(a):
    """Look at the program: pass a stop on to it, or kill it. Returns whether it ended."""
    a.code = a.child and a.child.poll()
    if a.child is None or a.code is not None:
        return True
    if a.hung or time.monotonic() > a.deadline:
        a.child.kill()
        a.killed = True
    elif a.deadline == math.inf and (a.stopped_early or stop_level() == 2):
        a.child.terminate()
        a.deadline = time.monotonic() + 300  # to finish its epoch and write its checkpoint
    return False


def look(a, patience):
    """Tell the queue how the run does: beat, report its metric, let hyperband stop it; and see whether it hangs."""
    if time.monotonic() > a.beaten + a.queue.every:
        a.beaten = time.monotonic()
        a.queue.beat(a.trial)
    a.stopped_early |= a.queue.report(a.trial, history(a.folder, a.queue.config["metric"]["name"])) and a.code is None
    quiet, usual = silence(a.folder) if patience < math.inf else (0, 0)
    a.hung = time.time() - a.started > quiet > patience * usual > 0  # its first epoch comes after imports


def silence(folder):
    """(seconds since a run's last epoch, seconds that its epochs take), or (0, 0) before it has one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        took = pandas.to_numeric(read_csv(folder / "metrics.csv")["epoch_seconds"]).median()
        return (time.time() - (folder / "metrics.csv").stat().st_mtime, took) if took > 0 else (0, 0)
    return 0, 0


def ending(code):
    """An exit code in words; Python says -9 for signal 9."""
    memory = "; out of memory?" if code == -signal.SIGKILL else ""
    return f"killed (signal {-code}{memory})" if code < 0 else f"exit code {code}"


def settle(a):
    """Write down what came of the run: a row if it is over, else back into the queue; and a line that says so."""
    queue, config, metric = a.queue, a.queue.config, a.queue.config["metric"]["name"]
    said = a.log.read_text(errors="replace").splitlines() if a.log.exists() else []
    tail = ([line for line in said if line.strip() and line[:2] != "$ "] or ["it printed nothing"])[-1][:200]
    summary, values = read_json(a.folder / "summary.json"), history(a.folder, metric)
    summary = summary if isinstance(summary, dict) else {}
    if a.code in (130, 143) and not stop_level() and queue.sweep["backend"] == "wandb":
        a.stopped_early |= "early_terminate" in config  # the server told the program itself
    status = summary.get("status") or ("stopped early" if a.stopped_early else None)
    if a.child is None and status not in OVER and not stop_level():  # start() saw a summary, which says nothing
        raise InputError(f"{a.folder / 'summary.json'} is damaged; delete it to compute the run again")
    with queue.lock():
        ours = queue.is_ours(a.trial)
    if not ours:
        outcome = "taken over by another agent, while this machine was suspended"
    elif status and (other := other_designs(queue.sweep, a.folder)):  # replaced while agents work
        a.exit, kept = 2, queue.folder / f"{a.id}.other-designs-{secrets.token_hex(2)}"
        shutil.move(a.folder, kept)
        queue.end(a.trial, TrialState.FAIL, cause=other)
        outcome = f"not recorded: {other}; it is in {kept}, and this agent stops"
    elif status in OVER:
        add_row(queue.sweep, a.folder, status)
        state, value = TrialState.FAIL, None
        outcome = f"{status}: {summary.get('cause') or f'without a value of {metric}'}"
        if status == "stopped early":
            state, value, outcome = TrialState.PRUNED, (values or [None])[-1], "stopped early by hyperband"
        elif status == "finished" and values:
            state, value = TrialState.COMPLETE, objective(config, values)
            outcome = f"finished, {metric} {value:.6g} with {summary.get('active_dims')} dims"
        queue.end(a.trial, state, value, cause=outcome)
    elif a.code in (2, 4):  # most likely this machine's fault: others may try
        a.exit = a.code
        queue.note(a.trial, refused=True)
        queue.end(a.trial, TrialState.WAITING)
        outcome = f"cannot {'start' if a.code == 2 else 'write'}, and this agent stops: {tail}"
    elif a.code in (None, 130, 143, -signal.SIGINT, -signal.SIGTERM) or (a.killed and not a.hung):
        queue.end(a.trial, TrialState.WAITING)
        outcome = "stopped, resumably"
    else:
        cause = "hung" if a.hung else f"{ending(a.code)}: {tail}"
        given_up = queue.end(a.trial, TrialState.WAITING, crashed=cause) == TrialState.FAIL
        outcome = f"crashed ({cause}), " + ("and given up" if given_up else "will be tried again")
        if not values and any(c == cause and run != a.id for run, c in a.crashed.items()):  # it is not the point
            a.exit, outcome = 2, f"{outcome}; two points have crashed alike before their first epoch: this agent stops"
        a.crashed.update({} if values else {a.id: cause})
    a.say(outcome)


def surroundings(slot, agents):
    """The environment of agent `slot` of `agents`: its share of the cores, and one GPU of those there are."""
    env, available = dict(os.environ), min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", cores())))
    env.setdefault("OMP_NUM_THREADS", str(max(1, available // agents)))
    gpus = env["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in env else list_gpus()
    return env | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus and gpus[0] else {})


def list_gpus():
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them; MIG slices, where there are any."""
    n, slices = torch.cuda.device_count(), []  # of several slices CUDA shows a process only the first
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "-L"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout if n else ""
        slices = re.findall(r"UUID: (MIG-[^)\s]+)", listed)
    return slices or [str(i) for i in range(n)]


# -------------------------------------------------------------------------------------------------------- the commands
def known_sweeps():
    """The sweeps of this folder, oldest first. One whose sweep.json is damaged, or of an older version, is named."""
    needed = {"id", "backend", "config", "data", "results", "runs", "created"}
    found = {str(path): read_json(path) for path in sorted(STATE.glob("*/sweep.json"))}
    good = {k: s for k, s in found.items() if isinstance(s, dict) and needed <= set(s) and isinstance(s["data"], list)}
    if bad := ", ".join(set(found) - set(good)):
        print(f"sweep.py: passed over, as damaged or of an older version: {bad}", file=sys.stderr)
    return sorted(good.values(), key=lambda s: s["created"])


def load_sweep(name, storage=None):
    """A sweep by its id or the beginning of it, its W&B path (entity/project/id), or, with STORAGE, in the database."""
    known = known_sweeps()
    found = [s for s in known if name in (s["id"], s.get("path"))] or [s for s in known if s["id"].startswith(name)]
    need(len(found) < 2, f"SWEEP {name}: begins several sweeps: {', '.join(sorted(s['id'] for s in found))}")
    if not found:
        on_wandb, what = name.count("/") == 2, f"SWEEP {name}: unknown here, or its sweep.json is damaged or old"
        allowed = "an id of `make list`, entity/project/id of W&B, or an id with its STORAGE"
        need(on_wandb or storage, f"{what}; allowed: {allowed}")
        found = [join_wandb(name) if on_wandb else Queue({"id": name, "storage": storage}).sweep]
        save(found[0])
    return found[0]


def join_wandb(path):
    """A sweep of W&B that another machine created. One of `wandb sweep` has no fingerprint: any designs will do."""
    import wandb

    config = ask_wandb(f"does not give SWEEP {path}", lambda: dict(wandb.Api().sweep(path).config))
    frozen = re.search(r"\[data: (.*)\]", config.get("description") or "")
    sweep_id, name = path.split("/")[2], slug(config.get("name") or path)
    runs = len(expand(config)) if config["method"] == "grid" else config.get("run_cap")
    sweep = {"id": f"{name}-{sweep_id}", "name": name, "backend": "wandb", "path": path, "config": config, "runs": runs}
    sweep |= {"data": json.loads(frozen[1]) if frozen else [], "results": f"results/{name.split('_')[0]}.csv"}
    return sweep | {"created": time.strftime(NOW)}


def current_names():
    return (STATE / "current").read_text(errors="replace").split() if (STATE / "current").exists() else []


def asked(args):
    """The sweeps a command is about, in order: SWEEP=, else the current ones."""
    names = args.sweep.split() if args.sweep else current_names()
    need(names, "no current sweep; create one (make sweep-01), or name one of `make list`: SWEEP=")
    return [load_sweep(name, args.storage) for name in names]


def agent(args):
    """Start agents on the current sweeps, and work through them in order."""
    sweeps = asked(args)
    for sweep in sweeps:
        check_data(sweep)
        if args.changed:
            sweep["code"] = code_of(sweep["config"]["program"])
            save(sweep)
        check_code(sweep)
        rebuild_rows(sweep)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup make agents
            signal.signal(signum, lambda signum, frame: stops.append(signum))
    if (code := work(sweeps, args.n, args.count, args.patience, args.leave)) == 4:
        return code  # the database or the disk is away
    for sweep in sweeps:
        rebuild_rows(sweep)
    status(args)
    return code or args.failures > 0


def rebuild_rows(sweep):
    """Put the runs that are over and have a folder, but no row, into results/NN.csv, and say how many."""
    have, added = {row["id"] for row in read_csv(Path(sweep["results"])).to_dict("records")}, 0
    for trial in queue_of(sweep).trials():
        folder = folder_of(trial.user_attrs["run"])
        status = "stopped early" if trial.state == TrialState.PRUNED else record.status(folder)
        over = status in OVER and folder.name not in have and (folder / "config.json").exists()
        try:
            if over and not other_designs(sweep, folder):
                add_row(sweep, folder, status)
                added += 1
        except ValueError as error:  # a damaged file of one run
            say(f"{folder}: gets no row: {first_line(error)}")
    if added:
        say(f"{sweep['results']}: {added} rows were not there; made again from the runs' folders")
    return added


def rebuild(args):
    """Make the rows of results/NN.csv that are missing again, from the runs' folders."""
    for sweep in asked(args):
        rebuild_rows(sweep) or print(f"{sweep['results']}: has all rows of {sweep['id']}")


def kind_of(queue, trial):
    """What has become of a run: one of OVER, running or waiting."""
    if trial.state == TrialState.FAIL:
        return "diverged" if trial.user_attrs["cause"].startswith("diverged") else "failed"
    if trial.state == TrialState.RUNNING and queue.is_alive(trial):
        return "running"
    return {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early"}.get(trial.state, "waiting")


def status(args):
    """One line a sweep: done / running / failed / left, best so far, time to go; one for each run at work or failed."""
    args.failures = 0  # the exit code of agents
    for sweep in asked(args):
        queue = queue_of(sweep)
        runs = [(kind_of(queue, trial), trial) for trial in queue.trials()]
        n = collections.Counter(kind for kind, _ in runs)
        over, total, args.failures = sum(n[kind] for kind in OVER), sweep["runs"] or 0, args.failures + n["failed"]
        where = sweep.get("path", "local") + (", stopped" if queue.study.user_attrs.get("stopped") else "")
        said = f"{over}/{total or '?'} over ({', '.join(f'{n[kind]} {kind}' for kind in OVER)}), {n['running']} running"
        print(f"{sweep['id']} ({where}): {said}, {max(0, total - over - n['running'])} left{so_far(sweep, runs, n)}")
        for kind, trial in runs:
            run = trial.user_attrs["run"]
            quiet, usual = silence(folder_of(run)) if kind == "running" else (0, 0)
            if usual:
                mark = f", {quiet / usual:.0f} times its usual: does it hang?" if quiet > 10 * usual else ""
                print(f"  running: {run['id']}, last epoch {quiet:.0f} s ago{mark}")
            if kind in ("failed", "diverged"):
                print(f"  {kind}: {run['id']} {trial.user_attrs['cause']}")


def so_far(sweep, runs, n):
    """The best value of each problem, and about how long the rest takes those who are at work."""
    metric, done, said, best = sweep["config"]["metric"], [t for kind, t in runs if kind == "finished"], "", {}
    for t in sorted(done, key=lambda t: t.value, reverse=metric.get("goal") != "maximize"):  # the best is the last
        best[str(t.user_attrs["run"]["point"].get("problem"))] = t
    for problem, t in sorted(best.items()):
        said += f", best {metric['name']} {t.value:.6g} on {problem} (run {t.user_attrs['run']['id']})"
    if done and n["running"]:
        usual = pandas.Series([(t.datetime_complete - t.datetime_start).total_seconds() for t in done]).median()
        rest = max(0, (sweep["runs"] or 0) - sum(n[kind] for kind in OVER) - n["running"] / 2)
        said += f", about {usual * rest / n['running'] / 60:.0f} min to go"
    return said


def list_sweeps(args):
    """Every sweep of this folder, newest last; * marks the current ones."""
    current, found = current_names(), known_sweeps()
    for s in found:
        mark, runs = "*" if s["id"] in current else " ", s["runs"] or "?"
        print(f"{mark} {s['id']:45s} {s['backend']:6s} {s['created']}  {runs:>4} runs  {s.get('path', '')}".rstrip())
    if not found:
        print("no sweeps yet; create one: make sweep-01")


def stop(args, value=True):
    """Hand out no new runs; those that run are finished. `resume` undoes it."""
    for sweep in asked(args):
        queue_of(sweep).study.set_user_attr("stopped", value)
        if sweep["backend"] == "wandb":
            command = [sys.executable, "-m", "wandb", "sweep", "--stop" if value else "--resume", sweep["path"]]
            ask_wandb(f"sweep {sweep['path']} stays as it is", lambda c=command: subprocess.run(c, check=True))
        print(f"{sweep['id']}: " + ("stopped; running runs are finished, make resume goes on" if value else "goes on"))


def resume(args):
    """After a stop, a crash or a reboot: hand out runs again, and start agents."""
    stop(args, False)
    if args.failed:
        for sweep in asked(args):
            print(f"{sweep['id']}: {queue_of(sweep).retry()} failed runs are tried again, from their checkpoints")
    return agent(args)


def sync(args):
    """Upload what was logged offline and what W&B's server did not take; afterwards, what it holds is compared."""
    runs = {p.parents[1] for p in Path(args.out).glob("*/wandb/*run-2*") if p.is_dir()}
    lacking = [folder for folder in sorted(runs) if not is_locked(folder) and missing_epochs(folder)]
    if not lacking:
        return print(f"nothing to upload: W&B has every epoch of the {len(runs)} runs in {args.out}/*/wandb")
    logs = [str(p) for folder in lacking for p in sorted(folder.glob("wandb/*run-2*")) if p.is_dir()]
    options = ["--yes", "--include-online", "--include-synced"]  # it believes what it was told; we looked
    subprocess.run([sys.executable, "-m", "wandb", "sync", *options, *logs])
    left = {folder: n for folder in lacking if (n := missing_epochs(folder))}
    for folder, n in left.items():
        print(f"sweep.py: {folder}: W&B lacks {n} of its epochs; once more: make sync", file=sys.stderr)
    return bool(left)


def missing_epochs(folder):
    """How many epochs of a run folder W&B does not have. What it has all of is marked, and not asked for again."""
    import wandb

    flags, mark = (read_json(folder / "config.json") or {}).get("flags", {}), folder / "wandb" / "complete"
    logged, held = {int(cell) for cell in read_csv(folder / "metrics.csv").get("epoch", [])}, set()
    if mark.exists() and mark.read_text() == str(len(logged)):
        return 0
    with contextlib.suppress(Exception):  # wandb raises a dozen types for a run that is not there
        api = wandb.Api()
        where = f"{flags.get('wandb_entity') or api.default_entity}/{flags.get('wandb_project')}/{folder.name}"
        held = {row.get("epoch") for row in api.run(where).scan_history() if "val_rec" in row}
    if logged <= held:
        write_atomically(mark, str(len(logged)))
    return len(logged - held)


def dashboard(args):
    """Optuna's dashboard on the (first) current local sweep."""
    sweep, command = asked(args)[0], shutil.which("optuna-dashboard", path=os.path.dirname(sys.executable))
    need(sweep["backend"] == "local", f"{sweep['id']}: is on W&B, look there: {sweep.get('path')}")
    need(command, "optuna-dashboard: not installed; pip install optuna-dashboard")
    os.execv(command, [command, sweep["storage"] or str(STATE / sweep["id"] / "journal.log")])


def reached(args):
    """The command itself. A database that is away is what cannot be read: exit code 4."""
    try:
        return args.function(args)
    except engine.AWAY as error:
        raise OSError(f"STORAGE: the database is away: {first_line(error)}") from None


def main(argv=None):
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    every, start = [create, agent, resume, status, list_sweeps, stop, rebuild, sync, dashboard], [agent, resume]
    subs = {f: commands.add_parser(f.__name__.removesuffix("_sweeps"), help=f.__doc__.splitlines()[0]) for f in every}
    for function, sub in subs.items():
        sub.set_defaults(function=function)

    def flag(name, meaning, functions=(create,), **how):
        for function in functions:
            subs[function].add_argument(name, help=meaning, **how)

    def positive(text):
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError("must be at least 1")
        return int(text)

    which = "sweeps, by the beginning of their ids, or entity/project/id of W&B (the current ones)"
    on_sweeps, storage = [agent, resume, status, stop, rebuild, dashboard], os.environ.get("STORAGE")
    flag("--sweep", which, on_sweeps)
    place = "postgresql+psycopg://... where there is no common disk ($STORAGE; else a file journal)"
    flag("--storage", place, [create, *on_sweeps], default=storage)
    flag("sweep", "01, 01b, 02 ... or a .yaml file")
    flag("--backend", "(wandb when logged in, else local)", choices=["wandb", "local"])
    flag("--problem", "only this problem")
    flag("--seeds", "only the first so many seeds", type=int)
    flag("--epochs", "so many epochs; pruning_epoch is scaled by the same factor, and nothing else is", type=int)
    flag("--strategy", "the winner of 01, for the later sweeps")
    flag("--set", "fix any flag as it is, or vary it over the values listed", metavar='"a=1 b=2,3"')
    flag("--edition", "results go to results/NN-EDITION.csv (trial, if EPOCHS or SET leave the file's values)")
    flag("--project", "W&B project (train.py's default)")
    flag("--entity", "W&B entity (yours)")
    flag("--n", "agents on this machine (1)", start, type=positive, default=1)
    flag("--count", "at most so many runs by each agent", start, type=positive, default=math.inf)
    flag("--patience", "end a try without an epoch for so many usual ones", start, type=positive, default=math.inf)
    flag("--leave", "leave when no run waits, though some are at work", start, action="store_true")
    flag("--changed", "the code or a version has changed, but no result can: go on", start, action="store_true")
    flag("--failed", "try again what failed, too, from its checkpoints", [resume], action="store_true")
    flag("--out", "folder of the runs (runs)", [sync], default="runs")
    args = parser.parse_args(argv)
    if argv is None and args.function in (status, list_sweeps):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # make status | head -1
    return record.guarded("sweep.py", reached, args, cannot="cannot write, or read", shown=redacted)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record.leave(main())
