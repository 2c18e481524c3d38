"""Finished runs -> the answer to a sweep's question: one self-contained page, its figures and tables as files.

    python report.py --sweep 01 --runs runs                     # make report SWEEP=01 RUNS=runs
    python report.py --sweep 01 --runs results/01.csv           # the rows that agents keep
    python report.py --sweep 02 --wandb entity/project/sweepid  # the same from W&B
    python report.py --runs results/01-first.csv                # all sweeps: report/index.html leads to their pages

Expect report/<sweep>/index.html within a minute, also while the sweep is running: the page says how complete it is. A
run that is broken, stopped, diverged or no point of the sweep is listed with the reason, and ends nothing.
"""

import base64
import contextlib
import itertools
import math
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import scipy.stats
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

import record
from data import CONDITIONS, PROBLEMS
from lvae import InputError, first_line, need
from pruning import PROFILES, SAFEGUARDS, STRATEGIES
from record import FREE_FLAGS, LEGACY, SEARCHED, is_locked, number, plain, read_csv, read_json, slug, write_atomically
from train import DEFAULTS

# -------------------------------------------------------------------------------------------------- rows: runs as found
LEVEL = {name: own[0] for name, (_, *own) in STRATEGIES.items() if own}
TRIMMED = "trimmed"  # the arm of 01b that goes on where its strategy stops
# What comes of a dimension that is proposed: columns of pruning.csv, of which a row of results/NN.csv has the sums
PROPOSALS = ["proposed", *SAFEGUARDS, "pruned"]
RESULT_METRICS = [  # of a row of results/NN.csv, which has every flag and BOOKKEEPING besides
    *("epoch", "rec_loss", "val_rec", "val_vol_loss", "val_total_loss", "active_dims", "best_val_rec", "best_epoch"),
    *("pca_rec", "pca_ratio", "prune_events", "seconds", "test_rec"),
    "objective",  # of a search: the metric's best over the run, as its engine sees it
    *("rise", "epochs_above", "collapses", *(f"sum_{key}" for key in PROPOSALS)),  # curves and proposals in numbers
]
ORIGIN = ["data_source", "data_sha256", "metrics_sha256", "git", "host", "cpu", "recorded"]
BOOKKEEPING = ["id", "name", "sweep", "status", "cause", "reports", "metric", *ORIGIN]
STATES = ["finished", "running", "stopped", "diverged", "broken"]


class Run(dict):
    """One run as found, like a row of results/NN.csv: flags, RESULT_METRICS, BOOKKEEPING; status is one of STATES.

    Besides: where it is, its `owner` (01b of 01b-first_..., "" for none), `lowest` of its `metric`, one of SEARCHED.
    """

    def __init__(self, row, where):
        # a flag that a run lacks means what was done before that flag existed
        older = LEGACY | dict(metric=SEARCHED[1], lowest=row.get("objective") or None, cpu=row.get("host") or None)
        row, other = older | {key: value for key, value in row.items() if value != ""}, (*BOOKKEEPING, *RESULT_METRICS)
        super().__init__({key: value if key in other else plain(value) for key, value in row.items()}, where=str(where))
        status, self["cause"] = row.get("status"), str(row.get("cause") or "")
        self["owner"] = (re.match(r"(\d\d[a-z]?)[-_]", str(row.get("sweep"))) or ("", ""))[1]
        if status == "stopped early":
            status, self["cause"] = "stopped", f"stopped early after epoch {row.get('epoch')}"
        elif status != "broken" and not isinstance(self.get("seed"), int):
            status, self["cause"] = "broken", "its flags are of no use: seed must be a number"
        elif status not in STATES:
            status, self["cause"] = "broken", f"its status is {status!r:.60}; allowed: {', '.join(STATES)}"
        elif status == "finished" and not 0 < number(row.get("val_rec")) < math.inf:
            status, self["cause"] = "broken", f"its val_rec is {row.get('val_rec')!r:.60}, not a positive number"
        self["status"] = status


def local_runs(root):
    """Every run below the folder `root`, by its config.json, or the rows of a table."""
    root = Path(root)
    if root.suffix == ".csv" and root.is_file():
        # 01b is read with 01: the other sweeps of the same edition count, too
        alike = re.compile(r"\d\d[a-z]?" + re.escape(re.sub(r"^\d\d[a-z]?", "", root.stem)))
        paths = [path for path in sorted(root.parent.glob("*.csv")) if alike.fullmatch(path.stem)] or [root]
        return [Run(row, f"{path}:{row.get('id')}") for path in paths for row in read_csv(path).to_dict("records")]
    need(root.is_dir(), f"--runs {root}: no such folder; allowed: a folder with runs below it, or a results/NN.csv")
    return [read_run(path.parent) for path in sorted(root.rglob("config.json"))]


def read_run(folder):
    """The run in `folder`. Never raises: what cannot be read becomes status broken, with the cause."""
    config, summary = (read_json(folder / name) for name in ("config.json", "summary.json"))
    try:
        metrics, pruning = (read_csv(folder / name) for name in ("metrics.csv", "pruning.csv"))
        row = described(config, summary or {}, metrics) | dict(id=folder.name)
    except (InputError, OSError, TypeError, AttributeError) as error:
        return Run(dict(id=folder.name, status="broken", cause=f"cannot be read: {first_line(error)}"), folder)
    if (folder / "pruning.csv").exists():
        row |= pruning.reindex(columns=PROPOSALS).apply(pd.to_numeric, errors="coerce").sum().add_prefix("sum_")
    if not (folder / "summary.json").exists():
        cause = f"{len(metrics)} of {row.get('n_epochs')} epochs"
        row |= dict(status="running" if is_locked(folder) else "stopped", cause=cause)
    return Run(row, folder)


def described(config, summary, curve):
    """What a row of results/NN.csv has of a run, from its JSON files and its curve, a DataFrame with a row an epoch."""
    flags, data, machine = (config.get(key) or {} for key in ("flags", "data", "machine"))
    curve = curve.reindex(columns=["epoch", "val_rec", *SEARCHED]).apply(pd.to_numeric, errors="coerce").astype(float)
    metric = SEARCHED[int(curve[SEARCHED[0]].isna().all())]  # the older runs lack the first
    row = flags | instability(curve["epoch"], curve["val_rec"], number(flags.get("pruning_epoch")))
    row |= dict(metric=metric, lowest=curve[metric].min(), sweep=config.get("sweep"), recorded=config.get("started"))
    row |= dict(git=record.made_by(config), cpu=machine.get("cpu"))
    row |= dict(data_source=data.get("source"), data_sha256=data.get("sha256"))
    return row | {key: summary[key] for key in ("status", "cause", *RESULT_METRICS) if key in summary}


