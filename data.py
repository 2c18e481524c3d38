"""Designs of a problem: EngiBench's hub, the bundled sample, your own file, or a toy with a known dimension.

from data import load
designs = load("beams2d", "sample")     # designs.train.shape: torch.Size([3788, 1, 50, 100])
"""

import contextlib
import hashlib
import http.client
import io
import itertools
import math
import os
import re
import resource
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
import zipfile
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
        hub="IDEALLab/beams_2d_50_100_v0",
        shape=(50, 100),
        volume="volfrac",
        conditions=dict(volfrac=(0.15, 0.4), rmin=(1.5, 4.0), forcedist=(0.0, 1.0)),
    ),
    "heatconduction2d": dict(
        hub="IDEALLab/heat_conduction_2d_v0",
        shape=(101, 101),
        volume="volume",
        conditions=dict(volume=(0.3, 0.6), length=(0.0, 1.0)),
    ),
    "photonics2d": dict(
        hub="IDEALLab/photonics_2d_120_120_v0",
        shape=(120, 120),
        volume=None,
        conditions=dict(lambda1=(0.5, 1.25), lambda2=(0.75, 1.5), blur_radius=(0, 4)),
    ),
    "toy": dict(shape=(32, 32), volume=None, conditions={}),
    "custom": dict(shape=None, volume=None, conditions={}),  # any H x W, from --data PATH
}
ALIASES = {"volume": ("volfrac",)}  # other names that files and the hub (heat_conduction_2d_v1) have for a condition
HUB_SECONDS = 300  # for the hub's designs, all together; $HUB_SECONDS overrides it
ROUNDING = 1e-3  # how far beyond [0, 1] a design's values may lie: they are clipped
DARKEST = 16  # whole numbers whose largest is less, and not 1, are labels rather than grey levels
VOLUME_TOLERANCE = 0.01  # engibench: volume_fraction_bound of beams2d and of heatconduction2d


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
    """Load the designs of `problem`. source: auto | hub | hub:v1 | sample | a path to .npz or .npy. Raises InputError."""
    if problem not in PROBLEMS:
        raise InputError(f"--problem {problem}: unknown; allowed: {', '.join(PROBLEMS)}")
    if problem == "toy":
        if source not in ("auto", "hub", "sample", "toy"):
            raise InputError(f"--data {source}: toy designs are made, not read; your own are --problem custom")
        arrays = _toy(toy_dims)
        arrays["made"] = f"made here, with {toy_dims} factors" + (
            f"; --data {source} plays no part" if source in ("hub", "sample") else ""
        )
        source = "toy"
    elif problem == "custom" and re.fullmatch(r"auto|sample|hub(:v\d+)?", source):
        raise InputError(f"--problem custom: needs your own designs; give --data PATH.npz, not --data {source}")
    elif source == "sample":
        arrays = _from_file(SAMPLES / f"{problem}.npz", problem)
    elif hub := re.fullmatch(r"auto|hub(?::(v\d+))?", source):
        try:
            arrays = _from_hub(problem, hub[1])
            source = "hub" if source == "auto" else source
        except InputError as error:
            raise InputError(f"--data {source}: {error}") from None
        except (OSError, ValueError) as error:
            if source != "auto":
                advice = "--data sample needs no network"
                raise InputError(f"--data {source}: cannot load {problem} ({first_line(error)}); {advice}") from None
            why = f"since EngiBench's hub gave no {problem} designs ({first_line(error)})"
            print(f"data: the bundled sample, {why}", flush=True)
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
            enough = next(n for n in itertools.count() if min((_split(n, 0) == s).sum() for s in SPLITS[:2]) > 1)
            few = f"{len(designs)} designs are too few; at least {enough} are needed where no `split` is given"
            own = f"{len(part)} designs in the {name} split; at least 2 are needed"
            raise InputError(f"--data {source}: {own if arrays.get('own_split') or n_train == 1 else few}")
        digest.update(f"{name}{part.shape}".encode() + part.tobytes())
        tensors[name], sizes[name] = torch.from_numpy(part).unsqueeze(1), len(part)
    _, h, w = designs.shape
    fingerprint = dict(source=source, **sizes, height=h, width=w, sha256=digest.hexdigest())
    by_split = {name: {key: value[split == name] for key, value in conditions.items()} for name in SPLITS}
    shares = ", ".join(f"{sizes[name]} {name}" for name in SPLITS)
    about = f"{sum(sizes.values())} designs of {h} x {w} ({shares}) from {source}; {arrays['made']}"
    return Designs(**tensors, conditions=by_split, fingerprint=fingerprint, about=about)


