"""Does pruning find a dimension that is known? Toy designs with k = 1..5 independent factors, every strategy, three seeds.

    make ground-truth                                       # the README's table
    python -m tools.groundtruth --seeds 7 8 9 --strategies plummet

A curved k-dimensional set embeds smoothly in at most 2k + 1 flat dimensions (Whitney), so k to 2k + 1 is right, and k the goal. Beside
the dimensions kept stands how many PCA needs for the same error. Runs go to runs/ground-truth/; those that are finished are not run again.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

import data
from pruning import STRATEGIES
from record import cores
from train import pca_errors

SETTING = "--problem=toy --latent_dim=20 --min_active_dims=1 --w_v=0.1 --polynomial_schedule_n=100 --pruning_epoch=120 --n_epochs=200"


def run(job):
    """One training run, in a process with one thread; returns its summary."""
    strategy, k, seed, extra = job
    name = f"toy{k}-{strategy}-s{seed}" + "".join(extra).replace("--", "-").replace("/", "_")
    folder = Path("runs/ground-truth") / name
    command = [
        sys.executable,
        str(Path(__file__).parent.parent / "train.py"),
        *SETTING.split(),
        "--wandb=disabled",
        f"--toy_dims={k}",
    ]
    command += [f"--strategy={strategy}", f"--seed={seed}", "--threads=1", "--out=runs/ground-truth", *extra]
    result = subprocess.run(
        command, env={**os.environ, "WANDB_RUN_ID": name}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if result.returncode:
        sys.exit(f"{name}: {result.stderr.strip()}")
    return json.loads((folder / "summary.json").read_text())


@functools.cache
def pca(k):
    """Validation error of PCA of the toy designs with k factors, by the number of components from 0 on."""
    designs = data.load("toy", toy_dims=k)
    return pca_errors(designs.train, designs.val)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="numbers of factors (1 2 3 4 5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds (1 2 3)")
    parser.add_argument(
        "--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES), help="strategies (all)"
    )
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at a time, one thread each (all cores)")
    args, extra = parser.parse_known_args()  # what is not ours goes to train.py
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: must be at least 1")
    jobs = [(s, k, seed, tuple(extra)) for s in args.strategies for k in args.ks for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(jobs, tqdm(pool.map(run, jobs), total=len(jobs)), strict=True))
    print(
        "| strategy | k | dims kept | val_rec | dims PCA needs | in k..2k+1 and val_rec < 5e-4 |\n| --- | --- | --- | --- | --- | --- |"
    )
    for strategy in args.strategies:
        good = 0
        for k in args.ks:
            runs = [found[strategy, k, seed, tuple(extra)] for seed in args.seeds]
            hits = sum(k <= r["active_dims"] <= 2 * k + 1 and r["val_rec"] < 5e-4 for r in runs)
            kept, errors = (
                ", ".join(format(r[key], f) for r in runs) for key, f in (("active_dims", "d"), ("val_rec", ".1e"))
            )
            components = ", ".join(str(int((pca(k) > r["val_rec"]).sum())) for r in runs)
            print(f"| {strategy} | {k} | {kept} | {errors} | {components} | {hits} of {len(runs)} |")
            good += hits
        print(f"| {strategy} | all | | | | {good} of {len(args.ks) * len(args.seeds)} |")


if __name__ == "__main__":
    main()
