"""Pages of the sweeps 04, 05, 06: val_rec over pruning_epoch x w_v for two arms of one problem, and what the three have in common.

report.py calls deepdive(study, page, runs); `runs` are all that were found, so that the three problems can be compared.
"""

import math

import numpy as np
from matplotlib.patches import Rectangle

from reporting import stats
from reporting.collect import InputError, number
from reporting.compare import WORD, effect
from reporting.page import COLOURS, MARKERS, change, log_axis, num, p_cell, panel
from reporting.studies import strategy_of, study

SWEEPS = ("04", "05", "06")
# What each hypothesis is about (stats.effects), and the sign that supports it; None: either sign does.
DECIDES = {"04": ("interaction", None), "05": ("arms", -1), "06": ("interaction", None)}
MEANING = {
    "interaction": "pruning_epoch x w_v: what a larger w_v gains (−) or costs (+) in val_rec when pruning starts later, half ranges",
    "arms": "arms: the second against the first, over all cells",
    "pruning_epoch": "pruning_epoch: half the change from the earliest to the latest",
    "w_v": "w_v: half the change from the smallest to the largest",
}


def arms_of(found):
    """The arms, milder first: arm 1 minus arm 0 is then what more pruning (04, 06) or more caution (05) changes."""

    def key(arm):
        name, _, level = arm.partition(" ")
        sign = -1 if name == "pca_cdf" else 1  # the share of the variance that is kept: a smaller one prunes more
        return (
            ["moderate", "conservative"].index(arm) if arm in ("moderate", "conservative") else 2,
            name,
            sign * number(level) if level else 0,
        )

    return sorted(set(found.arm.values()), key=key)


def grid(found, measure="val_rec"):
    """(arms, pruning epochs, w_v values, seeds, values (arms, seeds, P, W)) of the finished runs, NaN where there is none."""
    arms = arms_of(found)
    # both axes are logarithmic
    runs = [run for run in found.done if all(0 < number(run.flags.get(key)) < math.inf for key in ("pruning_epoch", "w_v"))]
    axis = {k: sorted({number(run.flags[k]) for run in runs}) for k in ("pruning_epoch", "w_v", "seed")}
    values = np.full((len(arms), len(axis["seed"]), len(axis["pruning_epoch"]), len(axis["w_v"])), np.nan)
    for run in runs:
        at = [axis[k].index(number(run.flags[k])) for k in ("seed", "pruning_epoch", "w_v")]
        values[(arms.index(found.arm[run.where]), *at)] = run.value(measure)
    return arms, axis["pruning_epoch"], axis["w_v"], axis["seed"], values


def span(values, share):
    """The values that hold the central 95 % of the weights `share`, as text: 0.005 to 0.02."""
    total = np.cumsum(share)
    low, high = values[int(np.searchsorted(total, 0.025))], values[min(int(np.searchsorted(total, 0.975)), len(values) - 1)]
    return num(low) if low == high else f"{num(low)} to {num(high)}"


def optima(found):
    """For each arm with a complete cell: dict of its best cell, val_rec there, how sure, and spans of the two settings."""
    arms, epochs, w_v, _, values = grid(found)
    out = []
    for a, arm in enumerate(arms if values.size else ()):
        cell, share = stats.optimum(np.log(values[a]))
        if cell is None:
            continue
        at = values[a][:, cell[0], cell[1]]
        out.append(
            dict(
                arm=arm,
                whole=next(f"{strategy_of(r.flags)}, {r.flags.get('safeguards')}" for r in found.done if found.arm[r.where] == arm),
                index=a,
                cell=cell,
                epoch=epochs[cell[0]],
                w_v=w_v[cell[1]],
                val_rec=float(np.exp(np.nanmean(np.log(at)))),
                points=at,
                share=float(share[cell]),
                epochs=span(epochs, share.sum(1)),
                w_vs=span(w_v, share.sum(0)),
                seeds=int(np.isfinite(at).sum()),
                edges=[k for k, i, v in (("pruning_epoch", cell[0], epochs), ("w_v", cell[1], w_v)) if len(v) > 1 and i in (0, len(v) - 1)],
            )
        )
    return out