def _unit(designs, where):
    """Designs of any numeric type -> (float32 in [0, 1], what was made of their values). Raises InputError."""
    kind = designs.dtype.kind
    if kind not in "uifb":
        raise InputError(f"{where} is of type {designs.dtype}; allowed: bool, whole numbers, or floats in [0, 1]")
    low, high = (float(designs.min()), float(designs.max())) if designs.size else (0.0, 0.0)
    if not math.isfinite(low) or not math.isfinite(high):
        raise InputError(f"{where} has NaN or infinite values; allowed: [0, 1]")
    if kind in "uib" and low >= 0 and high <= 1:
        return designs.astype(np.float32), "a mask, taken as 0 and 1"
    if kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING:
        clipped = "" if low >= 0 and high <= 1 else ", clipped to [0, 1]"
        return designs.astype(np.float32).clip(0, 1), f"values from {low:.4g} to {high:.4g}{clipped}"
    if low >= 0 and DARKEST <= high <= 255 and (kind != "f" or (designs == np.rint(designs)).all()):
        return designs.astype(np.float32) / 255, f"grey levels {low:.0f} to {high:.0f}, divided by 255"
    allowed = f"[0, 1], or whole grey levels whose largest is {DARKEST} to 255"
    advice = (
        "divide by 255"
        if low >= 0 and 1 < high <= 255 and kind == "f"
        else "rescale: (x - x.min()) / (x.max() - x.min())"
    )
    raise InputError(f"{where} has values from {low:g} to {high:g}; allowed: {allowed}; {advice}")


def free_memory():
    """Bytes that this process may take: the machine's free ones, its container's limit, the shell's (ulimit -v)."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    with contextlib.suppress(OSError, TypeError):
        found.append(int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int(Path("/sys/fs/cgroup", limit).read_text()))
    return min(n for n in found if n > 0)  # RLIM_INFINITY is -1


def _header(file):
    """(shape, dtype) of an array in .npy's format, without reading it."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _headers(path):
    """{name: (shape, dtype)} of the arrays in a .npz or .npy file; the one of a .npy is `designs`."""
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            if file.read(6) != np.lib.format.MAGIC_PREFIX:
                raise OSError("it is in neither format")
            file.seek(0)
            return {"designs": _header(file)}
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    found[name.removesuffix(".npy")] = _header(file)
    return found


def _foreign(path):
    """How to convert what is neither .npz nor .npy: (what it is, Python that makes designs.npy of it), or None."""
    images = "numpy.stack([numpy.array(PIL.Image.open(p).convert('L')) for p in sorted(glob.glob('{}/*.png'))])"
    images = "import glob, numpy, PIL.Image", images.format(path)
    axes = "numpy.moveaxis({}, -1, 0)"  # MATLAB has the designs along the last axis
    kinds = {
        ".mat": ("a MATLAB file", "import numpy, scipy.io", axes.format(f"scipy.io.loadmat('{path}')['NAME']")),
        ".csv": ("a table", "import numpy", f"numpy.loadtxt('{path}', delimiter=',').reshape(-1, HEIGHT, WIDTH)"),
        ".pt": ("a file of torch", "import numpy, torch", f"torch.load('{path}').numpy()"),
        ".h5": ("an HDF5 file", "import numpy, h5py", f"h5py.File('{path}')['NAME'][:]"),
        ".pkl": ("a pickle", "import numpy, pickle", f"numpy.stack(pickle.load(open('{path}', 'rb')))"),
        ".png": ("one image", images[0], images[1].replace(str(path), str(path.parent))),
    }
    alias = {".txt": ".csv", ".tsv": ".csv", ".pth": ".pt", ".hdf5": ".h5", ".pickle": ".pkl"}
    alias |= {suffix: ".png" for suffix in (".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")}
    if path.is_dir():
        return "a folder", *images
    return kinds.get(alias.get(path.suffix.lower(), path.suffix.lower()))


def _is_turned(designs):
    """Whether (N, H, W) looks like (H, W, N): pixels resemble their neighbours, a design does not resemble the next."""
    a, b, c = designs.shape
    steps = [np.abs(np.diff(designs[:64], axis=axis)).mean() for axis in range(3)] if a > 1 else [0, 0, 0]
    if steps[0] > 1.5 * max(steps[1:]):
        return False
    return steps[2] > 1.5 * max(steps[:2]) or a == b != c or c >= 4 * max(a, b)


