"""The page of sweep 03: which hyperparameters matter, whether latent_dim and w_v interact, what hyperband stopped, the best setting.

report.py calls hyperparameters(study, page). The problems are searched one by one and never pooled.
"""

import itertools
import math
from collections import Counter

import numpy as np

from reporting import stats
from reporting.collect import LEVEL, number
from reporting.page import COLOURS, change, log_axis, num, p_cell, p_text, panel

METRIC = "val_rec_pruned"
FRESH_SEEDS = 5
# Flags that say where and how a run is recorded, not what it computes; `arm` and `safeguards` are resolved into the flags they set.
UNSAID = (
    *("arm", "safeguards", "seed", "out", "resume", "config", "wandb", "wandb_project", "wandb_entity"),
    *("device", "threads", "checkpoint_every", "figure_every", "save_model", "test"),
)


def metric(run):
    """What the search minimises: the lowest val_rec_pruned of the run (`objective` of a row); NaN for a run stopped before its first."""
    if not run.metrics:
        return run.value("objective")
    values = run.metrics.get(METRIC, np.array([]))
    values = values[np.isfinite(values)]
    return float(values.min()) if len(values) else math.nan


def varied(study):
    """Names of the parameters that the search varies."""
    return [key for key, p in study.parameters.items() if ("min" in p or len(p.get("values", ())) > 1) and key not in ("problem", "seed")]


def hyperparameters(study, page):
    """03: a ranking and its tests for each problem, then the pictures."""
    names, findings = varied(study), {}
    named = next(iter(sorted((n for n in names if n in study.hypothesis), key=study.hypothesis.find)), "w_v")
    for problem in study.problems:
        runs = [r for r in study.done if r.flags["problem"] == problem and math.isfinite(metric(r))]
        runs = [r for r in runs if all(number(r.flags.get(name)) > 0 for name in names)]
        findings[problem] = dict(runs=runs, **_analyse(runs, names))
    word, lead, told = _verdict(findings, named, study.alpha)
    page.verdict(word, study.hypothesis, lead, told)
    page.section(
        "Importance",
        "How much each parameter decides whether a run is among the good ones (PED-ANOVA) and how much of the variation of "
        "log val_rec_pruned it explains (regression with squares, partial F-test).",
    )
    _importance(page, findings, names)
    page.section("Isolation plots", "Every run at its value of one parameter: the lower edge of the cloud is what that value can reach.")
    page.figures([_isolation(study, problem, name) for problem in study.problems for name in names])
    if {"latent_dim", "w_v"} <= set(names):
        page.section("Interaction of latent_dim and w_v")
        page.figures([_interaction(problem, findings[problem], study.alpha) for problem in study.problems if findings[problem]["runs"]])
    _stops(study, page)
    _best(study, page, findings, names)
    for problem, found in findings.items():
        if len(found["runs"]) < stats.MIN_COMPLETED:
            page.caveat(f"{problem}: {len(found['runs'])} completed runs; a ranking needs at least {stats.MIN_COMPLETED}.")
    seeds = {run.flags["seed"] for run in study.done}
    if len(seeds) == 1:
        page.caveat(
            "Every run has the same seed: the settings are the sample here, and the best one is best with that seed only until "
            "the command below has been run."
        )
    if unread := [run.id for run in study.done if not math.isfinite(metric(run))]:
        page.caveat(f"Finished, but without a value of {METRIC}, and left out here: {', '.join(unread)}.")
    page.caveat(
        "Importance and tests rest on the completed runs only; hyperband stopped the worst, so that the effects among the "
        "completed look smaller than they are."
    )


def _analyse(runs, names):
    """Importances, F-tests and the product term of one problem's completed runs."""
    if len(runs) < 8:
        return dict(ped={}, fanova=None, tests={}, product=(math.nan, math.nan))
    parameters = {name: [number(run.flags[name]) for run in runs] for name in names}
    values = [metric(run) for run in runs]
    ped, fanova = stats.importance(parameters, values)
    tests, product = stats.f_tests(parameters, values)
    return dict(ped=ped, fanova=fanova, tests=tests, product=product)