def deepdive(found, page, runs):
    """04, 05, 06: the response surface, its optimum, the verdict, and the three problems beside each other."""
    arms, epochs, w_v, _, values = grid(found)
    if not values.size:
        page.verdict("undecided", found.hypothesis, "No finished run has a pruning_epoch and a w_v above 0.", [])
        return
    rows = stats.effects(epochs, w_v, np.log(values), found.alpha)
    what, sign = DECIDES[found.name]
    row = next(r for r in rows if r["a"] == what)
    word = "undecided" if not row["verdict"] else "supported" if sign in (None, row["verdict"]) else "refuted"
    if what == "arms" and len(arms) == 2:
        lead = {
            "supported": f"{arms[1]} reaches a lower val_rec than {arms[0]}.",
            "refuted": f"{arms[1]} reaches a higher val_rec than {arms[0]}.",
            "undecided": f"The runs do not decide between {arms[1]} and {arms[0]}.",
        }[word]
    elif what == "arms":
        lead = f"This verdict needs two arms; found: {', '.join(arms)}."
    else:
        lead = {
            "supported": f"The best w_v depends on pruning_epoch: a later one wants a {'larger' if row['mean'] < 0 else 'smaller'} w_v.",
            "refuted": f"The best w_v depends on pruning_epoch, but the other way: a later one wants a "
            f"{'larger' if row['mean'] < 0 else 'smaller'} w_v.",
            "undecided": "The runs do not show that the best w_v depends on pruning_epoch.",
        }[word]
    head = [f"{MEANING[what][0].upper() + MEANING[what][1:]}: {effect(dict(row))}: {WORD[row['verdict']]}."]
    best = optima(found)
    head += [
        f"Optimum of {o['arm']}: pruning_epoch {num(o['epoch'])} (95 % of resamples: {o['epochs']}), w_v {num(o['w_v'])} ({o['w_vs']}), "
        f"val_rec {num(o['val_rec'])}."
        for o in best
    ]
    page.verdict(word, found.hypothesis, lead, head)
    page.section(
        "Effects",
        "From a quadratic surface of log val_rec over log pruning_epoch and log w_v, fitted seed by seed and averaged over the arms.",
    )
    shown = [
        [
            MEANING[r["a"]],
            *((change(r[k]), math.expm1(r[k])) for k in ("mean", "low", "high")),
            p_cell(r["p"]),
            p_cell(r["p_holm"]),
            r["seeds"],
            WORD[r["verdict"]],
        ]
        for r in rows
    ]
    columns = ["effect", "change of val_rec", "95 % low", "95 % high", "p", "p after Holm", "seeds", "verdict"]
    page.table("effects", columns, shown, "One-sample t-tests over the seeds, Holm over this table.")
    page.section("Response surfaces", "One panel an arm. A dark cell reconstructs better; the box is the optimum.")
    page.figures([_heat(found, a, best) for a in range(len(arms))], wide=True)
    page.section("Cuts through the surface", "The same numbers with every seed.")
    page.figures([_cuts(found, a) for a in range(len(arms))], wide=True)
    _cells(page, arms, epochs, w_v, values, grid(found, "active_dims")[4])
    for o in best:
        for edge in o["edges"]:
            page.caveat(
                f"The optimum of {o['arm']} is at the edge of {edge} "
                f"({num(o['epoch'] if edge == 'pruning_epoch' else o['w_v'])}): a wider range may do better."
            )
    holes = int(np.isnan(values).sum())
    if holes:
        page.caveat(
            f"{holes} of {values.size} cells (arm, seed, pruning_epoch, w_v) have no finished run; an optimum is chosen among "
            "cells that every seed has."
        )
    across(page, runs)