def _from_file(path, problem):
    """Read designs (N, H, W) from .npz (`designs`, optional `split` and conditions) or .npy. Raises InputError.

    Headers are read first. Of the arrays only those that are needed, and only if they fit into the memory.
    """
    path, conditions = Path(path), PROBLEMS[problem]["conditions"]
    if foreign := _foreign(path) if path.exists() else None:
        what, imports, array = foreign
        advice = f"""python -c "{imports}; numpy.save('designs.npy', {array})" """
        raise InputError(f"--data {path}: is {what}; allowed: .npz or .npy; convert it: {advice.strip()}")
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        headers = _headers(path)
        images = [name for name, (shape, _) in headers.items() if len(shape) in (3, 4)]
        images = images if len(images) == 1 else list(headers) if len(headers) == 1 else []
        key = "designs" if "designs" in headers else images[0] if images else None
        if key is None:
            found = ", ".join(f"{name} {shape}" for name, (shape, _) in headers.items()) or "nothing"
            raise InputError(f"--data {path}: no array named `designs` (found: {found}); name one so")
        shape, dtype = headers[key]
        if dtype.hasobject:
            advice = "save numbers instead: numpy.save('designs.npy', numpy.stack(DESIGNS))"
            raise OSError(f"`{key}` holds Python objects, not numbers; {advice}")
        _check_shape(path, problem, key, shape)
        n, pixels = shape[0], math.prod(shape)
        split = headers.get("split", ((n,), np.dtype("U5")))
        if split[0] != (n,) or split[1].kind not in "SU" or split[1].itemsize > 64:
            raise InputError(f"--data {path}: `split` must name train, val or test for each of the {n} designs")
        need, free = pixels * (dtype.itemsize + 12), free_memory()  # as it is; as float32, clipped, and by split
        if need > free:
            size = f"`{key}`, {shape} of {dtype}, needs {need / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free"
            raise InputError(f"--data {path}: {size}; give fewer designs")
        if problem == "custom":
            others = {key, "split", "objective", "seed", "index"}
            conditions = [k for k, (s, kind) in headers.items() if s == (n,) and kind.kind in "iuf" and k not in others]
        names = {
            c: next((k for k in (c, *ALIASES.get(c, ())) if headers.get(k, [0])[0] == (n,)), None) for c in conditions
        }
        wanted = {key, *filter(None, names.values()), *({"split"} & set(headers))}
        with open(path, "rb") as file:
            file = np.load(file, allow_pickle=False)
            arrays = {k: file[k] for k in wanted} if isinstance(file, np.lib.npyio.NpzFile) else {key: file}
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"--data {path}: does not fit into the memory; give fewer designs") from None
    except Exception as error:  # a broken zip raises BadZipFile, zlib.error, EOFError, ValueError, KeyError or OSError
        raise InputError(
            f"--data {path}: cannot be read ({first_line(error)}); allowed: .npz with `designs`, or .npy"
        ) from None
    designs = arrays[key]
    designs = designs.reshape(n, *(k for k in shape[1:] if k > 1)) if len(shape) == 4 else designs
    own_split = "split" in arrays
    try:
        split = arrays["split"].astype(str) if own_split else _split(n, seed=0)
    except UnicodeDecodeError:
        split = np.array(["?"])
    if split.shape != (n,) or not set(split) <= set(SPLITS):
        raise InputError(f"--data {path}: `split` must name train, val or test for each of the {n} designs")
    designs, made = _unit(designs, f"--data {path}: `{key}`")
    if not PROBLEMS[problem]["shape"] and not own_split and _is_turned(designs):
        _, h, w = designs.shape
        advice = "give numpy.moveaxis(x, -1, 0), or a `split` if it is right"
        raise InputError(
            f"--data {path}: would be {n} designs of {h} x {w}, but looks like (H, W, N), as MATLAB has it; {advice}"
        )
    found = {c: arrays[k] for c, k in names.items() if k}
    return dict(designs=designs, split=split, conditions=found, made=made, own_split=own_split)


def _check_shape(path, problem, key, shape):
    """Refuse an array that does not have designs (N, H, W), (N, 1, H, W) or (N, H, W, 1) of the problem's size."""
    wanted, size = PROBLEMS[problem]["shape"], shape
    if len(shape) == 4:
        size = (shape[0], *shape[2:]) if shape[1] == 1 else shape[:3] if shape[3] == 1 else shape
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


