"""Six studies, on W&B or without it: create a sweep from its YAML, start agents on it, look at it, stop it, go on.

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
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas
import torch
import yaml
from optuna.trial import TrialState, create_trial

import data
import record
from lvae import InputError, first_line
from record import FREE_FLAGS, Parser, bounded, cores, is_locked, read_csv, read_json, slug, write_atomically
from sweeps import queue as engine
from sweeps.queue import STATE, Queue, bands, corners, distributions, levels, need, queue_of, redacted, say

FILES = Path(__file__).parent / "sweeps"
NOW = "%Y-%m-%d %H:%M:%S"
STUDY = ("beams2d", "heatconduction2d", "photonics2d")
# What STRATEGY= puts into the arms of 04 and 06: the strategy's flag, and its most aggressive level of the study (01b)
AGGRESSIVE = {"plummet": ("plummet_threshold", 0.1), "pca_cdf": ("cdf_threshold", 0.95)}
AGGRESSIVE |= {"lognorm": ("percentile", 0.4), "probabilistic": ("temperature", 1.0)}
# Points that differ only in these are one point: where it is computed, what is kept, and what is compared otherwise
NOT_COMPARED = {*FREE_FLAGS, "threads", "arm", "safeguards", "data"}
REPORTS = 25  # of a run to the queue, besides hyperband's bands: each is an fsync
PATIENCE = 300  # seconds for a stopped run to finish its epoch and write its checkpoint, before it is killed
MOST = 100_000  # points of a grid
OVER = ("finished", "stopped early", "diverged", "failed")
NUMBER, SCALAR = int | float, str | int | float | None

# ------------------------------------------------------------------------------------------------------ a sweep's file


class Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not its last value."""

    def construct_mapping(self, node, deep=False):
        keys = collections.Counter(str(key.value) for key, _ in node.value)
        for key, n in keys.items():
            need(n == 1, f"line {node.start_mark.line + 1}: {key} is given twice")
        return super().construct_mapping(node, deep)


EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")  # YAML 1.1 takes 1e-4, without a dot, for text
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def read_yaml(name):
    """A sweep's file, by its path or its number (01, 01b, ...) -> (path, config). Raises InputError."""
    files = {p.stem.split("_")[0]: p for p in sorted(FILES.glob("*_*.yaml"))}
    need(name in files or Path(name).suffix, f"sweep {name}: unknown; allowed: {', '.join(files)}, or a .yaml file")
    path = files.get(name, Path(name))
    try:
        config = yaml.load(record.read_text(path), Loader)
        config = {"name": path.stem, **config} if isinstance(config, dict) else {}
        check_config(config)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: {said if isinstance(error, InputError) else f'cannot be read ({said})'}") from None
    return path, config


def check_config(config):
    """Refuse a sweep's file that lacks something, or has what we and W&B would take otherwise than it is meant."""
    kinds = {"method": str, "metric": dict, "parameters": dict, "program": str, "name": str}
    bad = ", ".join(k for k, kind in kinds.items() if not isinstance(config.get(k), kind))
    need(not bad, f"needs {bad}")
    need(slug(config["name"]) == config["name"], f"name {config['name']!r}: allowed: letters, digits, . _ - inside it")
    cap, search = config.get("run_cap", 1), config["method"] in ("bayes", "random") and "run_cap" in config
    need(search or config["method"] == "grid", "method must be grid, or bayes or random with a run_cap")
    need(isinstance(cap, int) and cap > 0, f"run_cap {cap}: must be a number of runs, at least 1")
    for key, p in config["parameters"].items():
        found, within = levels(p), not {"value", "values"} & set(p)
        plain = isinstance(found, list) and all(isinstance(v, NUMBER if within else SCALAR) for v in found)
        once = len(found) == 2 if within else 0 < len(found) == len(set(map(str, found)))
        need(plain and once, f"parameter {key} needs value, values (each of them once), or min and max")
    named = levels(config["parameters"].get("problem", {})) and isinstance(config["metric"].get("name"), str)
    need(named, "needs a parameter problem with a value or values, and a metric with a name")
    rule = config.get("early_terminate") or {"min_iter": 1}
    first, eta = rule.get("min_iter"), rule.get("eta", 3)
    steps = isinstance(first, int) and first > 0 and isinstance(eta, NUMBER) and 1.1 <= eta < math.inf
    need(steps, "early_terminate needs min_iter >= 1 and eta >= 1.1; its bands are min_iter * eta^k")


def expand(config):
    """The points of a grid, a dict of flags each, the first parameter of the file varying slowest."""
    ranges = ", ".join(key for key, p in config["parameters"].items() if not {"value", "values"} & set(p))
    need(not ranges, f"parameter {ranges}: a grid needs value or values")
    lists = [levels(p) for p in config["parameters"].values()]
    n = math.prod(map(len, lists))
    need(n <= MOST, f"the grid has {n:,} points; allowed: at most {MOST:,}")
    return [dict(zip(config["parameters"], point, strict=True)) for point in itertools.product(*lists)]


def command_line(point):
    """The arguments W&B's agent passes for a point: --flag=value, in alphabetical order, as Python prints values."""
    return [f"--{key}={point[key]!s}" for key in sorted(point)]