def wandb_runs(path):
    """Runs of a W&B sweep, entity/project/sweep id. pruning.csv is not on W&B: those runs have no proposals."""
    need(path.count("/") == 2, f"--wandb {path}: allowed: entity/project/sweep id")
    try:
        import wandb

        sweep = wandb.Api().sweep(path)
        return [from_wandb(run, (sweep.config or {}).get("name", "")) for run in sweep.runs]
    except Exception as error:  # wandb raises its own, requests' and ValueError for a sweep that is not there
        raise InputError(f"--wandb {path}: cannot be read ({type(error).__name__}: {first_line(error)})") from None


def from_wandb(found, sweep):
    """A run as wandb's public API shows it -> Run; of the sweep of this name, if it does not say of which."""
    config = {key[1:]: value for key, value in found.config.items() if key[:1] == "_"}
    config |= dict(flags={key: value for key, value in found.config.items() if key[:1] != "_"})
    config |= dict(started=found.created_at, sweep=getattr(found, "group", None) or f"{sweep}-")
    curve = [row for row in found.scan_history() if None not in (row.get("epoch"), row.get("val_rec"))]
    row = described(config, dict(found.summary), pd.DataFrame(curve, dtype=object)) | dict(id=found.id)
    if found.state != "finished" and "status" not in row:
        status = dict(running="running", killed="stopped", preempted="stopped").get(found.state, "broken")
        row |= dict(status=status, cause=f"W&B says {found.state}, {len(curve)} of {row.get('n_epochs')} epochs")
    return Run(row, "/".join(found.path))


# ---------------------------------------------------------------------------------- rows: which of them answer a sweep
SWEEPS = {p.name.split("_")[0]: p for p in sorted(Path(__file__).with_name("sweeps").glob("[0-9]*.yaml"))}  # by number
DEEP_DIVES = ("04", "05", "06")
BORROWS = {"01b": "01"}  # 01's runs are the fourth level of each strategy
KNOWN = dict(problem=[*PROBLEMS], strategy=[*STRATEGIES], safeguards=[*PROFILES])
SETTINGS = ["pruning_epoch", "w_v"]  # what the deep dives vary


def listed(spec, key):
    """All values that a sweep lists for a parameter; an arm as a dict of the flags it sets."""
    p = spec["parameters"].get(key, {})
    if key == "problem" and "run_cap" in spec and p.get("value") in CONDITIONS:
        return [*CONDITIONS]  # it is created once for each of them
    found = [plain(value) for value in p.get("values", [p["value"]] if "value" in p else [])]
    if key != "arm":
        return found
    return [{k: plain(v) for k, v in (pair.split("=", 1) for pair in arm.split(","))} for arm in found if "=" in arm]


def values_of(table, key):
    """The values of a flag in a table, sorted: numbers, or text where there are none."""
    found = {*table[key].dropna()} - {"None"}
    return sorted(v for v in found if not isinstance(v, str)) or sorted(found)


def as_created(spec, own):
    """The sweep as created: PROBLEM=, SEEDS=, EPOCHS=, SET= narrow its file, and .sweeps/ says how. own: its runs.

    Where sweep.json is not here, the points are those of the values that its runs have. Sweeps that differ in problem
    and seed (03 makes one a problem) are read as one.
    """
    ids = sorted(own["sweep"].unique())
    with contextlib.suppress(KeyError, TypeError, IndexError):  # no sweep.json, a damaged one, or no run: go on below
        made = [read_json(Path(".sweeps", slug(i), "sweep.json"))["config"] for i in ids]
        both = {key: dict.fromkeys(v for one in made for v in listed(one, key)) for key in ("problem", "seed")}
        return made[0] | {"parameters": made[0]["parameters"] | {k: {"values": [*v]} for k, v in both.items()}}
    if not all(re.match(r"\d\d[a-z]?-", i) for i in ids):  # 01_pruning_strategies-...: not narrowed
        return spec
    parameters = dict(spec["parameters"])
    for key, p in parameters.items():
        found = values_of(own, key)
        if found and "values" in p:
            parameters[key] = {"values": found}
        elif found and "min" in p:
            parameters[key] = p | {"min": min(p["min"], found[0]), "max": max(p["max"], found[-1])}
    return spec | {"parameters": parameters}


