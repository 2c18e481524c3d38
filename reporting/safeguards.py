"""The page of sweep 02: what each profile of safeguards changes against none, and which safeguard held back what. report.py calls this."""

import math

import numpy as np

from reporting import stats
from reporting.collect import HELD, number
from reporting.compare import WORD, effect, family_table, gather, strip, subject, summary_table
from reporting.page import COLOURS, MARKERS, change, log_axis, num, panel, signed

PROFILES = ("none", "min_dims", "max_prune", "cooldown", "consecutive", "recon_tol", "moderate", "conservative")
POINTS = 200  # a curve is thinned to this many points on the page; the extremes of each stretch are kept


# name -> (measure, log?, short, what it is)
TESTED = {
    "val_rec": ("val_rec", True, "val_rec", "val_rec of the last epoch"),
    "active_dims": ("active_dims", False, "active dims", "active dims at the end"),
    "rise": ("rise", False, "largest rise", "largest rise of val_rec over its best since pruning began (0.1: 10 %)"),
    "epochs_above": ("epochs_above", False, "epochs above", "epochs more than 5 % above the best since pruning began"),
    "collapses": ("collapses", False, "collapses", "times val_rec reached twice its best since pruning began"),
}


def safeguards(study, page):
    """02: each profile against none, paired by problem and seed."""
    arms = sorted(set(study.arm.values()), key=lambda a: PROFILES.index(a) if a in PROFILES else 99)
    others = [arm for arm in arms if arm != "none"]
    named = subject(study, others) or "moderate"
    values = {name: gather(study, measure) for name, (measure, *_) in TESTED.items()}
    values = {name: found for name, found in values.items() if any(math.isfinite(v) for arm in found.values() for v in arm.values())}
    families = {
        name: stats.family(
            values[name], [(arm, "none") for arm in others], log=log, margin=study.margin if name == "val_rec" else 0, alpha=study.alpha
        )
        for name, (_, log, *_) in TESTED.items()
        if name in values
    }
    row = next((r for r in families["val_rec"] if r["a"] == named), None)
    word = {-1: "supported", 1: "refuted", 0: "undecided"}[row["verdict"] if row else 0]
    lead = {
        "supported": f"{named} safeguards reconstruct better than none.",
        "refuted": f"{named} safeguards reconstruct worse than none.",
        "undecided": f"The runs do not decide whether {named} safeguards lower val_rec against none.",
    }[word]
    head = [f"val_rec of {named} against none: {effect(row)}: {WORD[row['verdict']]}." if row else f"There is no run with {named}."]
    for name, rows in families.items():
        decided = [f"{r['a']} {effect_short(r, TESTED[name][1])}" for r in rows if r["verdict"]]
        head.append(f"{TESTED[name][2]} against none, decided for: {', '.join(decided) or 'no profile'}.")
    page.verdict(word, study.hypothesis, lead, head)
    page.section("Each profile against none", "Paired by problem and seed; left of the line is lower than without safeguards.")
    page.figures([_forest(name, families[name], values[name]) for name in values], wide=True)
    for name, (_, log, _, what) in ((name, TESTED[name]) for name in values):
        family_table(page, f"none-{name}", families[name], f"{what}, against none; Holm over this table.", log)
    _by_problem(study, page, values, others)
    curves = [_curves(study, problem, arm) for problem in study.problems for arm in arms if _drawable(study, problem, arm)]
    if curves:
        page.section(
            "Training curves", "Every seed of a profile, with a tick below where dims were pruned. One panel for each problem and profile."
        )
        page.figures(curves)
    else:
        page.caveat("These runs have no curves (a row each in a results table): none are drawn.")
    if any(run.value("sum_proposed") > 0 for run in study.done):
        _held_back(study, page, arms)
    else:
        page.caveat("These runs have no proposals (W&B does not carry pruning.csv): what held pruning back cannot be told.")
    for measure in ("val_rec", "active_dims"):
        strip(study, page, measure, arms)
    page.section("All numbers")
    summary_table(study, page, arms)


def effect_short(row, log):
    return change(row["mean"]) if log else signed(row["mean"])


