"""Creating a sweep (`sweep.py create`): read its YAML, narrow it, check every point, freeze its data, and put it on W&B or into a queue."""

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import netrc
import os
import random
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from sweeping import agents
from sweeping.done import FREE, known_trials, skip_done
from sweeping.queue import Queue, constants

STATE = Path(".sweeps")
STUDY = ("beams2d", "heatconduction2d", "photonics2d")
# What STRATEGY= puts into the arms of 04 and 06: the strategy's flag, and its most aggressive level of the study (01b).
AGGRESSIVE = {
    "plummet": ("plummet_threshold", 0.1),
    "pca_cdf": ("cdf_threshold", 0.95),
    "lognorm": ("percentile", 0.4),
    "probabilistic": ("temperature", 1.0),
}


class SweepError(ValueError):
    """Bad input: one line that names the flag or file, what is wrong and what is allowed. The command line exits with 2."""


# ----------------------------------------------------------------------------------------------------------------------- creating


def read_yaml(name):
    """A sweep file, by its path or its number (01, 01b, ...)."""
    path = Path(name)
    if not path.suffix:
        found = sorted((Path(__file__).parent.parent / "sweeps").glob(f"{name}_*.yaml"))
        if len(found) != 1:
            known = ", ".join(sorted(p.stem.split("_")[0] for p in (Path(__file__).parent.parent / "sweeps").glob("*_*.yaml")))
            raise SweepError(f"sweep {name}: unknown; allowed: {known}, or a .yaml file")
        path = found[0]
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SweepError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]})") from None
    kinds = {"method": str, "metric": dict, "parameters": dict, "program": str}
    missing = [key for key, kind in kinds.items() if not isinstance(config, dict) or not isinstance(config.get(key), kind)]
    if missing or not isinstance(config.get("name", ""), str):
        raise SweepError(f"{path}: needs {', '.join(missing) or 'a name that is text'}")
    if config["method"] not in ("grid", "bayes", "random") or (config["method"] != "grid" and not isinstance(config.get("run_cap"), int)):
        raise SweepError(f"{path}: method must be grid, or bayes or random with a run_cap")
    for key, p in config["parameters"].items():
        p = p if isinstance(p, dict) else {}
        ends = [p.get("min"), p.get("max")]
        values = p["values"] if "values" in p else [p["value"]] if "value" in p else ends
        plain = isinstance(values, list) and values and all(isinstance(v, str | int | float | None) for v in values)
        if not isinstance(key, str) or not plain or (values is ends and not all(isinstance(v, int | float) for v in ends)):
            raise SweepError(f"{path}: parameter {key} needs value, values, or min and max")
    rule = config.get("early_terminate")
    if not levels(config["parameters"].get("problem", {})) or not isinstance(config["metric"].get("name"), str):
        raise SweepError(f"{path}: needs a parameter problem with a value or values, and a metric with a name")
    if rule is not None and not (isinstance(rule, dict) and isinstance(rule.get("min_iter"), int) and rule["min_iter"] > 0):
        raise SweepError(f"{path}: early_terminate needs min_iter, a whole number of logged values")
    return path, config


