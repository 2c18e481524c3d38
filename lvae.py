"""The compact model that a run leaves behind, and the architecture it shares with training. Needs torch alone.

from lvae import load
model = load("models/beams2d/model.pt")   # or a run folder, runs/<id>
z = model.encode(x)                       # designs (N, 1, H, W) in [0, 1] -> latents (N, k)
x = model.decode(z)                       # and back; model(x) does both
new = model.sample(16)                    # (16, 1, H, W), drawn like the training designs' latents
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class InputError(ValueError):
    """Bad input: one line that names the flag or file, what is wrong and what is allowed. Exit code 2."""

    def __str__(self):  # what is quoted may have more
        return super().__str__().replace("\n", "\\n")


def need(holds, message):
    """Raise InputError(message) unless `holds`."""
    if not holds:
        raise InputError(message)


def first_line(error):
    """The first line of an exception's message, or its type where it has none: for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def to_patches(x, strides):
    """Designs (B, 1, H, W) -> nested patches (B, h, w, kn, kn, ..., k1, k1), where strides = (k1, ..., kn).

    A Linear of rows of k1 * k1 pixels is a convolution of stride k1. Rows of k2 * k2 of its outputs go into the next.
    """
    n, stride = len(strides), math.prod(strides)
    x = x.reshape(len(x), x.shape[2] // stride, *strides[::-1], x.shape[3] // stride, *strides[::-1])
    return x.permute(0, 1, n + 2, *(axis for i in range(n) for axis in (2 + i, n + 3 + i)))


def from_patches(x, shape, strides):
    """The inverse, to designs (B, 1, H, W). As patches do not overlap, a Linear before it has its matrix's norm."""
    n, stride = len(strides), math.prod(strides)
    x = x.view(-1, shape[0] // stride, shape[1] // stride, *(k for k in strides[::-1] for _ in range(2)))
    return x.permute(0, 1, *range(3, 2 * n + 3, 2), 2, *range(4, 2 * n + 3, 2)).reshape(-1, 1, *shape)


class Rows(nn.Module):
    """Any shape -> (..., n), two axes."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x.reshape(-1, self.n)


class Autoencoder(nn.Module):
    """Autoencoder of designs (B, 1, H, W), whose decoder is made of `linear` layers: bounded ones in training (LVAE).

    z = 10 * encoder(x), and `lipschitz` multiplies the decoder's input. Both constants leave the optimum alone (only
    w_v / lipschitz matters for it) and set how fast it is reached. Any H x W: designs are padded by replication to a
    multiple of the stride, and cropped again.
    """

    linear = nn.Linear
    ENCODER_GAIN = 10.0
    CHANNELS, STRIDES, HIDDEN = (32, 64), (4, 2), 256

    def __init__(self, shape, latent_dim, lipschitz):
        super().__init__()
        self.shape, self.lipschitz, stride = tuple(shape), lipschitz, math.prod(self.STRIDES)
        self.padding = (0, -shape[1] % stride, 0, -shape[0] % stride)
        self.padded = (shape[0] + self.padding[3], shape[1] + self.padding[1])
        places = math.prod(self.padded) // stride**2
        layers, inputs = [], 1
        for channels, k in zip(self.CHANNELS, self.STRIDES, strict=True):
            layers += [Rows(k * k * inputs), nn.Linear(k * k * inputs, channels), nn.ReLU(inplace=True)]
            inputs = channels
        self.encoder = nn.Sequential(*layers, Rows(places * inputs), nn.Linear(places * inputs, latent_dim))

        # A hidden layer makes each pixel a curved function of all latents: without it there are as many as PCA's
        layers = [self.linear(latent_dim, self.HIDDEN), nn.LeakyReLU(0.2, inplace=True)]
        layers += [self.linear(self.HIDDEN, places * inputs)]
        for channels, k in zip((*self.CHANNELS[-2::-1], 1), self.STRIDES[::-1], strict=True):
            layers += [nn.LeakyReLU(0.2, inplace=True), Rows(inputs), self.linear(inputs, k * k * channels)]
            inputs = channels
        self.decoder = nn.Sequential(*layers)

    def encode(self, x):  # (B, 1, H, W) -> (B, latent_dim)
        x = self.encoder[:-1](to_patches(F.pad(x, self.padding, mode="replicate"), self.STRIDES))
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round away the std beside a large mean
            return self.ENCODER_GAIN * self.encoder[-1](x.to(self.encoder[-1].weight.dtype))

    def decode(self, z):  # (B, latent_dim) -> (B, 1, H, W)
        with torch.autocast(z.device.type, enabled=False):
            x = self.decoder[0](self.lipschitz * z)
        x = from_patches(self.decoder[1:](x), self.padded, self.STRIDES)
        return torch.sigmoid(x[..., : self.shape[0], : self.shape[1]].to(z.dtype))


def matern(known, values):
    """Conditions (N, c) -> latents (N, k), by a Gaussian process with a Matern kernel: tools/design.py's regression().

    In float64: large weights of both signs cancel, and in float32 the sum would depend on its order.
    """
    known = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in known.items()}
    x, root = (values - known["low"]) / (known["high"] - known["low"]), math.sqrt(2 * known["nu"])
    d = root * torch.cdist(x / known["length"], known["points"] / known["length"])
    factor = {0.5: 1, 1.5: 1 + d, 2.5: 1 + d + d.square() / 3}[known["nu"]]
    return known["offset"] + factor * d.neg().exp() @ known["weights"]


def predict(known, conditions):
    """What a regression() says for conditions {name: number}: (1, k)."""
    return matern(known, torch.tensor([[float(conditions[name]) for name in known["names"]]], dtype=torch.float64))


def principal_axes(latents):
    """Mean (k,), variances (k,), smallest first, and axes (k, k), as columns, of latents (N, k). In float64."""
    z = latents.double().cpu()
    return z.mean(0), *torch.linalg.eigh(torch.cov(z.T, correction=0).reshape(z.shape[1], -1))


def draw(latents, bandwidth, n, generator):
    """n latents (n, k) from a kernel density of latents (N, k), in float64; its mean and covariance are theirs.

    A kernel is a Gaussian of their covariance * bandwidth^2, bandwidth in (0, 1]; at 1 all are one Gaussian. Its centre
    is one of the latents, drawn towards their mean by sqrt(1 - bandwidth^2).
    """
    mean, variances, axes = principal_axes(latents)
    noise = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    root = (axes * variances.clamp_min(0).sqrt()) @ axes.T  # the symmetric root: no sign or order of axes in it
    centres = latents.double().cpu()[torch.randint(len(latents), (n,), generator=generator)] - mean
    return mean + math.sqrt(1 - bandwidth**2) * centres + bandwidth * noise @ root


class CompactLVAE(Autoencoder):
    """The trained model on its kept dimensions alone. Same output as the masked model to 1e-5, both in fp32.

    flags: those of the run; dims: the kept dimensions' numbers in training; latents (N, k): of the training designs;
    bandwidth: of their density, see draw(); known: the regression from conditions to latents, or None.
    """

    def __init__(self, flags, shape, dims, latents, bandwidth, known=None):
        super().__init__(shape, len(dims), flags["lipschitz"])
        self.flags, self.dims, self.bandwidth, self.known = flags, dims, bandwidth, known
        self.register_buffer("latents", latents)

    def forward(self, x):
        """Designs (N, 1, H, W) -> their reconstructions (N, 1, H, W)."""
        return self.decode(self.encode(x))

    def encode(self, x):
        """Designs (N, 1, H, W) or (N, H, W) in [0, 1], a tensor or an array -> latents (N, k)."""
        x, (h, w) = self._tensor(x), self.shape
        if x.shape[1:] not in ((h, w), (1, h, w)):
            raise InputError(f"encode: designs have shape {tuple(x.shape)}; this model takes (N, {h}, {w})")
        if x.numel() and not x.max() < 1.1:
            raise InputError(f"encode: values up to {x.max():g}; designs are in [0, 1]")
        return super().encode(x.reshape(len(x), 1, h, w))

    def decode(self, z):
        """Latents (N, k), a tensor or an array -> designs (N, 1, H, W) in [0, 1]."""
        z = self._tensor(z)
        if z.ndim != 2 or z.shape[1] != len(self.dims):
            raise InputError(f"decode: latents have shape {tuple(z.shape)}; this model takes (N, {len(self.dims)})")
        return super().decode(z)

    @torch.no_grad()
    def design(self, conditions, force=False):
        """A design (1, 1, H, W) for conditions {name: number}. force: beyond the range of the training designs, too."""
        need(self.known, "design: this model knows no conditions; its training designs had none")
        names = self.known["names"]
        if set(conditions) != set(names):
            raise InputError(f"design: conditions are {', '.join(conditions) or 'missing'}; needed: {', '.join(names)}")
        for name, low, high in zip(names, self.known["low"].tolist(), self.known["high"].tolist(), strict=True):
            slack = 1e-6 * (high - low)
            if not (force or low - slack <= conditions[name] <= high + slack):
                there = f"outside of the training designs' {low:g} to {high:g}"
                raise InputError(f"design: {name} {conditions[name]:g} is {there}; force=True (FORCE=1) tries it")
        return self.decode(predict(self.known, conditions))

    def _tensor(self, x):
        return torch.as_tensor(x, dtype=self.latents.dtype, device=self.latents.device)

    @torch.no_grad()
    def sample(self, n, seed=0):
        """n new designs (n, 1, H, W), decoded from latents drawn like those of the training designs."""
        return self.decode(draw(self.latents, self.bandwidth, n, torch.Generator().manual_seed(seed)))


def load(path):
    """The CompactLVAE in a model.pt, or in a run folder that has one, on the CPU. Raises InputError."""
    if isinstance(path, str | Path) and Path(path).is_dir():
        path = Path(path) / "model.pt"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = saved.pop("state")  # a shipped model has weights in 8 bits, with a scale for each row
        state = {key: w[0] * w[1] if isinstance(w, tuple) else w for key, w in state.items()}
        model = CompactLVAE(**saved)
        model.load_state_dict(state | dict(latents=saved["latents"]))
    except Exception as error:  # zipfile, pickle and torch raise many types for a damaged file
        raise InputError(f"{path}: not a model.pt of train.py, or an older one ({first_line(error)})") from None
    return model.eval().requires_grad_(False)