def _forest(name, rows, values):
    """Effect against none of each profile with its 95 % t interval, and every pair."""
    _, log, short, what = TESTED[name]
    figure, axes = panel(short[0].upper() + short[1:] + " against none", wide=True, height=2.8)
    for y, row in enumerate(rows):
        keys = [k for k in values.get(row["a"], {}) if k in values.get("none", {})]
        with np.errstate(all="ignore"):
            pairs = np.array([(values[row["a"]][k], values["none"][k]) for k in keys], dtype=float).reshape(-1, 2)
            d = 100 * (pairs[:, 0] / pairs[:, 1] - 1) if log else pairs[:, 0] - pairs[:, 1]
        axes.plot(d, np.full(len(d), y + 0.2), "o", color=COLOURS[7], ms=2.5, mfc="none")
        centre = [100 * math.expm1(row[k]) if log else row[k] for k in ("mean", "low", "high")]
        colour = {-1: COLOURS[2], 0: COLOURS[7], 1: COLOURS[1]}[row["verdict"]]
        axes.plot(centre[1:], [y, y], color=colour, lw=2)
        axes.plot(centre[:1], [y], MARKERS[0], color=colour, ms=5)
    axes.axvline(0, color=COLOURS[7], lw=1)
    axes.set_yticks(range(len(rows)), [row["a"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("change against none, %" if log else "difference to none")
    told = "; ".join(f"{r['a']} {effect_short(r, log)} ({WORD[r['verdict']]})" for r in rows)
    caption = (
        f"{what[0].upper() + what[1:]}. Dot and bar: mean, 95 % t interval, green where decided lower, orange higher; circles: the pairs."
    )
    return f"forest-{name}", figure, f"{what}, each profile against none: {told}", caption


def _by_problem(study, page, values, others):
    """The same differences problem by problem: a description, three to five pairs decide little."""
    rows = []
    for problem in study.problems:
        here = {n: {arm: {k: v for k, v in d.items() if k[0] == problem} for arm, d in values[n].items()} for n in values}
        tests = {n: {r["a"]: r for r in stats.family(here[n], [(a, "none") for a in others], log=TESTED[n][1])} for n in values}
        for arm in others:
            cells = [(effect_short(tests[n][arm], TESTED[n][1]), tests[n][arm]["mean"]) for n in values]
            rows.append([problem, arm, tests["val_rec"][arm]["n"], *cells])
    page.table(
        "by-problem",
        ["problem", "profile", "pairs", *(TESTED[n][2] for n in values)],
        rows,
        "Mean change (val_rec) and mean difference (the rest) against none, problem by problem.",
    )


def thin(epoch, value, points=POINTS):
    """At most about `points` points of a curve, the lowest and highest of every stretch among them."""
    if len(value) <= points:
        return epoch, value
    keep = {0, len(value) - 1}
    for chunk in np.array_split(np.arange(len(value)), points // 2):
        if np.isfinite(value[chunk]).any():
            keep |= {int(chunk[np.nanargmin(value[chunk])]), int(chunk[np.nanargmax(value[chunk])])}
    index = sorted(keep)
    return epoch[index], value[index]


def _drawable(study, problem, arm):
    """The runs of an arm that have a curve, unfinished ones too."""
    mine = [r for r in study.runs if r.flags and r.flags["problem"] == problem and study.arm[r.where] == arm]
    return [r for r in mine if np.isfinite(r.metrics.get("val_rec", np.array([]))).any() and "epoch" in r.metrics]


def _curves(study, problem, arm):
    runs = _drawable(study, problem, arm)
    figure, axes = panel(f"{problem}: {arm}", height=2.2)
    events, worst = 0, 0.0
    for s, run in enumerate(sorted(runs, key=lambda run: number(run.flags["seed"]))):
        axes.plot(*thin(run.metrics["epoch"], run.metrics["val_rec"]), color=COLOURS[s % 8], lw=0.8, label=f"seed {run.flags['seed']}")
        at = [number(row.get("epoch")) for row in run.pruning if number(row.get("pruned")) > 0]
        events += len(at)
        axes.plot(at, np.full(len(at), 0.03 + 0.03 * s), "|", color=COLOURS[s % 8], ms=5, transform=axes.get_xaxis_transform())
        worst = np.fmax(worst, run.value("rise"))
    axes.set(xlabel="epoch", ylabel="val_rec")
    log_axis(axes.yaxis)
    axes.legend(fontsize=6, ncols=2)
    told = f"{len(runs)} runs, {events} pruning events, largest rise {num(100 * float(worst))} %"
    return (
        f"curves-{problem}-{arm}",
        figure,
        f"val_rec by epoch on {problem} with safeguards {arm}: {told}",
        told[0].upper() + told[1:] + ".",
    )


def _held_back(study, page, arms):
    """From pruning.csv: how many dims each safeguard held back, and how many were pruned, per run."""
    page.section(
        "What held pruning back",
        "What came of the dims that a strategy proposed, summed over the epochs of a run: one that waits ten epochs counts ten times.",
    )
    rows, items = [], []
    for problem in study.problems:
        figure, axes = panel(problem, height=2.6)
        told = []
        for y, arm in enumerate(arms):
            runs = [r for r in study.done if r.flags["problem"] == problem and study.arm[r.where] == arm]
            if not runs:
                continue
            sums = {key: float(np.mean([r.value(f"sum_{key}") for r in runs])) for key in ("proposed", *HELD)}
            rows.append([problem, arm, len(runs), *sums.values()])
            del sums["proposed"]
            share = 100 * np.array([*sums.values()]) / (sum(sums.values()) or 1)
            for c, key in enumerate(HELD):
                axes.barh(y, share[c], left=share[:c].sum(), color=COLOURS[c], label=None if told else key, height=0.7)
            strongest = max(HELD[:-1], key=lambda key: sums[key])
            told.append(f"{arm}: {strongest if sums[strongest] else 'nothing held back'}")
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()
        axes.set(xlabel="share of the dims proposed, %", xlim=(0, 100))
        axes.grid(False)
        if told:
            figure.legend(fontsize=6.5, ncols=3, loc="outside lower center")
        items.append(
            (
                f"held-{problem}",
                figure,
                f"what held pruning back on {problem}: {'; '.join(told) or 'no finished run'}",
                f"Held back most: {'; '.join(told)}." if told else "No finished run.",
            )
        )
    page.figures(items)
    page.table(
        "held-back",
        ["problem", "profile", "runs", "proposed", *HELD],
        rows,
        "Dims x epochs: sums over a run of pruning.csv, mean over the runs.",
    )
