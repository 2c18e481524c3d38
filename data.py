"""Designs of a problem: EngiBench's hub, the bundled sample, your own file, or a toy with a known dimension. Also makes the samples.

from data import load; designs = load("beams2d", "sample"); designs.train.shape      # torch.Size([716, 1, 50, 100])
python data.py --problem heatconduction2d --n 16 --out mine.npz       # make 16 designs (make data PROBLEM=... N=... SEED=...)
python data.py --check samples/beams2d.npz                            # range, volume and duplicates of a packed file
"""

import argparse
import contextlib
import hashlib
import http.client
import io
import os
import sys
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


# ------------------------------------------------------------------------------------------------------------ making designs


def conditions_of(problem, seed, n):
    """The first n conditions of a scrambled Halton sequence over the problem's ranges: name -> (n,). Point i does not depend on n."""
    from scipy.stats import qmc

    ranges = PROBLEMS[problem]["conditions"]
    u = qmc.Halton(len(ranges), scramble=True, rng=np.random.default_rng(seed)).random(n)
    table = {}
    for i, (name, (low, high)) in enumerate(ranges.items()):
        if isinstance(low, int):
            table[name] = np.floor(low + u[:, i] * (high + 1 - low)).astype(int)
        else:
            table[name] = low + u[:, i] * (high - low)
    if problem == "beams2d":
        # EngiBench takes int(1 + 2 * forcedist * nelx * (nely + 1)) for the loaded degree of freedom. That is the downward force on a node
        # of the top edge only where forcedist is a multiple of 1 / nelx; else the load sits inside the beam, or pulls sideways. The next
        # float up keeps rounding (0.29 * 10200 < 2958) from the wrong side.
        table["forcedist"] = np.nextafter(np.rint(table["forcedist"] * 100) / 100, 2)
    return table


def optimise(problem, conditions):
    """One optimised design, quantised to uint8 (H, W), for a dict of conditions. Same conditions, same design."""
    from solvers import Heat, fast_engibench

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), fast_engibench():
        warnings.simplefilter("ignore")
        if problem == "heatconduction2d":
            design = Heat(**conditions).optimize(evaluations=100)
        elif problem == "beams2d":
            design, _ = _engibench(problem, conditions).optimize()
        else:  # EngiBench's random_design needs the hub: start from uniform 0.5; 60 steps reach 97 % of 200 steps' objective
            start = np.full(PROBLEMS[problem]["shape"], 0.5)
            design, _ = _engibench(problem, conditions).optimize(
                start, config=dict(conditions, num_optimization_steps=60)
            )
    return np.rint(np.clip(design, 0, 1) * 255).astype(np.uint8)


def objective(problem, conditions, design):
    """The problem's objective for a design (H, W) in [0, 1]: compliance (beams2d), thermal compliance (heatconduction2d), both to be
    minimised, or the product of the two mode overlaps less a material penalty (photonics2d), to be maximised. Dimensionless."""
    from solvers import Heat, fast_engibench

    if problem == "heatconduction2d":
        return Heat(**conditions).objective(design)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), fast_engibench():
        warnings.simplefilter("ignore")
        return float(
            _engibench(problem, conditions).simulate(np.asarray(design, dtype=float), config=conditions).item()
        )


def _make(job):
    """Make one design and store it; a whole file or none, so that a killed generation resumes where it was."""
    problem, conditions, path = job
    design = optimise(problem, conditions)
    _store(path, design, objective(problem, conditions, design / 255))


def _store(path, design, value):
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, design=design, objective=value)
    os.replace(temporary, path)


