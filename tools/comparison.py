"""The tables of the comparisons that are no part of the study: results/NAME.csv as Markdown, into results/NAME.md.

    make width            # does the answer depend on the width that training starts from? (comparisons/width.yaml)
    make ground-truth     # does pruning find a dimension that is known? (comparisons/ground-truth.yaml)
    make baselines        # what do pruning and least volume buy over a plain autoencoder? (comparisons/baselines.yaml)

Each runs what its CSV lacks, on the local engine, and then makes the table anew.
"""

import sys
from pathlib import Path

import pandas as pd

from lvae import InputError
from record import guarded, read_csv, write_atomically
from report import markdown

ROOT = Path(__file__).parent.parent
TITLES = {
    "width": "Does the answer depend on the width that training starts from?",
    "ground-truth": "Does pruning find a dimension that is known?",
    "baselines": "What do pruning and least volume buy over a plain autoencoder?",
}


def mean(values, form):
    """Mean and its standard error, as text."""
    error = f" ± {values.sem():{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{error}"


def numbers_of(group):
    """Mean and standard error of dimensions, val_rec and its ratio to PCA's error, as text."""
    return [mean(group[key], form) for key, form in (("active_dims", ".1f"), ("val_rec", ".5f"), ("pca_ratio", ".3f"))]


def width(rows):
    """A row a problem and width: runs, and mean and standard error of dimensions, val_rec, ratio to PCA.

    Then the front of the same runs: a row a problem and number of dimensions kept.
    """
    cells, front, title = [], [], "The same runs by the number of dimensions that they kept, from whatever width:"
    for (problem, latent_dim), group in rows.groupby(["problem", "latent_dim"]):
        cells.append([problem, str(latent_dim), str(len(group)), *numbers_of(group)])
    for (problem, dims), group in rows.groupby(["problem", "active_dims"]):
        widths = ", ".join(map(str, sorted(group["latent_dim"])))
        front.append([problem, str(dims), widths, *numbers_of(group)[1:]])
    table = markdown(["problem", "latent_dim", "runs", "dims kept", "val_rec", "ratio to PCA"], cells)
    return f"{table}\n\n{title}\n\n{markdown(['problem', 'dims kept', 'from', 'val_rec', 'ratio to PCA'], front)}"


def ground_truth(rows):
    """A row a number of factors k and width: dims, errors, how many runs kept k..2k+1, and exactly k."""
    k, dims = rows["toy_dims"], rows["active_dims"]
    rows = rows.assign(right=(k <= dims) & (dims <= 2 * k + 1) & (rows["val_rec"] < 5e-4), exact=dims == k)
    cells = []
    for (k, latent_dim), group in rows.groupby(["toy_dims", "latent_dim"]):
        lists = [
            ", ".join(format(v, form) for v in group[key]) for key, form in (("active_dims", "d"), ("val_rec", ".1e"))
        ]
        counts = [f"{group[key].sum()} of {len(group)}" for key in ("right", "exact")]
        cells.append([str(k), str(latent_dim), *lists, *counts])
    cells.append(["all", "", "", "", *(f"{rows[key].sum()} of {len(rows)}" for key in ("right", "exact"))])
    return markdown(["k", "latent_dim", "dims kept", "val_rec", "k..2k+1, val_rec < 5e-4", "exactly k"], cells)


def method_of(row):
    """The method that made a row of results/baselines.csv, in words."""
    if row["strategy"] == "none":
        return f"plain autoencoder of {row['active_dims']}"
    if not float(row["rotate_every"]):
        return "least volume, pruned, not rotated"
    return "least volume, pruned and trimmed" if float(row["trim_share"]) else "least volume, pruned"


def baselines(rows):
    """A row a problem and method: runs, and mean and standard error of dimensions, val_rec, ratio to PCA."""
    cells = []
    for (problem, method), group in rows.assign(method=rows.apply(method_of, axis=1)).groupby(["problem", "method"]):
        cells.append([problem, method, str(len(group)), *numbers_of(group)])
    return markdown(["problem", "method", "runs", "dims kept", "val_rec", "ratio to PCA"], cells)


def rivals(rows):
    """Two tables of tools/rivals.py: val_rec behind k axes, and the intrinsic dimension of the training designs."""
    rows = rows.assign(**{key: pd.to_numeric(rows[key]) for key in ("dims", "val_rec")})
    fronts = rows.dropna(subset="val_rec").pivot_table("val_rec", ["problem", "method"], "dims")
    found = rows[rows["val_rec"].isna()].pivot_table("dims", "problem", "method")
    cells = [[*key, *(f"{value:.5f}" for value in front)] for key, *front in fronts.itertuples()]
    front = markdown(["problem", "method", *(f"{k:.0f} axes" for k in fronts.columns)], cells)
    cells = [[problem, *(f"{value:.1f}" for value in values)] for problem, *values in found.itertuples()]
    return f"{front}\n\n{markdown(['problem', *found.columns], cells)}"


def table(name, path):
    """The table of a comparison from its rows. Raises InputError where there are none."""
    rows = read_csv(path)
    rows = rows[rows["status"] == "finished"] if len(rows) else rows
    if not len(rows):
        raise InputError(f"{path}: has no finished run; make {name} makes them")
    if name == "width":  # the default width is a method of make baselines, on the same seeds
        other = read_csv(path.with_name("baselines.csv"))
        rows = pd.concat([rows, other[(other["arm"] == "strategy=plummet") & (other["status"] == "finished")]])
    numbers = ["toy_dims", "latent_dim", "active_dims", "val_rec", "pca_ratio"]
    rows = rows.assign(**{key: pd.to_numeric(rows[key]) for key in numbers}).sort_values("seed")
    return {"width": width, "ground-truth": ground_truth, "baselines": baselines}[name](rows)


def main(argv=None):
    return guarded("tools.comparison", run, (sys.argv[1:] if argv is None else argv)[0])


def run(name):
    """Write results/NAME.md anew, and print its table."""
    text = table(name, ROOT / f"results/{name}.csv")
    if name == "baselines" and len(others := read_csv(ROOT / "results/rivals.csv")):
        text += f"\n\nMethods that are cut after k axes (tools/rivals.py), and estimates:\n\n{rivals(others)}"
    made = f"`make {name}` goes on from the rows of [{name}.csv]({name}.csv) and makes this page."
    write_atomically(ROOT / f"results/{name}.md", f"# {TITLES[name]}\n\n{made}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
