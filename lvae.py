"""The compact model that a run leaves behind, and the architecture it shares with training. Needs torch alone.

from lvae import load
model = load("models/beams2d/model.pt")   # or a run folder, runs/<id>
z = model.encode(x)                       # designs (N, 1, H, W) in [0, 1] -> latents (N, k)
x = model.decode(z)                       # and back; model(x) does both
new = model.sample(16)                    # (16, 1, H, W), from a Gaussian with the training designs' mean and covariance
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class InputError(ValueError):
    """Bad input: one line that names the flag or file, what is wrong and what is allowed. The command line exits with 2."""

    def __str__(self):  # what is quoted may have more
        return super().__str__().replace("\n", "\\n")


def first_line(error):
    """The first line of an exception's message, or its type where it has none: for messages of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def to_patches(x, strides):
    """Designs (B, 1, H, W) -> patches (B, h, w, kn, kn, ..., k1, k1), nested: strides = (k1, ..., kn), h = H / (k1 ... kn).

    Of these rows of k1 * k1 pixels a Linear is a convolution of kernel and stride k1; rows of k2 * k2 of its outputs go into the next.
    So the pixels are put in order once, and every layer is one matrix product.
    """
    n, stride = len(strides), math.prod(strides)
    x = x.reshape(len(x), x.shape[2] // stride, *strides[::-1], x.shape[3] // stride, *strides[::-1])
    return x.permute(0, 1, n + 2, *(axis for i in range(n) for axis in (2 + i, n + 3 + i)))


def from_patches(x, shape, strides):
    """The inverse: rows of k1 * k1 pixels in the order of to_patches -> designs (B, 1, H, W) of shape (H, W).

    A Linear before it is a transposed convolution. As the patches do not overlap, its operator norm is that of the Linear's matrix.
    """
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
    """Autoencoder of designs (B, 1, H, W) whose decoder is made of `linear` layers. Training takes bounded ones (train.py's LVAE).

    z = 10 * encoder(x). `lipschitz` multiplies the decoder's input. Both constants leave the optimum alone (only w_v / lipschitz
    matters for it) and set how fast it is reached. Any H x W: designs are padded by replication to a multiple of the stride and
    cropped again.
    """

    ENCODER_GAIN = 10.0
    CHANNELS, STRIDES, HIDDEN = (32, 64), (4, 2), 256

    def __init__(self, shape, latent_dim, lipschitz, linear=nn.Linear):
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

        # A hidden layer, so that each pixel is a curved function of all latents: without it the latents are as many as PCA's
        layers = [
            linear(latent_dim, self.HIDDEN),
            nn.LeakyReLU(0.2, inplace=True),
            linear(self.HIDDEN, places * inputs),
        ]
        for channels, k in zip((*self.CHANNELS[-2::-1], 1), self.STRIDES[::-1], strict=True):
            layers += [nn.LeakyReLU(0.2, inplace=True), Rows(inputs), linear(inputs, k * k * channels)]
            inputs = channels
        self.decoder = nn.Sequential(*layers)

    def encode(self, x):  # (B, 1, H, W) -> (B, latent_dim)
        x = self.encoder[:-1](to_patches(F.pad(x, self.padding, mode="replicate"), self.STRIDES))
        with torch.autocast(
            x.device.type, enabled=False
        ):  # bf16 would round away the std of a latent with a large mean
            return self.ENCODER_GAIN * self.encoder[-1](x.to(self.encoder[-1].weight.dtype))

    def decode(self, z):  # (B, latent_dim) -> (B, 1, H, W)
        with torch.autocast(z.device.type, enabled=False):
            x = self.decoder[0](self.lipschitz * z)
        x = from_patches(self.decoder[1:](x), self.padded, self.STRIDES)
        return torch.sigmoid(x[..., : self.shape[0], : self.shape[1]].to(z.dtype))


def matern(known, values):
    """Conditions (N, c) -> latents (N, k), by a Gaussian process with a Matern kernel: `known` is tools/design.py's regression().

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


class CompactLVAE(Autoencoder):
    """The trained model on its kept dimensions alone. Same output as the masked model to 1e-5, both in fp32.

    flags: those of the run; dims: the kept dimensions' numbers in training; mean (k,), cov (k, k): of the training designs' latents.
    """

    def __init__(self, flags, shape, dims, mean, cov, known=None):
        super().__init__(shape, len(dims), flags["lipschitz"])
        self.flags, self.dims, self.known = flags, dims, known  # known: the regression from conditions to latents
        self.register_buffer("mean", mean)
        self.register_buffer("cov", cov)

    @property
    def std(self):
        """Standard deviation of each latent over the training designs, (k,)."""
        return self.cov.diag().sqrt()

    def forward(self, x):
        """Designs (N, 1, H, W) -> their reconstructions (N, 1, H, W)."""
        return self.decode(self.encode(x))

    def encode(self, x):
        """Designs (N, 1, H, W) or (N, H, W) in [0, 1], a tensor or an array -> latents (N, k)."""
        x = self._tensor(x)
        x = x[:, None] if x.ndim == 3 else x
        if x.shape[1:] != (1, *self.shape):
            h, w = self.shape
            raise InputError(f"encode: designs have shape {tuple(x.shape)}; this model takes (N, 1, {h}, {w})")
        return super().encode(x)

    def decode(self, z):
        """Latents (N, k), a tensor or an array -> designs (N, 1, H, W) in [0, 1]."""
        z = self._tensor(z)
        if z.ndim != 2 or z.shape[1] != len(self.dims):
            raise InputError(f"decode: latents have shape {tuple(z.shape)}; this model takes (N, {len(self.dims)})")
        return super().decode(z)

    @torch.no_grad()
    def design(self, conditions, force=False):
        """A design (1, 1, H, W) for conditions {name: number}. force: outside of the range that the model was trained on, too."""
        if not self.known:
            raise InputError(
                "design: this model knows no conditions; its training designs had none, or it is an older one"
            )
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
        return torch.as_tensor(x, dtype=self.mean.dtype, device=self.mean.device)

    @torch.no_grad()
    def sample(self, n, seed=0):
        """n new designs (n, 1, H, W), decoded from a Gaussian with the mean and covariance of the training designs' latents."""
        noise = torch.randn(n, len(self.dims), generator=torch.Generator().manual_seed(seed))
        values, vectors = torch.linalg.eigh(self.cov.double())
        root = (
            vectors * values.clamp_min(0).sqrt()
        ) @ vectors.T  # the symmetric root: no sign or order of axes in the draws
        return self.decode(self.mean + self._tensor(noise) @ root.to(self.cov.dtype))


def load(path):
    """The CompactLVAE in a model.pt, or in a run folder that has one, on the CPU. Raises InputError."""
    if isinstance(path, str | Path) and Path(path).is_dir():
        path = Path(path) / "model.pt"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        # Models of before 2026-11-26 have the std of each latent and no covariance
        cov = saved["cov"] if "cov" in saved else saved["std"].square().diag()
        model = CompactLVAE(saved["flags"], saved["shape"], saved["dims"], saved["mean"], cov, saved.get("known"))
        state = {
            key: value[0] * value[1] if isinstance(value, tuple) else value for key, value in saved["state"].items()
        }
        model.load_state_dict(state | dict(mean=saved["mean"], cov=cov))
    except Exception as error:  # zipfile, pickle and torch raise many types for a damaged file
        raise InputError(f"{path}: not a model.pt of train.py ({first_line(error)})") from None
    return model.eval()
