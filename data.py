"""Designs of a problem: EngiBench's hub, the bundled sample, your own file, or a toy with a known dimension.

from data import load
designs = load("beams2d", "sample")     # designs.train.shape: torch.Size([3788, 1, 50, 100])
"""

import contextlib
import hashlib
import http.client
import io
import os
import threading
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lvae import InputError, first_line

SAMPLES = Path(__file__).parent / "samples"
SPLITS = ("train", "val", "test")
TOY_FACTORS = ("centre x", "centre y", "size", "aspect", "rotation", "brightness")

# Shape of a design, and the range of each condition in EngiBench's published dataset (README in samples/ says what we leave out).
# `volume`: the condition that a design's mean must match, within EngiBench's own tolerance.
PROBLEMS = {
    "beams2d": dict(
        shape=(50, 100), volume="volfrac", conditions=dict(volfrac=(0.15, 0.4), rmin=(1.5, 4.0), forcedist=(0.0, 1.0))
    ),
    "heatconduction2d": dict(shape=(101, 101), volume="volume", conditions=dict(volume=(0.3, 0.6), length=(0.0, 1.0))),
    "photonics2d": dict(
        shape=(120, 120), volume=None, conditions=dict(lambda1=(0.5, 1.25), lambda2=(0.75, 1.5), blur_radius=(0, 4))
    ),
    "toy": dict(shape=(32, 32), volume=None, conditions={}),
    "custom": dict(shape=None, volume=None, conditions={}),  # any H x W, from --data PATH
}
VOLUME_TOLERANCE = 0.01  # engibench: volume_fraction_bound of beams2d and of heatconduction2d


@dataclass
class Designs:
    """Designs by split, float32 in [0, 1], (N, 1, H, W); conditions by split and name; a fingerprint that pins all of it."""

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor
    conditions: dict
    fingerprint: dict


def load(problem, source="auto", toy_dims=3, n_train=0):
    """Load the designs of `problem` from `source` (auto | hub | sample | a path to .npz or .npy). Raises InputError on bad input."""
    if problem not in PROBLEMS:
        raise InputError(f"--problem {problem}: unknown; allowed: {', '.join(PROBLEMS)}")
    if problem == "toy":
        if source not in ("auto", "hub", "sample", "toy"):
            raise InputError(f"--data {source}: toy designs are made, not read; your own are --problem custom")
        arrays, source = _toy(toy_dims), "toy"
    elif problem == "custom" and source in ("auto", "hub", "sample"):
        raise InputError(f"--problem custom: needs your own designs; give --data PATH.npz, not --data {source}")
    elif source == "sample":
        arrays = _from_file(SAMPLES / f"{problem}.npz", problem)
    elif source == "hub":
        try:
            arrays = _from_hub(problem)
        except Exception as error:  # datasets, huggingface_hub, pyarrow and requests raise a dozen types between them
            raise InputError(
                f"--data hub: cannot load {problem} ({first_line(error)}); --data sample needs no network"
            ) from None
    elif source == "auto":
        try:
            arrays, source = _from_hub(problem), "hub"
        except Exception as error:
            print(
                f"data: the bundled sample, since EngiBench's hub gave no {problem} designs ({first_line(error)})",
                flush=True,
            )
            arrays, source = _from_file(SAMPLES / f"{problem}.npz", problem), "sample"
    else:
        arrays = _from_file(Path(source), problem)
    return _pack(arrays, str(source), n_train)


def _pack(arrays, source, n_train=0):
    """Arrays of _from_* -> Designs, checked and fingerprinted."""
    designs, split, conditions = arrays["designs"], arrays["split"], arrays["conditions"]
    digest, tensors, sizes = hashlib.sha256(), {}, {}
    for name in SPLITS:
        part = np.ascontiguousarray(designs[split == name], dtype=np.float32)
        part = part[:n_train] if n_train and name == "train" else part
        if len(part) < 2 and name != "test":
            raise InputError(f"--data {source}: {len(part)} designs in the {name} split; at least 2 are needed")
        digest.update(f"{name}{part.shape}".encode() + part.tobytes())
        tensors[name], sizes[name] = torch.from_numpy(part).unsqueeze(1), len(part)
    fingerprint = dict(
        source=source, **sizes, height=designs.shape[1], width=designs.shape[2], sha256=digest.hexdigest()
    )
    by_split = {name: {key: value[split == name] for key, value in conditions.items()} for name in SPLITS}
    return Designs(**tensors, conditions=by_split, fingerprint=fingerprint)


