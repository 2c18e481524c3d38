"""Make and score optimised designs: the bundled samples come from here.

python -m tools.designs --problem heatconduction2d --n 16 --out mine.npz     # make data PROBLEM=... N=... SEED=...
python -m tools.designs --check samples/beams2d.npz                          # range, volume and duplicates of a packed file
"""

import argparse
import contextlib
import io
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np

from data import PROBLEMS, VOLUME_TOLERANCE, _engibench, _from_file, _split
from lvae import InputError, first_line
from record import cores


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


def optimise(problem, conditions, start=None, steps=None):
    """One optimised design, quantised to uint8 (H, W), for a dict of conditions. Same conditions, same design.

    start (H, W): the design to begin with; steps: iterations of the problem's optimiser. None: those of the bundled designs.
    """
    from tools.solvers import Heat, fast_engibench

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), fast_engibench():
        warnings.simplefilter("ignore")
        if problem == "heatconduction2d":
            design = Heat(**conditions).optimize(100 if steps is None else steps + 1, start)
        elif problem == "beams2d":
            more = {} if steps is None else {"max_iter": steps}  # the problem's own config does not carry it over
            design, _ = _engibench(problem, conditions).optimize(start, more)
        else:  # EngiBench's random_design needs the hub: start from uniform 0.5; 60 steps reach 97 % of 200 steps' objective
            start = np.full(PROBLEMS[problem]["shape"], 0.5) if start is None else start
            design, _ = _engibench(problem, conditions).optimize(
                start, config=dict(conditions, num_optimization_steps=steps or 60)
            )
    return np.rint(np.clip(design, 0, 1) * 255).astype(np.uint8)


def objective(problem, conditions, design, version=1):
    """The problem's objective for a design (H, W) in [0, 1]. Dimensionless.

    To be minimised: compliance (beams2d), thermal compliance (heatconduction2d). To be maximised: the product of the two
    mode overlaps less a material penalty (photonics2d). EngiBench's simulate of Photonics2D v0 blurs and projects a
    finished design once more (its pull request 264). version 1 scores it as it is, as v1 does; 0, as v0.
    """
    from tools.solvers import Heat, fast_engibench

    if problem == "heatconduction2d":
        return Heat(**conditions).objective(design)
    config = dict(conditions)
    if problem == "photonics2d" and version:
        config |= dict(blur_radius=0, num_projections=0)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), fast_engibench():
        warnings.simplefilter("ignore")
        return float(_engibench(problem, conditions).simulate(np.asarray(design, dtype=float), config=config).item())


def _make(job):
    """Make one design and store it; a whole file or none, so that a killed generation resumes where it was."""
    problem, conditions, path = job
    design = optimise(problem, conditions)
    _store(path, design, objective(problem, conditions, design / 255, version=0))


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
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (all cores that we may use)")
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
        print(f"tools.designs: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"tools.designs: cannot write ({error})", file=sys.stderr)
        sys.exit(4)


if __name__ == "__main__":
    main()