def _heat(found, a, best):
    arms, epochs, w_v, _, values = grid(found)
    with np.errstate(all="ignore"):
        counts = np.isfinite(values[a]).sum(0)
        mean = np.where(counts > 0, np.nansum(values[a], axis=0) / np.maximum(counts, 1), np.nan)
        spread = np.where(counts > 1, np.sqrt(np.nansum((values[a] - mean) ** 2, axis=0) / np.maximum(counts - 1, 1)), np.nan)
    figure, axes = panel(arms[a], wide=True, height=3.2)
    logs = np.log(mean)
    mesh = axes.pcolormesh(logs, cmap="viridis", edgecolors="#808080", linewidth=0.3)
    low, high = (np.nanmin(logs), np.nanmax(logs)) if np.isfinite(logs).any() else (0, 1)
    mesh.set_clim(low, high if high > low else low + 1)
    for i, j in np.argwhere(np.isfinite(mean)):
        # not pure black or white: those follow the page's theme, and a cell keeps its colour
        ink = "#fefefe" if logs[i, j] < (low + high) / 2 else "#010101"
        text = num(float(mean[i, j])) + (f"\n±{num(float(spread[i, j]), 2)}" if math.isfinite(spread[i, j]) else "")
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7, color=ink)
    mine = next((o for o in best if o["index"] == a), None)
    if mine:
        axes.add_patch(Rectangle((mine["cell"][1], mine["cell"][0]), 1, 1, fill=False, ec=COLOURS[1], lw=2.5))
    axes.set_xticks(np.arange(len(w_v)) + 0.5, [num(v) for v in w_v])
    axes.set_yticks(np.arange(len(epochs)) + 0.5, [num(v) for v in epochs])
    axes.set(xlabel="w_v", ylabel="pruning_epoch")
    axes.grid(False)
    told = (
        f"lowest at pruning_epoch {num(mine['epoch'])}, w_v {num(mine['w_v'])}: {num(mine['val_rec'])}"
        if mine
        else "no cell has every seed"
    )
    return (
        f"surface-{a}",
        figure,
        f"val_rec over pruning_epoch and w_v for {arms[a]}: {told}",
        f"Mean val_rec, below it ± the standard deviation over seeds. {told[0].upper() + told[1:]}.",
    )


def _cuts(found, a):
    arms, epochs, w_v, _, values = grid(found)
    figure, axes = panel(arms[a], wide=True, height=3.0)
    for i, epoch in enumerate(epochs):
        with np.errstate(all="ignore"):
            counts = np.isfinite(values[a][:, i]).sum(0)
            mean = np.where(counts > 0, np.nansum(values[a][:, i], axis=0) / np.maximum(counts, 1), np.nan)
        axes.plot(w_v, mean, MARKERS[i % 8] + "-", color=COLOURS[i % 8], ms=4, lw=1.2, label=f"pruning_epoch {num(epoch)}")
        for seed in values[a][:, i]:
            axes.plot(w_v, seed, ".", color=COLOURS[i % 8], ms=2.5, alpha=0.7)
    axes.set(xlabel="w_v", ylabel="val_rec")
    log_axis(axes.xaxis, w_v)
    log_axis(axes.yaxis)
    axes.legend(fontsize=7)
    return (
        f"cuts-{a}",
        figure,
        f"val_rec against w_v for each pruning_epoch, arm {arms[a]}",
        "Lines: mean; dots: seeds. Lines that are not parallel mean that the best w_v depends on pruning_epoch.",
    )


def _cells(page, arms, epochs, w_v, values, dims):
    rows = []
    for a, i, j in np.ndindex(len(arms), len(epochs), len(w_v)):
        v = values[a, :, i, j][np.isfinite(values[a, :, i, j])]
        if len(v):
            mean, low, high = (float(x) for x in stats.interval(v))
            sd = float(v.std(ddof=1)) if len(v) > 1 else math.nan
            rows.append([arms[a], epochs[i], w_v[j], len(v), mean, low, high, sd, float(np.nanmean(dims[a, :, i, j]))])
    columns = ["arm", "pruning_epoch", "w_v", "runs", "val_rec", "95 % low", "95 % high", "std over seeds", "active dims"]
    page.table("cells", columns, rows, "Every cell: mean val_rec with bootstrap interval, spread over seeds, and dims.", closed=True)