def _verdict(findings, named, alpha):
    """(word, lead, sentences) by the rule: the named parameter first and significant on every problem; or another one on every problem."""
    signs, told = [], []
    for problem, found in findings.items():
        n = len(found["runs"])
        first = max(found["ped"], key=found["ped"].get) if found["ped"] else None
        p = found["tests"].get(first, (0, 0, 1.0))[2]
        decided = n >= stats.MIN_COMPLETED and p < alpha
        signs.append((1 if first == named else -1) if decided else 0)
        if first is None:
            told.append(f"{problem}: {n} completed runs, too few for a ranking.")
            continue
        coefficient, p_product = found["product"]
        told.append(
            f"{problem}: {first} ranks first with {100 * found['ped'][first]:.0f} % of the importance ({n} completed runs, "
            f"F-test {p_text(p)} after Holm)"
            f"{'' if decided else ', undecided'}; latent_dim x w_v: {_product(coefficient, p_product, alpha)}."
        )
    word = "supported" if signs and all(s == 1 for s in signs) else "refuted" if signs and all(s == -1 for s in signs) else "undecided"
    lead = {
        "supported": f"{named} is the most important parameter on every problem searched.",
        "refuted": f"On every problem searched, another parameter than {named} is the most important.",
        "undecided": f"The runs do not decide whether {named} is the most important parameter on every problem.",
    }[word]
    return word, lead, told


def _product(coefficient, p, alpha):
    if math.isnan(p):
        return "too few runs to test"
    kind = "they interact" if p < alpha else "no interaction shown"
    return f"{kind} (coefficient {coefficient:+.2g} of log val_rec on half ranges, {p_text(p)})".replace("+-", "−").replace("-", "−")


def _importance(page, findings, names):
    items, rows = [], []
    for problem, found in findings.items():
        n = len(found["runs"])
        for name in names:
            share, p, p_holm = found["tests"].get(name, (math.nan,) * 3)
            fanova = (found["fanova"] or {}).get(name, math.nan)
            rows.append([problem, name, found["ped"].get(name, math.nan), fanova, share, p_cell(p), p_cell(p_holm), n])
        if not found["ped"]:
            continue
        order = sorted(names, key=lambda k: found["ped"].get(k, 0))
        figure, axes = panel(problem, height=2.2)
        axes.barh(range(len(order)), [100 * found["ped"].get(k, 0) for k in order], color=COLOURS[0], height=0.6)
        axes.set_yticks(range(len(order)), order)
        axes.set_xlabel("importance, % (PED-ANOVA)")
        told = ", ".join(f"{k} {100 * found['ped'].get(k, 0):.0f} %" for k in order[::-1])
        items.append((f"importance-{problem}", figure, f"importance on {problem}: {told}", f"{told}. Rests on {n} completed runs."))
    page.figures(items)
    columns = ["problem", "parameter", "PED-ANOVA", "fANOVA", "variance explained", "p", "p after Holm", "completed runs"]
    caption = (
        "Importances sum to 1 a problem; variance explained: what the regression loses without the parameter; Holm over its parameters."
    )
    if all(found["fanova"] is None for found in findings.values()):
        caption += " fANOVA is empty: it needs scikit-learn, which is not installed."
    page.table("importance", columns, rows, caption)


def _isolation(study, problem, name):
    figure, axes = panel(f"{problem}: {name}", height=2.3)
    mine = [r for r in study.runs if r.flags.get("problem") == problem and math.isfinite(metric(r)) and number(r.flags.get(name)) > 0]
    done = [(number(r.flags[name]), metric(r)) for r in mine if r.status == "finished"]
    rest = [(number(r.flags[name]), metric(r)) for r in mine if r.status != "finished"]
    if rest:
        axes.plot(*zip(*rest, strict=True), "x", color=COLOURS[7], ms=4, label="not completed")
    best = None
    if done:
        axes.plot(*zip(*done, strict=True), "o", color=COLOURS[0], ms=4, mfc="none", label="completed")
        best = min(done, key=lambda point: point[1])
        axes.plot(*best, "*", color=COLOURS[1], ms=10, label="best")
    axes.set(xlabel=name, ylabel=METRIC)
    if done and max(v for v, _ in done) / min(v for v, _ in done) > 5:
        log_axis(axes.xaxis)
    log_axis(axes.yaxis)
    axes.legend(fontsize=6.5)
    told = f"best {num(best[1])} at {name} {num(best[0])}" if best else "no completed run"
    return f"isolation-{problem}-{name}", figure, f"{METRIC} against {name} on {problem}: {told}", told[0].upper() + told[1:] + "."