def load_program(path):
    """The program of a sweep as a module: its parser() and parse() say which flags and values it takes."""
    need(path.endswith(".py") and Path(path).exists(), f"program {path}: no such file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec.loader.exec_module(module)
    return module


def number(text):
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


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
        seeds = parameters.get("seed", {}).get("values", [])
        allowed = f"allowed: 1 to {len(seeds)}" if seeds else "this sweep does not vary the seed"
        need(1 <= args.seeds <= len(seeds), f"SEEDS {args.seeds}: {allowed}")
        parameters["seed"] = {"values": seeds[: args.seeds]}
    if args.epochs is not None:
        first, n = parameters.get("pruning_epoch"), parameters.get("n_epochs", {}).get("value")
        need(args.epochs >= 2, f"EPOCHS {args.epochs}: must be at least 2")
        need(first and n, f"EPOCHS {args.epochs}: needs a file with one value of n_epochs, and with a pruning_epoch")
        for key in {"value", "values", "min", "max"} & set(first):
            many = isinstance(first[key], list)
            scaled = [round(v * args.epochs / n) for v in (first[key] if many else [first[key]])]
            first[key] = scaled if many else scaled[0]
        parameters["n_epochs"] = {"value": args.epochs}
    for item in (args.set or "").split():
        key, _, text = item.partition("=")
        need(key != "problem" or not search, f"SET {item}: a search is made for each problem; say PROBLEM={text}")
        texts = [text] if key == "arm" else text.split(",")  # an arm has commas of its own
        need(all(texts), f"SET {item}: must be name=value, or name=value,value,... for several")
        values = list(dict.fromkeys(map(number, texts)))
        parameters[key] = {"value": values[0]} if len(values) == 1 else {"values": values}
    unknown = ", ".join(sorted(set(parameters) - {action.dest for action in program.parser()._actions}))
    need(not unknown, f"parameter {unknown}: no such flag of {config['program']}")
    free = {*FREE_FLAGS, "threads", "precision"} - {"arm"}
    return any(not set(levels(p)) <= set(file.get(k, [])) for k, p in parameters.items() if k not in free)


def choose_strategy(parameters, strategy, defaults):
    """STRATEGY=: narrow strategies (01) or arms (01b) to it, replace the one (02, 03, 05) or the arms (04, 06)."""
    need(strategy in (*AGGRESSIVE, "none"), f"STRATEGY {strategy}: unknown; allowed: {', '.join(AGGRESSIVE)}, none")
    if "arm" not in parameters:
        return parameters.update(strategy={"value": strategy})
    arms = [arm for arm in parameters["arm"]["values"] if arm.split(",")[0] == f"strategy={strategy}"]
    need(arms or strategy != "none", "STRATEGY none: it has no level to compare")
    if not arms:
        flag, level = AGGRESSIVE[strategy]
        arms = [f"strategy={strategy},{flag}={x}" for x in (defaults[flag], level)]
        parameters.pop(flag, None)
    parameters["arm"] = {"values": arms}


# -------------------------------------------------------------------------------------------------------- creating it


def resolve(points, program):
    """The flags of each point as the program resolves them: every point must be a command line that it takes."""
    flags = []
    for point in points:
        try:
            flags.append(vars(program.parse(command_line(point))))
        except ValueError as error:  # the program may be another than train.py, with an error of its own
            varied = command_line({k: v for k, v in point.items() if any(p[k] != v for p in points)})
            raise InputError(f"{error} (in {' '.join(varied)})" if varied else str(error)) from None
    return flags


def check_pruning(args, flags):
    """Refuse SET or EPOCHS with which runs end before they may prune, or cannot prune enough."""
    pruning, late = [f for f in flags if f.get("strategy", "none") != "none"], "pruning would start at epoch"
    for f in pruning if re.search(r"\b(n_epochs|pruning_epoch)=", args.set or "") else ():
        first, n = f.get("pruning_epoch"), f["n_epochs"]
        need(first is None or first < n, f"SET {args.set}: {late} {first}, and the run ends at {n}; allowed: more")
    for f in pruning if args.epochs is not None else ():
        first, end, dims = f["pruning_epoch"], f["polynomial_schedule_n"], f["latent_dim"]
        advice = f"before the schedule of w_v ends at {end}; allowed: more, or SET=polynomial_schedule_n={first}"
        need(end <= first, f"EPOCHS {args.epochs}: {late} {first}, {advice}")
        # the first pruning comes k_consecutive - 1 epochs after pruning_epoch, each other cooldown_epochs + 1 later
        floor, cap = max(1, f["min_active_dims"]), min(f["max_prune_per_epoch"], dims)
        events = math.ceil((dims - floor) / cap)
        last = first + f["k_consecutive"] - 1 + (events - 1) * (f["cooldown_epochs"] + 1)
        advice = f"would take until epoch {last}; allowed: more, or a smaller SET=latent_dim="
        path = f"to prune from {dims} to {floor} dimensions with these safeguards {advice}"
        need(events < 1 or last < f["n_epochs"], f"EPOCHS {args.epochs}: {path}")


def freeze_data(config):
    """Resolve `data: auto` for the whole sweep, and fingerprint its designs: {data_key(): {...}}."""
    parameters = config["parameters"]
    lists = [levels(parameters.get(k, {"value": v})) for k, v in (("problem", None), ("n_train", 0), ("toy_dims", 3))]
    source, frozen = str(levels(parameters.get("data", {"value": "auto"}))[0]), {}
    if source == "auto":
        found = {data.load(p, source, k, n).fingerprint["source"] for p, n, k in itertools.product(*lists)}
        source = "hub" if found == {"hub"} else "sample"
    parameters["data"] = {"value": source}
    for p, n, k in itertools.product(*lists):
        sha256 = data.load(p, source, k, n).fingerprint["sha256"]
        frozen[data_key(p, n, k)] = {"source": source, "toy_dims": k, "sha256": sha256}
    return frozen


def data_key(problem, n_train, toy_dims):
    """A name for designs: the problem, the factors of toy designs, and /n where training is on the first n alone."""
    factors = f"/k{toy_dims}" if problem == "toy" and int(toy_dims) != 3 else ""
    return f"{problem}{factors}" + (f"/{n_train}" if int(n_train) else "")


def sha256_of(sweep, flags):
    """The fingerprint of the designs that a run with these flags has in a sweep; None if it has none for them."""
    key = data_key(flags.get("problem"), flags.get("n_train") or 0, flags.get("toy_dims") or 3)
    return sweep["data"].get(key, {}).get("sha256")


def other_designs(sweep, folder):
    """What the designs of a run and of its sweep are, where they are not the same; else None."""
    config = read_json(folder / "config.json") or {}
    then, now = sha256_of(sweep, config.get("flags", {})), config.get("data", {}).get("sha256")
    return f"its designs are {str(now)[:12]}, the sweep's {then[:12]}" if then and now and now != then else None


def check_data(sweep):
    """Refuse to work on a sweep whose designs are not the ones it was created with."""
    for key, then in sweep["data"].items():
        problem, *rest = key.split("/")
        n = int(next((part for part in rest if part.isdigit()), 0))
        now = data.load(problem, then["source"], then["toy_dims"], n).fingerprint["sha256"]
        other = f"{key} from {then['source']} is {now[:12]} here, but was {then['sha256'][:12]} when it was created"
        advice = "its runs must not mix two data sets: get the same designs, or create the sweep anew"
        need(now == then["sha256"], f"sweep {sweep['id']}: {other}; {advice}")


def code_of(program):
    """What can change a result besides flags and designs: {file or package: its hash or version}."""
    names = [Path(program), *(Path(program).parent / f"{name}.py" for name in ("lvae", "pruning", "data"))]
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in names if p.exists()}
    return found | {package: importlib.metadata.version(package) for package in ("torch", "numpy")}


