"""The least-volume autoencoder (LVAE), and the compact model that a finished run leaves behind.

    from lvae import load
    model = load("runs/<id>/model.pt")        # python train.py ... --save_model
    designs = model.sample(16)                # (16, 1, H, W); also model.encode(x), model.decode(z)

The thing to take from here: the decoder's Lipschitz bound (BoundedLinear). Without it the volume shrinks by scaling alone and means
nothing (Chen & Fuge, Least Volume, ICLR 2024, arXiv 2404.17773, section 3).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from data import InputError, first_line


class BoundedLinear(nn.Linear):
    """A Linear whose weight is divided by its largest singular value: a 1-Lipschitz map (Miyato et al., Spectral Normalization, 2018).

    One power iteration a training step keeps up with the weight. torch's own spectral_norm does the same, but under autocast in bf16,
    which rounds the vectors away; and dividing the layer's input (B, inputs) is cheaper than dividing its weight.
    """

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("u", torch.randn(outputs))
        self.register_buffer("v", torch.randn(inputs))
        for _ in range(30):
            self._iterate()

    @torch.no_grad()
    def _iterate(self):
        self.v.copy_(F.normalize(self.weight.T @ self.u, dim=0))
        self.u.copy_(F.normalize(self.weight @ self.v, dim=0))

    def norm(self):
        """The weight's largest singular value, as the power iteration knows it."""
        return self.u.clone() @ (self.weight @ self.v.clone())

    def forward(self, x):  # (..., inputs) -> (..., outputs)
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                self._iterate()
            norm = self.norm()
        return F.linear(x / norm, self.weight, self.bias)