class SweepRuns:
    """A sweep's YAML and the runs that answer it, chosen from `runs`: each DataFrame has a row a run.

    table: of use, with its arm; frame: the finished ones; broken: of no use; left_out: with the reason, why.
    """

    def __init__(self, name, runs):
        self.name, lent = name, BORROWS.get(name)
        text = SWEEPS[name].read_text(encoding="utf-8")
        comments = re.findall(r"^# (\w+): *(.*(?:\n# {2,}\S.*)*)", text, re.MULTILINE)  # `# Keyword: text`, indented on
        words = {keyword.lower(): " ".join(told.replace("\n#", " ").split()) for keyword, told in comments}
        self.file, self.title = yaml.safe_load(text), SWEEPS[name].stem.partition("_")[2].replace("_", " ")
        self.question, self.hypothesis, self.rule = (words[key] for key in ("question", "hypothesis", "rule"))
        numbers = {*RESULT_METRICS, "lowest", *SETTINGS}
        needed = [*KNOWN, "seed", "n_epochs", "where", "owner", *BOOKKEEPING, *numbers, *self.file["parameters"]]
        runs = [run for run in runs if run["owner"] in ("", name, lent)]  # the others are another sweep's
        table = pd.DataFrame(runs, columns=list(dict.fromkeys([*needed, *(key for run in runs for key in run)])))
        self.spec = as_created(self.file, table[table["owner"] == name])
        keys = self.spec["parameters"]
        self.varied = [key for key in keys if "min" in keys[key] or len(listed(self.spec, key)) > 1]
        numbers = list(numbers | {key for key in self.varied if "min" in keys[key]})
        table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
        self.broken = table[table["status"] == "broken"]
        self.table, self.left_out = table[table["status"] != "broken"].infer_objects(), table[:0].assign(why="")
        for key, known in KNOWN.items():
            self.drop(~self.table[key].isin(known), f"unknown {key} " + self.table[key].astype(str).str[:60])
        self.drop(self.table["owner"] == "", "made for no sweep")
        self.table["arm"] = self.arms_of_rows()
        self.same_settings()
        # of several runs of a point the last is used, a finished one rather than any other
        order = self.table["status"].map(["stopped", "diverged", "running", "finished"].index)
        ranked = self.table.assign(order=order).sort_values(["order", "recorded", "where"])
        doubles = ranked.duplicated(["problem", "arm", "seed", *self.varied], keep="last")
        self.drop(doubles.reindex(self.table.index), "another run of the same point is used")
        self.problems = sorted(self.table["problem"].unique())
        # the mildest level first: a larger one prunes more, but for the share of the variance that pca_cdf keeps
        found, names = [arm.split(" ") for arm in self.table["arm"].unique()], [*LEVEL, *PROFILES, TRIMMED]
        found.sort(key=lambda arm: (names.index(arm[0]), *(float(x) * (-1) ** (arm[0] == "pca_cdf") for x in arm[1:])))
        self.arms = [" ".join(arm) for arm in found]
        self.table["arm"] = pd.Categorical(self.table["arm"], self.arms)
        within = self.table.groupby("arm", observed=True)  # runs are paired by what varies within an arm (SET=)
        self.beside = [k for k in self.varied if k not in ("problem", "seed", "arm") and within[k].nunique().max() > 1]
        self.frame = self.table[self.table["status"] == "finished"]
        self.groups = self.frame.groupby(["problem", "arm"], observed=True)
        borrowed = self.table["owner"] == lent  # they answer, but are no points of this sweep
        self.own, self.borrowed = pd.concat([self.table[~borrowed], self.broken]), int(borrowed.sum())
        # how many points the sweep asks for; a search is created once a problem
        self.points = math.prod(len(listed(self.spec, key)) or 1 for key in keys)
        self.points = self.spec["run_cap"] * max(1, len(self.problems)) if "run_cap" in self.spec else self.points

    def drop(self, mask, why):
        self.left_out = pd.concat([self.left_out, self.table.assign(why=why)[mask]])
        self.table = self.table[~mask]

    def arms_of_rows(self):
        """What the sweep compares, a name for each row of the table."""
        if self.name in ("02", "05"):
            return self.table["safeguards"]
        if self.name == "01":
            return self.table["strategy"]
        rows = self.table.to_dict("records")
        found = [(r["strategy"], number(r.get(LEVEL.get(r["strategy"])))) for r in rows]
        found = [s if math.isnan(level) else f"{s} {level:g}" for s, level in found]
        trims = {arm["trim_share"] for arm in listed(self.spec, "arm") if "trim_share" in arm}
        return [TRIMMED if len(trims) > 1 and r["trim_share"] else arm for r, arm in zip(rows, found, strict=True)]

    def same_settings(self):
        """Keep runs that agree in every flag not varied: the YAML's value where some run has it, else the commonest."""
        in_arms = {key for arm in listed(self.spec, "arm") for key in arm}  # what an arm sets differs on purpose
        skip = {*self.varied, *in_arms, *(LEVEL.values() if in_arms else ()), *FREE_FLAGS, "problem", "seed", "data"}
        by = [self.table[key] for key in ("problem", *self.varied) if key in self.table and key != "seed"]
        for key in dict.fromkeys([*self.spec["parameters"], *LEGACY]):
            if key in skip or key not in self.table:
                continue
            wanted = listed(self.spec, key)[:1]
            # what the YAML leaves open follows the designs and what is varied; of all else all runs are one group
            for _, values in self.table[key].dropna().groupby(by if wanted == ["None"] else lambda _: "all"):
                counts = values.value_counts().index
                target = wanted[0] if wanted and wanted[0] in counts else counts[0]
                other = values.index[values.ne(target)]
                self.drop(self.table.index.isin(other), f"other {key} than {target!s:.60}")
        digests = self.table["data_sha256"].astype(str)
        commonest = digests.groupby(self.table["problem"]).transform(lambda s: s.value_counts().index[0])
        self.drop(digests != commonest, "other designs than most runs")

    def wide(self, measure):
        """(problem, seed, and what else varies) x arm: a measure of the finished runs."""
        return self.frame.pivot(index=["problem", "seed", *self.beside], columns="arm", values=measure)

    def on_common_seeds(self, problem, arms):
        """Of arms (those with runs) on a problem: geometric mean of val_rec, mean dims, the number of seeds.

        Only seeds that all of them have: an arm must not look better for having run on easier ones.
        """
        wide = map(self.wide, ("val_rec", "active_dims"))
        errors, dims = (table[table.index.get_level_values("problem") == problem] for table in wide)
        errors = errors.reindex(columns=arms).dropna(axis=1, how="all").dropna()
        seeds = 0 if errors.empty else errors.index.unique("seed").size
        return np.exp(np.log(errors).mean()), dims.loc[errors.index].mean(), seeds


# -------------------------------------------------------------------------- statistics: one rule for all seven sweeps
# A two-sided paired t-test on log val_rec (or on the difference of dims) over problem-seed pairs, Holm over the family;
# undecided with fewer than MIN_SEEDS seeds, or without variance.

MIN_SEEDS = 3
# p after Holm that a claim needs. Not 0.05: at most 5 % of 1,000 tied sweeps may get a verdict, and in the worst case
# (two arms tied, the others worse) a test at 5 % exceeds that every second time.
ALPHA = 0.035
NEAR = 0.05  # "within 5 % of the best val_rec", and "more than 5 % above its best"
COLLAPSE = 2.0  # val_rec at twice its best so far
MEANING = {  # of the effects that the deep dives test
    "interaction": "pruning_epoch x w_v: what a larger w_v gains (−) or costs (+) when pruning starts later",
    "arms": "arms: the second against the first, over all cells",
    "pruning_epoch": "pruning_epoch: half the change from the earliest to the latest",
    "w_v": "w_v: half the change from the smallest to the largest",
}
MIN_COMPLETED = 20  # completed runs below which a ranking says nothing (five parameters, twelve coefficients)


def paired(differences):
    """t-test of mean 0 along the last axis of differences (..., n). Mean, 95 % t interval (low, high), p.

    Without variance p is NaN (1 where all are 0): equal differences are no evidence. Fewer than two: NaN.
    """
    d = np.asarray(differences, dtype=float)
    if d.shape[-1] < 2:
        return d.mean() if d.size else np.nan, *[np.nan] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal values, which are answered here
        test = scipy.stats.ttest_1samp(d, 0, axis=-1)
        low, high = test.confidence_interval()
    mean, equal = d.mean(-1), np.ptp(d, axis=-1) <= 1e-9 * np.abs(d).max(-1)
    p = np.where(equal, np.where(d.any(-1), np.nan, 1.0), test.pvalue)
    return mean, np.where(equal, mean, low), np.where(equal, mean, high), p


def interval(values, log, seed=None):
    """Mean and 95 % t interval of values (n,). log (errors): geometric, on the log scale. seed (n,): a mean each."""
    x = np.asarray(values, dtype=float)
    good = np.isfinite(x) & (x > 0 if log else True)
    x = np.log(x[good]) if log else x[good]
    x = x if seed is None else pd.Series(x).groupby(np.asarray(seed)[good]).mean()
    return tuple(float(np.exp(v) if log else v) for v in paired(x)[:3])