def _from_file(path, problem):
    """Read designs (N, H, W) from .npz (`designs`, optional `split` and conditions) or .npy; uint8 means value / 255."""
    try:
        with np.load(path, allow_pickle=False) as file:  # a .npy array is no context manager: TypeError below
            arrays = {key: file[key] for key in file.files}
    except TypeError:
        arrays = {"designs": np.load(path, allow_pickle=False)}
    except Exception as error:  # a broken zip raises BadZipFile, zlib.error, EOFError, ValueError, KeyError or OSError
        raise InputError(
            f"--data {path}: cannot be read ({first_line(error)}); allowed: .npz with `designs`, or .npy"
        ) from None
    if "designs" not in arrays:
        raise InputError(f"--data {path}: no array named `designs` (found: {', '.join(arrays) or 'nothing'})")
    designs, shape = arrays["designs"], PROBLEMS[problem]["shape"]
    if designs.ndim == 4 and designs.shape[1] == 1:
        designs = designs[:, 0]
    if designs.ndim != 3 or min(designs.shape[1:]) < 8 or (shape and designs.shape[1:] != shape):
        want = f"(N, {shape[0]}, {shape[1]})" if shape else "(N, H, W) with H and W at least 8"
        raise InputError(f"--data {path}: `designs` has shape {designs.shape}; {problem} needs {want}")
    if designs.dtype.kind not in "uifb":
        raise InputError(
            f"--data {path}: `designs` is of type {designs.dtype}; allowed: uint8 (value / 255), bool or float in [0, 1]"
        )
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged file's numbers: judged below
        designs = designs.astype(np.float32) / (255 if designs.dtype == np.uint8 else 1)
    if not np.isfinite(designs).all():
        raise InputError(f"--data {path}: `designs` has NaN or infinite values; allowed: [0, 1]")
    if designs.size and (designs.min() < -1e-6 or designs.max() > 1 + 1e-6):
        raise InputError(
            f"--data {path}: `designs` has values from {designs.min():g} to {designs.max():g}; allowed: [0, 1]"
        )
    n = len(designs)
    try:
        split = arrays["split"].astype(str) if "split" in arrays else _split(n, seed=0)
    except UnicodeDecodeError:
        split = np.array(["?"])
    if split.shape != (n,) or not set(split) <= set(SPLITS):
        raise InputError(f"--data {path}: `split` must name train, val or test for each of the {n} designs")
    conditions = {
        key: arrays[key] for key in PROBLEMS[problem]["conditions"] if key in arrays and arrays[key].shape == (n,)
    }
    return dict(designs=designs.clip(0, 1), split=split, conditions=conditions)


def reachable(url, seconds=3):
    """True if a server answers at url, whatever it says; proxies are honoured. In a thread: a dead DNS server outlasts any timeout."""
    answer = []

    def probe():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answer.append(True)
        except urllib.error.HTTPError:
            answer.append(True)
        except (OSError, ValueError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return bool(answer)


def _engibench(problem, conditions=None):
    """EngiBench's problem object. Import the problem's own module: engibench.utils.all_problems needs every problem's extras."""
    import importlib

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"engibench.problems.{problem}")
        name = {"beams2d": "Beams2D", "heatconduction2d": "HeatConduction2D", "photonics2d": "Photonics2D"}[problem]
        return getattr(module, name)(config=conditions) if conditions else getattr(module, name)()


def _from_hub(problem):
    """EngiBench's published dataset. Probes first: an unreachable hub makes `datasets` retry for 23 s."""
    if not reachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        # Cached designs load without the hub; with nothing cached, offline mode fails at once instead of retrying.
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    dataset = _engibench(problem).dataset
    designs, split, conditions = [], [], {key: [] for key in PROBLEMS[problem]["conditions"]}
    for name in SPLITS:
        part = dataset[name].with_format("numpy")
        designs.append(np.stack([np.asarray(d, dtype=np.float32) for d in part["optimal_design"]]))
        split += [name] * len(designs[-1])
        for key, values in conditions.items():
            values.append(np.asarray(part[key]))
    designs = np.concatenate(designs)
    if designs.shape[1:] != PROBLEMS[problem]["shape"] or not np.isfinite(designs).all():
        raise ValueError(f"the published designs have shape {designs.shape} or values that are not finite")
    return dict(
        designs=designs.clip(0, 1),
        split=np.array(split),
        conditions={key: np.concatenate(v) for key, v in conditions.items()},
    )


def _toy(k, n=2560, size=32):
    """n images (n, size, size) of one smooth blob with exactly k independent factors, the first k of TOY_FACTORS."""
    u = np.full((n, len(TOY_FACTORS)), 0.5)
    u[:, :k] = np.random.default_rng(0).random((n, k))
    low, high = np.array([(0.35, 0.65), (0.35, 0.65), (0.10, 0.18), (1.25, 2.5), (-np.pi / 4, np.pi / 4), (0.5, 1.0)]).T
    x0, y0, scale, aspect, angle, brightness = (low + u * (high - low)).T[:, :, None, None]
    grid = (np.arange(size) + 0.5) / size
    x, y = grid[None, None, :] - x0, grid[None, :, None] - y0
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    images = brightness * np.exp(-0.5 * (along**2 / aspect + across**2 * aspect) / scale**2)
    conditions = {name: u[:, i] for i, name in enumerate(TOY_FACTORS[:k])}
    return dict(designs=images.astype(np.float32), split=_split(n, seed=0), conditions=conditions)


def _split(n, seed):
    """Split of designs 0..n-1 (70/15/15). Drawn per block of 20, so that making more designs never moves an old one."""
    block = np.repeat(SPLITS, (14, 3, 3))
    return np.concatenate([np.random.default_rng([seed, b]).permutation(block) for b in range(n // 20 + 1)])[:n]
