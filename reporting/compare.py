"""Pages of the sweeps that compare arms: 01 (strategies), 01b (their levels), 02 (safeguards). report.py calls these.

Each function takes a Study (studies.py) and a Page (page.py): verdict first, then figures and tables, caveats as they are found.
"""

import math

import numpy as np

from reporting import stats
from reporting.collect import LEVEL, number
from reporting.page import COLOURS, MARKERS, change, log_axis, num, p_cell, p_text, panel, signed

MEASURES = {  # name -> (title, axis, what it is)
    "val_rec": ("Reconstruction", "val_rec", "val_rec: mean squared error a pixel on the validation designs, last epoch."),
    "active_dims": ("Latent dimensions", "active dims", "active_dims: latent dimensions left at the end."),
    "pca_ratio": (
        "Against PCA",
        "val_rec / PCA",
        "pca_ratio: val_rec over the error of PCA with as many dims; below 1 is better than PCA.",
    ),
    "best_val_rec": ("Best after pruning", "best_val_rec", "best_val_rec: lowest val_rec of the epochs after the last pruning."),
    "val_total_loss": (
        "Total loss",
        "val_total_loss",
        "val_total_loss: not comparable between runs that pruned differently, since a pruned dim keeps the std it had in the volume.",
    ),
}
WORD = {-1: "lower", 0: "undecided", 1: "higher"}


def gather(study, measure):
    """arm -> {(problem, seed): value} of the finished runs; measure: a name in the summary, or a function of a run."""
    found = {}
    for run in study.done:
        value = measure(run) if callable(measure) else run.value(measure)
        found.setdefault(study.arm[run.where], {})[run.flags["problem"], run.flags["seed"]] = value
    return found


def on_common_seeds(values, arms, problem):
    """(arms with a run on the problem, seeds, values (arms, seeds)), nan where a run is missing.

    Only the seeds that all of these arms have, if there is one: else an arm would look better for having run on easier seeds.
    """
    here = [arm for arm in arms if _has(values, arm, problem)]
    seeds = sorted({seed for arm in here for p, seed in values[arm] if p == problem}, key=number)
    grid = np.array([[values[arm].get((problem, seed), np.nan) for seed in seeds] for arm in here])
    common = [np.isfinite(column).all() for column in grid.T]
    if any(common):
        seeds, grid = [seed for seed, whole in zip(seeds, common, strict=True) if whole], grid[:, common]
    return here, seeds, grid


def mean_of(values, arm, problem, seeds):
    """Mean of an arm's values on a problem over those of the seeds that it has."""
    return float(np.nanmean([values[arm].get((problem, seed), np.nan) for seed in seeds]))


def arms_of(study):
    """Arms in a fixed order: by strategy in the order of the design, levels ascending, `none` last."""
    order = [*LEVEL, "none"]

    def key(arm):
        name, _, level = arm.partition(" ")
        return (order.index(name) if name in order else -1, number(level) if level else 0, arm)

    return sorted(set(study.arm.values()), key=key)


def subject(study, arms):
    """The arm that the hypothesis names first, or None."""
    at = {arm: study.hypothesis.find(arm) for arm in arms}
    named = [arm for arm in arms if at[arm] >= 0]
    return min(named, key=lambda arm: (at[arm], -len(arm))) if named else None


def effect(row, log=True):
    """'−12.3 % (95 % interval −15.0 % to −9.4 %, p = 0.002 after Holm, 9 pairs of 3 seeds)' of a row of stats.family."""
    if row["n"] < 2:
        return f"not computable from {row['n']} pair{'s' * (row['n'] != 1)}"
    show = change if log else signed
    return (
        f"{show(row['mean'])} (95 % interval {show(row['low'])} to {show(row['high'])}, {p_text(row['p_holm'])} after Holm, "
        f"{row['n']} pairs of {row['seeds']} seed{'s' * (row['seeds'] != 1)})"
    )