def holm(p):
    """Holm's adjusted p-values along the last axis; NaN counts as 1: a test that could not be done is no evidence."""
    p = np.nan_to_num(np.asarray(p, dtype=float), nan=1.0)
    steps = np.maximum.accumulate(np.sort(p, axis=-1) * np.arange(p.shape[-1], 0, -1), axis=-1)
    return np.take_along_axis(np.minimum(steps, 1.0), p.argsort(axis=-1).argsort(axis=-1), axis=-1)


def decide(mean, p_holm, seeds):
    """-1: lower, 1: higher, 0: undecided, for means of differences."""
    return np.where((np.asarray(seeds) >= MIN_SEEDS) & (p_holm < ALPHA), np.sign(mean), 0).astype(int)


def detectable(n, spread, comparisons, sweeps=10_000):
    """The mean difference that 80 % of simulated sweeps show, of n Normal differences with this standard deviation.

    A sweep shows it if its p is below ALPHA after Holm's correction in the worst case, as the first of the comparisons.
    """
    if n < MIN_SEEDS:
        return math.nan
    draws = np.random.default_rng(0).standard_normal((sweeps, n))
    needed = scipy.stats.t.isf(ALPHA / comparisons / 2, n - 1) * draws.std(axis=1, ddof=1) / math.sqrt(n)
    return spread * float(np.quantile(needed - draws.mean(axis=1), 0.8))


def tested(samples):
    """Test samples, (a, b, differences (n,), seeds) each, as one family. A row each, with p_holm and verdict."""
    samples = [(a, b, np.round(d, 12), s) for a, b, d, s in samples]  # what is smaller is rounding, no difference
    rows = [(a, b, len(d), s, *map(float, paired(d)), pd.Series(d, dtype=float).std()) for a, b, d, s in samples]
    found = pd.DataFrame(rows, columns=["a", "b", "n", "seeds", "mean", "low", "high", "p", "spread"])
    found["p_holm"] = holm(found["p"])
    return found.assign(verdict=decide(found["mean"], found["p_holm"], found["seeds"]))


def family(wide, comparisons, log=True):
    """Test each (a, b): is a lower than b? wide: (problem, seed, what else varies) x arm; log: of the log ratio."""
    values, samples = np.log(wide) if log else wide, []
    for a, b in comparisons:
        # a seed's runs with several values of a further flag (SET=) are no independent pairs: their mean counts
        pairs = values.reindex(columns=[a, b]).dropna().groupby(["problem", "seed"]).mean()
        samples.append((a, b, (pairs[a] - pairs[b]).to_numpy(), pairs.index.unique("seed").size))
    return tested(samples)


def instability(epoch, val_rec, start):
    """How unsteady a run was from epoch `start` (pruning_epoch) on, against its best val_rec since then.

    rise: largest val_rec over its best so far, minus 1; epochs_above: more than 5 % above; collapses: at twice.
    """
    v = np.asarray(val_rec, dtype=float)[np.asarray((epoch >= start) & np.isfinite(val_rec))]
    if not len(v):
        return dict.fromkeys(("rise", "epochs_above", "collapses"), math.nan)
    ratio = v / np.minimum.accumulate(v)
    collapses = ((ratio[1:] >= COLLAPSE) & (ratio[:-1] < COLLAPSE)).sum()
    return dict(rise=float(ratio.max() - 1), epochs_above=int((ratio > 1 + NEAR).sum()), collapses=int(collapses))


def unit(values):
    """Positive values -> log scale, [-1, 1]: a coefficient is half the change of log val_rec over the whole range."""
    u = np.log(np.asarray(values, dtype=float))
    return np.zeros_like(u) if np.ptp(u) == 0 else 2 * (u - u.min()) / np.ptp(u) - 1


def quadratic(parameters, product):
    """Terms of a quadratic surface (n, terms), named by their factors: on the unit log scale, with one product."""
    u = parameters.apply(unit)
    squares = {f"{k} {k}": u[k] ** 2 for k in u if u[k].nunique() > 2}
    both = {" ".join(product): u[[*product]].prod(axis=1)} if {*product} <= {*u} else {}
    return u.assign(one=1.0, **squares, **both)


def effects(frame):
    """Tests over the seeds, which are what is sampled: interaction, arm 1 minus arm 0, the slopes of the two SETTINGS.

    frame: a row a run. Fitted seed by seed is a quadratic surface of log val_rec with a height of its own for each arm.
    A seed that has too few runs for it does not count.
    """
    terms, fits = quadratic(frame[SETTINGS], SETTINGS), []
    arms = pd.get_dummies(frame["arm"].cat.remove_unused_categories(), drop_first=True, dtype=float)
    for _, x in terms.join(arms).groupby(frame["seed"]):
        coefficients, _, rank, _ = np.linalg.lstsq(x, np.log(frame.loc[x.index, "val_rec"]), rcond=None)
        fits += [dict(zip(x, coefficients, strict=True))] if rank == x.shape[1] else []
    names = {" ".join(SETTINGS): "interaction"} | (dict.fromkeys(arms, "arms") if arms.shape[1] == 1 else {})
    found = pd.DataFrame(fits).rename(columns=names).reindex(columns=[*MEANING])
    return tested([(name, "", d.dropna(), d.count()) for name, d in found.items()])