def _interaction(problem, found, alpha):
    runs = found["runs"]
    figure, axes = panel(problem, height=2.9)
    points = axes.scatter(
        [number(r.flags["latent_dim"]) for r in runs],
        [number(r.flags["w_v"]) for r in runs],
        s=30,
        cmap="viridis",
        c=np.log10([metric(r) for r in runs]),
    )
    axes.set(xlabel="latent_dim", ylabel="w_v")
    log_axis(axes.yaxis)
    bar = figure.colorbar(points, ax=axes)
    bar.set_label(f"log10 {METRIC}", fontsize=8)
    bar.solids.set_rasterized(False)
    told = _product(*found["product"], alpha)
    return (
        f"interaction-{problem}",
        figure,
        f"{METRIC} over latent_dim and w_v on {problem}: {told}",
        f"Dark points are better. Bands that tilt mean an interaction. {told[0].upper() + told[1:]}.",
    )


def _stops(study, page):
    """Runs that hyperband stopped: by the last band they had reached."""
    early = study.early_terminate
    page.section("What hyperband stopped")
    first, eta = number(early.get("min_iter")), number(early.get("eta"))
    if not first > 0 or not eta > 1:
        page.text("The sweep's file asks for no early termination.")
        return
    bands = [int(first * eta**k) for k in itertools.takewhile(lambda k: first * eta**k <= 1e6, range(20))]
    rows = []
    for problem in study.problems:
        mine = [r for r in study.runs if r.flags.get("problem") == problem]
        stopped = [r for r in mine if r.status == "stopped"]
        logged = {r.where: _logged(r) for r in stopped}
        at = Counter(max((b for b in bands if b <= logged[r.where]), default=0) for r in stopped)
        rows.append(
            [
                problem,
                len(mine),
                sum(r.status == "finished" for r in mine),
                len(stopped),
                ", ".join(f"{n} after band {b}" for b, n in sorted(at.items()) if b) or "–",
                at.get(0, 0),
            ]
        )
    columns = ["problem", "runs", "completed", "stopped", "by the last band they reached", "stopped before the first band"]
    page.table(
        "hyperband",
        columns,
        rows,
        f"Bands are at {', '.join(map(str, bands[:5]))} ... logged values of {METRIC} (the first comes n_epochs / 10 after pruning_epoch). "
        "A run stopped before the first band was stopped by something else.",
    )


def _logged(run):
    """How many values of the metric a run logged. One from results/NN.csv has no curve: counted from its last epoch."""
    if METRIC in run.metrics:
        return int(np.isfinite(run.metrics[METRIC]).sum())
    epoch, start, n = run.value("epoch"), number(run.flags.get("pruning_epoch")), number(run.flags.get("n_epochs"))
    return max(0, int(epoch + 1 - start - n // 10)) if math.isfinite(epoch + start + n) else 0


def command(run, seeds):
    """The shell line that trains a run's setting again with other seeds."""
    flags = " ".join(f"--{k}={v}" for k, v in sorted(run.flags.items()) if k not in UNSAID and v is not None and _applies(k, run))
    return f"for seed in {' '.join(map(str, seeds))}; do\n  python train.py {flags} --seed=$seed\ndone"


def _applies(key, run):
    """Leave out the levels of other strategies: they change nothing."""
    owner = next((s for s, level in LEVEL.items() if level == key), None)
    return owner is None or owner == run.flags["strategy"]


def _best(study, page, findings, names):
    page.section(
        "Best setting", "Found with one seed among many tries, so its val_rec flatters it; the command retrains it with five fresh seeds."
    )
    rows, commands = [], []
    for problem, found in findings.items():
        if not found["runs"]:
            continue
        best = min(found["runs"], key=metric)
        ranked = sorted(map(metric, found["runs"]))
        ahead = change(math.log(ranked[1] / ranked[0])) if len(ranked) > 1 else "–"
        rows.append([problem, *(number(best.flags[name]) for name in names), metric(best), best.value("active_dims"), ahead, best.id])
        for name in names:
            spec = study.parameters[name]
            ends = (spec["min"], spec["max"]) if "min" in spec else (min(spec["values"]), max(spec["values"]))
            at = (stats.unit([ends[0], number(best.flags[name]), ends[1]])[1] + 1) / 2
            if number(best.flags[name]) <= ends[0] or number(best.flags[name]) >= ends[1] or not 0.05 < at < 0.95:
                page.caveat(
                    f"{problem}: the best {name} ({num(number(best.flags[name]))}) is at the edge of its range {num(ends[0])} "
                    f"to {num(ends[1])}: widen it."
                )
        last = max(int(number(run.flags["seed"])) for run in study.runs if run.flags)
        commands.append(command(best, range(last + 1, last + 1 + FRESH_SEEDS)))
    page.table("best", ["problem", *names, METRIC, "dims", "second best is", "run"], rows, "Best completed run of each problem.")
    for text in commands:
        page.code(text)