def check_code(sweep):
    """Refuse to go on with a sweep on other code than its first runs had; `--changed` takes the new one for its own."""
    now, then = code_of(sweep["config"]["program"]), sweep.get("code", {})
    other = "; ".join(f"{k} is {now.get(k, 'gone')} here, but was {v}" for k, v in then.items() if now.get(k) != v)
    advice = "its runs must not mix two: go back, or say --changed (CHANGED=1) if no result can differ"
    need(not other, f"sweep {sweep['id']}: {other} when it was created; {advice}")


def choose_backend(asked):
    """wandb or local, and why."""
    if asked:
        return asked, "as BACKEND says"
    if (mode := os.environ.get("WANDB_MODE", "online")) not in ("online", "shared", "run"):
        return "local", f"since WANDB_MODE is {mode}"
    if record.logged_in(record.wandb_server()):
        return "wandb", "since you are logged in to W&B; BACKEND=local needs no account"
    return "local", "since you are not logged in to W&B (`wandb login`, then BACKEND=wandb)"


def plan(path, config, args, program, backend):
    """What `create` is about to create: (sweep, its points, none for a search, Optuna's trials that it starts from)."""
    changed, grid = narrow(config, args, program), config["method"] == "grid"
    edition = f"-{args.edition}" if args.edition else "-trial" if changed else ""
    name = re.sub("(_|$)", rf"{edition}\1", config["name"], count=1)
    config["name"] = f"{name}-{args.problem}" if args.problem and not grid else name
    flags = resolve(expand(config) if grid else corners(config), program)
    check_pruning(args, flags)
    if flags[0].get("precision") == "auto":  # as this machine would, for all: bf16 and fp32 must not be compared
        settled = argparse.Namespace(**flags[0])
        program.settle(settled)
        config["parameters"]["precision"] = {"value": settled.precision}
    where = {"wandb_project": args.project, "wandb_entity": args.entity} if backend == "local" else {}
    config["parameters"] |= {flag: {"value": value} for flag, value in where.items() if value}
    sweep = {"name": config["name"], "backend": backend, "results": f"results/{path.stem.split('_')[0]}{edition}.csv"}
    sweep |= {"config": config, "data": freeze_data(config), "created": time.strftime(NOW)}
    sweep |= {"code": code_of(config["program"])}
    if grid:
        points = expand(config)[: config.get("run_cap")]
        left = skip_done(sweep, points, program)
        return sweep | {"runs": len(left), "skipped": len(points) - len(left)}, left, []
    known = known_trials(sweep, program) if backend == "local" else []  # W&B's search takes only runs that are on W&B
    return sweep | {"runs": config["run_cap"] - len(known), "skipped": len(known)}, [], known


def create(args):
    """Check a sweep, freeze its data, put it where the agents find it, and make it the current one."""
    path, config = read_yaml(args.sweep)
    program = load_program(config["program"])
    backend, why = choose_backend(args.backend)
    allowed = "postgresql+psycopg://... with BACKEND=local, or nothing (a file journal); SQLite runs points twice"
    usable = not args.storage or (backend == "local" and args.storage.startswith("postgresql"))
    need(usable, f"STORAGE {args.storage}: allowed: {allowed}")
    plain = not args.edition or args.edition.replace("-", "").isalnum()
    need(plain, f"EDITION {args.edition}: allowed: letters, digits and -")
    # a search of the study is made for each of its problems; one of your own has the problem that it names
    ours = path.resolve().parent == FILES.resolve() and "value" in config["parameters"]["problem"]
    each = STUDY if config["method"] != "grid" and ours and not args.problem else [args.problem]
    asked = [argparse.Namespace(**vars(args) | {"problem": problem}) for problem in each]
    plans = [plan(path, copy.deepcopy(config), a, program, backend) for a in asked]  # all, before one exists
    print(f"backend: {backend}, {why}")
    created = []
    for sweep, points, known in plans:
        if sweep["skipped"]:
            rest = "; the search goes on from them" if known else ", and not run again unless you delete their rows"
            print(f"{sweep['name']}: {sweep['skipped']} points are in {sweep['results']} already{rest}")
        if sweep["runs"] < 1:
            print(f"{sweep['name']}: nothing is left to run")
            continue
        if backend == "wandb":
            create_on_wandb(sweep, points, args)
        else:
            sweep |= {"id": f"{sweep['name']}-{secrets.token_hex(3)}", "storage": args.storage}
            Queue(sweep, create=True).fill(points, known)
        save(sweep)
        created.append(sweep["id"])
        print(describe(sweep, points))
    if created:
        write_atomically(STATE / "current", "\n".join(created) + "\n")
        with open(STATE / "current.log", "a") as file:  # which a job that was submitted before looks up
            print(int(time.time()), *created, file=file)
        print(f"next: make agents N={min(5, cores())}")


def describe(sweep, points):
    """What was created: the runs as a product, the hours they take, the designs, the precision; where the rows go."""
    parameters = sweep["config"]["parameters"]
    counts = {k: len(levels(p)) for k, p in parameters.items() if len(levels(p)) > 1}
    product = " x ".join(f"{n} {k}" for k, n in sorted(counts.items(), key=lambda c: c[0] != "problem"))
    shape = f" = {product}" if product and points and sweep["runs"] == math.prod(counts.values()) else ""
    about = f", about {h:.1f} h for one agent by the rows in results/" if (h := hours(points)) else ""
    sources = ", ".join(f"{key} from {d['source']} ({d['sha256'][:12]})" for key, d in sweep["data"].items())
    precision = parameters.get("precision", {}).get("value", "")
    trial = ": EPOCHS or SET gave values that the file does not have (EDITION=name makes them a study of their own)"
    said = f"created {sweep['id']}: {sweep['runs']} runs{shape}{about}; {sources}; {precision}".rstrip("; ")
    return f"{said}\nresults go to {sweep['results']}" + (trial if sweep["results"].endswith("-trial.csv") else "")