def importance(parameters, values):
    """PED-ANOVA's {name: share}. parameters: DataFrame (n, names), positive; values (n,): lower is better."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    varied, kinds, study = parameters.loc[:, parameters.nunique() > 1].astype(float), {}, optuna.create_study()
    for name, v in varied.items():
        kinds[name] = optuna.distributions.FloatDistribution(v.min(), v.max(), log=v.max() / v.min() > 20)
        if v.nunique() <= 4:  # batch_size
            kinds[name] = optuna.distributions.CategoricalDistribution(sorted(v.unique()))
    for point, value in zip(varied.to_dict("records"), values, strict=True):
        study.add_trial(optuna.trial.create_trial(params=point, distributions=kinds, value=float(value)))
    # At least 8 runs must count as good: Optuna asks for 5, and a tenth of 33 runs would be 3
    quantile = min(0.5, max(0.1, 8 / len(varied)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA is marked experimental
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile))


def f_tests(parameters, values, product=("latent_dim", "w_v")):
    """Partial F-tests in a quadratic regression of log(values) on log(parameters), and on the product of two of them.

    Returns {name: (share of variance explained, p, p_holm)}.
    """
    terms, y = quadratic(parameters, product), np.log(np.asarray(values, dtype=float))

    def fit(without=""):
        x = terms[[term for term in terms if without not in term.split()]].to_numpy()
        coefficients, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
        return ((y - x @ coefficients) ** 2).sum(), rank

    (full, rank), total, found = fit(), ((y - y.mean()) ** 2).sum(), {}
    for name in parameters:
        less, few = fit(name)
        with np.errstate(invalid="ignore", divide="ignore"):  # a parameter that does not vary
            f = (less - full) / np.float64(rank - few) / (full / (len(y) - rank))
        found[name] = (less - full) / total, scipy.stats.f.sf(f, rank - few, len(y) - rank)
    return {name: (*found[name], p) for name, p in zip(found, holm([p for _, p in found.values()]), strict=True)}


# ------------------------------------------------------------------------------------------------------------- the page
# Okabe and Ito's palette without black and yellow: told apart by colour-blind readers, on white and on near-black
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#8a8a8a"]
MARKERS = "osD^vPX"  # one fewer than the colours: 56 arms look different
WORD = {-1: "lower", 0: "undecided", 1: "higher"}
ENDS = ["95 % low", "95 % high"]
STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
matplotlib.rcParams.update(STYLE | {"text.parse_math": False, "image.interpolation": "none", "legend.frameon": False})


def num(value, form=".3g"):
    """A number for people, a dash for none. form: +.3g for a difference."""
    if value is None or math.isnan(value):
        return "–"
    whole = form == ".3g" and abs(value) < 1e6 and value == int(value)
    text = f"{int(value):,}".replace(",", " ") if whole else f"{value:{form}}".replace("e-0", "e-")
    return text.replace("-", "−")


def percent(ratio):
    """A ratio minus 1 as a change in percent: −12.3 %."""
    return "–" if math.isnan(ratio) else f"{num(100 * ratio, '+.1f')} %"


def panel(title):
    """A small figure that stays readable at phone width: (figure, axes)."""
    figure = Figure(figsize=(4, 3), layout="constrained")  # not pyplot's, which keeps them open
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    return figure, axes


def markdown(columns, rows):
    """A Markdown table of texts."""
    lines = [" | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in row) for row in [columns, *rows]]
    lines.insert(1, " | ".join(["---"] * len(columns)))
    return "\n".join(f"| {line} |" for line in lines)


class Page:
    """Collects a page's parts in order; write() renders report.j2 with them, which escapes all text."""

    def __init__(self, folder, title):
        self.folder, self.title, self.headline, self.opening = Path(folder), title, "", ""
        self.parts, self.answer, self.terms, self.caveats = [], None, [], []

    def verdict(self, word, lead, headline=""):
        """The answer: word (supported, refuted, undecided) and lead; headline: for a human."""
        self.headline, self.answer = self.opening + (headline or lead), dict(word=word, lead=lead)

    def section(self, title="", text=""):
        self.parts.append(dict(kind="section", title=title, text=text))

    def figures(self, items, style=""):
        """items: (name, figure, alt, caption) each, side by side; with the style "pixels" each as wide as the page."""
        panels = [dict(src=self._figure(slug(n), figure), alt=alt, caption=told) for n, figure, alt, told in items]
        self.parts.append(dict(kind="figures", panels=panels, style=style))

    def _figure(self, name, figure):
        """Save a figure; its address for the page, which holds it itself."""
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"

    def table(self, name, columns, rows, caption, shown=None):
        """A table, folded away where it is long; also as CSV (values as they are) and Markdown.

        rows: lists, or a frame. shown: column -> a function that makes text of its cells; else num.
        """
        path, frame = self.folder / "tables" / slug(name), pd.DataFrame(rows, columns=columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = frame.astype(object).map(lambda v: v if isinstance(v, str) else num(v))
        ps = dict.fromkeys(("p", "p after Holm"), lambda p: "< 0.001" if p < 0.001 else num(p, ".2g"))
        for key, how in (ps | (shown or {})).items():
            if key in text:
                text[key] = frame[key].map(how)
        cells = list(text.itertuples(index=False))
        write_atomically(path.with_name(f"{path.name}.csv"), frame.to_csv(index=False))
        write_atomically(path.with_name(f"{path.name}.md"), f"{caption}\n\n{markdown(columns, cells)}\n")
        self.parts.append(dict(kind="table", columns=columns, rows=cells, caption=caption))

    def write(self):
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.j2")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "index.html", page.render(page=self))
        return self.folder / "index.html"


# ------------------------------------------------------------------------------------------------- what answers share
MEASURES = {  # of a run -> what it is
    "val_rec": "mean squared error a pixel on the validation designs, of the weights that are kept",
    "active_dims": "latent dimensions left at the end",
    "pca_ratio": "val_rec over the error of PCA with as many dims; below 1 is better than PCA",
    "best_val_rec": "lowest val_rec of the epochs after the last pruning",
    "rise": "largest rise of val_rec over its best since pruning began (0.1: 10 %)",
    "collapses": "times val_rec reached twice its best since pruning began",
}
ERRORS = ["val_rec", "pca_ratio", "best_val_rec"]  # their means are geometric, their intervals on the log scale
SUMMARY = ["val_rec", "active_dims", "pca_ratio", "best_val_rec"]  # on each page
TESTED = ["val_rec", "active_dims", "rise", "collapses"]  # of 02
NEEDS = f"A verdict needs p below {ALPHA:g} after Holm's correction over this table, and {MIN_SEEDS} seeds. "
NEEDS += "Detectable: how large a true one 80 % of simulated sweeps with as many runs, and as uneven ones, would show."


def family_table(page, name, rows, caption, log=True, **first):
    """Rows of tested() as a table: changes in percent (log), or differences. first: columns instead of the arms."""
    ends, about = ["change" if log else "difference", *ENDS, "detectable"], [*first] or ["arm", "against"]
    names = dict(a="arm", b="against", mean=ends[0], low=ends[1], high=ends[2], p_holm="p after Holm", n="pairs")
    same = (rows["n"] > 1) & (rows["mean"] == 0) & (rows["spread"] == 0)  # on each pair of runs
    table = rows.rename(columns=names).assign(verdict=rows["verdict"].map(WORD).mask(same, "equal"), **first)
    n = rows["n"].where((rows["seeds"] >= MIN_SEEDS) & ~same, 0)  # fewer seeds get no verdict, however many pairs
    table["detectable"] = [detectable(*pair, len(rows)) for pair in zip(n, rows["spread"], strict=True)]
    table[ends] = np.expm1(table[ends]) if log else table[ends]
    columns = [*about, *ends, "p", "p after Holm", *([] if first else ["pairs"]), "seeds", "verdict"]
    how = percent if log else lambda difference: num(difference, "+.3g")
    page.table(name, columns, table, f"{caption} {NEEDS}", shown=dict.fromkeys(ends, how))


def front(found, page):
    """Dims against val_rec for every run, with the error of PCA at the same dims."""
    items = []
    for problem, mine in found.frame.groupby("problem"):
        figure, axes = panel(problem)
        pca = mine.dropna(subset="pca_rec").sort_values("active_dims")
        axes.plot(pca["active_dims"], pca["pca_rec"], color=COLOURS[7], ls="--", lw=1, label="PCA, same dims")
        for a, (arm, group) in enumerate(mine.groupby("arm", observed=True)):
            look = dict(color=COLOURS[a % 8], marker=MARKERS[a % 7], ms=4.5, ls="", label=arm)
            axes.plot(group["active_dims"], group["val_rec"], **look)
        axes.set(xlabel="active dims", ylabel="val_rec")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(5))  # few plain labels: a log axis's own run into one another
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        figure.set_figheight(3 + 0.05 * len(found.arms))
        figure.legend(fontsize=6.5, ncols=3, loc="outside lower center")  # where it covers no data
        best = mine.loc[mine["val_rec"].idxmin()]
        told = f"lowest val_rec {num(best['val_rec'])} at {num(best['active_dims'])} dims, {best['arm']}"
        items.append((f"front-{problem}", figure, f"active dims against val_rec on {problem}: {told}", f"{told}."))
    page.section("Error against dimensions", "Down and left is better. Below the dashed line: better than PCA.")
    page.figures(items)