def family_table(page, name, rows, caption, log=True, extra=()):
    """Rows of stats.family as a table. extra: (column, values) to put first."""
    show = change if log else signed
    unit = "change" if log else "difference"
    columns = [*(c for c, _ in extra), "arm", "against", unit, "95 % low", "95 % high", "p", "p after Holm", "pairs", "seeds", "verdict"]
    table = []
    for i, r in enumerate(rows):
        numbers = [(show(r[k]), math.expm1(r[k]) if log and math.isfinite(r[k]) and r[k] < 700 else r[k]) for k in ("mean", "low", "high")]
        table.append(
            [
                *(v[i] for _, v in extra),
                r["a"],
                r["b"],
                *numbers,
                p_cell(r["p"]),
                p_cell(r["p_holm"]),
                r["n"],
                r["seeds"],
                WORD[r["verdict"]],
            ]
        )
    page.table(name, columns, table, caption)


def strip(study, page, measure, arms):
    """One panel a problem: every run, seeds joined by a line, mean and bootstrap interval beside them."""
    title, label, what = MEASURES[measure]
    page.section(title, what)
    values, items = gather(study, measure), []
    for problem in study.problems:
        figure, axes = panel(problem)
        seeds = sorted({seed for arm in arms for p, seed in values.get(arm, {}) if p == problem}, key=number)
        for s, seed in enumerate(seeds):
            y = [values.get(arm, {}).get((problem, seed), np.nan) for arm in arms]
            axes.plot(range(len(arms)), y, color=COLOURS[7], lw=0.6, marker=MARKERS[s % 8], ms=3.5, mfc="none", label=f"seed {seed}")
        for a, arm in enumerate(arms):
            mean, low, high = stats.interval([v for (p, _), v in values.get(arm, {}).items() if p == problem])
            colour = COLOURS[a % 8]
            axes.plot([a + 0.22], [mean], marker="o", ms=5, color=colour)
            if math.isfinite(low):
                axes.plot([a + 0.22] * 2, [low, high], color=colour, lw=2)
        axes.set_xticks(range(len(arms)), arms, rotation=30 if len(arms) > 3 else 0, ha="right" if len(arms) > 3 else "center", fontsize=8)
        axes.set_xlim(-0.4, len(arms) - 0.4)
        axes.set_ylabel(label)
        if len(seeds) <= 5:
            axes.legend(fontsize=6.5, ncols=2)
        means = {arm: np.nanmean([v for (p, _), v in values[arm].items() if p == problem]) for arm in arms if _has(values, arm, problem)}
        told = ", ".join(f"{arm} {num(float(mean))}" for arm, mean in means.items())
        caption = "Every run (grey, seeds joined); coloured: mean and 95 % bootstrap interval. "
        if measure in ("val_rec", "best_val_rec") and means:
            caption += f"Lower is better; lowest mean: {min(means, key=means.get)}."
        items.append((f"{measure}-{problem}", figure, f"{label} on {problem}, mean by arm: {told or 'no finished run'}", caption))
    page.figures(items)


def _has(values, arm, problem):
    return any(p == problem and math.isfinite(v) for (p, _), v in values.get(arm, {}).items())


def summary_table(study, page, arms, measures=MEASURES):
    """Mean with bootstrap interval of every measure, by problem and arm."""
    found, rows = {m: gather(study, m) for m in measures}, []
    for problem in study.problems:
        for arm in arms:
            if not _has(found["val_rec"], arm, problem):
                continue
            row = [problem, arm, sum(p == problem for p, _ in found["val_rec"][arm])]
            for m in measures:
                mean, low, high = stats.interval([v for (p, _), v in found[m].get(arm, {}).items() if p == problem])
                shown = num(float(mean)) + (f" [{num(float(low))}, {num(float(high))}]" if math.isfinite(low) else "")
                row.append((shown, float(mean)))
            rows.append(row)
    caption = "Mean over seeds [95 % bootstrap interval], by problem and arm. " + MEASURES["val_total_loss"][2]
    page.table("summary", ["problem", "arm", "runs", *measures], rows, caption)


