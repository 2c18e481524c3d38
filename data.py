"""Designs of a problem: EngiBench's hub, the bundled sample, your own file, or a toy with a known dimension.

from data import load
designs = load("beams2d", "sample")     # designs.train.shape: torch.Size([3788, 1, 50, 100])
"""

import contextlib
import hashlib
import math
import os
import re
import resource
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lvae import InputError, first_line, need
from tools import hub

SAMPLES = Path(__file__).parent / "samples"
SPLITS = ("train", "val", "test")

# Shape of a design; `volume`: the condition that its mean must match, within EngiBench's own tolerance; `bound`: an
# error that a user can live with, above which a search counts no dimension as saved.
PROBLEMS = {
    "beams2d": dict(hub="IDEALLab/beams_2d_50_100_v0", shape=(50, 100), volume="volfrac", bound=0.0018),
    "heatconduction2d": dict(hub="IDEALLab/heat_conduction_2d_v0", shape=(101, 101), volume="volume", bound=0.025),
    "photonics2d": dict(hub="IDEALLab/photonics_2d_120_120_v0", shape=(120, 120), volume=None, bound=0.032),
    "toy": dict(shape=(32, 32), volume=None),
    "custom": dict(shape=None, volume=None),  # any H x W, from --data PATH
}
# The range of each condition in EngiBench's published dataset (samples/README.md says what we leave out)
CONDITIONS = {
    "beams2d": dict(volfrac=(0.15, 0.4), rmin=(1.5, 4.0), forcedist=(0.0, 1.0)),
    "heatconduction2d": dict(volume=(0.3, 0.6), length=(0.0, 1.0)),
    "photonics2d": dict(lambda1=(0.5, 1.25), lambda2=(0.75, 1.5), blur_radius=(0, 4)),
}
ALIASES = {"volume": "volfrac"}  # another name that files and the hub (heat_conduction_2d_v1) have for a condition
ROUNDING = 1e-3  # how far beyond [0, 1] a design's values may lie: they are clipped
DARKEST = 16  # whole numbers whose largest is less, and not 1, are labels rather than grey levels

# Files of other tools: (suffixes, what to import, Python that makes (N, H, W) of the file {})
_IMAGES = "numpy.stack([numpy.array(PIL.Image.open(p).convert('L')) for p in sorted(glob.glob('{}/*.png'))])"
FOREIGN = [
    (".mat", "scipy.io", "numpy.moveaxis(scipy.io.loadmat('{}')['NAME'], -1, 0)"),
    (".csv .txt .tsv", "numpy", "numpy.loadtxt('{}', delimiter=',').reshape(-1, HEIGHT, WIDTH)"),
    (".pt .pth", "torch", "torch.load('{}').numpy()"),
    (".h5 .hdf5", "h5py", "h5py.File('{}')['NAME'][:]"),
    (".pkl .pickle", "pickle", "numpy.stack(pickle.load(open('{}', 'rb')))"),
    ("folder .png .jpg .jpeg .tif .tiff .bmp .gif", "glob, PIL.Image", _IMAGES),
]


@dataclass
class Designs:
    """Designs by split, float32 in [0, 1], (N, 1, H, W); conditions by split and name; a fingerprint that pins them."""

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor
    conditions: dict
    fingerprint: dict
    about: str  # one line: how many, of what size, and what was made of their values


