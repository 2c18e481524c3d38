"""What it does, without training: the model of beams in models/, its row, and a design for new conditions.

make demo       # writes report/demo/index.html, and opens it where there is a browser
"""

import sys
import webbrowser
from pathlib import Path

import torch

import data
from lvae import load
from record import Parser, guarded, read_json
from report import Page, num
from tools import design, figures, gallery
from tools.designs import objective

CONDITIONS = "volfrac=0.3 rmin=2 forcedist=0.4"


def run(folder):
    at = Path(__file__).parent.parent / "models" / "beams2d"
    model, flags = load(at), read_json(at / "config.json")["flags"]
    problem, k = flags["problem"], len(model.dims)
    designs = data.load(problem, "sample")
    page = Page(folder, f"{k} numbers for a beam")
    told = f"This model began with {flags['latent_dim']} numbers for a beam and gave up all but {k}. Below: how well "
    told += "they describe beams that it has not seen, a beam for new conditions, and what each number does."
    page.section(text=told)
    with torch.no_grad():
        error = (model(designs.val) - designs.val).square().mean().item()
    pca = read_json(at / "summary.json")["pca_rec"]
    header = ["problem", f"numbers kept of {flags['latent_dim']}", "error", "PCA's error with as many", "ratio"]
    caption = f"The error is the mean squared error a pixel over {len(designs.val)} validation designs."
    page.table("row", header, [[problem, k, error, pca, error / pca]], caption)

    conditions, _ = design.settled(problem, design.read(CONDITIONS))
    found = design.make(model, designs, conditions, 0, False)
    page.section("A design for new conditions", f"Conditions: {CONDITIONS}. Less compliance is better.")
    titles = [f"compliance {num(objective(problem, conditions, x))}" for x in found.values()]
    left, right = found
    caption = f"Left: {left}. Right: the {right}. Both have the volume that is asked for."
    picture = figures.images([list(found.values())], titles=[titles])
    page.figures([("design", picture, f"{left}; {right}", caption)], "pixels")
    gallery.draw(page, problem, model, designs, 8, 0)
    path = page.write()
    print(path)
    webbrowser.open(path.resolve().as_uri())


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", default="report/demo", type=Path, help="folder for the page (report/demo)")
    args = parser.parse_args(argv)
    return guarded("tools.demo", run, args.out, cannot=f"--out {args.out}: cannot write")


if __name__ == "__main__":
    sys.exit(main())
