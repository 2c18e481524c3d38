"""What a finished run's model can draw: latent traversals, reconstructions best to worst, interpolations, samples, and their physics.

    python -m tools.gallery --run runs/<id>              # make gallery RUN=runs/<id>; the run needs model.pt (train with --save_model)

Expect report/gallery-<id>/index.html in about a minute on a CPU: most of it is the physics, one simulation a design (--physics 0: none).
A pixel error is not what an engineer cares about, so designs are also scored with EngiBench's objective.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import data
from lvae import load
from report import COLOURS, Page, change, log_axis, num, panel
from tools.designs import objective

STEPS = 7  # of a traversal and of an interpolation
OBJECTIVE = {  # name, what is better, what else to look at; all dimensionless (tools/designs.py)
    "beams2d": ("compliance", "lower", "More material makes it better by itself: look at the volume, too."),
    "heatconduction2d": (
        "thermal compliance",
        "lower",
        "More conductor makes it better by itself: look at the volume, too.",
    ),
    "photonics2d": (
        "mode overlap",
        "higher",
        "It is the product of the two overlaps less a small penalty on material, and may be negative. Designs are scored as "
        "they are, as Photonics2D v1 does: v0 blurs and projects a finished design once more (EngiBench's pull request 264).",
    ),
}
PER_PAGE = 20  # rows of a traversal figure


def images(rows, labels=None, columns=None, size=1.1):
    """A figure of designs: rows is a list of lists of (H, W) arrays in [0, 1], shown dark on light as the material is drawn."""
    wide = max(len(row) for row in rows)
    height, width = rows[0][0].shape
    figure = Figure(
        figsize=(size * wide + (0.9 if labels else 0), size * height / width * len(rows) + (0.3 if columns else 0.1)),
        layout="constrained",
    )
    axes = figure.subplots(len(rows), wide, squeeze=False)
    for i, row in enumerate(rows):
        for j in range(wide):
            axis = axes[i, j]
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if j < len(row):
                axis.imshow(row[j], cmap="gray_r", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
            if j == 0 and labels:
                axis.set_ylabel(labels[i], rotation=0, ha="right", va="center", fontsize=7)
            if i == 0 and columns:
                axis.set_title(columns[j], fontsize=7)
    return figure


def frame(x):
    """(rows, columns) slices of the part of the domain in which designs (N, 1, H, W) differ: photonics2d's has a wide empty margin."""
    varies = (x.amax(0) - x.amin(0))[0] > 0.01
    rows, columns = varies.any(1).nonzero().flatten().tolist(), varies.any(0).nonzero().flatten().tolist()
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if rows else (slice(None), slice(None))