def winners(study, page, arms):
    """Winner by val_rec and winner by the rule, per problem. Returns sentences for the verdict."""
    values, dims = gather(study, "val_rec"), gather(study, "active_dims")
    rows, p_values, sentences = [], [], []
    for problem in study.problems:
        here, seeds, grid = on_common_seeds(values, arms, problem)
        if not here:
            continue
        index, p = stats.winner(np.log(grid))
        won = [here[i] for i in np.argmin(grid, axis=0)] if np.isfinite(grid).all() else []
        mean = np.exp(np.nanmean(np.log(grid), axis=1))
        near = [a for a, v in zip(here, mean, strict=True) if v <= (1 + stats.NEAR) * mean.min()]
        mean_dims = {a: mean_of(dims, a, problem, seeds) for a in here}
        fewest = min(near, key=lambda a: (mean_dims[a], float(mean[here.index(a)])))
        best = here[int(index)]
        p_values.append(float(p) if len(won) >= stats.MIN_SEEDS and len(here) > 1 else np.nan)
        rows.append(
            [
                problem,
                best,
                float(mean.min()),
                f"{won.count(best)} of {len(won)}",
                fewest,
                mean_dims[fewest],
                (change(math.log(mean[here.index(fewest)] / mean.min())), float(mean[here.index(fewest)] / mean.min() - 1)),
            ]
        )
    for row, p, raw in zip(rows, stats.holm(p_values) if rows else [], p_values, strict=True):
        decided = "decided" if p < study.alpha else "undecided"
        row[2:2] = [decided, p_cell(p) if math.isfinite(raw) else math.nan]
        sentences.append(
            f"{row[0]}: lowest val_rec {row[1]} ({decided}, best on {row[5]} seeds); fewest dims near the best: {row[6]}, "
            f"{num(row[7])} dims."
        )
    columns = [
        "problem",
        "lowest val_rec",
        "against the others",
        "p after Holm",
        "its val_rec",
        "best on seeds",
        "fewest dims within 5 %",
        "its dims",
        "its cost",
    ]
    caption = (
        "Winner by val_rec, and winner by the rule: the fewest dims among arms within 5 % of the best val_rec (geometric means over "
        "the seeds that all arms have; not a test), with what that costs in val_rec. "
        "Decided: better than every other arm in a paired t-test, the weakest of these p-values, Holm over the problems."
    )
    page.table("winners", columns, rows, caption)
    return sentences


def front(study, page, arms):
    """Dims against val_rec for every run, with the PCA error at the same dims."""
    items, rows = [], []
    for problem in study.problems:
        runs = [run for run in study.done if run.flags["problem"] == problem]
        figure, axes = panel(problem, height=2.8)
        pca = sorted({(run.value("active_dims"), run.value("pca_rec")) for run in runs if math.isfinite(run.value("pca_rec"))})
        if pca:
            axes.plot(*zip(*pca, strict=True), color=COLOURS[7], ls="--", lw=1, label="PCA, same dims")
        for a, arm in enumerate(arms):
            mine = [(run.value("active_dims"), run.value("val_rec")) for run in runs if study.arm[run.where] == arm]
            if mine:
                axes.plot(*zip(*mine, strict=True), MARKERS[a % 8], color=COLOURS[a % 8], ms=4.5, ls="", label=arm)
        axes.set(xlabel="active dims", ylabel="val_rec")
        log_axis(axes.yaxis)
        axes.legend(fontsize=6.5)
        rho, p, n = stats.correlation([r.value("active_dims") for r in runs], [r.value("val_rec") for r in runs])
        rows.append([problem, rho, p_cell(p), n])
        best = min(runs, key=lambda run: run.value("val_rec"), default=None)
        told = f"lowest val_rec {num(best.value('val_rec'))} at {num(best.value('active_dims'))} dims" if best else "no finished run"
        items.append(
            (
                f"front-{problem}",
                figure,
                f"active dims against val_rec on {problem}: {told}",
                "Down and left is better. Below the dashed line: better than PCA with as many dims.",
            )
        )
    page.figures(items)
    page.table(
        "correlation",
        ["problem", "Spearman's rho", "p", "runs"],
        rows,
        "Correlation of active_dims and val_rec over the runs of a problem: negative means that fewer dims cost reconstruction.",
    )