class ToPatches(nn.Module):
    """(B, H, W, C) -> (B, H / k, W / k, k * k * C): a Linear behind it is a convolution of kernel k and stride k, as one product."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        b, h, w, c = x.shape
        x = x.reshape(b, h // self.k, self.k, w // self.k, self.k, c)
        return x.permute(0, 1, 3, 2, 4, 5).flatten(3)


class FromPatches(nn.Module):
    """(B, h, w, k * k * C) -> (B, h * k, w * k, C), the inverse: a Linear before it is a transposed convolution.

    The patches do not overlap, so its operator norm is exactly that of the Linear's matrix, whatever h and w.
    """

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        b, h, w, c = x.shape
        x = x.view(b, h, w, self.k, self.k, c // self.k**2)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(b, h * self.k, w * self.k, -1)


class LVAE(nn.Module):
    """Autoencoder of designs (B, 1, H, W): an unconstrained encoder, and a decoder of Lipschitz bound `lipschitz` before its sigmoid.

    z = 10 * encoder(x). The bound multiplies the decoder's input. Both constants leave the optimum alone (only w_v / lipschitz matters
    for it) and set how fast it is reached. Any H x W: designs are padded by replication to a multiple of the stride and cropped again.
    """

    ENCODER_GAIN = 10.0
    CHANNELS, STRIDES, HIDDEN = (32, 64), (4, 2), 256
    DECODER_LAYER = BoundedLinear

    def __init__(self, shape, latent_dim, lipschitz):
        super().__init__()
        self.shape, self.lipschitz, stride = tuple(shape), lipschitz, math.prod(self.STRIDES)
        self.padding = (0, -shape[1] % stride, 0, -shape[0] % stride)
        h, w = -(-shape[0] // stride), -(-shape[1] // stride)
        layers, inputs = [], 1
        for channels, k in zip(self.CHANNELS, self.STRIDES, strict=True):
            layers += [ToPatches(k), nn.Linear(k * k * inputs, channels), nn.ReLU()]
            inputs = channels
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(h * w * inputs, latent_dim))

        # A hidden layer, so that each pixel is a curved function of all latents: without it the latents have to be as many as PCA's
        layers = [self.DECODER_LAYER(latent_dim, self.HIDDEN), nn.LeakyReLU(0.2)]
        layers += [self.DECODER_LAYER(self.HIDDEN, h * w * inputs), nn.Unflatten(1, (h, w, inputs))]
        for channels, k in zip((*self.CHANNELS[-2::-1], 1), self.STRIDES[::-1], strict=True):
            layers += [nn.LeakyReLU(0.2), self.DECODER_LAYER(inputs, k * k * channels), FromPatches(k)]
            inputs = channels
        self.decoder = nn.Sequential(*layers)

    def encode(self, x):  # (B, 1, H, W) -> (B, latent_dim)
        x = self.encoder[:-1](F.pad(x, self.padding, mode="replicate").movedim(1, -1))
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round away the std of a latent with a large mean
            return self.ENCODER_GAIN * self.encoder[-1](x.float())

    def decode(self, z):  # (B, latent_dim) -> (B, 1, H, W)
        with torch.autocast(z.device.type, enabled=False):
            x = self.decoder[0](self.lipschitz * z)
        x = self.decoder[1:](x).movedim(-1, 1)
        return torch.sigmoid(x[..., : self.shape[0], : self.shape[1]].float())


class CompactLVAE(LVAE):
    """The trained model on its kept dimensions alone: encode gives (B, k), decode takes (B, k). Same output as the masked model
    to 1e-5, both in fp32.

    dims: the kept dimensions' numbers in training; std, mean (k,): their statistics over the training designs; flags; shape (H, W).
    """

    DECODER_LAYER = nn.Linear  # the weights are saved divided by their norms

    def __init__(self, flags, shape, dims, std, mean):
        super().__init__(shape, len(dims), flags["lipschitz"])
        self.flags, self.dims, self.std, self.mean = flags, dims, std, mean

    def sample(self, n, seed=0):
        """n new designs (n, 1, H, W), decoded from a Gaussian with the training designs' mean and std in each dimension."""
        noise = torch.randn(n, len(self.dims), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return self.decode((self.mean + self.std * noise).to(self.decoder[0].weight.device))


def compact(model, pruner, z, flags):
    """What model.pt holds: the CompactLVAE of a trained model, as plain tensors, numbers and lists.

    z (N, latent_dim): the training designs' latents, whose statistics sample() draws from.
    """
    dims = pruner.active.nonzero()[:, 0]
    was_training = model.training
    state = {}
    model.eval()
    with torch.no_grad():
        for name, part in (("encoder", model.encoder), ("decoder", model.decoder)):
            for i, layer in enumerate(part):
                if isinstance(layer, nn.Linear):
                    norm = layer.norm() if isinstance(layer, BoundedLinear) else 1.0
                    state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"] = layer.weight / norm, layer.bias.clone()
        last = f"encoder.{len(model.encoder) - 1}"
        state[f"{last}.weight"], state[f"{last}.bias"] = state[f"{last}.weight"][dims], state[f"{last}.bias"][dims]
        # The pruned latents are constants: what they contribute to the first layer of the decoder goes into its bias.
        frozen = torch.where(pruner.active, 0.0, pruner.mean)
        state["decoder.0.bias"] += model.lipschitz * state["decoder.0.weight"] @ frozen
        state["decoder.0.weight"] = state["decoder.0.weight"][:, dims]
    model.train(was_training)
    state = {key: value.cpu().contiguous() for key, value in state.items()}
    std, mean = z[:, dims].std(0, correction=0).cpu(), z[:, dims].mean(0).cpu()
    return dict(flags=flags, shape=list(model.shape), dims=dims.tolist(), std=std, mean=mean, state=state)


def load(path):
    """Load a model.pt: model.encode(x) (B, 1, H, W) -> (B, k), model.decode(z) back, model.sample(n, seed). Raises InputError."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model = CompactLVAE(saved["flags"], saved["shape"], saved["dims"], saved["std"], saved["mean"])
        model.load_state_dict(saved["state"])
    except Exception as error:  # zipfile, pickle and torch raise many types for a damaged file
        raise InputError(f"{path}: not a model.pt of train.py ({first_line(error)})") from None
    return model.eval()