def load(problem, source="auto", toy_dims=3, n_train=0):
    """Load the designs of `problem`. source: auto | hub | hub:v1 | sample | a path to .npz or .npy. InputError."""
    need(problem in PROBLEMS, f"--problem {problem}: unknown; allowed: {', '.join(PROBLEMS)}")
    published = re.fullmatch(r"auto|hub(?::(v\d+))?", source)
    if problem == "toy":
        if not published and source not in ("sample", "toy"):
            raise InputError(f"--data {source}: toy designs are made, not read; your own are --problem custom")
        ignored = "" if source in ("auto", "toy") else f"; --data {source} plays no part"
        arrays, source = _toy(toy_dims) | dict(made=f"made here, with {toy_dims} factors{ignored}"), "toy"
    elif problem == "custom" and (published or source == "sample"):
        raise InputError(f"--problem custom: needs your own designs; give --data PATH.npz, not --data {source}")
    elif published:
        try:
            arrays, source = _from_hub(problem, published[1] or "v0"), "hub" if source == "auto" else source
        except InputError as error:
            raise InputError(f"--data {source}: {error}") from None
        except (OSError, ValueError) as error:
            if source != "auto":
                why = f"cannot load {problem} ({first_line(error)}); --data sample needs no network"
                raise InputError(f"--data {source}: {why}") from None
            why = f"since EngiBench's hub gave no {problem} designs ({first_line(error)})"
            print(f"data: the bundled sample, {why}", flush=True)
            arrays, source = _from_file(SAMPLES / f"{problem}.npz", problem), "sample"
    else:
        arrays = _from_file(SAMPLES / f"{problem}.npz" if source == "sample" else Path(source), problem)
    designs, split, conditions = arrays["designs"], arrays["split"], arrays["conditions"]
    digest, tensors, sizes = hashlib.sha256(), {}, {}
    for name in SPLITS:
        part = np.ascontiguousarray(designs[split == name], dtype=np.float32)
        part = part[:n_train] if n_train and name == "train" else part
        if len(part) < 2 and name != "test":
            found = f"{len(part)} designs in the {name} split, of {len(designs)}; at least 2 are needed"
            raise InputError(f"--data {source}: {found}, and 17 in all where no `split` is given")  # see _split()
        digest.update(f"{name}{part.shape}".encode() + part.tobytes())
        tensors[name], sizes[name] = torch.from_numpy(part).unsqueeze(1), len(part)
    _, h, w = designs.shape
    fingerprint = dict(source=source, **sizes, height=h, width=w, sha256=digest.hexdigest())
    by_split = {name: {k: v[split == name][: sizes[name]] for k, v in conditions.items()} for name in SPLITS}
    shares = ", ".join(f"{sizes[name]} {name}" for name in SPLITS)
    about = f"{sum(sizes.values())} designs of {h} x {w} ({shares}) from {source}; {arrays['made']}"
    return Designs(**tensors, conditions=by_split, fingerprint=fingerprint, about=about)


def _unit(designs, where):
    """Designs of any numeric type -> (float32 in [0, 1], what was made of their values). Raises InputError."""
    kind = designs.dtype.kind
    if kind not in "uifb":
        raise InputError(f"{where} is of type {designs.dtype}; allowed: bool, whole numbers, or floats in [0, 1]")
    low, high = (float(designs.min()), float(designs.max())) if designs.size else (0.0, 0.0)
    need(math.isfinite(low) and math.isfinite(high), f"{where} has NaN or infinite values; allowed: [0, 1]")
    if kind in "uib" and low >= 0 and high <= 1:
        return designs.astype(np.float32), "a mask, taken as 0 and 1"
    if kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING:
        clipped = "" if low >= 0 and high <= 1 else ", clipped to [0, 1]"
        return designs.astype(np.float32).clip(0, 1), f"values from {low:.4g} to {high:.4g}{clipped}"
    if low >= 0 and DARKEST <= high <= 255 and (kind != "f" or (designs == np.rint(designs)).all()):
        return designs.astype(np.float32) / 255, f"grey levels {low:.0f} to {high:.0f}, divided by 255"
    grey = low >= 0 and 1 < high <= 255 and kind == "f"
    advice = "divide by 255" if grey else "rescale: (x - x.min()) / (x.max() - x.min())"
    allowed = f"[0, 1], or whole grey levels whose largest is {DARKEST} to 255"
    raise InputError(f"{where} has values from {low:g} to {high:g}; allowed: {allowed}; {advice}")


def free_memory():
    """Bytes that this process may take: the machine's free ones, or the shell's limit (ulimit -v)."""
    found = [resource.getrlimit(resource.RLIMIT_AS)[0], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, TypeError):  # Linux alone has it
        found.append(int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024)
    return min(n for n in found if n > 0)  # RLIM_INFINITY is -1