def hours(points):
    """About how many hours these points take one agent, by the rows of results/; 0 where none tell."""
    known = [pandas.DataFrame(columns=(columns := ["problem", "seconds", "n_epochs"]))]
    for path in sorted(Path("results").glob("*.csv")):
        with contextlib.suppress(InputError, KeyError):  # damaged, or of other columns: in nobody's way
            rows = read_csv(path)
            known.append(rows.loc[rows["status"] == "finished", columns])
    rows = pandas.concat(known).set_index("problem").apply(pandas.to_numeric, errors="coerce")
    rows["each"] = rows["seconds"] / rows["n_epochs"]
    usual = rows.groupby("problem").median().to_dict("index")
    of = [(p.get("n_epochs"), usual[p["problem"]]) for p in points if p["problem"] in usual]
    return sum(row["each"] * (n or row["n_epochs"]) for n, row in of) / 3600


def create_on_wandb(sweep, points, args):
    import wandb

    config, project = sweep["config"], args.project or load_program(sweep["config"]["program"]).parse([]).wandb_project
    if sweep["skipped"]:  # the server multiplies a grid out by itself: what is left of it becomes one list of arms
        varied = [k for k, p in config["parameters"].items() if len(levels(p)) > 1]
        arms = [",".join(p[k] if k == "arm" else f"{k}={p[k]!s}" for k in varied) for p in points]
        fixed = {k: p for k, p in config["parameters"].items() if k not in varied}
        config["parameters"] = fixed | {"arm": {"values": arms}}
    # The fingerprints travel in the description: the server refuses keys it does not know.
    prints = "; ".join(f"{p} {d['source']} {d['toy_dims']} {d['sha256']}" for p, d in sweep["data"].items())
    config["description"] = f"{config.get('description', '')} [data: {prints}]".strip()
    try:
        sweep_id = bounded(lambda: wandb.sweep(config, entity=args.entity, project=project), 120)
        entity = args.entity or bounded(lambda: wandb.Api().default_entity)
    except Exception as error:  # wandb raises a dozen types when its server cannot be reached or refuses
        reason = f"W&B: cannot create the sweep ({first_line(error)}); BACKEND=local needs no server"
        raise InputError(reason) from None
    sweep |= {"path": f"{entity}/{project}/{sweep_id}", "id": f"{sweep['name']}-{sweep_id}"}


def save(sweep):
    """Write a sweep's sweep.json, which may hold the password of its database: for its user alone."""
    (STATE / sweep["id"]).mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    write_atomically(STATE / sweep["id"] / "sweep.json", json.dumps(sweep, indent=1) + "\n")
    os.umask(before)


# -------------------------------------------------------------------------------------------- its rows: results/NN.csv


def is_of(row, flags, sweep, program):
    """Whether a row is of the point with these resolved flags, on the sweep's designs.

    A flag that the row lacks has the value that means the behaviour from before the flag existed (train.py's LEGACY).
    """
    legacy = getattr(program, "LEGACY", {})
    mine = {k: row.get(k) or str(legacy.get(k, "")) for k in flags if k not in NOT_COMPARED}
    return mine == {k: str(flags[k]) for k in mine} and row["data_sha256"] == sha256_of(sweep, flags)


def skip_done(sweep, points, program):
    """The points without those that are in results/NN.csv already, finished or diverged."""
    rows = read_csv(Path(sweep["results"])).to_dict("records")
    have = [row for row in rows if row["status"] in ("finished", "diverged")]
    flags = resolve(points, program) if have else points
    return [point for point, f in zip(points, flags, strict=True) if not any(is_of(r, f, sweep, program) for r in have)]


def known_trials(sweep, program):
    """The rows that a search has made already, as Optuna's trials: its model and hyperband go on from them.

    Such a row belongs to a search of this name, has the same designs, lies in the ranges of what varies, and has the
    flags of all the search's points with these values. One that cannot be read is not taken.
    """
    states = {"finished": TrialState.COMPLETE, "stopped early": TrialState.PRUNED, "diverged": TrialState.FAIL}
    config, found = sweep["config"], []
    space, point = distributions(config["parameters"]), corners(config)[0]
    for row in read_csv(Path(sweep["results"])).to_dict("records"):
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):  # out of range, or damaged
            flags = vars(program.parse(command_line({**point, **{k: row[k] for k in space}})))
            if is_of(row, flags, sweep, program) and row["sweep"].rpartition("-")[0] == config["name"]:
                reports = {int(k): float(v) for k, v in (pair.split(":") for pair in row["reports"].split())}
                state, value = states[row["status"]], reports.get(max(reports, default=0))
                if state != TrialState.PRUNED:
                    value = float(row["objective"]) if state == TrialState.COMPLETE else None
                need(not any(map(math.isnan, [*reports.values(), value or 0])), "not a number")
                trial = {"params": {k: flags[k] for k in space}, "distributions": space, "intermediate_values": reports}
                found.append(create_trial(state=state, value=value, **trial))
    return found


def history(folder, metric):
    """The values of a metric in a growing metrics.csv, oldest first. Empty cells and NaN do not count."""
    cells = read_csv(folder / "metrics.csv").get(metric, [])
    return [float(cell) for cell in cells if cell and math.isfinite(float(cell))]


def objective(config, values):
    """A search takes the metric's best over the run, as W&B does; elsewhere the run's last value counts."""
    best = max if config["metric"].get("goal") == "maximize" else min
    return values[-1] if config["method"] == "grid" else best(values)


