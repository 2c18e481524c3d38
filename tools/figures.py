"""The figures that train.py draws at a run's end: spectrum.png, reconstructions, interpolation, samples, curves."""

import numpy as np
import torch
from matplotlib.figure import Figure  # not pyplot, which takes longer to import, and keeps figures open

from record import read_csv


def _save(figure, path):
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches=None if figure.get_layout_engine() else "tight")


def mosaic(axis, rows, labels=None, titles=None, fontsize=None):
    """Rows of designs, each (n, H, W), white = 0, black = 1, as one picture: an axis for each design takes seconds.

    labels: a text beside each row; titles: a text, or None, above each design.
    """
    n, (height, width) = max(map(len, rows)), rows[0].shape[1:]
    gap = 1 + width // 12
    head = 2 * gap if titles else 0
    step = head + height + gap
    picture = np.zeros((len(rows) * step - gap, n * (width + gap) - gap))
    for i, (row, label) in enumerate(zip(rows, labels or [""] * len(rows), strict=True)):
        y = i * step + head
        axis.text(-gap, y + height / 2, label, ha="right", va="center", fontsize=fontsize)
        for j, image in enumerate(row):
            x = j * (width + gap)
            picture[y : y + height, x : x + width] = image
            if titles and titles[i][j]:
                axis.text(x + width / 2, y - gap / 2, titles[i][j], ha="center", fontsize=fontsize)
    axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest" if titles else None)
    axis.set_axis_off()


def images(rows, labels=None, titles=None):
    """A figure of designs: rows of (H, W) arrays in [0, 1], a label a row, a title (or None) a design."""
    (height, width), side, wide = rows[0][0].shape, 0.9 if labels else 0, 1.1 * max(map(len, rows))
    tall = (1.1 * height / width + (0.25 if titles else 0.1)) * len(rows)
    figure = Figure(figsize=(side + wide, tall))
    axis = figure.add_axes((side / (side + wide), 0, wide / (side + wide), 1))
    mosaic(axis, [np.stack(row) for row in rows], labels, titles, fontsize=7)
    return figure


def _grid(rows, path, title, labels=None):
    height, width = rows[0].shape[1:]
    figure = Figure(figsize=(1.5 * max(map(len, rows)), 1.6 * height / width * len(rows) + 0.5))
    axis = figure.subplots()
    mosaic(axis, rows, labels)
    axis.set_title(title)
    _save(figure, path)


def _spectrum(trainer, rows, path):
    """The latent spectrum with the cut, and beside it designs (n, H, W) and what the kept dimensions make of them."""
    std, active = trainer.pruner.std.cpu().numpy(), trainer.pruner.active.cpu().numpy()
    order, k = np.argsort(-std, kind="stable"), active.sum()
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axis, beside = figure.subplots(1, 2, width_ratios=(1.2, 1))
    pairs = [np.stack(pair) for pair in zip(*rows, strict=True)]
    mosaic(beside, pairs)
    beside.set_title(f"Designs, and from {k} numbers", fontsize=15)
    rank = np.arange(1, len(std) + 1)
    for chosen, marker, label in ((active, "oC0", "kept"), (~active, "xC1", "given up")):
        there = chosen[order]
        axis.semilogy(rank[there], std[order][there] + 1e-12, marker, markersize=5, label=f"{label}: {chosen.sum()}")
    axis.axvline(k + 0.5, color="0.3", linestyle="--", label="the cut")
    axis.set_xlabel("latent, sorted", fontsize=13)
    axis.set_ylabel("standard deviation", fontsize=13)
    axis.set_title("How much each latent varies", fontsize=15)
    axis.legend(fontsize=13)
    _save(figure, path)


def _curves(folder, pca, path):
    """Errors, volume and dimensions over the epochs; pca: PCA's val_rec at as many dimensions as are kept, or None."""
    rows = read_csv(folder / "metrics.csv").replace("", "nan").astype(float)
    figure = Figure(figsize=(7, 7), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    for key, line in (("rec_loss", "C0--"), ("val_rec", "C1-")):
        top.semilogy(rows["epoch"], rows[key], line, label=key)
    if pca:
        top.axhline(pca, color="0.3", linestyle=":", label="PCA, as many dimensions")
    middle.plot(rows["epoch"], rows["vol_loss"], color="C2")
    bottom.step(rows["epoch"], rows["active_dims"], where="post", color="C0")
    for epoch in rows["epoch"][rows["pruned"] != 0]:
        for axis in (top, middle, bottom):
            axis.axvline(epoch, color="0.8", linewidth=1, zorder=0)
    top.set(title="Training; a grey line marks an epoch that pruned or trimmed", ylabel="error a pixel")
    middle.set(ylabel="volume loss")
    bottom.set(xlabel="epoch", ylabel="active dimensions", ylim=(0, None))
    top.legend()
    _save(figure, path)


@torch.no_grad()
def draw(trainer, folder, pca, n=8):
    """Draw all figures of a Trainer into folder/figures; designs are the validation split's. pca: see _curves()."""
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
    pairs = [(chosen[i], chosen[-1 - i]) for i in range(min(3, len(chosen) // 2))]
    rows = [decoded((1 - steps) * z[a] + steps * z[b]) for a, b in pairs]
    _grid(rows, out / "interpolation.png", "Straight lines in latent space between two validation designs")

    noise = torch.randn(2 * n, len(pruner.std), generator=torch.Generator().manual_seed(0)).to(z.device)
    drawn = decoded(pruner.mask(pruner.mean + pruner.std * noise))
    title = "Not to build: random latents, with the mean and std of each, decoded"
    _grid([drawn[:n], drawn[n:]], out / "samples.png", title)
    _curves(folder, pca, out / "curves.png")