def _headers(path):
    """{name: (shape, dtype)} of the arrays in a .npz or .npy file, unread; the one of a .npy is `designs`."""
    found = {}
    with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else contextlib.nullcontext() as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")] if archive else ["designs.npy"]
        for name in names:
            with archive.open(name) if archive else open(path, "rb") as file:
                old = np.lib.format.read_magic(file) == (1, 0)
                header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                shape, _, dtype = header(file)
                found[name.removesuffix(".npy")] = shape, dtype
    return found


def _refuse_foreign(path):
    """Refuse what another tool wrote, and say how to convert it."""
    suffix = "folder" if path.is_dir() else path.suffix.lower()
    for suffixes, imports, array in FOREIGN:
        if suffix in suffixes.split():
            array = array.format(path.parent if array is _IMAGES and suffix != "folder" else path)
            code = f"import numpy, {imports}; numpy.save('designs.npy', {array})"
            raise InputError(f'--data {path}: is a {suffix}; allowed: .npz or .npy; convert it: python -c "{code}"')


def _check_shape(path, problem, key, shape):
    """Refuse an array that does not have designs (N, H, W), (N, 1, H, W) or (N, H, W, 1) of the problem's size."""
    wanted = PROBLEMS[problem]["shape"]
    size = (shape[0], *(k for k in shape[1:] if k > 1)) if len(shape) == 4 else shape
    if len(size) == 3 and min(size[1:]) >= 8 and (not wanted or tuple(size[1:]) == wanted):
        return
    want = f"(N, {wanted[0]}, {wanted[1]})" if wanted else "(N, H, W) with H and W at least 8"
    advice = ""
    if len(shape) == 3 and (tuple(shape[:2]) == wanted or (not wanted and min(shape[:2]) >= 8)):
        advice = "; it looks like (H, W, N), as MATLAB has it: give numpy.moveaxis(x, -1, 0)"
    elif len(shape) == 4 and 1 < min(shape[1], shape[3]) <= 4:
        advice = f"; make colours grey: x.mean({1 if shape[1] <= 4 else 3})"
    elif len(shape) == 2:
        advice = "; if each row is a design: x.reshape(-1, HEIGHT, WIDTH)"
    raise InputError(f"--data {path}: `{key}` has shape {shape}; {problem} needs {want}{advice}")


def _is_turned(designs):
    """Whether (N, H, W) looks like (H, W, N): pixels resemble their neighbours, a design does not resemble the next."""
    a, b, c = designs.shape
    steps = [np.abs(np.diff(designs[:64], axis=axis)).mean() for axis in range(3)] if a > 1 else [0, 0, 0]
    if steps[0] > 1.5 * max(steps[1:]):
        return False
    return steps[2] > 1.5 * max(steps[:2]) or a == b != c or c >= 4 * max(a, b)


def _names(problem, found):
    """{condition: the name that it has among those found}."""
    return {c: k for c in CONDITIONS.get(problem, {}) for k in (ALIASES.get(c), c) if k in found}


def _read(path, problem):
    """(arrays of a file by name, the name of the designs, {condition: its name}).

    Headers come first. Of the arrays only those that are needed are read, and only if they fit into the memory.
    """
    headers = _headers(path)
    images = [name for name, (shape, _) in headers.items() if len(shape) in (3, 4)]
    likely = ["designs"] if "designs" in headers else images if len(images) == 1 else list(headers)
    if len(likely) != 1:
        found = ", ".join(f"{name} {shape}" for name, (shape, _) in headers.items()) or "nothing"
        raise InputError(f"--data {path}: no array named `designs` (found: {found}); name one so")
    key, (shape, dtype) = likely[0], headers[likely[0]]
    if not dtype.hasobject:
        _check_shape(path, problem, key, shape)
    per_design = {k: kind for k, (s, kind) in headers.items() if s == shape[:1]}
    names = _names(problem, per_design)
    if problem == "custom":
        others = (key, "split", "objective", "seed", "index")
        names = {k: k for k, kind in per_design.items() if kind.kind in "iuf" and k not in others}
    wanted = {key, *names.values(), *({"split"} & set(headers))}
    if any(headers[name][1].hasobject for name in wanted):
        advice = "save numbers instead: numpy.save('designs.npy', numpy.stack(DESIGNS))"
        raise OSError(f"it holds Python objects, not numbers; {advice}")
    takes = sum(math.prod(s) * kind.itemsize for s, kind in (headers[name] for name in wanted))
    takes += 12 * math.prod(shape)  # as float32, clipped, and by split
    if takes > (free := free_memory()):
        size = f"`{key}`, {shape} of {dtype}, needs {takes / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free"
        raise InputError(f"--data {path}: {size}; give fewer designs")
    with open(path, "rb") as file:
        file = np.load(file, allow_pickle=False)
        return {key: file} if isinstance(file, np.ndarray) else {k: file[k] for k in wanted}, key, names


