"""Does the answer depend on the width that training starts from? The table of results/width.csv, as Markdown.

make width      # runs what results/width.csv lacks (comparisons/width.yaml: 36 runs of 2 to 4 minutes), then prints this table
"""

from pathlib import Path

import pandas as pd

from record import read_csv


def table(path):
    """A row a problem and width: runs, and mean and standard error of dimensions, val_rec and its ratio to PCA's error."""
    rows = read_csv(path).query("status == 'finished'")
    numbers = ["latent_dim", "active_dims", "val_rec", "pca_ratio"]
    rows[numbers] = rows[numbers].apply(pd.to_numeric)
    groups = rows.groupby(["problem", "latent_dim"])
    lines = [
        "| problem | latent_dim | runs | dims kept | val_rec | ratio to PCA |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (problem, width), group in groups:
        cells = [problem, str(width), str(len(group))]
        for key, form in ("active_dims", ".1f"), ("val_rec", ".5f"), ("pca_ratio", ".3f"):
            error = f" ± {group[key].sem():{form}}" if len(group) > 1 else ""
            cells.append(f"{group[key].mean():{form}}{error}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(__file__).parent.parent / "results/width.csv"))
