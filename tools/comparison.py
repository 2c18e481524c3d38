"""The tables of the comparisons that are none of the six sweeps: results/NAME.csv as Markdown, into results/NAME.md.

    make width | ground-truth | baselines     # the comparison of comparisons/NAME.yaml; TITLES says what each asks

Each runs what its CSV lacks, on the local engine, and then makes the table anew.
"""

import sys
from pathlib import Path

import pandas as pd

from lvae import need
from record import guarded, read_csv, write_atomically
from report import markdown
from tools.verify import finished_rows

ROOT = Path(__file__).parent.parent
TITLES = {
    "width": "Does the answer depend on the width that training starts from?",
    "ground-truth": "Does pruning find a dimension that is known?",
    "baselines": "What do pruning and least volume buy over a plain autoencoder?",
}


def numbers_of(group):
    """Means of dimensions, val_rec and its ratio to PCA's error, with their standard errors, as text."""
    forms = (("active_dims", ".1f"), ("val_rec", ".5f"), ("pca_ratio", ".3f"))
    errors = [f" ± {group[key].sem():{form}}" if len(group) > 1 else "" for key, form in forms]
    return [f"{group[key].mean():{form}}{error}" for (key, form), error in zip(forms, errors, strict=True)]


def means(rows, by):
    """A line a problem and `by`: runs, and numbers_of() them."""
    cells = [[*key, len(group), *numbers_of(group)] for key, group in rows.groupby(["problem", by])]
    return markdown(["problem", by, "runs", "dims kept", "val_rec", "ratio to PCA"], cells)


def width(rows):
    """means() by width, and the front of the same runs: a line a problem and number of dimensions kept."""
    front, title = [], "The same runs by the number of dimensions that they kept, from whatever width:"
    for key, group in rows.groupby(["problem", "active_dims"]):
        front.append([*key, ", ".join(map(str, sorted(group["latent_dim"]))), *numbers_of(group)[1:]])
    front = markdown(["problem", "dims kept", "from", "val_rec", "ratio to PCA"], front)
    return f"{means(rows, 'latent_dim')}\n\n{title}\n\n{front}"


def ground_truth(rows):
    """A row a number of factors k and width: dims, errors, how many runs kept k..2k+1, and exactly k."""
    k, dims = rows["toy_dims"], rows["active_dims"]
    rows = rows.assign(right=(k <= dims) & (dims <= 2 * k + 1) & (rows["val_rec"] < 5e-4), exact=dims == k)
    cells = []
    for (k, latent_dim), group in rows.groupby(["toy_dims", "latent_dim"]):
        dims, errors = ", ".join(map(str, group["active_dims"])), ", ".join(f"{v:.1e}" for v in group["val_rec"])
        counts = [f"{group[key].sum()} of {len(group)}" for key in ("right", "exact")]
        cells.append([k, latent_dim, dims, errors, *counts])
    cells.append(["all", "", "", "", *(f"{rows[key].sum()} of {len(rows)}" for key in ("right", "exact"))])
    return markdown(["k", "latent_dim", "dims kept", "val_rec", "k..2k+1, val_rec < 5e-4", "exactly k"], cells)


def method_of(row):
    """The method that made a row of results/baselines.csv, in words."""
    if row["strategy"] == "none":
        return f"plain autoencoder of {row['active_dims']}"
    return f"least volume, {'the defaults' if row['arm'] == 'strategy=plummet' else row['arm']}"


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
    rows = finished_rows(path)
    need(len(rows), f"{path}: has no finished run; make {name} makes them")
    if name == "width":  # the default width is a method of make baselines, on the same seeds
        other = finished_rows(path.with_name("baselines.csv"))
        rows = pd.concat([rows, other[other["arm"] == "strategy=plummet"]])
    numbers = ["toy_dims", "latent_dim", "active_dims", "val_rec", "pca_ratio"]
    rows = rows.assign(**{key: pd.to_numeric(rows[key]) for key in numbers}).sort_values("seed")
    if name == "baselines":
        return means(rows.assign(method=rows.apply(method_of, axis=1)), "method")
    return width(rows) if name == "width" else ground_truth(rows)


def main(argv=None):
    return guarded("tools.comparison", run, (sys.argv[1:] if argv is None else argv)[0])


def run(name):
    text = table(name, ROOT / f"results/{name}.csv")
    if name == "baselines" and len(others := read_csv(ROOT / "results/rivals.csv")):
        text += f"\n\nMethods that are cut after k axes (tools/rivals.py), and estimates:\n\n{rivals(others)}"
    made = f"`make {name}` goes on from the rows of [{name}.csv]({name}.csv) and makes this page."
    write_atomically(ROOT / f"results/{name}.md", f"# {TITLES[name]}\n\n{made}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