def summary_table(found, page):
    """Mean with interval of every measure, by problem and arm."""
    rows = []
    for (problem, arm), mine in found.groups:
        ends = [interval(mine[m], m in ERRORS, mine["seed"]) for m in SUMMARY]
        told = [num(mean) + ("" if math.isnan(low) else f" [{num(low)}, {num(high)}]") for mean, low, high in ends]
        rows.append([problem, arm, len(mine), *told])
    caption = "Mean over seeds [95 % t interval], by problem and arm; of errors the geometric mean, on the log scale. "
    caption += ". ".join(f"{m}: {MEASURES[m]}" for m in SUMMARY)
    page.section("All numbers")
    page.table("summary", ["problem", "arm", "runs", *SUMMARY], rows, f"{caption}.")


def edge(page, what, key, value, low, high):
    """A caveat where the best value of a setting lies at an end of the range that was tried."""
    if abs(unit([low, value, high])[1]) > 0.9:
        page.caveats.append(f"{what}: the best {key} ({num(value)}) is at the edge of {num(low)} to {num(high)}.")


# --------------------------------------------------------------------------------------------------- the seven answers
def strategies(found, page):
    """01: which strategy reconstructs best, and with how few dims."""
    named, arms = "plummet", dict.fromkeys([*found.arms, *listed(found.spec, "strategy")])
    # a strategy without runs leaves its comparison undecided
    rows, won = family(found.wide("val_rec"), [(named, arm) for arm in arms if arm != named]), []
    for problem in found.problems:
        mean, dims, seeds = found.on_common_seeds(problem, found.arms)
        if not seeds:
            continue
        best, least = mean.idxmin(), mean.min()
        few = min(mean.index[mean <= (1 + NEAR) * least], key=lambda arm: (dims[arm], mean[arm]))
        won.append([problem, best, least, few, dims[few], mean[few] / least - 1, mean.max() / least - 1])
    word, lead = "undecided", f"The runs do not decide whether {named} has the lowest val_rec."
    advice = f"keep the default, {DEFAULTS['strategy']}"
    if better := ", ".join(rows["b"][rows["verdict"] == 1]):
        word, lead = "refuted", f"{named} does not reconstruct best: {better} reconstructs better."
        advice = f"use {better}"
    elif (rows["verdict"] == -1).all():
        word, lead, advice = "supported", f"{named} reconstructs better than each other strategy.", f"use {named}"
    spread = num(100 * max([row[-1] for row in won], default=0), ".2g")
    headline = f"All {len(found.arms)} strategies are within {spread} % of the best on every problem: {advice}."
    page.verdict(word, lead, headline if len(found.arms) > 1 and len(won) == len(found.problems) else "")
    page.section("Winners, problem by problem", "Not a test. Geometric means over the seeds that all arms have.")
    columns = ["problem", "lowest val_rec", "its val_rec", "fewest dims within 5 %", "its dims", "its cost"]
    caption = "The arm with the lowest val_rec, and the one with the fewest dims within 5 % of it."
    shown = dict.fromkeys(("its cost", "the worst costs"), percent)
    page.table("winners", [*columns, "the worst costs"], won, caption, shown)
    family_table(page, "verdict", rows, "Log val_rec over problem-seed pairs.")
    summary_table(found, page)


def strategy_levels(found, page):
    """01b: how much a strategy's level matters; the control that never prunes stands in the summary."""
    by_strategy = {s: [arm for arm in found.arms if arm.startswith(f"{s} ")] for s in LEVEL}  # mildest first
    pairs = [(mine[-1], mine[0]) for mine in by_strategy.values() if len(mine) > 1]
    rows, best = family(found.wide("val_rec"), pairs), []
    word, lead = "undecided", "The runs do not show a cost of aggressive levels in every strategy."
    asked = {arm.get("strategy") for arm in listed(found.file, "arm")} & {*LEVEL}
    if len(rows) == len(asked) and (rows["verdict"] == 1).all():
        word, lead = "supported", "The most aggressive level of every strategy reconstructs worse than its mildest."
    elif -1 in list(rows["verdict"]):
        word, lead = "refuted", "A most aggressive level reconstructs better than the mildest."
    for problem, (strategy, mine) in itertools.product(found.problems, by_strategy.items()):
        mean, dims, seeds = found.on_common_seeds(problem, mine)
        if seeds:
            arm, cost = mean.idxmin(), mean.max() / mean.min() - 1
            best.append([problem, strategy, arm, mean.min(), dims[arm], cost, len(mean), seeds])
            if len(mean) > 1 and arm == mine[-1]:
                page.caveats.append(f"{problem}: the best level of {strategy} is the most aggressive tried, {arm}.")
    worst = max(best, key=lambda row: row[5], default=None)
    headline = f"The worst level costs up to {percent(worst[5])} ({worst[1]} on {worst[0]})." if worst else ""
    page.verdict(word, lead, headline)
    page.section("Levels", "Most aggressive against mildest level of each strategy; the best level of each.")
    family_table(page, "verdict", rows, "Log val_rec over problem-seed pairs.")
    columns = ["problem", "strategy", "best level", "val_rec (geometric mean)", "dims", "worst level costs"]
    caption = "Best level by val_rec, and how much worse the worst level is. Over the seeds all its levels have."
    page.table("best", [*columns, "levels", "seeds"], best, caption, shown={"worst level costs": percent})
    summary_table(found, page)