def across(page, runs):
    """Optimal settings by problem, what they share, and whether two problems predict the third's."""
    page.section("Across the three problems")
    best, missing = {}, []
    for name in SWEEPS:
        try:
            found = study(name, runs)
        except InputError:
            found = None
        options = optima(found) if found and found.done else []
        if options:
            best[name] = (found, min(options, key=lambda o: o["val_rec"]))
        else:
            missing.append(name)
    rows = []
    for name, (found, o) in best.items():
        epochs = number(found.done[0].flags.get("n_epochs"))
        rows.append(
            [
                name,
                found.problems[0],
                o["whole"],
                o["epoch"],
                o["epochs"],
                o["epoch"] / epochs,
                o["w_v"],
                o["w_vs"],
                o["val_rec"],
                o["seeds"],
            ]
        )
    columns = [
        "sweep",
        "problem",
        "best arm",
        "pruning_epoch",
        "95 % of resamples",
        "share of n_epochs",
        "w_v",
        "95 % of resamples of w_v",
        "val_rec",
        "seeds",
    ]
    page.table(
        "optima", columns, rows, "Optimal settings by problem (best arm), with the values that hold 95 % of 2,000 resamples of the seeds."
    )
    if missing:
        page.text(f"What the three share needs complete cells of each; there are none yet of {', '.join(missing)} among these runs.")
        return
    spans = {key: [o[key] for _, o in best.values()] for key in ("epochs", "w_vs")}
    for key, label, setting in (("w_v", "w_v", "w_vs"), ("epoch", "pruning_epoch", "epochs")):
        values = {found.problems[0]: o[key] for found, o in best.values()}
        same = len(set(values.values())) == 1
        told = "; ".join(f"{p} {num(v)} ({s})" for (p, v), s in zip(values.items(), spans[setting], strict=True))
        page.text(f"{label}: {'the same for all three' if same else 'not the same'}: {told}.")
    arms = [o["whole"] for _, o in best.values()]
    page.text(f"Best arm: {'the same for all three' if len(set(arms)) == 1 else 'not the same'}: {'; '.join(arms)}.")
    rows = [_predict(name, best) for name in SWEEPS]
    columns = [
        "third problem",
        "predicted pruning_epoch",
        "predicted w_v",
        "its optimum",
        "cost of the prediction",
        "95 % low",
        "95 % high",
        "seeds",
        "verdict",
    ]
    page.table(
        "prediction",
        columns,
        rows,
        "Do two problems predict the third's settings? Geometric mean of the other two optima, nearest cell of the third's "
        "grid; cost: val_rec there "
        "against the third's own optimum, chosen on the other seeds. Predicted: the whole 95 % t interval below 5 %; missed: above it.",
    )


def _predict(name, best):
    found, own = best[name]
    others = [o for other, (_, o) in best.items() if other != name]
    _, epochs, w_v, _, values = grid(found)
    target = [math.exp(np.mean([math.log(o[key]) for o in others])) for key in ("epoch", "w_v")]
    cell = tuple(int(np.argmin(np.abs(np.log(axis) - math.log(t)).round(9))) for axis, t in zip((epochs, w_v), target, strict=True))
    costs = stats.regret(np.log(values[own["index"]]), cell)
    mean, low, high, _ = (float(v) for v in stats.paired(costs))
    seeds, near = int(np.isfinite(costs).sum()), math.log1p(stats.NEAR)
    verdict = "undecided" if seeds < stats.MIN_SEEDS else "predicted" if high < near else "missed" if low > near else "undecided"
    return [
        found.problems[0],
        epochs[cell[0]],
        w_v[cell[1]],
        f"pruning_epoch {num(own['epoch'])}, w_v {num(own['w_v'])}",
        *((change(v), math.expm1(v)) for v in (mean, low, high)),
        seeds,
        verdict,
    ]
