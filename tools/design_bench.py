"""How good are designs for new conditions? Fresh conditions, five starts, the problem's own optimiser after each.

    make design-bench            # 150 conditions a problem; goes on from results/design.csv
    make design-bench QUICK=1    # 20 conditions a problem

The conditions are those of a seed that no other command uses. The optimum is the optimiser's own, from its cold start,
as for the bundled designs. The gap is objective / optimum - 1. Every start has its volume fitted and is then improved
by 0 to 10 iterations.

On the same optima: how well is the objective predicted from their latents, and from what else is known?
(results/surrogates.csv) photonics2d has no optimiser as quick: it is scored without iterations.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import data
from lvae import load, predict
from record import Parser, cores, guarded, plain, read_csv, write_atomically
from report import markdown, paired
from tools.design import fitted, nearest, regression
from tools.designs import conditions_of, objective, optimise

SEED = 4711
STEPS = {"beams2d": (0, 1, 2, 5, 10), "heatconduction2d": (0, 1, 2, 5, 10), "photonics2d": (0,)}
KNOWN = dict(conditions="the conditions", latents="the latents", both="conditions and latents", PCA="as many of PCA")
KNOWN["pixels"] = "the pixels"
STARTS = ("latents", "PCA", "pixels", "nearest", "cold")
RESULTS = Path(__file__).parent.parent / "results"


def predictors(problem, model, designs, x, pca):
    """{name: function of conditions -> design (H, W)}: what each start knows. x: the pixels, pca: theirs."""
    conditions, shape = designs.conditions["train"], designs.train.shape[2:]
    known = {"PCA": regression(conditions, pca.transform(x)), "pixels": regression(conditions, x)}
    return {
        "latents": lambda c: model.design(c, force=True)[0, 0].double().numpy(),
        "PCA": lambda c: pca.inverse_transform(predict(known["PCA"], c)).reshape(shape).clip(0, 1),
        "pixels": lambda c: predict(known["pixels"], c).numpy().reshape(shape).clip(0, 1),
        "nearest": lambda c: nearest(designs, c),
        "cold": lambda c: np.full(shape, c.get(data.PROBLEMS[problem]["volume"], 0.5)),
    }


def surrogates(problem, model, designs, pixels, pca):
    """A function of (design (H, W), conditions) -> {what is known of the design: its objective, predicted}.

    Kernel ridge, fitted to the training designs, its hyperparameters by cross-validation on a subset. Where all
    objectives are positive, it predicts their logarithm.
    """
    names = list(designs.conditions["train"])
    theirs = np.stack([designs.conditions["train"][k] for k in names], 1).astype(float)
    if problem == "photonics2d":  # stored is v0's score, and the optima are scored by v1
        scored = [dict(zip(names, c, strict=True)) for c in theirs]
        y = np.array([objective(problem, c, x.numpy()) for c, x in zip(scored, designs.train[:, 0], strict=True)])
    else:
        with np.load(f"samples/{problem}.npz") as file:
            y = file["objective"][file["split"].astype(str) == "train"]
    positive = y.min() > 0
    y = np.log(y) if positive else y

    def features(x, c):  # x (n, pixels), c (n, conditions)
        shaped = torch.tensor(x, dtype=torch.float32).reshape(-1, *designs.train.shape[2:])
        with torch.no_grad():
            z = model.encode(shaped).double().numpy()
        return {"latents": z, "PCA": pca.transform(x), "pixels": x, "conditions": c, "both": np.hstack([z, c])}

    def fit(x):
        some = np.random.default_rng(0).permutation(len(x))[:1000]
        grid = {"kernelridge__alpha": np.logspace(-4, 0, 5), "kernelridge__gamma": np.logspace(-3, 0, 4) / x.shape[1]}
        search = GridSearchCV(make_pipeline(StandardScaler(), KernelRidge(kernel="rbf")), grid, cv=3, refit=False)
        best = search.fit(x[some], y[some] - y.mean()).best_params_
        return make_pipeline(StandardScaler(), KernelRidge(kernel="rbf")).set_params(**best).fit(x, y - y.mean())

    known = features(pixels, theirs)
    fits = {name: fit(x) for name, x in known.items()}

    def predicted(design, conditions):
        new = features(design.reshape(1, -1).astype(float), np.array([[float(conditions[k]) for k in names]]))
        values = {name: fits[name].predict(x)[0] + y.mean() for name, x in new.items()}
        return {name: float(np.exp(v) if positive else v) for name, v in values.items()}

    return predicted


def measure(job):
    """Of one condition: the optimal design, and a row a start and number of iterations with both objectives."""
    problem, i, conditions, starts = job
    best = optimise(problem, conditions) / 255
    common = dict(problem=problem, condition=i, optimum=objective(problem, conditions, best))
    rows = []
    for name, start in starts.items():
        for n in STEPS[problem]:
            x = fitted(problem, conditions, optimise(problem, conditions, start, n) / 255 if n else start)
            rows.append(common | dict(start=name, iterations=n, objective=objective(problem, conditions, x)))
    return best, conditions, rows


def table(rows):
    """Gap to the optimum by problem, start and iterations, and how much worse than the latents each other start is.

    That is the geometric mean of the ratio of objectives, with Student's 95 % interval, where all are positive.
    """
    cells = []
    for (problem, n), group in rows.groupby(["problem", "iterations"]):
        gaps, objectives = (group.pivot(index="condition", columns="start", values=v) for v in ("gap", "objective"))
        for start in STARTS:
            gap, more = gaps[start].dropna(), ""
            numbers = [gap.median(), gap.quantile(0.9), (gap < 0.05).mean(), gap.max()]
            if start != "latents" and objectives.min().min() > 0 and len(gap) > 1:
                ratio = np.log(objectives[start] / objectives["latents"]).dropna()
                mean, low, high = np.expm1(paired(ratio)[:3])
                more = f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]"
            cells.append([problem, str(n), start, str(len(gap)), *(f"{v:.1%}" for v in numbers), more])
    header = ["problem", "iterations", "start", "conditions", "median gap", "90th percentile", "within 5 %", "worst"]
    return markdown([*header, "worse than the latents [95 %]"], cells)


def saved(rows):
    """How many iterations each other start needs until its median gap is at most that of the latents at 0."""
    median, cells = rows.groupby(["problem", "start", "iterations"])["gap"].median(), []
    for problem in [p for p in STEPS if len(STEPS[p]) > 1 and p in median.index]:
        for start in STARTS[1:]:
            enough = [n for n in STEPS[problem] if median[problem, start, n] <= median[problem, "latents", 0]]
            cells.append([problem, start, str(enough[0]) if enough else f"more than {STEPS[problem][-1]}"])
    return markdown(["problem", "start", "iterations to reach the latents' median gap at 0"], cells)


def explained(rows):
    """R2 of the predicted objectives of fresh optima: the logarithms' where all objectives are positive."""
    cells = []
    for problem, group in rows.groupby("problem"):
        form = np.log if group["objective"].min() > 0 else np.asarray
        y, n = form(group["objective"]), str(len(group))
        cells.append([problem, n, *(f"{1 - ((form(group[k]) - y) ** 2).mean() / y.var(ddof=0):.4f}" for k in KNOWN)])
    return markdown(["problem", "designs", *(f"from {what}" for what in KNOWN.values())], cells)


