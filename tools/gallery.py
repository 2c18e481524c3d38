"""What a finished run's model draws: reconstructions, what each latent dimension does, and the designs' physics.

    python -m tools.gallery --run runs/<id>              # make gallery RUN=runs/<id>; the run needs its model.pt

Expect report/gallery-<id>/index.html in about a minute on a CPU: most of it is the physics, one simulation a design
(--physics 0: none). A pixel error is not what an engineer cares about, so designs are also scored with EngiBench's
objective.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
from lvae import InputError, load, need
from record import Parser, guarded, read_json
from report import COLOURS, Page, num, panel
from tools.designs import objective
from tools.figures import images

STEPS = 7  # of a traversal
ROWS = 8  # dimensions whose traversals one picture shows
OBJECTIVE = {  # name, what is better, what else to look at; all dimensionless (tools/designs.py)
    "beams2d": ("compliance", "lower", "More material makes it better by itself: look at the volume, too."),
    "heatconduction2d": ("thermal compliance", "lower", "More conductor makes it better: look at the volume, too."),
    "photonics2d": ("mode overlap", "higher", "It is a product less a penalty on material, and may be negative."),
}
PHYSICS = ["what", "validation design", "objective of the original", "its objective"]
PHYSICS += ["volume of the original", "its volume", "squared error"]


def open_run(folder):
    """(config, model, designs) of a finished run. Raises InputError."""
    config = read_json(folder / "config.json")
    try:
        flags, wanted, sha256 = config["flags"], config["flags"]["data"], config["data"]["sha256"]
        problem, about = flags["problem"], (config["id"], config["name"], config["data"]["source"])
    except (KeyError, TypeError):
        raise InputError(f"--run {folder}: its config.json cannot be read; allowed: a run folder") from None
    advice = "train with --save_model=True, or run its config.json again with it"
    need((folder / "model.pt").exists(), f"--run {folder}: no model.pt; {advice}")
    designs = data.load(problem, wanted, flags.get("toy_dims", 3), flags.get("n_train", 0))
    other = f"other designs ({about[2]}) than --data {wanted} gives here"
    need(designs.fingerprint["sha256"] == sha256, f"--run {folder}: it was trained on {other}")
    return config, load(folder / "model.pt"), designs


@torch.no_grad()
def draw(page, problem, model, designs, count, simulations):
    """All sections of the page. count: designs a row of pictures shows; simulations: how many designs are scored."""
    x = designs.val  # (N, 1, H, W)
    z = model.encode(x)  # (N, k)
    y = model.decode(z)
    error = (y - x).square().mean((1, 2, 3))
    order = error.argsort()
    picked = order[torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()]
    about = "Validation designs at equal steps of the rank of their error. In all pictures dark is material."
    page.section("Reconstructions, best to worst", about)
    low, middle, high = (num(v) for v in torch.quantile(error, torch.tensor([0, 0.5, 1])).tolist())
    told = f"mean squared error from {low} to {high}, median {middle}"
    titles = [[None] * len(picked), [f"error {e:.2g}" for e in error[picked].tolist()], [None] * len(picked)]
    rows = [batch[:, 0].numpy() for batch in (x[picked], y[picked], (y - x)[picked].abs())]
    figure = images(rows, ["design", "reconstruction", "difference"], titles)
    alt = f"validation designs and their reconstructions: {told}"
    page.figures([("reconstructions", figure, alt, f"{told}.")], "pixels")
    if simulations and problem in OBJECTIVE and designs.conditions["val"]:
        physics(page, problem, designs, y, model, simulations)
    traversals(page, model, x, z)


def traversals(page, model, x, z):
    """Each kept dimension from the 1st to the 99th percentile of the validation designs, the others at their mean."""
    k, mean = z.shape[1], z.mean(0)
    low, high = torch.quantile(z, 0.01, dim=0), torch.quantile(z, 0.99, dim=0)
    held = [torch.where(torch.arange(k) == i, mean, z) for i in range(k)]
    errors = [F.mse_loss(model.decode(point), x) for point in (*held, z)]
    cost = torch.stack(errors[:-1]) - errors[-1]
    order = cost.argsort(descending=True).tolist()
    told = f"Each of the {k} kept dimensions swept from the 1st to the 99th percentile of the validation designs, the "
    told += "others at their mean. First the dimension that matters most. The number is what the error grows by where "
    told += "it is held at its mean. A row in which nothing moves is a dimension that could still go."
    page.section("Latent traversals", told)
    for first in range(0, k, ROWS):
        rows, chosen = [], order[first : first + ROWS]
        for i in chosen:
            point = mean.repeat(STEPS, 1)
            point[:, i] = torch.linspace(float(low[i]), float(high[i]), STEPS)
            rows.append(model.decode(point)[:, 0].numpy())
        which = f"Dimensions {first + 1} to {first + len(rows)} of {k}, swept, those that matter most first"
        figure = images(rows, [f"dim {model.dims[i]}\n{num(float(cost[i]), '.2g')}" for i in chosen])
        page.figures([(f"traversals-{first + 1}", figure, which, f"{which}.")], "pixels")


def physics(page, problem, designs, y, model, count):
    """The objective of originals, of their reconstructions y, and of samples under the conditions of the nearest."""
    x, conditions = designs.val, designs.conditions["val"]
    name, better, advice = OBJECTIVE[problem]

    def row(what, i, design):
        own = {key: values[i].item() for key, values in conditions.items()}
        scores = (objective(problem, own, np.asarray(d[0], dtype=float).clip(0, 1)) for d in (x[i], design))
        volumes = float(x[i].mean()), float(design.mean())
        return [what, i, *scores, *volumes, float(((design - x[i]) ** 2).mean())]

    chosen = np.random.default_rng(0).permutation(len(x))[:count].tolist()
    rows = [row("reconstruction", i, y[i]) for i in chosen]
    # A sample has no conditions: it is scored under those of the validation design that looks most like it
    rows += [row("sample", int((x - d).square().sum((1, 2, 3)).argmin()), d) for d in model.sample(count, seed=0)]
    told = f"The objective of EngiBench's {problem}, simulated, beside the originals': {name}, dimensionless, {better} "
    told += "is better. A sample is scored under the conditions of the validation design nearest to it in pixels, and "
    page.section("Physics", f"{told}compared with that design.")
    items = []
    for kind in ("reconstruction", "sample"):
        own, other = np.array([r[2:4] for r in rows if r[0] == kind]).T
        told = f"median {num(np.median(other))} against {num(np.median(own))}"
        figure, axes = panel(f"{kind}s")
        ends = [min(own.min(), other.min()), max(own.max(), other.max())]
        axes.plot(ends, ends, color=COLOURS[7], lw=1, ls="--")
        axes.plot(own, other, "o", color=COLOURS[0], mfc="none", ms=4)
        axes.set(xlabel=f"{name} of the original", ylabel=f"{name} of the {kind}")
        worse = "above" if better == "lower" else "below"
        caption = f"On the dashed line: as good as the original; {worse} it: worse. {told.capitalize()}."
        items.append((f"physics-{kind}", figure, f"{name} of {len(own)} originals and their {kind}s: {told}", caption))
    page.figures(items)
    page.table("physics", PHYSICS, rows, f"Every design that was simulated. {advice}")


def run(args):
    need(args.designs >= 2 and args.physics >= 0, "--designs, --physics: allowed: at least 2, and at least 0")
    config, model, designs = open_run(args.run)
    flags, val_rec = config["flags"], (read_json(args.run / "summary.json") or {}).get("val_rec")
    page = Page(args.out / f"gallery-{config['id']}", f"Gallery of {config['name']}")
    source, n = designs.fingerprint["source"], len(designs.val)
    page.terms.append(("Run", f"{config['name']}, {flags['n_epochs']} epochs, {flags['strategy']}"))
    page.terms.append(("Result", f"val_rec {num(val_rec)}, {len(model.dims)} of {flags['latent_dim']} dims kept"))
    page.terms.append(("Data", f"{source}, {n} validation designs; the test designs are not touched"))
    draw(page, flags["problem"], model.eval(), designs, args.designs, args.physics)
    print(page.write())


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--run", required=True, type=Path, help="folder of a finished run with model.pt")
    p.add_argument("--out", default="report", type=Path, help="folder for the page (report)")
    p.add_argument("--designs", type=int, default=8, help="designs in a row of pictures (8)")
    p.add_argument("--physics", type=int, default=12, help="designs of each kind to simulate; 0: none (12)")
    args = p.parse_args(argv)
    return guarded("tools.gallery", run, args, cannot=f"--out {args.out}: cannot write")


if __name__ == "__main__":
    sys.exit(main())