def pairwise(study, page, arms):
    """Every pair of arms on every problem, for val_rec and for dims. Holm over all of a table's comparisons."""
    for measure, log in (("val_rec", True), ("active_dims", False)):
        values, rows, problems = gather(study, measure), [], []
        for problem in study.problems:
            here = {arm: {k: v for k, v in values.get(arm, {}).items() if k[0] == problem} for arm in arms}
            pairs = [(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :] if here[a] and here[b]]
            rows += stats.family(here, pairs, log)
            problems += [problem] * len(pairs)
        for row, p in zip(rows, stats.holm([r["p"] for r in rows]) if rows else [], strict=True):
            row["p_holm"], row["verdict"] = float(p), int(stats.decide(row["low"], row["high"], p, row["seeds"], alpha=study.alpha))
        family_table(
            page,
            f"pairs-{measure}",
            rows,
            f"{measure}: every pair of arms, paired by seed, Holm over this table.",
            log,
            [("problem", problems)],
        )


def strategies(study, page):
    """01: which strategy reconstructs best, and with how few dims."""
    arms = arms_of(study)
    values = gather(study, "val_rec")
    asked = study.parameters.get("strategy", {}).get("values", arms)  # a strategy without runs leaves its comparison undecided
    arms += [arm for arm in asked if arm not in arms]
    named = subject(study, arms)
    tested = named or min(values, key=lambda arm: np.nanmean(np.log(list(values[arm].values()))))
    rows = stats.family(values, [(tested, arm) for arm in arms if arm != tested], margin=study.margin, alpha=study.alpha)
    signs = [row["verdict"] for row in rows]
    word = "supported" if signs and all(s == -1 for s in signs) else "refuted" if named and 1 in signs else "undecided"
    lead = {
        "supported": f"{tested} reconstructs better than each other strategy.",
        "refuted": f"{tested} does not reconstruct best: {', '.join(r['b'] for r in rows if r['verdict'] == 1)} reconstructs better.",
        "undecided": f"The runs do not decide whether {tested} has the lowest val_rec.",
    }[word]
    head = [*(f"val_rec of {r['a']} against {r['b']}: {effect(r)}: {WORD[r['verdict']]}." for r in rows)]
    page.section("Winners, problem by problem", "Problems are never pooled here: their errors are of different sizes and need not agree.")
    told = winners(study, page, arms)
    page.verdict(word, study.hypothesis, lead, head + told)
    family_table(page, "verdict", rows, "The comparisons that decide: log val_rec over problem-seed pairs, Holm over this table.")
    for measure in MEASURES:
        strip(study, page, measure, arms)
    page.section("All numbers")
    summary_table(study, page, arms)
    page.section("Dims against error", "What a smaller latent space costs.")
    front(study, page, arms)
    page.section("Every pair of arms")
    pairwise(study, page, arms)