def run(args):
    """Measure what the two CSVs lack, then write the page anew."""
    tables = {name: read_csv(RESULTS / f"{name}.csv") for name in ("design", "surrogates")}
    with ProcessPoolExecutor(args.jobs, initializer=threadpool_limits, initargs=(1,)) as pool:
        for problem in STEPS:
            old = tables["surrogates"]
            done = set(old[old["problem"] == problem]["condition"].astype(int)) if len(old) else set()
            n = args.n if len(STEPS[problem]) > 1 else args.n // 10
            values = conditions_of(problem, SEED, n)
            todo = [(i, {k: v[i].item() for k, v in values.items()}) for i in range(n) if i not in done]
            if not todo:
                continue
            model = load(args.models / problem)
            designs = data.load(problem, "sample")
            pixels = designs.train.flatten(1).double().numpy()  # (N, H * W)
            about = problem, model, designs, pixels, PCA(len(model.dims), random_state=0).fit(pixels)
            starts, predicted = predictors(*about), surrogates(*about)
            jobs = ((problem, i, c, {k: fitted(problem, c, f(c)) for k, f in starts.items()}) for i, c in todo)
            for best, conditions, found in pool.map(measure, jobs):
                row = dict(problem=problem, condition=found[0]["condition"], objective=found[0]["optimum"])
                row |= predicted(best, conditions)
                for name, new in (("design", found), ("surrogates", [row])):
                    tables[name] = pd.concat([tables[name], pd.DataFrame(new).astype(str)])
                    write_atomically(RESULTS / f"{name}.csv", tables[name].to_csv(index=False, lineterminator="\n"))
                print(f"{problem} {row['condition']}", flush=True)
    rows, known = (read_csv(RESULTS / f"{name}.csv").map(plain).infer_objects() for name in tables)
    rows = rows.drop_duplicates(["problem", "condition", "start", "iterations"], keep="last")
    sign = rows["problem"].map({"photonics2d": -1}).fillna(1)  # its objective is to be maximised
    rows = rows.assign(gap=sign * (rows["objective"] - rows["optimum"]) / rows["optimum"].abs())
    made = "`make design-bench` writes this page from [design.csv](design.csv) and [surrogates.csv](surrogates.csv)."
    made += "\nphotonics2d is scored as it is: a grey design cannot be built, and may score above the optimum."
    parts = [table(rows), saved(rows), "## How well the objective of fresh optima is predicted (R2)"]
    text = "\n\n".join([*parts, explained(known)])
    write_atomically(RESULTS / "design.md", f"# Designs for new conditions\n\n{made}\n\n{text}\n")
    print(text)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--n", type=int, default=150, help="conditions a problem (150); a tenth for photonics2d")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (all cores that we may use)")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with a model a problem (models)")
    args = parser.parse_args(argv)
    return guarded("tools.design_bench", run, args)


if __name__ == "__main__":
    sys.exit(main())