def open_run(folder):
    """(config, model, designs) of a finished run. Raises data.InputError with one line."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        flags, source, sha256 = config["flags"], config["data"]["source"], config["data"]["sha256"]
        problem, wanted = flags["problem"], flags["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise data.InputError(
            f"--run {folder}: its config.json cannot be read ({type(error).__name__}); allowed: a run folder"
        ) from None
    if not (folder / "model.pt").exists():
        raise data.InputError(
            f"--run {folder}: no model.pt; train with --save_model=True, or run the record again with it"
        )
    designs = data.load(problem, wanted, flags.get("toy_dims", 3), flags.get("n_train", 0))
    if designs.fingerprint["sha256"] != sha256:
        raise data.InputError(
            f"--run {folder}: it was trained on other designs ({source}) than --data {wanted} gives here"
        )
    return config, load(folder / "model.pt"), designs


@torch.no_grad()
def draw(page, config, model, designs, count, simulations):
    """All sections of the page. count: designs a row of pictures shows; simulations: how many designs are scored."""
    x = designs.val  # (N, 1, H, W)
    z = model.encode(x)  # (N, k)
    y = model.decode(z)
    error = ((y - x) ** 2).mean((1, 2, 3))
    order = error.argsort()
    picked = order[torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()]
    page.section(
        "Reconstructions, best to worst",
        "Validation designs, from the smallest to the largest squared error; the steps between are equal.",
    )
    part = frame(x)
    rows = [[d[0][part].numpy() for d in row] for row in (x[picked], y[picked], (y - x)[picked].abs())]
    told = f"mean squared error from {num(float(error.min()))} to {num(float(error.max()))}, median {num(float(error.median()))}"
    columns, shown = [f"{float(e):.2g}" for e in error[picked]], rows[0][0].shape
    page.image(
        "reconstructions",
        images(rows, ["design", "reconstruction", "difference"], columns),
        f"{len(picked)} validation designs, their reconstructions and the differences: {told}",
        f"{told[0].upper() + told[1:]}. The column title is the error. Dark is material."
        + (
            f" Shown: the {shown[0]} x {shown[1]} pixels in which designs differ."
            if shown != tuple(x.shape[2:])
            else ""
        ),
    )
    if simulations and config["flags"]["problem"] in OBJECTIVE and designs.conditions["val"]:
        physics(page, config["flags"]["problem"], designs, x, y, model, simulations)
    traversals(page, model, z, part)
    page.section(
        "Interpolation",
        "Straight lines in the latent space between two validation designs: the ends are reconstructions.",
    )
    pairs = np.random.default_rng(0).permutation(len(x))[: 2 * min(4, len(x) // 2)].reshape(-1, 2)
    t = torch.linspace(0, 1, STEPS)[:, None]
    rows = [[x[a, 0], *model.decode((1 - t) * z[a] + t * z[b])[:, 0], x[b, 0]] for a, b in pairs.tolist()]
    rows = [[design[part].numpy() for design in row] for row in rows]
    page.image(
        "interpolation",
        images(rows, columns=["design", *(f"{float(v):.2f}" for v in t[:, 0]), "design"]),
        f"{len(rows)} interpolations between two validation designs in {STEPS} steps",
        "Left and right: the designs themselves.",
    )
    page.section(
        "Samples",
        "New designs: latents drawn from a Gaussian with the training designs' mean and std in each dimension.",
    )
    drawn = model.sample(2 * count, seed=0)[:, 0][(slice(None), *part)].numpy()
    page.image(
        "samples",
        images([list(drawn[:count]), list(drawn[count:])]),
        f"{2 * count} designs drawn at random",
        "Dimensions are drawn independently of one another, which real designs need not be.",
    )


def traversals(page, model, z, part):
    """Each kept dimension from the 1st to the 99th percentile of the validation designs, the others at their mean; widest first."""
    k, order = z.shape[1], z.std(0).argsort(descending=True)
    low, high = torch.quantile(z, 0.01, dim=0), torch.quantile(z, 0.99, dim=0)
    page.section(
        "Latent traversals",
        f"Each of the {k} kept dimensions swept from the 1st to the 99th percentile of the validation designs, the others "
        "at their mean, the most varying dimension first. A row in which nothing moves is a dimension that could still go.",
    )
    for first in range(0, k, PER_PAGE):
        rows, labels = [], []
        for i in order[first : first + PER_PAGE].tolist():
            point = z.mean(0).repeat(STEPS, 1)
            point[:, i] = torch.linspace(float(low[i]), float(high[i]), STEPS)
            rows.append([design[part].numpy() for design in model.decode(point)[:, 0]])
            labels.append(f"dim {model.dims[i]}\nstd {num(float(z[:, i].std()), 2)}")
        last = first + len(rows)
        page.image(
            f"traversals-{first + 1}",
            images(rows, labels),
            f"traversals of kept dimensions {first + 1} to {last} of {k}, most varying first",
            f"Dimensions {first + 1} to {last} of {k}; left the 1st, right the 99th percentile.",
        )


def physics(page, problem, designs, x, y, model, count):
    """The objective of originals, of their reconstructions, and of samples under the conditions of the nearest original."""
    conditions = designs.conditions["val"]
    name, better, advice = OBJECTIVE[problem]

    def score(i, design):
        return objective(
            problem, {name: v[i].item() for name, v in conditions.items()}, np.asarray(design, dtype=float).clip(0, 1)
        )

    chosen = np.random.default_rng(0).permutation(len(x))[:count].tolist()
    rows = []
    for i in chosen:
        own, other = score(i, x[i, 0]), score(i, y[i, 0])
        rows.append(
            (
                "reconstruction",
                i,
                own,
                other,
                float(x[i].mean()),
                float(y[i].mean()),
                float(((y[i] - x[i]) ** 2).mean()),
            )
        )
    for drawn in model.sample(count, seed=0):
        # A sample has no conditions: it is scored under those of the validation design that looks most like it
        i = int(((x - drawn) ** 2).mean((1, 2, 3)).argmin())
        own, other = score(i, x[i, 0]), score(i, drawn[0])
        rows.append(
            ("sample", i, own, other, float(x[i].mean()), float(drawn.mean()), float(((drawn - x[i, 0]) ** 2).mean()))
        )
    page.section(
        "Physics",
        f"The objective of EngiBench's {problem}, simulated, beside the originals': {name}, dimensionless, {better} is better. "
        "A sample is scored under the conditions of the validation design nearest to it in pixels, and compared with that design.",
    )
    items = []
    for kind in ("reconstruction", "sample"):
        own, other = np.array([r[2:4] for r in rows if r[0] == kind]).T
        ratio = np.log(other / own) if (own > 0).all() and (other > 0).all() else None
        told = (
            f"median change {change(float(np.median(ratio)))}"
            if ratio is not None
            else f"median {num(float(np.median(other)))} against {num(float(np.median(own)))}"
        )
        figure, axes = panel(f"{kind}s", wide=True, height=3.2)
        ends = [min(own.min(), other.min()), max(own.max(), other.max())]
        axes.plot(ends, ends, color=COLOURS[7], lw=1, ls="--")
        axes.plot(own, other, "o", color=COLOURS[0], mfc="none", ms=4)
        axes.set(xlabel=f"{name} of the original", ylabel=f"{name} of the {kind}")
        if ratio is not None and ends[1] / ends[0] > 10:
            log_axis(axes.xaxis)
            log_axis(axes.yaxis)
        items.append(
            (
                f"physics-{kind}",
                figure,
                f"{name} of {len(own)} originals and their {kind}s: {told}",
                f"On the dashed line: as good as the original; {'above' if better == 'lower' else 'below'} it: worse. "
                f"{told[0].upper() + told[1:]}.",
            )
        )
    page.figures(items, wide=True)
    columns = [
        "what",
        "validation design",
        "objective of the original",
        "its objective",
        "volume of the original",
        "its volume",
        "squared error",
    ]
    page.table(
        "physics",
        columns,
        [list(r) for r in rows],
        f"Every design that was simulated. {advice}",
        closed=True,
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a finished run with model.pt")
    parser.add_argument("--out", default="report", help="folder for the page (report)")
    parser.add_argument("--designs", type=int, default=8, help="designs in a row of pictures (8)")
    parser.add_argument("--physics", type=int, default=12, help="designs of each kind to simulate; 0: none (12)")
    args = parser.parse_args(argv)
    try:
        if args.designs < 2 or args.physics < 0:
            raise data.InputError(
                f"--designs {args.designs} --physics {args.physics}: allowed: at least 2, and at least 0"
            )
        config, model, designs = open_run(args.run)
        page = Page(Path(args.out) / f"gallery-{config['id']}", f"Gallery of {config['name']}")
        summary = Path(args.run) / "summary.json"
        summary = json.loads(summary.read_text()) if summary.exists() else {}
        page.facts(
            [
                ("Run", f"{config['name']}, {config['flags']['n_epochs']} epochs, {config['flags']['strategy']}"),
                (
                    "Result",
                    f"val_rec {num(summary.get('val_rec'))}, {len(model.dims)} of {config['flags']['latent_dim']} dims kept",
                ),
                (
                    "Data",
                    f"{designs.fingerprint['source']}, {len(designs.val)} validation designs; the test designs are not touched",
                ),
            ]
        )
        draw(page, config, model.eval(), designs, args.designs, args.physics)
        path = page.write()
    except data.InputError as error:
        print(f"tools.gallery: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tools.gallery: --out {args.out}: cannot write ({error.strerror or error})", file=sys.stderr)
        return 4
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