def levels(study, page):
    """01b: how much a strategy's level matters, and what each level costs against not pruning."""
    arms, values, dims = arms_of(study), gather(study, "val_rec"), gather(study, "active_dims")
    by_strategy = {s: [arm for arm in arms if arm.startswith(f"{s} ")] for s in LEVEL}
    by_strategy = {s: mine for s, mine in by_strategy.items() if mine}
    # Mildest first: a larger threshold prunes more, except for the share of the variance that pca_cdf keeps
    ordered = {s: mine[::-1] if s == "pca_cdf" else mine for s, mine in by_strategy.items()}
    rows = stats.family(values, [(mine[-1], mine[0]) for mine in ordered.values() if len(mine) > 1], margin=study.margin, alpha=study.alpha)
    signs = [row["verdict"] for row in rows]
    word = "supported" if signs and all(s == 1 for s in signs) and len(signs) == len(LEVEL) else "refuted" if -1 in signs else "undecided"
    lead = {
        "supported": "The level matters: the most aggressive level of every strategy reconstructs worse than its mildest.",
        "refuted": "A most aggressive level reconstructs better than the mildest.",
        "undecided": "The runs do not show a cost of aggressive levels in every strategy.",
    }[word]
    page.verdict(
        word, study.hypothesis, lead, [*(f"val_rec of {r['a']} against {r['b']}: {effect(r)}: {WORD[r['verdict']]}." for r in rows)]
    )
    page.section("The level that decides", "Most aggressive against mildest level of each strategy.")
    family_table(page, "verdict", rows, "The comparisons that decide: log val_rec over problem-seed pairs, Holm over this table.")
    page.section("Best level of each strategy")
    best_rows, items = [], []
    for problem in study.problems:
        for strategy, mine in ordered.items():
            here, seeds, grid = on_common_seeds(values, mine, problem)
            if not here:
                continue
            items.append(_level_panel(problem, strategy, mine, values, dims, seeds))
            if not np.isfinite(grid).all():
                page.caveat(f"{problem}: no seed has a run of every level of {strategy} so far: its levels are not compared.")
                continue
            mean = dict(zip(here, np.exp(np.log(grid).mean(axis=1)), strict=True))
            best = min(mean, key=mean.get)
            worst = float(max(mean.values()) / mean[best])
            row = [problem, strategy, best, float(mean[best]), mean_of(dims, best, problem, seeds)]
            best_rows.append([*row, (change(math.log(worst)), worst - 1), len(mean), len(seeds)])
            if len(mean) > 1 and best == mine[-1]:
                page.caveat(
                    f"{problem}: the best level of {strategy} ({best}) is the most aggressive one tried; a still more "
                    "aggressive one may do better."
                )
    page.table(
        "best",
        ["problem", "strategy", "best level", "val_rec (geometric mean)", "dims", "worst level costs", "levels", "seeds"],
        best_rows,
        "Best level by val_rec, and how much worse the worst level is: the strategy's sensitivity. Over the seeds all its levels have.",
    )
    page.section("Every level")
    page.figures(items)
    if "none" in values:
        page.section("What pruning costs", "Each arm against the control that never prunes.")
        others = [(arm, "none") for arm in arms if arm != "none"]
        family_table(
            page,
            "none-val_rec",
            stats.family(values, others, alpha=study.alpha),
            "val_rec against none, problem-seed pairs, Holm over this table.",
        )
        family_table(
            page,
            "none-dims",
            stats.family(dims, others, log=False, alpha=study.alpha),
            "Active dims against none, problem-seed pairs, Holm over this table.",
            False,
        )
    page.section("All numbers")
    summary_table(study, page, arms)
    page.section("Dims against error")
    front(study, page, arms)
    page.section("Winners, problem by problem")
    winners(study, page, arms)


def _level_panel(problem, strategy, mine, values, dims, seeds):
    """One strategy on one problem: val_rec at every level, mildest left, `none` as a line; means over `seeds`."""
    figure, axes = panel(f"{problem}: {strategy}", height=2.3)
    told = []
    for x, arm in enumerate(mine):
        y = [v for (p, _), v in values.get(arm, {}).items() if p == problem]  # an arm may have no finished run yet
        axes.plot([x] * len(y), y, "o", color=COLOURS[0], ms=3.5, mfc="none")
        if y:
            mean = mean_of(values, arm, problem, seeds)
            axes.plot([x - 0.15, x + 0.15], [mean] * 2, color=COLOURS[1], lw=2)
            told.append(f"{arm.split()[1]}: {num(mean)} with {num(mean_of(dims, arm, problem, seeds))} dims")
    control = [values.get("none", {}).get((problem, seed)) for seed in seeds]
    if None not in control:  # over fewer seeds than the bars the line would mislead
        axes.axhline(np.mean(control), color=COLOURS[7], ls="--", lw=1)
    axes.set_xticks(range(len(mine)), [arm.split()[1] for arm in mine])
    axes.set(xlabel=f"{LEVEL[strategy]} (mildest left)", ylabel="val_rec")
    caption = f"Circles: runs; bar: mean of seed {', '.join(map(str, seeds))}" + (". " if None in control else "; dashed: no pruning. ")
    caption += "; ".join(told) + "."
    return f"level-{problem}-{strategy}", figure, f"val_rec on {problem} by level of {strategy}: {'; '.join(told)}", caption
