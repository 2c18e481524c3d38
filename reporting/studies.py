"""What a sweep's YAML asked, and which of the runs found answer it. report.py's pages take the Study made here.

study("01", local_runs("runs"))     # -> header of the YAML, runs used, runs left out and why
"""

import itertools
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from reporting.collect import LEVEL, InputError, number
from reporting.stats import ALPHA

SWEEPS = Path(__file__).parent.parent / "sweeps"
CATEGORICAL = ("problem", "strategy", "safeguards")  # a run whose value of these is not in the YAML's list belongs to another sweep
STUDY = ("beams2d", "heatconduction2d", "photonics2d")  # a search is created once for each of them
BORROWS = {"01b": ("01b", "01")}  # 01's runs are the fourth level of each strategy


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
    borrowed: set  # run.where of those made for another sweep: they answer, but are no points of this one

    @property
    def done(self):
        return [run for run in self.runs if run.status == "finished"]

    @property
    def own(self):
        return [run for run in self.runs if run.where not in self.borrowed]

    @property
    def problems(self):
        return sorted({run.flags["problem"] for run in self.runs if run.flags})


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
    if name == "01":
        return run.flags["strategy"]
    return str(run.flags.get("safeguards")) if name == "02" else strategy_of(run.flags)


def strategy_of(flags):
    """Strategy and level: plummet 0.05."""
    level = flags.get(LEVEL.get(flags["strategy"]))
    return flags["strategy"] if level is None else f"{flags['strategy']} {number(level):g}"


def study(name, runs):
    """Choose from `runs` those that answer sweep `name` (01, 01b, ... 06). Raises InputError if there is no such sweep."""
    paths = sorted(SWEEPS.glob(f"{name}_*.yaml"))
    if len(paths) != 1:
        allowed = ", ".join(sorted(p.name.split("_")[0] for p in SWEEPS.glob("[0-9]*.yaml")))
        raise InputError(f"--sweep {name}: no such sweep; allowed: {allowed or 'none, sweeps/ is empty'}")
    file, words = header(paths[0])
    notes = []
    spec = _as_created(file, name, runs, notes)
    parameters = spec.get("parameters", {})
    varied = {key: p["values"] for key, p in parameters.items() if len(p.get("values", ())) > 1}
    ranges = {key for key, p in parameters.items() if "min" in p}
    level = re.search(r"(?:two-sided,|below) (\d+(?:\.\d+)?) ?%", words.get("rule", ""))
    margin = re.search(r"margin (\d+(?:\.\d+)?) ?%", words.get("rule", ""))
    points = spec["run_cap"] if "run_cap" in spec else math.prod(map(len, varied.values()))
    used, left_out = [], []
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
    used = _same_settings(used, parameters, varied.keys() | ranges, left_out)
    arms = {run.where: arm_of(name, run) for run in used if run.flags}
    if name in ("04", "05", "06") and len({run.flags.get("safeguards") for run in used if run.flags}) > 1:
        arms = {run.where: str(run.flags.get("safeguards")) for run in used if run.flags}
    used = _one_a_point(used, arms, varied.keys() | ranges, left_out)
    if "run_cap" in spec:
        points *= max(1, len({run.flags["problem"] for run in used if run.flags}))  # created once a problem
    borrowed = {run.where for run in used if run.flags and _is_borrowed(run, name, arms, parameters)}
    notes[:0] = _departures(file, [run for run in used if run.status == "finished" and run.where not in borrowed])
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
        borrowed=borrowed,
    )


def _owner(run):
    """The number of the sweep that a run was made for, 01b of 01b_strategy_sensitivity-k3x9wq or 01b-trial_..., "" if for none."""
    number = re.match(r"(\d\d[a-z]?)[-_]", run.sweep)
    return number[1] if number else ""


