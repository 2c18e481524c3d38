"""Make and score optimised designs: the bundled samples come from here.

python -m tools.designs --problem heatconduction2d --n 16 --out mine.npz     # make data PROBLEM=... N=... SEED=...
python -m tools.designs --check samples/beams2d.npz                       # range, volume, duplicates
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import threading
import warnings
from concurrent import futures
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import CONDITIONS, PROBLEMS, _from_file, _split
from lvae import InputError, first_line, need
from record import Parser, cores, guarded, write_atomically

VOLUME_TOLERANCE = 0.01  # engibench: volume_fraction_bound of beams2d and of heatconduction2d


@contextlib.contextmanager
def _engibench(problem, conditions):
    """EngiBench's problem object, made fast and silent. Its utils.all_problems would need every problem's extras."""
    from tools.solvers import fast_engibench

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), fast_engibench():
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"engibench.problems.{problem}")
        yield getattr(module, problem.title())(config=conditions)


def conditions_of(problem, seed, n):
    """The first n conditions of a scrambled Halton sequence: name -> (n,). Point i does not depend on n."""
    from scipy.stats import qmc

    ranges = CONDITIONS[problem]
    u = qmc.Halton(len(ranges), scramble=True, rng=np.random.default_rng(seed)).random(n)
    table = {}
    for i, (name, (low, high)) in enumerate(ranges.items()):
        whole = isinstance(low, int)
        table[name] = np.floor(low + u[:, i] * (high + 1 - low)).astype(int) if whole else low + u[:, i] * (high - low)
    if problem == "beams2d":
        # EngiBench loads the degree of freedom int(1 + 2 * forcedist * nelx * (nely + 1)). It is the downward force on
        # a node of the top edge only where forcedist is a multiple of 1 / nelx; else the load sits inside the beam, or
        # pulls sideways. The next float up keeps rounding (0.29 * 10200 < 2958) from the wrong side.
        table["forcedist"] = np.nextafter(np.rint(table["forcedist"] * 100) / 100, 2)
    return table


def optimise(problem, conditions, start=None, steps=None):
    """One optimised design, quantised to uint8 (H, W), for a dict of conditions. Same conditions, same design.

    start (H, W): the design to begin with; steps: iterations of the problem's optimiser. None: those of the samples.
    """
    if problem == "heatconduction2d":
        from tools.solvers import Heat

        design = Heat(**conditions).optimize(100 if steps is None else steps + 1, start)
    elif problem == "beams2d":
        with _engibench(problem, conditions) as engibench:
            # the problem's own config does not carry max_iter over
            design, _ = engibench.optimize(start, {} if steps is None else {"max_iter": steps})
    else:  # EngiBench's random_design needs the hub; 60 steps reach 97 % of 200 steps' objective
        start = np.full(PROBLEMS[problem]["shape"], 0.5) if start is None else start
        with _engibench(problem, conditions) as engibench:
            design, _ = engibench.optimize(start, config=dict(conditions, num_optimization_steps=steps or 60))
    return np.rint(np.clip(design, 0, 1) * 255).astype(np.uint8)


def objective(problem, conditions, design, version=1):
    """The problem's objective for a design (H, W) in [0, 1]. Dimensionless.

    To be minimised: compliance (beams2d), thermal compliance (heatconduction2d). To be maximised: the product of the
    two mode overlaps less a material penalty (photonics2d). EngiBench's simulate of Photonics2D v0 blurs and projects a
    finished design once more (its pull request 264). version 1 scores it as it is, as v1 does; 0, as v0.
    """
    if problem == "heatconduction2d":
        from tools.solvers import Heat

        return Heat(**conditions).objective(design)
    config = dict(conditions)
    if problem == "photonics2d" and version:
        config |= dict(blur_radius=0, num_projections=0)
    with _engibench(problem, conditions) as engibench:
        return float(engibench.simulate(np.asarray(design, dtype=float), config=config).item())


def _make(job):
    problem, conditions, path = job
    design = optimise(problem, conditions)
    _store(path, design=design, objective=objective(problem, conditions, design / 255, version=0))


def _store(path, **arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _die_with_parent():
    """In a worker: end when the process that started it ends, however it does."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def generate(problem, n, seed, out, jobs):
    """Make designs 0..n-1 of a seed, but for those in data/ or in `out` already, then pack all n into `out`.

    What is packed keeps its place and split. What is added to a packed file is training data. Raises InputError.
    """
    folder, table = Path("data") / f"{problem}-s{seed}", conditions_of(problem, seed, n)
    paths = [folder / f"{i:06d}.npz" for i in range(n)]
    packed, old = [], _split(n, seed)
    if out.exists():  # packed before, with fewer designs
        try:
            with np.load(out, allow_pickle=False) as file:
                packed = list(zip(file["index"], file["designs"], file["objective"], strict=True))
                theirs, old = file["seed"][0], file["split"].astype(str)
        except Exception as error:  # as in data.py's _from_file
            what = f"is there, and not of this program ({first_line(error)}); give another"
            raise InputError(f"--out {out}: {what}") from None
        what = f"holds {len(packed)} designs of seed {theirs}; give that seed and at least as many"
        need(theirs == seed and len(packed) <= n, f"--out {out}: {what}")
    folder.mkdir(parents=True, exist_ok=True)
    for i, design, value in packed:
        if not paths[i].exists():
            _store(paths[i], design=design, objective=value)
    rows = [{key: values[i].item() for key, values in table.items()} for i in range(n)]
    work = [(problem, row, path) for row, path in zip(rows, paths, strict=True) if not path.exists()]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # the workers read it at their start
    pool = futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _die_with_parent)
    try:
        made = futures.as_completed([pool.submit(_make, job) for job in work])
        for future in tqdm(made, total=n, initial=n - len(work), desc=problem):
            future.result()
    except KeyboardInterrupt:
        print(f"\nstopped; {folder} has the designs made so far, and the same command goes on", file=sys.stderr)
        os._exit(130)  # the pool's own shutdown would wait for the designs in work
    files = [dict(np.load(path, allow_pickle=False)) for path in paths]
    out.parent.mkdir(parents=True, exist_ok=True)
    about = dict(seed=np.full(n, seed), index=np.arange(n), split=np.concatenate([old, ["train"] * (n - len(old))]))
    designs, values = (np.stack([file[key] for file in files]) for key in ("design", "objective"))
    _store(out, designs=designs, objective=values, **about, **table)