def safeguards(found, page):
    """02: each profile against none, paired by problem and seed."""
    pairs = [(arm, "none") for arm in found.arms if arm != "none"]
    measured = [m for m in TESTED if found.frame[m].notna().any()]
    families = {m: family(found.wide(m), pairs, m == "val_rec") for m in measured}
    named, rows = "moderate", families["val_rec"]
    verdict = rows["verdict"][rows["a"] == named].sum()
    word, lead = "undecided", f"The runs do not decide whether {named} safeguards lower val_rec against none."
    advice = f"keep the default, {DEFAULTS['safeguards']}"
    if verdict:
        word, told, use = ("supported", "better", named) if verdict == -1 else ("refuted", "worse", "none")
        lead, advice = f"{named} safeguards reconstruct {told} than none.", f"use {use}"
    most = num(100 * math.expm1(rows["mean"].abs().max()), ".2g")
    headline = f"No profile of safeguards changes val_rec by more than {most} % against none: {advice}."
    page.verdict(word, lead, headline if pairs else "")
    page.section("Each profile against none", "Paired by problem and seed.")
    for m, tests in families.items():
        family_table(page, f"none-{m}", tests, f"{MEASURES[m]}, against none.", m == "val_rec")
    summary_table(found, page)


def hyperparameters(found, page):
    """03: which parameters matter on each problem, and the best setting; problem by problem."""
    keys, table = [k for k in found.varied if k not in ("problem", "seed")], found.frame[found.frame["lowest"].notna()]
    names = [k for k in keys if (pd.to_numeric(table[k], errors="coerce") > 0).all()]  # they have a logarithm
    if other := ", ".join(k for k in keys if k not in names):
        page.caveats.append(f"Not ranked, as not all their values are positive numbers: {other}.")
    signs, rows, heads, named = set(), [], [], "w_v"
    metric = next(iter(table["metric"].mode()), SEARCHED[0])
    for problem in found.problems:
        done = table[table["problem"] == problem]
        if len(done) < MIN_COMPLETED:
            signs.add(0)
            continue
        ped, tests = (measure(done[names], done["lowest"]) for measure in (importance, f_tests))
        top = max(ped, key=ped.get)
        decided = tests[top][2] < ALPHA
        signs.add((1 if top == named else -1) if decided else 0)
        heads.append(f"{top} matters most on {problem}{'' if decided else ', if anything does'}")
        rows += [[problem, k, ped.get(k, math.nan), *tests[k], len(done)] for k in names]
    word, lead = "undecided", f"The runs do not decide whether {named} is the most important on every problem."
    if signs == {1}:
        word, lead = "supported", f"{named} is the most important parameter on every problem searched."
    elif signs == {-1}:
        word, lead = "refuted", f"On every problem searched, another parameter than {named} is the most important."
    page.verdict(word, lead, f"{'; '.join(heads)}." if heads else "")
    page.section("Importance", "Of completed runs: hyperband stopped the worst, so effects look smaller than they are.")
    columns = ["problem", "parameter", "PED-ANOVA", "variance explained", "p", "p after Holm", "completed runs"]
    caption = "PED-ANOVA: how much a parameter decides whether a run is a good one; variance explained: what a "
    caption += f"regression of log {metric} loses without it. A claim needs p below {ALPHA:g} and {MIN_COMPLETED} runs."
    page.table("importance", columns, rows, caption)
    best = table.loc[table.groupby("problem")["lowest"].idxmin()]
    for _, row in best.iterrows():
        for name in names:
            spec = found.spec["parameters"][name]
            ends = spec["values"] if "values" in spec else [spec["min"], spec["max"]]
            edge(page, row["problem"], name, row[name], min(ends), max(ends))
    page.section("Best setting", "Found with one seed among many tries, which flatters it: train it with fresh seeds.")
    best = best.rename(columns=dict(lowest=metric, active_dims="dims"))
    page.table("best", ["problem", *names, metric, "dims"], best, "Best completed run of each problem.")


def deepdive(found, page):
    """04, 05, 06: the response surface, its optimum, the verdict."""
    settings = found.frame[SETTINGS]  # both axes are logarithmic
    frame, arms = found.frame[((settings > 0) & np.isfinite(settings)).all(axis=1)], found.arms
    if frame.empty:
        return page.verdict("undecided", "No finished run has a pruning_epoch and a w_v above 0.")
    rows = effects(frame)
    what = "arms" if found.name == "05" else "interaction"  # what the hypothesis is about
    verdict, mean = rows.set_index("a").loc[what, ["verdict", "mean"]]
    word, lead = "undecided", "The runs do not show that the best w_v depends on pruning_epoch."
    if what == "arms" and len(arms) != 2:
        lead = f"This verdict needs two arms; found: {', '.join(arms)}."
    elif what == "arms":
        word = {-1: "supported", 1: "refuted"}.get(verdict, word)
        lead = f"The runs do not decide between {' and '.join(arms[::-1])}."
        lead = f"{arms[1]} reaches a {WORD[verdict]} val_rec than {arms[0]}." if verdict else lead
    elif verdict:
        told = "larger" if mean < 0 else "smaller"
        word, lead = "supported", f"The best w_v depends on pruning_epoch: a later one wants a {told} w_v."
    cells, items, optima = [], [], []
    for (arm, *at), mine in frame.groupby(["arm", *SETTINGS]):
        v = mine["val_rec"]
        cells.append([arm, *at, len(v), *interval(v, True), v.std(), mine["active_dims"].mean()])
    cells = pd.DataFrame(cells, columns=["arm", *SETTINGS, "runs", "val_rec", *ENDS, "std over seeds", "active dims"])
    for arm in arms:
        mine, seeds = cells[cells["arm"] == arm], frame["seed"][frame["arm"] == arm].nunique()
        best = mine[(mine["runs"] >= seeds) & (mine["runs"] == mine["runs"].max())].nsmallest(1, "val_rec")
        items.append(heat(arm, mine, best))
        for o in best.itertuples():
            told = f"pruning_epoch {num(o.pruning_epoch)}, w_v {num(o.w_v)} ({arm})"
            cost = percent(mine["val_rec"].max() / o.val_rec - 1)
            optima.append((o.val_rec, f"Best: {told}; the worst setting tried costs {cost}."))
            for key in SETTINGS:
                edge(page, arm, key, getattr(o, key), frame[key].min(), frame[key].max())
    page.verdict(word, lead, min(optima)[1] if optima else "")
    page.section("Effects", "From a quadratic surface of log val_rec over both settings, fitted seed by seed.")
    caption = "Change of val_rec: one-sample t-tests over the seeds of the mean over the arms."
    family_table(page, "effects", rows, caption, effect=rows["a"].map(MEANING))
    page.section("Response surfaces", "One panel an arm. A dark cell reconstructs better; the box is the optimum.")
    page.figures(items)
    caption = "Every cell: geometric mean of val_rec, 95 % t interval (log scale), spread over seeds, dims."
    page.table("cells", list(cells), cells, caption)


