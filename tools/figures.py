"""The figures that train.py draws at a run's end: spectrum.png, reconstructions, interpolation, samples, curves."""

import matplotlib

matplotlib.use("Agg")  # no screen needed
import matplotlib.pyplot as plt
import numpy as np
import torch

from record import read_csv


def _save(figure, path):
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def mosaic(axis, rows, labels, titles=None, fontsize=None):
    """Rows of designs, each (n, H, W), white = 0, black = 1, as one picture: an axis for each design takes seconds.

    labels: a text beside each row; titles: a text, or None, above each design.
    """
    n, (height, width) = max(map(len, rows)), rows[0].shape[1:]
    gap = 1 + width // 12
    head = 2 * gap if titles else 0
    step = head + height + gap
    picture = np.zeros((len(rows) * step - gap, n * (width + gap) - gap))
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = i * step + head
        axis.text(-gap, y + height / 2, label, ha="right", va="center", fontsize=fontsize)
        for j, image in enumerate(row):
            x = j * (width + gap)
            picture[y : y + height, x : x + width] = image
            if titles and titles[i][j]:
                axis.text(x + width / 2, y - gap / 2, titles[i][j], ha="center", fontsize=fontsize)
    axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest" if titles else None)
    axis.set_axis_off()


def _grid(rows, path, title, labels=None):
    height, width = rows[0].shape[1:]
    figure, axis = plt.subplots(figsize=(1.5 * max(map(len, rows)), 1.6 * height / width * len(rows) + 0.5))
    mosaic(axis, rows, labels or [""] * len(rows))
    axis.set_title(title)
    _save(figure, path)


def _spectrum(trainer, rows, path):
    """The latent spectrum, and beside it designs over what the kept dimensions make of them: rows, two of (n, H, W)."""
    std, active = trainer.pruner.std.cpu().numpy(), trainer.pruner.active.cpu().numpy()
    order = np.argsort(-std, kind="stable")
    figure, (axis, beside) = plt.subplots(1, 2, figsize=(13, 3.5), width_ratios=(1, 1.4), gridspec_kw=dict(wspace=0.3))
    mosaic(beside, rows, ["design", "reconstruction"])
    beside.set_title(f"Validation designs, reconstructed from {active.sum()} dimensions")
    rank = np.arange(1, len(std) + 1)
    for chosen, colour, label in ((active, "C0", "kept"), (~active, "C3", "pruned")):
        there = chosen[order]
        axis.semilogy(rank[there], std[order][there] + 1e-12, ".", color=colour, label=f"{label} ({chosen.sum()})")
    axis.set(xlabel="latent dimension, sorted", ylabel="standard deviation, mean over batches")
    axis.set_title("Latent spectrum: the cliff is where to cut")
    axis.legend()
    _save(figure, path)


def _curves(folder, path):
    rows = read_csv(folder / "metrics.csv").replace("", "nan").astype(float)
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7, 5))
    for key in ("rec_loss", "val_rec", "vol_loss"):
        top.semilogy(rows["epoch"], rows[key], label=key)
    bottom.step(rows["epoch"], rows["active_dims"], where="post", color="C0")
    for epoch in rows["epoch"][rows["pruned"] != 0]:
        for axis in (top, bottom):
            axis.axvline(epoch, color="C3", alpha=0.3, linewidth=1)
    top.set(title="Training; a red line marks an epoch that pruned", ylabel="loss")
    bottom.set(xlabel="epoch", ylabel="active dimensions", ylim=(0, None))
    top.legend()
    _save(figure, path)


@torch.no_grad()
def draw(trainer, folder, n=8):
    """Draw all figures of a Trainer into folder/figures: designs and reconstructions are the validation split's."""
    out, val, pruner = folder / "figures", trainer.val, trainer.pruner

    def decoded(z):
        return trainer.model.decode(z)[:, 0].cpu().numpy()

    z, images = trainer.reconstruct(val)
    order = (images - val).square().mean((1, 2, 3)).argsort()
    chosen = order[torch.linspace(0, len(order) - 1, min(n, len(order))).long()]  # from the best to the worst
    rows, title = [val[chosen, 0].cpu().numpy(), images[chosen, 0].cpu().numpy()], "best reconstructed to worst"
    _grid(rows, out / "reconstructions.png", f"Validation designs, {title}", ["design", "reconstruction"])
    between = slice(len(chosen) // 8, None, max(1, len(chosen) // 4))  # four of them, the best left out
    _spectrum(trainer, [row[between] for row in rows], out / "spectrum.png")

    steps = torch.linspace(0, 1, n, device=z.device)[:, None]
    pairs = [(chosen[i], chosen[-1 - i]) for i in range(min(3, len(chosen) // 2))] or [(chosen[0], chosen[0])]
    rows = [decoded((1 - steps) * z[a] + steps * z[b]) for a, b in pairs]
    _grid(rows, out / "interpolation.png", "Straight lines in latent space between two validation designs")

    noise = torch.randn(2 * n, len(pruner.std), generator=torch.Generator().manual_seed(0)).to(z.device)
    drawn = decoded(pruner.mask(pruner.mean + pruner.std * noise))
    title = "Random designs: a Gaussian with the latents' mean and std, decoded"
    _grid([drawn[:n], drawn[n:]], out / "samples.png", title)
    _curves(folder, out / "curves.png")