def check(path, problem):
    """Problems found in a packed file, a line each: values outside [0, 1], volume off its condition, duplicates."""
    arrays, found = _from_file(Path(path), problem), []
    designs, volume = arrays["designs"], PROBLEMS[problem]["volume"]
    if not len(designs):
        return ["no designs"]
    if volume in arrays["conditions"]:
        off = np.abs(designs.mean((1, 2)) - arrays["conditions"][volume])
        bad = np.flatnonzero(off > VOLUME_TOLERANCE)
        found += [f"design {i}: volume off by {off[i]:.4f}, allowed {VOLUME_TOLERANCE}" for i in bad]
    _, first = np.unique(designs.reshape(len(designs), -1), axis=0, return_index=True)
    return found + [f"design {i}: a duplicate" for i in sorted(set(range(len(designs))) - set(first))]


def run(args):
    if args.check:
        problem = args.problem or args.check.stem
        need(problem in PROBLEMS, f"--check {args.check}: say its --problem, one of {', '.join(PROBLEMS)}")
        found = check(args.check, problem)
        print("\n".join(found) or f"{args.check}: every design in range, at its volume, and no duplicates")
        return bool(found)
    need(args.problem, f"--problem: say which; allowed: {', '.join(CONDITIONS)}")
    for flag, least in dict(n=1, seed=0, jobs=1).items():
        need(getattr(args, flag) >= least, f"--{flag} {getattr(args, flag)}: must be at least {least}")
    out = args.out or Path(f"data/{args.problem}-s{args.seed}.npz")
    generate(args.problem, args.n, args.seed, out, args.jobs)
    print(f"{args.n} designs in {out}")


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--problem", choices=list(CONDITIONS), help="with --check: from the file's name")
    p.add_argument("--n", type=int, default=16, help="designs to make (16)")
    p.add_argument("--seed", type=int, default=0, help="seed of the conditions (0: the bundled samples)")
    p.add_argument("--jobs", type=int, default=cores(), help="processes (all cores that we may use)")
    p.add_argument("--out", type=Path, help="packed file (data/<problem>-s<seed>.npz)")
    p.add_argument("--check", type=Path, metavar="NPZ", help="check this file instead of making designs")
    return guarded("tools.designs", run, p.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
