"""How good are designs for new conditions? Fresh conditions, five starts, the problem's own optimiser after each.

    make design-bench            # 150 conditions a problem; goes on from results/design.csv and writes results/design.md
    make design-bench QUICK=1    # 20 conditions a problem

The conditions are those of a seed that no other command uses. The optimum is the optimiser's own, from its cold start, as for the
bundled designs. The gap is objective / optimum - 1. Every start has its volume fitted and is then improved by 0 to 10 iterations.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import data
from lvae import load, predict
from record import cores, read_csv, write_atomically
from report import markdown
from tools.design import fitted, nearest, regression
from tools.designs import conditions_of, objective, optimise

SEED, STEPS, PROBLEMS = 4711, (0, 1, 2, 5, 10), ("beams2d", "heatconduction2d")
STARTS = ("latents", "PCA", "pixels", "nearest", "cold")
RESULTS = Path(__file__).parent.parent / "results"


def predictors(problem, model):
    """{name: function of conditions -> design (H, W)}: what each start knows, all from the same training designs."""
    designs = data.load(problem, "sample")
    conditions, x = designs.conditions["train"], designs.train.flatten(1).double()
    mean = x.mean(0)
    _, _, axes = torch.pca_lowrank(x - mean, q=len(model.dims), center=False)
    known = {"PCA": regression(conditions, (x - mean) @ axes), "pixels": regression(conditions, x)}

    def from_known(name):
        def start(c):
            y = predict(known[name], c)
            y = y @ axes.T + mean if name == "PCA" else y
            return y.reshape(x_shape).numpy().clip(0, 1)

        return start

    x_shape = designs.train.shape[2:]
    return {
        "latents": lambda c: model.design(c, force=True)[0, 0].double().numpy(),
        "PCA": from_known("PCA"),
        "pixels": from_known("pixels"),
        "nearest": lambda c: nearest(designs, c),
        "cold": lambda c: np.full(x_shape, c[data.PROBLEMS[problem]["volume"]]),
    }


def measure(job):
    """The rows of one condition: the optimum, and the objective of each start after each number of iterations."""
    problem, i, conditions, starts = job
    optimum = objective(problem, conditions, optimise(problem, conditions) / 255)
    rows = []
    for name, start in starts.items():
        for n in STEPS:
            x = fitted(problem, conditions, optimise(problem, conditions, start, n) / 255 if n else start)
            row = dict(problem=problem, condition=i, start=name, iterations=n, optimum=optimum)
            rows.append(
                row | dict(objective=objective(problem, conditions, x)) | {f"c_{k}": v for k, v in conditions.items()}
            )
    return rows


def table(rows):
    """Gap to the optimum by problem, start and iterations; and what the latents gain on each other start, paired."""
    from scipy.stats import t

    cells, gaps = [], rows.pivot_table(index=["problem", "iterations", "condition"], columns="start", values="gap")
    for (problem, n), group in gaps.groupby(level=[0, 1]):
        for start in STARTS:
            gap = group[start].dropna()
            share, worst = (gap < 0.05).mean(), gap.max()
            numbers = [f"{v:.1%}" for v in (gap.median(), gap.quantile(0.9), share, worst)]
            other = (group[start] - group["latents"]).dropna()
            half = t.ppf(0.975, max(1, len(other) - 1)) * other.sem() if len(other) > 1 else float("nan")
            interval = f"{other.mean():+.1%} [{other.mean() - half:+.1%}, {other.mean() + half:+.1%}]"
            more = "" if start == "latents" else interval
            cells.append([problem, str(n), start, str(len(gap)), *numbers, more])
    header = ["problem", "iterations", "start", "conditions", "median gap", "90th percentile", "within 5 %", "worst"]
    return markdown([*header, "mean gap less the latents' [95 %]"], cells)


def saved(rows):
    """How many iterations each other start needs until its median gap is at most that of the latents at 0."""
    median, lines = rows.groupby(["problem", "start", "iterations"])["gap"].median(), []
    for problem in median.index.unique(0):
        ours = median[problem, "latents", 0]
        for start in STARTS[1:]:
            enough = [n for n in STEPS if median[problem, start, n] <= ours]
            lines.append([problem, start, str(enough[0]) if enough else f"more than {STEPS[-1]}"])
    return markdown(["problem", "start", "iterations to reach the latents' median gap at 0"], lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=150, help="conditions a problem (150)")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (all cores that we may use)")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with a model a problem (models)")
    args = parser.parse_args(argv)
    path = RESULTS / "design.csv"
    os.environ.update(OMP_NUM_THREADS="1")
    rows = read_csv(path)
    with ProcessPoolExecutor(args.jobs) as pool:
        for problem in PROBLEMS:
            done = set(rows[rows["problem"] == problem]["condition"].astype(int)) if len(rows) else set()
            values = conditions_of(problem, SEED, args.n)
            todo = [(i, {k: v[i].item() for k, v in values.items()}) for i in range(args.n) if i not in done]
            starts = predictors(problem, load(args.models / problem)) if todo else {}
            jobs = ((problem, i, c, {k: fitted(problem, c, f(c)) for k, f in starts.items()}) for i, c in todo)
            for found in pool.map(measure, jobs):
                rows = pd.concat([rows, pd.DataFrame(found).astype(str)])
                write_atomically(path, rows.to_csv(index=False, lineterminator="\n"))
                print(f"{problem} {found[0]['condition']}", flush=True)
    numbers = ["condition", "iterations", "optimum", "objective"]
    rows = rows.assign(**{key: pd.to_numeric(rows[key]) for key in numbers})
    rows = rows.assign(gap=rows["objective"] / rows["optimum"] - 1)
    gaps, iterations = table(rows), saved(rows)
    text = f"# Designs for new conditions\n\n`make design-bench` writes this page from [design.csv](design.csv).\n\n{gaps}\n\n"
    write_atomically(RESULTS / "design.md", text + iterations + "\n")
    print(gaps, iterations, sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