def record_result(sweep, folder, status):
    """Put a run into results/NN.csv: flags, metrics, hashes. A run that is there already is replaced.

    One of a search gets what a new search needs to go on from it (known_trials), too: `objective`, and `reports`, the
    metric at hyperband's bands and at the end, step:value.
    """
    from report import RESULT_METRICS, read_run

    config, summary = (read_json(folder / name) or {} for name in ("config.json", "summary.json"))
    metrics, search, path = read_csv(folder / "metrics.csv"), sweep.get("config", {}), Path(sweep["results"])
    found = (metrics.iloc[-1].to_dict() if len(metrics) else {}) | read_run(folder).summary | summary
    row = {"id": folder.name, "name": config.get("name"), "sweep": sweep["id"], "status": status}
    row |= {"cause": summary.get("cause")} | {k: str(v) for k, v in sorted(config.get("flags", {}).items())}
    row |= {key: found.get(key) for key in RESULT_METRICS}
    if "run_cap" in search and (values := history(folder, search["metric"]["name"])):
        steps = dict.fromkeys([*bands(search.get("early_terminate"), len(values)), len(values)])
        reports = " ".join(f"{step}:{values[step - 1]!r}" for step in steps)
        row |= {"objective": repr(objective(search, values)), "reports": reports}
    row |= {f"data_{key}": config.get("data", {}).get(key) for key in ("source", "sha256")}
    row |= {"metrics_sha256": summary.get("metrics_sha256"), "git": record.made_by(config)}
    row |= {key: config.get("machine", {}).get(key) for key in ("host", "cpu")}
    row |= {"recorded": time.strftime("%Y-%m-%dT%H:%M:%S")}
    table = pandas.DataFrame([{k: "" if v is None else str(v) for k, v in row.items()}])
    path.parent.mkdir(parents=True, exist_ok=True)
    STATE.mkdir(exist_ok=True)
    with engine.FileLock(STATE / f"{path.stem}.results.lock"):
        rows = read_csv(path)
        table = pandas.concat([rows[rows["id"] != folder.name], table]) if len(rows) else table
        write_atomically(path, table.fillna("").to_csv(index=False, lineterminator="\n"))


# ----------------------------------------------------------------- an agent: claim a run, start it, watch it, settle it

CRASHED = {}  # run id -> how it crashed before its first epoch, under this agent
stops = []  # the signals received so far; the handlers only take note, so that nothing is interrupted halfway


def stop_level():
    """0: go on; 1 (Ctrl-C): finish the current runs; 2 (Ctrl-C twice, SIGTERM): stop them now, resumably."""
    return 2 if any(s != signal.SIGINT for s in stops) else min(2, len(stops))


def exit_code():
    return 143 if any(s != signal.SIGINT for s in stops) else 130 if stops else 0


def folder_of(run):
    """Where the program puts a run of the queue."""
    return Path(run["point"].get("out", "runs")) / run["id"]


class Attempt:
    """What an agent knows of the run that it works on."""

    def __init__(self, queue, trial, agent):
        self.queue, self.trial, self.agent = queue, trial, agent
        self.id, self.point = (trial.user_attrs["run"][key] for key in ("id", "point"))
        self.folder, self.log = folder_of(trial.user_attrs["run"]), queue.folder / f"{self.id}.log"
        self.child = self.code = self.hung = None  # the program's process and exit code; why it was killed
        self.killed = self.lost = False
        self.stopped_early = trial.user_attrs.get("stops", False)  # maybe by an agent that died before it could say so

    def say(self, text):
        say(f"{self.agent}: run {self.id} {text}")


def work(sweeps, env, agent, count=None, patience=math.inf, leave=False):
    """Work through the sweeps in order until nothing is left in any; at most `count` runs. Returns the exit code."""
    queues = list(map(queue_of, sweeps))
    while not stop_level() and count != 0:
        for sweep in sweeps:
            check_code(sweep)
        claimed = ((queue, trial) for queue in queues if (trial := queue.claim()))
        if found := next(claimed, None):
            attempt = Attempt(*found, agent)
            try:
                start(attempt, env)
                watch(attempt, patience)
                settle(attempt)
            except engine.StorageAway:
                raise
            except Exception as error:  # about one run: it ends this try, not the agent
                give_up(attempt, error)
            count = count and count - 1
            if attempt.code in (2, 4):
                return attempt.code
        elif not leave and any(queue.is_busy() for queue in queues):
            time.sleep(1)
        else:
            break
    return exit_code()


def give_up(a, error):
    """Something went wrong about one run in the agent itself: end its program, and its try."""
    if a.child and a.child.poll() is None:
        a.child.kill()
        a.child.wait()
    a.code = 4 if isinstance(error, OSError) else a.code
    a.queue.end(a.trial, TrialState.WAITING, tried=None if a.code == 4 else f"crashed: {first_line(error)}")
    a.say(f"cannot go on: {first_line(error)}" + ("; this agent stops" if a.code == 4 else ""))


def start(a, env):
    """Start the program on the run of Attempt a, unless the run is over already, or this agent is asked to stop."""
    if a.stopped_early or (a.folder / "summary.json").exists():
        return
    while is_locked(a.folder) and not stop_level():
        time.sleep(1)  # the run of a dead agent, where Linux's parent-death signal is missing
    if stop_level():
        return
    sweep, verb = a.queue.sweep, "continued" if (a.folder / "metrics.csv").exists() else "started"
    command = [sys.executable, a.queue.config["program"], *command_line(a.point), "--resume=auto"]
    tags = f"sweep-{Path(sweep['results']).stem},{sweep['config']['method']}"
    env = {k: v for k, v in env.items() if k != "WANDB_SERVICE"} | {"WANDB_RUN_ID": a.id, "WANDB_TAGS": tags}
    env |= {"WANDB_RUN_GROUP": sweep["id"], "WANDB_NOTES": sweep["config"].get("description", "")}
    if sweep["backend"] == "wandb":
        parameters = a.queue.folder.resolve() / f"{a.id}.yaml"
        parameters.write_text(yaml.safe_dump({"wandb_version": 1} | {k: {"value": v} for k, v in a.point.items()}))
        env |= dict(zip(("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_SWEEP_ID"), sweep["path"].split("/"), strict=True))
        env |= {"WANDB_SWEEP_PARAM_PATH": str(parameters)}
    with open(a.log, "a") as log:
        print("$", *command, file=log, flush=True)
        streams, parent = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}, os.getpid()
        # in a group of its own, out of reach of the terminal's Ctrl-C
        group = {"process_group": 0, "preexec_fn": lambda: die_with(parent, signal.SIGKILL)}
        a.child = subprocess.Popen(command, env=env, **streams, **group)
    varied = [k for k, p in a.queue.config["parameters"].items() if len(levels(p)) > 1 and k in a.point]
    point = " ".join(f"{k}={v:.6g}" if isinstance(v := a.point[k], float) else f"{k}={v}" for k in varied)
    a.say(f"{verb}: {point} (log: {a.log})")


