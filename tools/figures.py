"""The figures of a run, drawn by train.py at its end: figures/spectrum.png, reconstructions, interpolation, samples, curves."""

import csv

import matplotlib

matplotlib.use("Agg")  # no screen needed
import matplotlib.pyplot as plt
import numpy as np
import torch


def _save(figure, path):
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _mosaic(axis, rows, labels, title):
    """Rows of designs, each (n, H, W), one under another, white = 0, black = 1. One picture of all: an axis for each takes seconds."""
    n, (height, width) = max(map(len, rows)), rows[0].shape[1:]
    gap = 1 + width // 12
    mosaic = np.zeros((len(rows) * (height + gap) - gap, n * (width + gap) - gap))
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = i * (height + gap)
        for j, image in enumerate(row):
            mosaic[y : y + height, j * (width + gap) : j * (width + gap) + width] = image
        axis.text(-gap, y + height / 2, label, ha="right", va="center")
    axis.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1)
    axis.set_axis_off()
    axis.set_title(title)


def _grid(rows, labels, path, title):
    height, width = rows[0].shape[1:]
    figure, axis = plt.subplots(figsize=(1.5 * max(map(len, rows)), 1.6 * height / width * len(rows) + 0.5))
    _mosaic(axis, rows, labels, title)
    _save(figure, path)


def _spectrum(trainer, rows, path):
    """The latent spectrum, and beside it designs over what the kept dimensions make of them: rows, two of (n, H, W)."""
    std, active = trainer.pruner.std.cpu().numpy(), trainer.pruner.active.cpu().numpy()
    order = np.argsort(-std, kind="stable")
    figure, (axis, beside) = plt.subplots(1, 2, figsize=(13, 3.5), width_ratios=(1, 1.4), gridspec_kw=dict(wspace=0.3))
    _mosaic(
        beside, rows, ["design", "reconstruction"], f"Validation designs, reconstructed from {active.sum()} dimensions"
    )
    rank = np.arange(1, len(std) + 1)
    for chosen, colour, label in (
        (active, "C0", f"kept ({active.sum()})"),
        (~active, "C3", f"pruned ({(~active).sum()})"),
    ):
        axis.semilogy(rank[chosen[order]], std[order][chosen[order]] + 1e-12, ".", color=colour, label=label)
    axis.set(
        xlabel="latent dimension, sorted",
        ylabel="standard deviation, mean over batches",
        title="Latent spectrum: the cliff is where to cut",
    )
    axis.legend()
    _save(figure, path)


def _curves(folder, path):
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    epoch = [int(r["epoch"]) for r in rows]
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7, 5))
    for key in ("rec_loss", "val_rec", "vol_loss"):
        top.semilogy(epoch, [float(r[key]) for r in rows], label=key)
    bottom.step(epoch, [int(r["active_dims"]) for r in rows], where="post", color="C0")
    for r in rows:
        if int(r["pruned"]):
            for axis in (top, bottom):
                axis.axvline(int(r["epoch"]), color="C3", alpha=0.3, linewidth=1)
    top.set(title="Training; a red line marks an epoch that pruned", ylabel="loss")
    bottom.set(xlabel="epoch", ylabel="active dimensions", ylim=(0, None))
    top.legend()
    _save(figure, path)


@torch.no_grad()
def draw(trainer, folder, n=8):
    """Draw all figures of a Trainer into folder/figures: designs and reconstructions are those of the validation split."""
    out, val, pruner = folder / "figures", trainer.val, trainer.pruner
    z, images = trainer.reconstruct(val)
    order = (images - val).square().mean((1, 2, 3)).argsort()
    chosen = order[torch.linspace(0, len(order) - 1, min(n, len(order))).long()]  # from the best to the worst
    rows = [val[chosen, 0].cpu().numpy(), images[chosen, 0].cpu().numpy()]
    _grid(
        rows,
        ["design", "reconstruction"],
        out / "reconstructions.png",
        "Validation designs, best reconstructed to worst",
    )
    between = slice(len(chosen) // 8, None, max(1, len(chosen) // 4))  # four of them, the best left out
    _spectrum(trainer, [row[between] for row in rows], out / "spectrum.png")

    steps = torch.linspace(0, 1, n, device=z.device)[:, None]
    pairs = [(chosen[i], chosen[-1 - i]) for i in range(min(3, len(chosen) // 2))] or [(chosen[0], chosen[0])]
    rows = [trainer.model.decode((1 - steps) * z[a] + steps * z[b])[:, 0].cpu().numpy() for a, b in pairs]
    _grid(
        rows,
        ["" for _ in rows],
        out / "interpolation.png",
        "Straight lines in latent space between two validation designs",
    )

    noise = torch.randn(2 * n, len(pruner.std), generator=torch.Generator().manual_seed(0)).to(z.device)
    samples = trainer.model.decode(pruner.mask(pruner.mean + pruner.std * noise))[:, 0].cpu().numpy()
    _grid(
        [samples[:n], samples[n:]],
        ["", ""],
        out / "samples.png",
        "Random designs: a Gaussian with the latents' mean and std, decoded",
    )
    _curves(folder, out / "curves.png")