def load_program(path):
    """The program of a sweep as a module: its parser() and parse() say which flags and values it takes."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or not Path(path).exists():
        raise SweepError(f"program {path}: no such file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec.loader.exec_module(module)
    return module


def number(text):
    """A value of SET= as YAML reads it; 1e-4, which YAML 1.1 takes for a string, is a number."""
    with contextlib.suppress(yaml.YAMLError, ValueError):
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value if isinstance(value, int | float) else text
    return text


def narrow(config, args, program):
    """Apply PROBLEM, STRATEGY, SEEDS, EPOCHS and SET to a sweep's parameters, in this order.

    Returns whether EPOCHS or SET gave one of them a value that the file (with STRATEGY's arms) does not have.
    """
    parameters = config["parameters"]
    if args.problem:
        if "value" in parameters.get("problem", {}) and config["method"] == "grid" and args.problem != parameters["problem"]["value"]:
            raise SweepError(f"PROBLEM {args.problem}: this sweep is about {parameters['problem']['value']} only")
        parameters["problem"] = {"value": args.problem}
    if args.strategy:
        choose_strategy(parameters, args.strategy, vars(program.parse([])))
    file = {k: levels(p) for k, p in parameters.items()}
    if args.seeds is not None:
        seeds = parameters.get("seed", {}).get("values", [])
        if not 1 <= args.seeds <= len(seeds):
            raise SweepError(f"SEEDS {args.seeds}: " + (f"allowed: 1 to {len(seeds)}" if seeds else "this sweep does not vary the seed"))
        parameters["seed"] = {"values": seeds[: args.seeds]}
    if args.epochs is not None:
        if args.epochs < 2:
            raise SweepError(f"EPOCHS {args.epochs}: must be at least 2")
        if "value" not in parameters.get("n_epochs", {}) or "pruning_epoch" not in parameters:
            raise SweepError(f"EPOCHS {args.epochs}: needs a file with one value of n_epochs, and a pruning_epoch to scale with it")
        factor = args.epochs / parameters["n_epochs"]["value"]
        parameters["n_epochs"] = {"value": args.epochs}
        p = parameters["pruning_epoch"]
        scaled = {
            k: [round(v * factor) for v in p[k]] if k == "values" else round(p[k] * factor)
            for k in ("value", "values", "min", "max")
            if k in p
        }
        parameters["pruning_epoch"] = {**p, **scaled}
    for item in (args.set or "").split():
        key, _, text = item.partition("=")
        if key == "problem" and config["method"] != "grid":
            raise SweepError(f"SET {item}: a search is made for each problem; say PROBLEM={text}")
        texts = [text] if key == "arm" else text.split(",")  # an arm has commas of its own
        if not all(texts):
            raise SweepError(f"SET {item}: must be name=value, or name=value,value,... for several")
        values = list(dict.fromkeys(map(number, texts)))
        parameters[key] = {"value": values[0]} if len(values) == 1 else {"values": values}
    known = {action.dest for action in program.parser()._actions}
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise SweepError(f"parameter {', '.join(unknown)}: no such flag of {config['program']}")
    return any(k not in FREE and k != "precision" and not set(levels(p)) <= set(file.get(k, [])) for k, p in parameters.items())


def levels(p):
    """All that a parameter of a sweep says about its values."""
    return p["values"] if "values" in p else [p[k] for k in ("value", "min", "max") if k in p]


def choose_strategy(parameters, strategy, defaults):
    """STRATEGY=: narrow the strategies (01) or arms (01b) to it, replace the fixed one (02, 03, 05), or make both arms of it (04, 06)."""
    if strategy not in (*AGGRESSIVE, "none"):
        raise SweepError(f"STRATEGY {strategy}: unknown; allowed: {', '.join(AGGRESSIVE)}, none")
    if "arm" not in parameters:
        parameters["strategy"] = {"value": strategy}
        return
    arms = parameters["arm"]["values"]
    kept = [arm for arm in arms if arm.split(",")[0] == f"strategy={strategy}"]
    if not kept:
        if strategy == "none":
            raise SweepError("STRATEGY none: it has no level to compare")
        flag, level = AGGRESSIVE[strategy]
        kept = [f"strategy={strategy},{flag}={x}" for x in (defaults[flag], level)]
        parameters.pop(flag, None)
    parameters["arm"] = {"values": kept}


def expand(config):
    """The points of a grid, a dict of flags each, the first parameter of the file varying slowest."""
    parameters = config["parameters"]
    for key, p in parameters.items():
        if "value" not in p and "values" not in p:
            raise SweepError(f"parameter {key}: a grid needs value or values")
    lists = [p["values"] if "values" in p else [p["value"]] for p in parameters.values()]
    return [dict(zip(parameters, combination, strict=True)) for combination in itertools.product(*lists)]


def corners(config):
    """The lowest and the highest point of a search space: what stands for all its points when a sweep is checked."""
    parameters = config["parameters"].items()
    low = {k: p["value"] if "value" in p else p["values"][0] if "values" in p else p["min"] for k, p in parameters}
    high = {k: p["value"] if "value" in p else p["values"][-1] if "values" in p else p["max"] for k, p in parameters}
    return [low, high]


def check_points(points, program, epochs):
    """Every point must be a command line the program takes. Returns their flags as the program resolves them."""
    resolved = []
    for point in points:
        try:
            resolved.append(vars(program.parse(agents.command_line(point))))
        except ValueError as error:
            varied = {k: v for k, v in point.items() if any(p[k] != v for p in points)}
            raise SweepError(f"{error}" + (f" (in {' '.join(agents.command_line(varied))})" if varied else "")) from None
    if epochs is None:
        return resolved
    pruning = [f for f in resolved if f["strategy"] != "none"]
    for f in pruning:
        first, n = min(x["pruning_epoch"] for x in pruning), f["polynomial_schedule_n"]
        if n > first:
            raise SweepError(
                f"EPOCHS {epochs}: pruning would start at epoch {first}, before the schedule of w_v ends at {n}; "
                f"allowed: more, or SET=polynomial_schedule_n={first}"
            )
        # the first pruning comes k_consecutive - 1 epochs after pruning_epoch, each further one cooldown_epochs + 1 after the one before
        floor, cap = max(1, f["min_active_dims"]), min(f["max_prune_per_epoch"], f["latent_dim"])
        events = math.ceil((f["latent_dim"] - floor) / cap)
        last = f["pruning_epoch"] + f["k_consecutive"] - 1 + (events - 1) * (f["cooldown_epochs"] + 1)
        if events > 0 and last >= f["n_epochs"]:
            path = f"from {f['latent_dim']} to {floor} dimensions by {cap:g} every {f['cooldown_epochs'] + 1} epochs"
            raise SweepError(
                f"EPOCHS {epochs}: safeguards {f['safeguards']} get {path}, which would take until epoch {last}; "
                "allowed: more, or a smaller SET=latent_dim="
            )
    return resolved


def freeze_precision(config, program, flags):
    """Resolve `precision: auto` as this machine would, for all machines: numbers in bf16 and fp32 must not be compared."""
    if flags.get("precision") == "auto":
        args = argparse.Namespace(**flags)
        program.settle(args)
        config["parameters"]["precision"] = {"value": args.precision}


def freeze_data(config):
    """Resolve `data: auto` once for the whole sweep, and fingerprint the designs of each of its problems: {problem: {source, sha256}}."""
    import data

    parameters = config["parameters"]
    problems = parameters["problem"].get("values") or [parameters["problem"]["value"]]
    source = str(constants({"data": parameters.get("data", {"value": "auto"})})["data"])
    toy_dims = parameters.get("toy_dims", {}).get("value", 3)
    prints = {p: data.load(p, source, toy_dims).fingerprint for p in problems}
    if source == "auto":
        source = "hub" if all(f["source"] == "hub" for f in prints.values()) else "sample"
        prints = {p: f if f["source"] == source else data.load(p, source, toy_dims).fingerprint for p, f in prints.items()}
    parameters["data"] = {"value": source}
    return {p: {"source": source, "toy_dims": toy_dims, "sha256": f["sha256"]} for p, f in prints.items()}


def check_data(record):
    """Refuse to work on a sweep whose designs are not the ones it was created with."""
    import data

    for problem, frozen in record["data"].items():
        sha256 = data.load(problem, frozen["source"], frozen["toy_dims"]).fingerprint["sha256"]
        if sha256 != frozen["sha256"]:
            here, then = sha256[:12], frozen["sha256"][:12]
            raise SweepError(
                f"sweep {record['id']}: {problem} from {frozen['source']} is {here} on this machine, but the sweep was created on {then}; "
                "its runs must not mix two data sets: get the same designs, or create the sweep anew"
            )


def logged_in():
    """Whether there are credentials for W&B. wandb.login() would ask the server, and wait for one that cannot be reached."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    host = urlsplit(wandb.setup().settings.base_url).hostname
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC", os.path.expanduser("~/.netrc"))).authenticators(host) is not None
    return False


def choose_backend(asked):
    """wandb or local, and why."""
    if asked:
        return asked, "as BACKEND says"
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared", "run"):
        return "local", f"since WANDB_MODE is {os.environ['WANDB_MODE']}"
    if logged_in():
        return "wandb", "since you are logged in to W&B; BACKEND=local needs no account"
    return "local", "since you are not logged in to W&B (`wandb login`, then BACKEND=wandb)"


def create(args):
    """Check a sweep, freeze its data, put it where the agents find it, and make it the current one."""
    path, config = read_yaml(args.sweep)
    program = load_program(config["program"])
    fixed = config["parameters"].get("problem", {})
    problems = STUDY if config["method"] != "grid" and "value" in fixed and not args.problem else (args.problem,)
    backend, why = choose_backend(args.backend)
    if backend == "wandb" and args.storage:
        raise SweepError("STORAGE: is for BACKEND=local")
    if args.storage and not args.storage.startswith("postgresql"):
        raise SweepError(
            f"STORAGE {args.storage}: allowed: postgresql+psycopg://..., or nothing (a file journal); SQLite runs points twice"
        )
    if args.edition and not args.edition.replace("-", "").isalnum():
        raise SweepError(f"EDITION {args.edition}: allowed: letters, digits and -")
    # all are checked before one exists
    plans = [plan(path, json.loads(json.dumps(config)), problem, args, program, backend) for problem in problems]
    print(f"backend: {backend}, {why}")
    created = []
    for record, points, known, skipped in plans:
        if skipped:
            rest = "; the search goes on from them" if known else ", and not run again unless you delete their rows"
            print(f"{record['name']}: {skipped} points are in {record['results']} already{rest}")
        if record["runs"] < 1:
            print(f"{record['name']}: nothing is left to run")
            continue
        record["backend"] = backend
        if backend == "wandb":
            create_wandb(record, points, skipped, args)
        else:
            create_local(record, points, known, args)
        save(record)
        created.append(record["id"])
        sources = ", ".join(f"{p} from {d['source']} ({d['sha256'][:12]})" for p, d in record["data"].items())
        precision = record["config"]["parameters"].get("precision", {}).get("value")
        print(f"created {record['id']}: {record['runs']} runs; {sources}" + (f"; {precision}" if precision else ""))
        trial = ": EPOCHS or SET gave values that the file does not have (EDITION=name makes them a study with a file of its own)"
        print(f"results go to {record['results']}" + (trial if record["results"].endswith("-trial.csv") else ""))
    if created:
        write(STATE / "current", "\n".join(created) + "\n")
        print("next: make agents N=" + str(min(5, agents.cores())))


def plan(path, config, problem, args, program, backend):
    """What `create` is about to create: (record, the points of a grid or None, the trials a search starts from, how many were skipped)."""
    changed = narrow(config, argparse.Namespace(**{**vars(args), "problem": problem}), program)
    edition = f"-{args.edition}" if args.edition else "-trial" if changed else ""
    number, underscore, rest = config.get("name", path.stem).partition("_")
    name = f"{number}{edition}{underscore}{rest}" + (f"-{problem}" if config["method"] != "grid" and problem else "")
    config["name"], results, skipped, points = name, f"results/{path.stem.split('_')[0]}{edition}.csv", 0, None
    grid, known = config["method"] == "grid", []
    flags = check_points(expand(config) if grid else corners(config), program, args.epochs)
    freeze_precision(config, program, flags[0])
    prints = freeze_data(config)
    if grid:
        left = skip_done(points := expand(config), program, results, prints)
        points, skipped = left, len(points) - len(left)
    elif backend == "local":  # W&B's search takes only runs that are on W&B
        known = known_trials(config, corners(config)[0], program, results, prints)
        skipped = len(known)
    record = {"name": name, "results": results, "config": config, "data": prints, "created": time.strftime("%Y-%m-%d %H:%M:%S")}
    record["runs"] = config["run_cap"] - skipped if points is None else len(points)
    return record, points, known, skipped


def create_local(record, points, known, args):
    for key in ("project", "entity"):
        if getattr(args, key):
            record["config"]["parameters"][f"wandb_{key}"] = {"value": getattr(args, key)}
            for point in points or []:
                point[f"wandb_{key}"] = getattr(args, key)
    record["id"] = record["name"] + "-" + "".join(random.choices("abcdefghijkmnpqrstuvwxyz23456789", k=6))
    record["storage"] = args.storage
    Queue(record, create=True).fill(points or [], known)


def create_wandb(record, points, skipped, args):
    import wandb

    config = record["config"]
    if skipped:  # the server multiplies a grid out by itself: what is left of it becomes one list of arms
        varied = [k for k, p in config["parameters"].items() if len(p.get("values", [])) > 1]
        arms = [",".join(p[k] if k == "arm" else f"{k}={p[k]!s}" for k in varied) for p in points]
        config["parameters"] = {k: p for k, p in config["parameters"].items() if k not in varied} | {"arm": {"values": arms}}
    # The fingerprints travel in the description: the server refuses keys it does not know.
    prints = "; ".join(f"{p} {d['source']} {d['toy_dims']} {d['sha256']}" for p, d in record["data"].items())
    config["description"] = f"{config.get('description', '')} [data: {prints}]".strip()
    project = args.project or load_program(config["program"]).parse([]).wandb_project
    try:
        sweep_id = wandb.sweep(config, entity=args.entity, project=project)
        entity = args.entity or wandb.Api().default_entity
    except Exception as error:  # wandb raises a dozen types when its server cannot be reached or refuses
        raise SweepError(f"W&B: cannot create the sweep ({agents.first_line(error)}); BACKEND=local needs no server") from None
    record["path"] = f"{entity}/{project}/{sweep_id}"
    record["id"] = f"{record['name']}-{sweep_id}"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(content)
    os.replace(temporary, path)


def save(record):
    write(STATE / record["id"] / "sweep.json", json.dumps(record, indent=1) + "\n")