def _from_file(path, problem):
    """Designs (N, H, W) of a .npz (`designs`, optional `split` and conditions) or .npy. Raises InputError."""
    _refuse_foreign(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        arrays, key, names = _read(path, problem)
    except InputError:
        raise
    except Exception as error:  # a broken zip raises BadZipFile, zlib.error, EOFError, ValueError, KeyError or OSError
        what = f"cannot be read ({first_line(error)}); allowed: .npz with `designs`, or .npy"
        raise InputError(f"--data {path}: {what}") from None
    n, h, w = (k for i, k in enumerate(arrays[key].shape) if i == 0 or k > 1)
    designs, made = _unit(arrays[key].reshape(n, h, w), f"--data {path}: `{key}`")
    split = _split(n, 0)
    if "split" in arrays:
        words = arrays["split"].ravel().tolist()
        split = np.array([str(s, "latin-1") if isinstance(s, bytes) else str(s) for s in words])
        if len(split) != n or not set(split) <= set(SPLITS):
            raise InputError(f"--data {path}: `split` must name train, val or test for each of the {n} designs")
    elif problem == "custom" and _is_turned(designs):
        looks = f"would be {n} designs of {h} x {w}, but looks like (H, W, N), as MATLAB has it"
        raise InputError(f"--data {path}: {looks}; give numpy.moveaxis(x, -1, 0), or a `split` if it is right")
    return dict(designs=designs, split=split, conditions={c: arrays[k] for c, k in names.items()}, made=made)


def _from_hub(problem, version):
    """EngiBench's published designs. OSError or ValueError where the hub gives none; InputError for the cache."""
    shape, wanted = PROBLEMS[problem]["shape"], CONDITIONS[problem]
    try:
        arrays = hub.load(PROBLEMS[problem]["hub"].replace("v0", version), [*wanted, *ALIASES.values()])
    except hub.CacheError as error:
        advice = "set HF_HOME to a folder that you can write, or say --data sample"
        raise InputError(f"the cache of EngiBench's designs cannot be used ({error}); {advice}") from None
    found, names = arrays["optimal_design"].shape[1:], _names(problem, arrays)
    if found != shape or set(names) != set(wanted):
        raise ValueError(f"published are {found}, {', '.join(names)}; needed: {shape}, {', '.join(wanted)}")
    designs, made = _unit(arrays["optimal_design"], "`optimal_design`")
    return dict(designs=designs, split=arrays["split"], conditions={c: arrays[k] for c, k in names.items()}, made=made)


def _toy(k, n=2560, size=32):
    """n images (n, size, size) of one smooth blob with exactly k independent factors, the first k of those below."""
    u = np.full((n, 6), 0.5)
    u[:, :k] = np.random.default_rng(0).random((n, k))
    low, high = np.array([(0.35, 0.65), (0.35, 0.65), (0.10, 0.18), (1.25, 2.5), (-np.pi / 4, np.pi / 4), (0.5, 1.0)]).T
    x0, y0, scale, aspect, angle, brightness = (low + u * (high - low)).T[:, :, None, None]
    grid = (np.arange(size) + 0.5) / size
    x, y = grid[None, None, :] - x0, grid[None, :, None] - y0
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    images = brightness * np.exp(-0.5 * (along**2 / aspect + across**2 * aspect) / scale**2)
    return dict(designs=images.astype(np.float32), split=_split(n, seed=0), conditions={})


def _split(n, seed):
    """Split of designs 0..n-1 (70/15/15). Drawn per block of 20, so that making more designs never moves an old one."""
    block = np.repeat(SPLITS, (14, 3, 3))
    return np.concatenate([np.random.default_rng([seed, b]).permutation(block) for b in range(n // 20 + 1)])[:n]