def watch(a, patience=math.inf):
    """Wait for the program's end: beat, report its metric, let hyperband stop it, pass a stop on, end what hangs."""
    deadline, beaten = math.inf, time.monotonic()
    while a.child and a.code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            a.code = a.child.wait(0.5)
        try:
            if time.monotonic() > beaten + min(engine.BEAT, 5 if isinstance(a.queue, engine.WandbQueue) else math.inf):
                beaten = time.monotonic()
                a.lost = not a.queue.beat(a.trial)
                quiet, usual = silence(a.folder)
                if usual and quiet > patience * usual:
                    a.hung = f"hung: no epoch for {quiet:.0f} s, {quiet / usual:.0f} times its usual {usual:.2g} s"
            if (deadline == math.inf or a.code is not None) and not a.lost and report_growth(a) and a.code is None:
                a.queue.note(a.trial, stops=True)  # hyperband's decision stands, whatever happens to this agent
                a.stopped_early = True
        except Exception as error:  # the database or W&B is away for a while: the run goes on, the next look may do
            a.say(f"goes on without its queue: {first_line(error)}")
            time.sleep(5)
        if a.code is None and (a.lost or a.hung or time.monotonic() > deadline):
            a.child.kill()
            a.killed = not a.hung
        elif a.code is None and deadline == math.inf and (a.stopped_early or stop_level() == 2):
            a.child.terminate()
            deadline = time.monotonic() + PATIENCE


def silence(folder):
    """(seconds since a run's last epoch, seconds that its epochs take), or (0, 0) before it has one."""
    with contextlib.suppress(OSError, InputError, ValueError):
        took = [float(cell) for cell in read_csv(folder / "metrics.csv").get("epoch_seconds", []) if cell]
        return time.time() - (folder / "metrics.csv").stat().st_mtime, statistics.median(took)
    return 0, 0