def _as_created(spec, name, runs, notes):
    """The sweep as sweep.py created it: PROBLEM=, SEEDS=, EPOCHS=, SET= narrow it, and .sweeps/ says how. Else its file.

    Sweeps that differ only in problem and seed (03 makes one a problem) are read as one."""
    own = [run for run in runs if _owner(run) == name]
    ids = sorted({run.sweep for run in own})
    try:
        records = [json.loads((Path(".sweeps") / i / "sweep.json").read_text())["config"] for i in ids]
        parts = {key: [p for record in records for p in levels(record["parameters"].get(key, {}))] for key in ("problem", "seed")}
        merged = {key: {"values": list(dict.fromkeys(parts[key]))} for key in parts}
        wholes = [record | {"name": "", "parameters": record["parameters"] | merged} for record in records]
        if wholes and all(whole == wholes[0] for whole in wholes):
            return wholes[0]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not ids or not all(re.match(r"\d\d[a-z]?-", i) for i in ids):  # 01_pruning_strategies-...: every value is one of the file's
        return spec
    notes.append(
        "The record of how this edition was narrowed (.sweeps/) is not here: its points are counted from the values that its runs have."
    )
    return spec | {"parameters": {key: _as_found(p, key, own) for key, p in spec["parameters"].items()}}


def levels(p):
    """All values that a parameter of a sweep lists."""
    return p["values"] if "values" in p else [p["value"]] if "value" in p else []


def values_of(key, runs):
    """The values of a flag in the runs, sorted: numbers, or text where there are none."""
    found = {run.flags.get(key) for run in runs if run.flags} - {None, ""}
    return sorted({number(v) for v in found if math.isfinite(number(v))}) or sorted(map(str, found))


def _as_found(p, key, runs):
    """A parameter with the values that the runs have, where the file has a list; with their range, where they leave the file's."""
    found = values_of(key, runs)
    if not found or "value" in p:
        return p
    if "values" in p:
        return {"values": found}
    return p if isinstance(found[0], str) or (p["min"] <= found[0] and found[-1] <= p["max"]) else p | {"min": found[0], "max": found[-1]}


def _departures(file, runs):
    """In words: values of the runs that the sweep's file does not have, and values of the file that no run has."""
    other, absent = [], []
    for key, p in file.get("parameters", {}).items():
        found = values_of(key, runs)
        asked = STUDY if key == "problem" and "run_cap" in file else levels(p)
        if not found or key == "data" or "auto" in asked:
            continue
        if "min" in p:
            if isinstance(found[0], float) and not p["min"] <= found[0] <= found[-1] <= p["max"]:
                other.append(f"{key} {found[0]:g} to {found[-1]:g} (file: {p['min']:g} to {p['max']:g})")
        elif not all(any(_same(v, a) for a in asked) for v in found):
            other.append(f"{key} {_list(found)} (file: {_list(asked)})")
        elif left := [a for a in asked if not any(_same(v, a) for v in found)]:
            absent.append(f"{key} {_list(left)}")
    notes = [f"These runs differ from the sweep's file: {'; '.join(other)}."] if other else []
    return notes + ([f"No finished run with a value that the sweep's file asks for: {'; '.join(absent)}."] if absent else [])


def _list(values, most=5):
    shown = [v if isinstance(v, str) else f"{v:g}" for v in values]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _is_borrowed(run, name, arms, parameters):
    """Was the run made for another sweep? One without a sweep's id: is its arm another than those of this sweep?"""
    if _owner(run) or name not in BORROWS:
        return _owner(run) not in ("", name)
    own = [dict(pair.split("=") for pair in arm.split(",")) for arm in levels(parameters.get("arm", {}))]
    return arms[run.where] not in {strategy_of(flags) for flags in own if "strategy" in flags}


def _in_sweep(key, value, parameters, search):
    """Can a run of this sweep have the value? STRATEGY= may change a fixed strategy; a search goes problem by problem."""
    asked = levels(parameters.get(key, {}))
    return value in asked or len(asked) < (1 if key == "problem" and not search else 2)


def _same(a, b):
    return a == b or math.isclose(number(a), number(b), rel_tol=1e-9)


def _same_settings(runs, parameters, varied, left_out):
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
