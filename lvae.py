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


class _Normalised(torch.autograd.Function):
    """x @ (weight / norm).T + bias, the gradient of the norm included: d norm / d weight = outer(u, v).

    Autograd would make that outer product a matrix of its own, and could not choose to divide the smaller of x and weight.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, u, v, norm):  # (B, inputs), (outputs, inputs), (outputs,), (outputs,), (inputs,), ()
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        ctx.wide = weight.numel() > x.numel()  # then x is divided
        x, weight = (x / norm, weight) if ctx.wide else (x, weight / norm)
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight, u, v, norm)
        return F.linear(x, weight, bias.to(dtype))

    @staticmethod
    def backward(ctx, grad):
        x, weight, u, v, norm = ctx.saved_tensors
        grad_x, grad_weight = grad @ weight, (grad.T @ x).to(u.dtype)
        if ctx.wide:
            grad_norm = -(grad_x.to(u.dtype) * x).sum() / norm
            grad_x = grad_x / norm
        else:
            grad_norm = -(grad_weight * weight).sum() / norm
            grad_weight /= norm
        return grad_x, grad_weight.addr_(u, grad_norm * v), grad.to(u.dtype).sum(0), None, None, None


class BoundedLinear(nn.Linear):
    """A Linear whose weight is divided by its largest singular value: a 1-Lipschitz map (Miyato et al., Spectral Normalization, 2018).

    One power iteration a training step keeps up with the weight. torch's own spectral_norm does the same, but under autocast in bf16,
    which rounds the vectors away.
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
        image = self.weight @ self.v
        self.u.copy_(F.normalize(image, dim=0))
        return image.norm()  # u @ weight @ v

    @torch.no_grad()
    def norm(self):
        """The weight's largest singular value, as the power iteration knows it: a number, without its gradient."""
        return self.u @ (self.weight @ self.v)

    def forward(self, x):  # (B, inputs) -> (B, outputs)
        with torch.autocast(x.device.type, enabled=False):
            norm = self._iterate() if self.training else self.norm()
        return _Normalised.apply(x, self.weight, self.bias, self.u.clone(), self.v.clone(), norm)


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
        self.padded = (shape[0] + self.padding[3], shape[1] + self.padding[1])
        places = math.prod(self.padded) // stride**2
        layers, inputs = [], 1
        for channels, k in zip(self.CHANNELS, self.STRIDES, strict=True):
            layers += [Rows(k * k * inputs), nn.Linear(k * k * inputs, channels), nn.ReLU(inplace=True)]
            inputs = channels
        self.encoder = nn.Sequential(*layers, Rows(places * inputs), nn.Linear(places * inputs, latent_dim))

        # A hidden layer, so that each pixel is a curved function of all latents: without it the latents have to be as many as PCA's
        layers = [self.DECODER_LAYER(latent_dim, self.HIDDEN), nn.LeakyReLU(0.2, inplace=True)]
        layers += [self.DECODER_LAYER(self.HIDDEN, places * inputs)]
        for channels, k in zip((*self.CHANNELS[-2::-1], 1), self.STRIDES[::-1], strict=True):
            layers += [nn.LeakyReLU(0.2, inplace=True), Rows(inputs), self.DECODER_LAYER(inputs, k * k * channels)]
            inputs = channels
        self.decoder = nn.Sequential(*layers)

    def encode(self, x):  # (B, 1, H, W) -> (B, latent_dim)
        x = self.encoder[:-1](to_patches(F.pad(x, self.padding, mode="replicate"), self.STRIDES))
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round away the std of a latent with a large mean
            return self.ENCODER_GAIN * self.encoder[-1](x.float())

    def decode(self, z):  # (B, latent_dim) -> (B, 1, H, W)
        with torch.autocast(z.device.type, enabled=False):
            x = self.decoder[0](self.lipschitz * z)
        x = from_patches(self.decoder[1:](x), self.padded, self.STRIDES)
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


def quantise(saved):
    """What model.pt holds, with each large weight (outputs, inputs) in 8 bits: (int8, scale (outputs, 1)). A quarter of the size.

    The largest weight of a row becomes 127, so that none is off by more than 1/254 of it. load() reads both.
    """

    def narrow(weight):
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        return (weight / scale).round().to(torch.int8), scale

    return saved | dict(state={key: narrow(value) if value.numel() > 2**14 else value for key, value in saved["state"].items()})


def load(path):
    """Load a model.pt: model.encode(x) (B, 1, H, W) -> (B, k), model.decode(z) back, model.sample(n, seed). Raises InputError."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model = CompactLVAE(saved["flags"], saved["shape"], saved["dims"], saved["std"], saved["mean"])
        state = {key: value[0] * value[1] if isinstance(value, tuple) else value for key, value in saved["state"].items()}
        model.load_state_dict(state)
    except Exception as error:  # zipfile, pickle and torch raise many types for a damaged file
        raise InputError(f"{path}: not a model.pt of train.py ({first_line(error)})") from None
    return model.eval()