def report_growth(a):
    """Report to the queue what metrics.csv has grown by. Returns whether hyperband stops the run."""
    queue, config, known = a.queue, a.queue.config, a.trial.intermediate_values
    if isinstance(queue, engine.WandbQueue):  # the program reports to the server, and the server decides
        return queue.get(a.trial).user_attrs.get("stops", False)
    sign, rule = -1 if config["metric"].get("goal") == "maximize" else 1, config.get("early_terminate")
    try:
        values = history(a.folder, config["metric"]["name"])
    except (InputError, ValueError):  # damaged by a crash: the program mends it as it starts
        return False
    every = max(1, int(a.point.get("n_epochs", REPORTS)) // REPORTS)
    new = sorted({*range(every, len(values) + 1, every), *bands(rule, len(values))} - set(known))
    for step in new:  # each is an fsync
        queue.storage.set_trial_intermediate_value(a.trial._trial_id, step, values[step - 1])
    known |= {step: values[step - 1] for step in new}
    signed, pool = [sign * v for v in values], lambda band: [sign * v for v in queue.pool(band)]
    return bool(rule and new) and engine.hyperband_stops(signed, pool, rule)


def settle(a):
    """Write down what came of the run: a row if it is over, else back into the queue; and a line that says so."""
    queue, config, metric = a.queue, a.queue.config, a.queue.config["metric"]["name"]
    said = a.log.read_text(errors="replace").splitlines() if a.log.exists() else ["no log"]
    tail = ([line for line in said if line.strip() and line[:2] != "$ "] or ["it printed nothing"])[-1][:200]
    summary, values = read_json(a.folder / "summary.json") or {}, history(a.folder, metric)
    if a.code in (130, 143) and not stop_level() and isinstance(queue, engine.WandbQueue):
        a.stopped_early |= "early_terminate" in config  # the server told the program itself
    status = summary.get("status") or ("stopped early" if a.stopped_early else None)
    if status and (other := other_designs(queue.sweep, a.folder)):  # they were replaced while agents were at work
        kept, status, a.code = queue.folder / f"{a.id}.other-designs-{secrets.token_hex(2)}", None, 2
        shutil.move(a.folder, kept)
        tail = f"{other}; the run is in {kept}, and not recorded"
    if a.lost:
        outcome = "taken over by another agent, while this machine was suspended"
        queue.hold.release()
    elif status in OVER:
        record_result(queue.sweep, a.folder, status)
        state, value = TrialState.FAIL, None
        outcome = f"{status}: {summary.get('cause') or f'without a value of {metric}'}"
        if status == "stopped early":
            state, value, outcome = TrialState.PRUNED, (values or [None])[-1], "stopped early by hyperband"
        elif status == "finished" and values:
            state, value = TrialState.COMPLETE, objective(config, values)
            outcome = f"finished, {metric} {value:.6g} with {summary.get('active_dims')} dims"
        queue.end(a.trial, state, value, cause=outcome)
    elif a.code == 2:
        # most likely this machine's fault, so others may try: but a run that nobody can start must not stay for ever
        queue.end(a.trial, TrialState.WAITING, tried=f"cannot start: {tail}")
        outcome = f"cannot start, and this agent stops: {tail}"
    elif a.code in (4, None, 130, 143, -signal.SIGINT, -signal.SIGTERM) or a.killed:
        queue.end(a.trial, TrialState.WAITING)
        outcome = f"cannot write, and this agent stops: {tail}" if a.code == 4 else "stopped, resumably"
    else:
        cause = a.hung or f"{ending(a.code)}: {tail}"
        given_up = queue.end(a.trial, TrialState.WAITING, tried=f"crashed: {cause}")
        outcome = f"crashed ({cause})" + (", and given up" if given_up else ", will be tried again")
        if not values and cause in CRASHED.values() and CRASHED.get(a.id) != cause:  # it is not the point: all would
            a.code, outcome = 2, f"{outcome}; two points have crashed alike before their first epoch: this agent stops"
        CRASHED.update({} if values else {a.id: cause})
    a.say(outcome)


def ending(code):
    """An exit code in words; Python says -9 for signal 9."""
    memory = "; out of memory?" if code == -signal.SIGKILL else ""
    return f"killed (signal {-code}{memory})" if code < 0 else f"exit code {code}"


def surroundings(slot, agents):
    """The environment of agent `slot` of `agents`: its share of the cores, one GPU of those there are, this Python."""
    env = dict(os.environ, PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]))
    available = min(cores(), int(env.get("SLURM_CPUS_PER_TASK", cores())))  # where Slurm does not confine its tasks
    env.setdefault("OMP_NUM_THREADS", str(max(1, available // agents)))
    listed = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    slices = re.findall(r"UUID: (MIG-[^)\s]+)", listed)  # of which CUDA shows a process only the first
    gpus = slices or list(map(str, range(torch.cuda.device_count())))
    named = env["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in env else gpus
    return env | ({"CUDA_VISIBLE_DEVICES": named[slot % len(named)]} if named and named[0] else {})


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up here: after a fork it may not be


def die_with(parent, signum):
    """Linux sends this process `signum` when its parent dies: nothing goes on without the one who watches over it."""
    if _prctl:
        _prctl(1, signum)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def launch(jobs, stagger):
    """Run each job in a process of its own, started `stagger` seconds apart; signals go to all. Returns the code."""
    processes, told, dead, parent = [], 0, set(), os.getpid()

    def run(job):
        os.setpgid(0, 0)
        die_with(parent, signal.SIGTERM)
        sys.exit(record.guarded("sweep.py", job, cannot="cannot write, or read", shown=redacted))

    while (len(processes) < len(jobs) and not stops) or any(p.is_alive() for p in processes):
        if len(processes) < len(jobs) and not stops:
            processes.append(multiprocessing.get_context("fork").Process(target=run, args=[jobs[len(processes)]]))
            processes[-1].start()
        for signum in stops[told:]:
            first = "finishing the current runs; Ctrl-C once more stops them, resumably"
            say(first if stop_level() == 1 else "stopping the runs, resumably")
            for p in (p for p in processes if p.is_alive()):
                os.kill(p.pid, signum)
            told += 1
        for k, p in enumerate(processes, 1):
            if k not in dead and (p.exitcode or 0) < 0:
                say(f"agent {k} was {ending(p.exitcode)}; another agent continues its run, or the next `make agents`")
                dead.add(k)
        time.sleep(stagger if len(processes) < len(jobs) else 0.5)
    return exit_code() or max((1 if p.exitcode < 0 else p.exitcode for p in processes), default=0)


# -------------------------------------------------------------------------------------------------------- the commands


def on_wandb(path, read):
    """read(sweep) for the sweep entity/project/id on W&B. Raises InputError where W&B does not give it."""
    import wandb

    try:
        return bounded(lambda: read(wandb.Api().sweep(path)), 120)
    except Exception as error:  # wandb raises its own, requests' and ValueError, also while the sweep is read
        raise InputError(f"SWEEP {path}: W&B does not give it ({first_line(error)})") from None


def known_sweeps():
    """The sweeps of this folder, oldest first, without those whose sweep.json is damaged."""
    needed = {"id", "backend", "config", "data", "results", "runs", "created"}
    found = map(read_json, STATE.glob("*/sweep.json"))
    return sorted((s for s in found if isinstance(s, dict) and needed <= set(s)), key=lambda s: s["created"])


def load_sweep(name, storage=None):
    """A sweep by its id or the beginning of it, its W&B path (entity/project/id), or, with STORAGE, in the database."""
    known = known_sweeps()
    found = [s for s in known if name in (s["id"], s.get("path"))] or [s for s in known if s["id"].startswith(name)]
    several = ", ".join(sorted(s["id"] for s in found))
    need(len(found) < 2, f"SWEEP {name}: begins several sweeps: {several}; say which")
    if not found:
        allowed = "an id of `make list`, entity/project/id of W&B, or an id with its STORAGE"
        said = f"SWEEP {name}: unknown here, or its sweep.json is damaged; allowed: {allowed}"
        need(name.count("/") == 2 or storage, said)
        found = [join_wandb(name) if name.count("/") == 2 else Queue({"id": name, "storage": storage}).sweep]
        save(found[0])
    return found[0]


def join_wandb(path):
    """A sweep of W&B that another machine created. One of `wandb sweep` has no fingerprint: any designs will do."""
    config, sweep_id = on_wandb(path, lambda sweep: dict(sweep.config)), path.split("/")[2]
    frozen = re.search(r"\[data: (.*)\]", config.get("description") or "")
    entries = [entry.split() for entry in frozen[1].split("; ")] if frozen else []
    prints = {p: {"source": source, "toy_dims": int(dims), "sha256": sha} for p, source, dims, sha in entries}
    name = slug(config.get("name") or sweep_id)
    runs = len(expand(config)) if config["method"] == "grid" else config.get("run_cap")
    sweep = {"id": f"{name}-{sweep_id}", "name": name, "backend": "wandb", "path": path, "config": config, "runs": runs}
    return sweep | {"data": prints, "results": f"results/{name.split('_')[0]}.csv", "created": time.strftime(NOW)}


def current_names():
    """The ids in .sweeps/current."""
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
    how = {"count": args.count, "patience": args.patience, "leave": args.leave}
    jobs = [lambda k=k: work(sweeps, surroundings(k, args.n), f"agent {k + 1}", **how) for k in range(args.n)]
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # its client's connection must not be shared with the agents
    # W&B has handed the same point to agents that asked at the same moment
    code = launch(jobs, 1 if any(s["backend"] == "wandb" for s in sweeps) else 0.1) if args.n > 1 else jobs[0]()
    for sweep in sweeps:
        rebuild_rows(sweep)
    status(args)
    return code or args.failures > 0


def rebuild_rows(sweep):
    """Put the runs that are over and have a folder, but no row, into results/NN.csv. Returns how many."""
    have, added = {row["id"] for row in read_csv(Path(sweep["results"])).to_dict("records")}, 0
    for trial in queue_of(sweep).trials():
        folder = folder_of(trial.user_attrs["run"])
        status = "stopped early" if trial.state == TrialState.PRUNED else record.status(folder)
        given_up = trial.user_attrs.get("cause", "").startswith("given up")
        lacking = status in OVER and not given_up and folder.name not in have and (folder / "config.json").exists()
        if lacking and not other_designs(sweep, folder):
            record_result(sweep, folder, status)
            added += 1
    if added:
        say(f"{sweep['results']}: {added} rows were not there; made again from the runs' folders")
    return added


def rebuild(args):
    """Make the rows of results/NN.csv that are missing again, from the runs' folders."""
    for sweep in asked(args):
        rebuild_rows(sweep) or print(f"{sweep['results']}: has all rows of {sweep['id']}")


def outcomes(sweep):
    """What has become of each run of a sweep: {run id: dict of kind, problem, value, seconds, cause, folder}."""
    kinds, queue, found = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early"}, queue_of(sweep), {}
    for t in queue.trials():
        run, cause = t.user_attrs["run"], t.user_attrs.get("cause", "")
        kind = kinds.get(t.state) or ("diverged" if cause.startswith("diverged") else "failed")
        if t.state in (TrialState.WAITING, TrialState.RUNNING):
            alive = t.state == TrialState.RUNNING and queue.is_alive(t)
            kind = "running" if alive else "interrupted" if "held" in t.user_attrs else "waiting"
        seconds = (t.datetime_complete - t.datetime_start).total_seconds() if kind == "finished" else None
        found[run["id"]] = {"kind": kind, "problem": run["point"].get("problem"), "value": t.value, "seconds": seconds}
        found[run["id"]] |= {"cause": cause, "folder": folder_of(run)}
    kinds = {"finished": "finished", "running": "running", "pending": "running"}
    for r in on_wandb(sweep["path"], lambda s: list(s.runs)) if sweep["backend"] == "wandb" else ():
        summary = dict(r.summary)  # of another machine's run; of ours we know more
        kind = "diverged" if summary.get("status") == "diverged" else kinds.get(r.state, "failed")
        run = {"kind": kind, "problem": r.config.get("problem"), "seconds": summary.get("seconds"), "cause": r.state}
        run |= {"value": summary.get(sweep["config"]["metric"]["name"])}
        found[r.id] = run | {k: v for k, v in found.get(r.id, {}).items() if v is not None}
    return found


def status(args):
    """One line a sweep: done / running / failed / left, best so far, time to go; one for each run at work or failed."""
    failed = 0
    for sweep in asked(args):
        runs, metric, total = outcomes(sweep), sweep["config"]["metric"], sweep["runs"]
        n = collections.Counter(run["kind"] for run in runs.values())
        over, failed = sum(n[kind] for kind in OVER), failed + n["failed"]
        left = (total or 0) - over - n["running"]
        parts = [f"{over}/{total or '?'} over ({', '.join(f'{n[kind]} {kind}' for kind in OVER)})"]
        parts.append(f"{n['running']} running")
        if total:
            parts.append(f"{left} left" + (f" ({n['interrupted']} of them interrupted)" if n["interrupted"] else ""))
        done = {k: run for k, run in runs.items() if run["kind"] == "finished" and isinstance(run["value"], NUMBER)}
        best = max if metric.get("goal") == "maximize" else min
        for problem in sorted({str(run["problem"]) for run in done.values()}):
            value, k = best((run["value"], k) for k, run in done.items() if str(run["problem"]) == problem)
            parts.append(f"best {metric['name']} {value:.6g} on {problem} (run {k})")
        seconds = [run["seconds"] for run in done.values() if run["seconds"]]
        if seconds and n["running"] and total:
            eta = statistics.median(seconds) * (left + n["running"] / 2) / n["running"]
            parts.append(f"about {eta / 3600:.1f} h to go" if eta > 3600 else f"about {eta / 60:.0f} min to go")
        here = queue_of(sweep).study.user_attrs.get("stopped")
        there = "path" in sweep and on_wandb(sweep["path"], lambda s: s.state) in ("PAUSED", "CANCELED", "STOPPED")
        print(f"{sweep['id']} ({sweep['backend']}{', stopped' if here or there else ''}): " + ", ".join(parts))
        for k, run in runs.items():
            quiet, usual = silence(run["folder"]) if run["kind"] == "running" and "folder" in run else (0, 0)
            mark = f", {quiet / usual:.0f} times its usual: does it hang?" if usual and quiet > 10 * usual else ""
            if usual:
                print(f"  running: {k}, last epoch {quiet:.0f} s ago{mark}")
            if run["kind"] in ("failed", "diverged"):
                print(f"  failed: {k} {run['cause']}")
    args.failures = failed  # the exit code of agents


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
            done = subprocess.run(command, capture_output=True, text=True)
            need(done.returncode == 0, f"W&B: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
        print(f"{sweep['id']}: " + ("stopped; running runs are finished, make resume goes on" if value else "goes on"))


def resume(args):
    """After a stop, a crash or a reboot: hand out runs again, and start agents."""
    stop(args, False)
    for sweep in asked(args) if args.failed else ():
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
        mark.write_text(str(len(logged)))
    return len(logged - held)


def dashboard(args):
    """Optuna's dashboard on the (first) current local sweep."""
    sweep, command = asked(args)[0], shutil.which("optuna-dashboard", path=os.path.dirname(sys.executable))
    need(sweep["backend"] == "local", f"{sweep['id']}: is on W&B, look there: {sweep.get('path')}")
    need(command, "optuna-dashboard: not installed; pip install optuna-dashboard")
    os.execv(command, [command, sweep["storage"] or str(STATE / sweep["id"] / "journal.log")])


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
    flag("--count", "at most so many runs by each agent", start, type=positive)
    flag("--patience", "end a try without an epoch for so many usual ones", start, type=positive, default=math.inf)
    flag("--leave", "leave when no run waits, though some are at work", start, action="store_true")
    flag("--changed", "the code or a version has changed, but no result can: go on", start, action="store_true")
    flag("--failed", "try again what failed, too, from its checkpoints", [resume], action="store_true")
    flag("--out", "folder of the runs (runs)", [sync], default="runs")
    args = parser.parse_args(argv)
    if argv is None and args.function in (status, list_sweeps):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # make status | head -1
    return record.guarded("sweep.py", args.function, args, cannot="cannot write, or read", shown=redacted)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record.leave(main())