def heat(arm, cells, best):
    """val_rec of one arm over pruning_epoch and w_v, with a box around its optimum."""
    mean, (figure, axes) = cells.pivot(index="pruning_epoch", columns="w_v", values="val_rec"), panel(arm)
    axes.pcolormesh(np.log(mean), cmap="viridis", edgecolors="#808080", linewidth=0.3)
    for c in cells.itertuples():
        at = mean.columns.get_loc(c.w_v) + 0.5, mean.index.get_loc(c.pruning_epoch) + 0.5
        box = dict(fc="white", alpha=0.7, ec=COLOURS[1], lw=2.5 if c.Index in best.index else 0)
        axes.text(*at, num(c.val_rec), bbox=box, ha="center", va="center", fontsize=7)
    axes.set_yticks(np.arange(len(mean.index)) + 0.5, map(num, mean.index))
    axes.set_xticks(np.arange(len(mean.columns)) + 0.5, map(num, mean.columns))
    axes.set(xlabel="w_v", ylabel="pruning_epoch")
    axes.grid(False)
    told = f"val_rec of {arm}: {num(cells['val_rec'].min())} to {num(cells['val_rec'].max())}"
    return f"surface-{arm}", figure, f"{told} over pruning_epoch and w_v", f"{told}, geometric means over the seeds."


# -------------------------------------------------------------------------------------------------- from runs to a page
ANSWERS = {"01": strategies, "01b": strategy_levels, "02": safeguards, "03": hyperparameters}
ANSWERS |= dict.fromkeys(DEEP_DIVES, deepdive)


def build(name, runs, out, source):
    """The page of sweep `name` from `runs`, below `out`. Returns (path of index.html, the SweepRuns)."""
    found = SweepRuns(name, runs)
    page = found.page = Page(Path(out) / name, f"Sweep {name}: {found.title}")
    page.hypothesis, states = found.hypothesis, Counter(found.own["status"])
    # What hyperband stopped is over, too: a search has reached its run_cap by the number of its runs
    over = ["finished", *["stopped", "diverged"] * (name == "03")]
    finished = f"{states['finished']} of {found.points} points"
    if sum(states[state] for state in over) < found.points:
        page.opening = f"Preliminary, {finished} finished: "
    if found.frame.empty:
        page.verdict("undecided", f"No finished run of this sweep yet in {source}.")
    else:
        problems = sorted(found.frame["problem"].unique())
        if name not in DEEP_DIVES and not {*CONDITIONS} <= {*problems}:
            page.opening += f"On {' and '.join(problems)} only: "
        front(found, page)
        ANSWERS[name](found, page)
    told = [f"{finished} finished", *(f"{states[s]} {s}" for s in STATES[1:] if states[s])]
    told += [f"{found.borrowed} runs of {BORROWS[name]} beside them"] if found.borrowed else []
    reasons = ", ".join(f"{n}: {why}" for why, n in Counter(found.left_out["why"]).most_common())
    found.told_left_out = f"{len(found.left_out)} left out" + (f" ({reasons})" if reasons else "")
    told += [found.told_left_out] if reasons else []
    hours, epochs = num(found.frame["seconds"].sum() / 3600), values_of(found.frame, "n_epochs")
    told += [f"{', '.join(map(str, epochs)) or 'no'} epochs a run", f"{hours} hours in all"]
    page.terms += [("Question", found.question), ("Rule", found.rule), ("Runs", f"{', '.join(told)}. From {source}.")]
    origins = found.frame[["problem", "data_source", "git", "cpu"]].astype(str).value_counts(sort=False)
    made = [f"{problem} ({designs}), {git}, {cpu} ({n} runs)" for (problem, designs, git, cpu), n in origins.items()]
    page.terms.append(("Designs, code, machine", "; ".join(made)))
    runs_and_caveats(found, page)
    return page.write(), found


def runs_and_caveats(found, page):
    """Runs by arm and status; every run that is not in the numbers, and why; what a reader should doubt."""
    page.section("Runs")
    table = pd.crosstab([found.table["problem"], found.table["arm"]], found.table["status"])
    table = table.reindex(columns=STATES[:-1], fill_value=0).reset_index()
    page.table("runs", list(table), table, "Runs by problem, arm and status.")
    odd = pd.concat([found.broken, found.table[found.table["status"] != "finished"]])
    odd = pd.concat([odd.assign(why=odd["cause"]), found.left_out.assign(why="left out: " + found.left_out["why"])])
    if len(odd):
        columns = ["id", "status", "problem", "arm", "seed", "why", "where"]
        page.table("not-used", columns, odd, "Runs that are not in the numbers.")
    ran, skip = found.own[found.own["status"] == "finished"], (*FREE_FLAGS, "data", "precision")
    asked = {key: {*listed(found.file, key)} for key in found.file["parameters"] if key not in skip}
    asked = {key: wanted for key, wanted in asked.items() if wanted - {"None"}}  # None: anything will do
    differs = [key for key, wanted in asked.items() if {*values_of(ran, key)} not in (set(), wanted)]
    if differs:
        page.caveats.append(f"These runs differ from the sweep's file in: {', '.join(differs)}.")
    if len(found.frame) and (found.frame["active_dims"] == found.frame["latent_dim"]).all():
        page.caveats.append("No run gave up a dimension: what prunes is not compared here.")
    if odd["status"].isin(["diverged", "broken"]).any():
        page.caveats.append("Some runs diverged or broke: an arm that loses its worst runs looks better than it is.")


def make(args):
    """Build the pages that the command line asks for, and name them; of all sweeps also the page that leads to them."""
    names = [args.sweep] if args.sweep else [*SWEEPS]
    runs = [run for path in args.wandb for run in wandb_runs(path)] if args.wandb else local_runs(args.runs)
    source = f"W&B: {', '.join(args.wandb)}" if args.wandb else args.runs
    out = Path(args.out) / ("" if source == "runs" else slug(source))  # no page of other rows is overwritten
    index = Page(out, "The questions and their answers")
    for name in names:
        path, found = build(name, runs, out, source)
        others = len(found.table) + len(found.broken) - len(found.frame)
        told = f"{others} other runs, {found.told_left_out} (from {source})"
        print(f"{path}: {len(found.frame) - found.borrowed} of {found.points} points finished, {told}")
        index.parts.append(dict(kind="answer", href=f"{name}/index.html", question=found.question, page=found.page))
    if not args.sweep:
        index.terms.append(("Runs", f"From {source}."))
        print(f"{index.write()}: the questions and their answers")


def main(argv=None):
    parser = record.Parser(__doc__)
    parser.add_argument("--sweep", choices=[*SWEEPS], help="(all of them, and a page that leads to them)")
    parser.add_argument("--runs", default="runs", help="folder with run folders below it, or results/NN.csv (runs)")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT/ID", action="append", help="or a W&B sweep; repeatable")
    parser.add_argument("--out", default="report", help="folder for the pages (report)")
    args = parser.parse_args(argv)
    return record.guarded("report.py", make, args, cannot=f"--out {args.out}: cannot write")


if __name__ == "__main__":
    sys.exit(main())