def ask(url, seconds=5):
    """None where a server answers at url, or why not: its HTTP status, a web page, no answer. Proxies are honoured.

    In a thread, since a dead DNS server outlasts any timeout. A certificate that this Python does not know is an
    answer: the client may know it (REQUESTS_CA_BUNDLE), and names it otherwise.
    """
    answer = []

    def probe():
        try:
            with urllib.request.urlopen(urllib.request.Request(url), timeout=seconds) as found:
                answer.append("a web page" if "html" in found.headers.get("Content-Type", "") else None)
        except urllib.error.HTTPError as error:
            answer.append(f"HTTP {error.code}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(None if "CERTIFICATE" in str(error) else f"no answer ({first_line(error)})")

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return answer[0] if answer else f"no answer within {seconds} s"


def reachable(url, seconds=3):
    """True if a server answers at url, whatever it says."""
    return not str(ask(url, seconds)).startswith("no answer")


def _engibench(problem, conditions=None):
    """EngiBench's problem object. Import the problem's own module: engibench.utils.all_problems needs every problem's extras."""
    import importlib

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"engibench.problems.{problem}")
        name = {"beams2d": "Beams2D", "heatconduction2d": "HeatConduction2D", "photonics2d": "Photonics2D"}[problem]
        return getattr(module, name)(config=conditions) if conditions else getattr(module, name)()


def _from_hub(problem, version=""):
    """EngiBench's published dataset: from the cache, without a request, if it is there, else from the hub.

    version: "v1" takes that version of the dataset instead of ours. Bounded in time. Raises OSError or ValueError where
    the hub gives none, and InputError where the cache cannot be used: others who use it would train on other designs.
    """
    name = PROBLEMS[problem]["hub"]
    name = re.sub(r"v\d+$", version, name) if version else name
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home, "datasets")) / name.replace("/", "___")
    seconds = float(os.environ.get("HUB_SECONDS") or HUB_SECONDS)
    arrays = None
    if cache.is_dir():
        with contextlib.suppress(OSError):  # left unfinished by another
            arrays = _fetch(name, problem, seconds, HF_HUB_OFFLINE="1")
    if arrays is None:
        url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/api/datasets/{name}"
        said = ask(url)
        if said and said != "HTTP 401":  # private: the client knows its token
            raise OSError(f"{said} at {url}")
        arrays = _fetch(name, problem, seconds)
    return _published(arrays, problem)


def _fetch(name, problem, seconds, **env):
    """The arrays of a dataset, read by tools/hub.py in a process of its own, which is ended after so many seconds."""
    conditions = PROBLEMS[problem]["conditions"]
    columns = ",".join(alias for c in conditions for alias in (c, *ALIASES.get(c, ())))
    command = [sys.executable, str(Path(__file__).with_name("tools") / "hub.py"), name, columns]
    try:
        done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise OSError(f"{name} was not there within {seconds:g} s; HUB_SECONDS=1000 waits longer") from None
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if done.returncode == 4:
            advice = "set HF_HOME to a folder that you can write, or say --data sample"
            raise InputError(f"the cache of EngiBench's designs cannot be used ({said}); {advice}")
        raise OSError(said)
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as file:
        return dict(file)


def _published(arrays, problem):
    """The arrays of a published dataset as those of _from_file."""
    designs, conditions = arrays["optimal_design"], PROBLEMS[problem]["conditions"]
    if designs.shape[1:] != PROBLEMS[problem]["shape"]:
        raise ValueError(f"the published designs have shape {designs.shape}")
    designs, made = _unit(designs, "`optimal_design`")
    names = {c: next((k for k in (c, *ALIASES.get(c, ())) if k in arrays), None) for c in conditions}
    if missing := [c for c, k in names.items() if k is None]:
        raise ValueError(f"the published designs have no column {', '.join(missing)}")
    found = {c: arrays[k] for c, k in names.items()}
    return dict(designs=designs, split=arrays["split"], conditions=found, made=made)


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
    return dict(designs=images.astype(np.float32), split=_split(n, seed=0), conditions={}, made="made")


def _split(n, seed):
    """Split of designs 0..n-1 (70/15/15). Drawn per block of 20, so that making more designs never moves an old one."""
    block = np.repeat(SPLITS, (14, 3, 3))
    return np.concatenate([np.random.default_rng([seed, b]).permutation(block) for b in range(n // 20 + 1)])[:n]