def _die_with_parent():
    """In a worker: end when the process that started it ends, however it does; else workers of a killed generation live on."""
    from multiprocessing import parent_process

    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def generate(problem, n, seed, out, jobs):
    """Make designs 0..n-1 of a seed, but for those in data/ or in `out` already, then pack all n into `out`.

    What is packed keeps its place and split. What is added to a packed file is training data.
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from tqdm import tqdm

    folder = Path("data") / f"{problem}-s{seed}"
    table = conditions_of(problem, seed, n)
    rows = [{key: values[i].item() for key, values in table.items()} for i in range(n)]
    paths = [folder / f"{i:06d}.npz" for i in range(n)]
    packed, old = [], _split(n, seed)
    if Path(out).exists():  # packed before, with fewer designs
        try:
            with np.load(out, allow_pickle=False) as file:
                packed = list(zip(file["index"], file["designs"], file["objective"], strict=True))
                theirs, old = file["seed"][0], file["split"].astype(str)
        except Exception as error:  # as in _from_file
            raise InputError(
                f"--out {out}: is there, and not of this program ({first_line(error)}); give another"
            ) from None
        if theirs != seed or len(packed) > n:
            raise InputError(
                f"--out {out}: holds {len(packed)} designs of seed {theirs}; give that seed and at least as many"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for i, design, value in packed:
        if not paths[i].exists():
            _store(paths[i], design, value)
    work = [(problem, rows[i], paths[i]) for i in range(n) if not paths[i].exists()]
    os.environ.update(
        OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"
    )  # read by the workers at their start: one core each
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_die_with_parent)
    try:
        for future in tqdm(
            as_completed([pool.submit(_make, job) for job in work]), total=n, initial=n - len(work), desc=problem
        ):
            future.result()
    except KeyboardInterrupt:
        print(
            f"\nstopped; the designs made so far are in {folder}, and the same command goes on from there",
            file=sys.stderr,
        )
        os._exit(130)  # the pool's own shutdown would wait for the designs in work
    designs, values = [], []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            designs.append(file["design"])
            values.append(file["objective"].item())
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{out}.tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            designs=np.stack(designs),
            split=np.concatenate([old, np.full(n - len(old), "train")]),
            objective=np.array(values),
            seed=np.full(n, seed),
            index=np.arange(n),
            **table,
        )
    os.replace(temporary, out)


def check(path, problem):
    """Problems found in a packed file, a line each: values outside [0, 1], volume off its condition, duplicates."""
    arrays, found = _from_file(Path(path), problem), []
    designs, volume = arrays["designs"], PROBLEMS[problem]["volume"]
    if volume in arrays["conditions"]:
        off = np.abs(designs.mean((1, 2)) - arrays["conditions"][volume])
        found += [
            f"design {i}: volume off by {off[i]:.4f}, allowed {VOLUME_TOLERANCE}"
            for i in np.flatnonzero(off > VOLUME_TOLERANCE)
        ]
    if not len(designs):
        return ["no designs"]
    _, first = np.unique(designs.reshape(len(designs), -1), axis=0, return_index=True)
    found += [f"design {i}: a duplicate" for i in sorted(set(range(len(designs))) - set(first))]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--problem", choices=["beams2d", "heatconduction2d", "photonics2d"], help="with --check: from the file's name"
    )
    parser.add_argument("--n", type=int, default=16, help="designs to make (16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the conditions (0: the bundled samples)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (all cores)")
    parser.add_argument("--out", help="packed file (data/<problem>-s<seed>.npz)")
    parser.add_argument("--check", metavar="NPZ", help="check this file instead of making designs")
    args = parser.parse_args()
    try:
        if args.check:
            problem = args.problem or Path(args.check).stem
            if problem not in PROBLEMS:
                raise InputError(f"--check {args.check}: say its --problem, one of {', '.join(PROBLEMS)}")
            found = check(args.check, problem)
            print("\n".join(found) or f"{args.check}: every design in range, at its volume, and no duplicates")
            sys.exit(1 if found else 0)
        if not args.problem:
            raise InputError("--problem: say which; allowed: beams2d, heatconduction2d, photonics2d")
        for flag in ("n", "seed", "jobs"):
            if getattr(args, flag) < (flag != "seed"):
                raise InputError(f"--{flag} {getattr(args, flag)}: must be at least {int(flag != 'seed')}")
        out = args.out or f"data/{args.problem}-s{args.seed}.npz"
        generate(args.problem, args.n, args.seed, out, args.jobs)
        print(f"{args.n} designs in {out}")
    except InputError as error:
        print(f"data.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"data.py: cannot write ({error})", file=sys.stderr)
        sys.exit(4)


if __name__ == "__main__":
    main()
