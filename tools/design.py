"""A design for conditions that nobody optimised: from the conditions to the latents, and through the decoder.

    make design MODEL=models/beams2d CONDITIONS="volfrac=0.3 rmin=2 forcedist=0.4"      # POLISH=5, FORCE=1, OUT=folder

Beside the design stands the training design of the nearest conditions. The densities of both are shifted by a constant
until the volume fits; then both get POLISH iterations of the problem's own optimiser. The error on validation designs,
made from their conditions alone, is printed, too. Writes design.png and design.npy. In Python:

    model = lvae.load("models/beams2d"); x = model.design(dict(volfrac=0.3, rmin=2, forcedist=0.4))
"""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

import data
from lvae import InputError, load, need, principal_axes
from record import Parser, guarded, slug
from tools.designs import objective, optimise
from tools.figures import images

SMOOTH = (0.5, 1.5, 2.5)  # Matern's nu: continuous, once, twice differentiable


def regression(conditions, y):
    """Gaussian process from conditions {name: (n,)} to y (n, k), as what lvae's CompactLVAE.design takes.

    A Matern kernel with a length a condition. Lengths and noise maximise the marginal likelihood on a subset of the
    designs; nu is chosen by cross-validation there. Returns None where no condition varies.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern, WhiteKernel
    from sklearn.model_selection import cross_val_score

    columns = {name: np.asarray(values, float) for name, values in conditions.items()}
    columns = {name: values for name, values in columns.items() if np.ptp(values) > 0}
    if not columns:
        return None
    low, high = (np.array([f(values) for values in columns.values()]) for f in (np.min, np.max))
    x, y = (np.stack(list(columns.values()), 1) - low) / (high - low), np.asarray(y, float)
    mean, scale = y.mean(0), y.std(0).max() or 1.0
    some = np.random.default_rng(0).permutation(len(x))[:300]  # on which the hyperparameters are found
    few = y.var(0).argsort()[::-1][:8]  # the widest latents
    part = ((y[some] - mean) / scale)[:, few]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length at its bound: a condition that does not matter
        found = []
        for nu in SMOOTH:
            kernel = Matern(np.ones(x.shape[1]), (0.05, 100), nu=nu) + WhiteKernel(0.1, (1e-4, 10))
            gp = GaussianProcessRegressor(kernel).fit(x[some], part)
            fixed = GaussianProcessRegressor(gp.kernel_, optimizer=None)
            score = cross_val_score(fixed, x[some], part, cv=min(3, len(some)), scoring="neg_mean_squared_error")
            found.append((score.mean(), nu, gp.kernel_))
        _, nu, kernel = max(found, key=lambda entry: entry[0])
        gp = GaussianProcessRegressor(kernel, optimizer=None).fit(x, (y - mean) / scale)
    numbers = dict(low=low, high=high, length=np.atleast_1d(kernel.k1.length_scale), points=x)
    numbers |= dict(weights=gp.alpha_.reshape(y.shape) * scale, offset=mean)
    return dict(names=list(columns), nu=nu) | {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}


def bandwidth(z, held):
    """The bandwidth of lvae.draw's density of latents z (N, k) under which the latents `held` (n, k) are likeliest."""
    mean, variances, axes = principal_axes(z)
    white = axes / variances.clamp_min(1e-12 * variances[-1]).sqrt()
    z, held = ((x.double() - mean) @ white for x in (z, held))

    def likelihood(h):  # the mean logarithm, up to a constant
        distance = torch.cdist(held, math.sqrt(1 - h * h) * z) / h
        return float((distance.square() / -2).logsumexp(1).mean() - z.shape[1] * math.log(h))

    return max((0.05, 0.1, 0.2, 0.3, 0.5, 1.0), key=likelihood)


def shift(design, volume):
    """A design with a constant added to its densities, clipped to [0, 1], so that its mean is `volume`."""
    low, high = -1.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(design + middle, 0, 1).mean() < volume else (low, middle)
    return np.clip(design + low, 0, 1)


def fitted(problem, conditions, design):
    """A design (H, W) with the volume that its conditions ask for; as it is where they ask for none."""
    name = data.PROBLEMS[problem]["volume"]
    return shift(design, conditions[name]) if name else design


def nearest(designs, conditions):
    """The training design (H, W) whose conditions are nearest, each counted in units of its range."""
    theirs = designs.conditions["train"]
    far = sum(((np.asarray(theirs[k], float) - v) / (np.ptp(theirs[k]) or 1)) ** 2 for k, v in conditions.items())
    return designs.train[int(np.argmin(far)), 0].double().numpy()


def accuracy(model, designs):
    """Mean squared errors over the validation designs, from their conditions alone: {of what: error}."""
    names, known = model.known["names"], designs.conditions["val"]
    rows = [{name: float(known[name][i]) for name in names} for i in range(len(designs.val))]
    guesses = {
        "from the latents": torch.cat([model.design(row, force=True) for row in rows])[:, 0],
        "the nearest training design": torch.tensor(np.stack([nearest(designs, row) for row in rows])),
        "the mean training design": designs.train.mean(0),
    }
    return {name: (guess - designs.val[:, 0]).square().mean().item() for name, guess in guesses.items()}


def settled(problem, conditions):
    """(conditions as the simulator takes them, what was changed): it loads a beam at a node of its top edge."""
    if problem == "beams2d" and "forcedist" in conditions:
        at = round(conditions["forcedist"] * 100) / 100
        said = f"forcedist {conditions['forcedist']:g} lies between two nodes; moved to {at:g}"
        moved = "" if abs(at - conditions["forcedist"]) < 1e-9 else said
        return conditions | dict(forcedist=float(np.nextafter(at, 2))), moved
    return conditions, ""


def read(text):
    """ "a=1 b=2" -> {"a": 1.0, "b": 2.0}. Raises InputError."""
    pairs = [part.partition("=") for part in text.split()]
    try:
        return {name: float(value) for name, _, value in pairs}
    except ValueError:
        raise InputError(f'CONDITIONS "{text}": must be name=number, with blanks between them') from None


def make(model, designs, conditions, polish, force):
    """{name: design (H, W)} for conditions: the model's, the nearest training design's, and both polished."""
    problem = model.flags["problem"]
    found = {"from the latents": model.design(conditions, force)[0, 0].double().numpy()}
    if designs:
        found["nearest training design"] = nearest(designs, conditions)
    found = {name: fitted(problem, conditions, x) for name, x in found.items()}
    polished = {k: optimise(problem, conditions, x, polish) / 255 for k, x in found.items()} if polish else {}
    return found | {f"{k}, {polish} iterations": x for k, x in polished.items()}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="a model.pt or a folder that has one")
    parser.add_argument("--conditions", required=True, help='"name=number name=number"')
    parser.add_argument("--polish", type=int, default=0, help="iterations of the problem's own optimiser (0)")
    parser.add_argument("--force", action="store_true", help="conditions outside of what the model was trained on, too")
    parser.add_argument("--out", help="folder (report/design-CONDITIONS)")
    args = parser.parse_args(argv)
    return guarded("tools.design", run, args)


def run(args):
    model, conditions = load(args.model), read(args.conditions)
    problem = model.flags["problem"]
    simulated = "hub" in data.PROBLEMS[problem]  # one of EngiBench's
    need(args.polish >= 0, "POLISH: below 0")
    need(simulated or not args.polish, f"POLISH {args.polish}: {problem} has no optimiser here")
    conditions, moved = settled(problem, conditions)
    designs = None
    try:
        designs = data.load(problem, model.flags["data"], n_train=model.flags.get("n_train") or 0)
    except InputError as error:
        print(f"no training design beside it ({error})", file=sys.stderr)
    found = make(model, designs, conditions, args.polish, args.force)
    folder = Path(args.out or f"report/design-{slug(args.conditions)}")
    folder.mkdir(parents=True, exist_ok=True)
    kept = [name for name in found if name.startswith("from the latents")][-1]
    np.save(folder / "design.npy", found[kept])
    images([[x] for x in found.values()], list(found)).savefig(folder / "design.png", dpi=300, bbox_inches="tight")
    if moved:
        print(moved)
    for name, x in found.items():
        score = f"objective {objective(problem, conditions, x):.4g}, " if simulated else ""
        print(f"{name + ':':42s} {score}volume {x.mean():.4f}")
    if designs:
        errors = ", ".join(f"{error:.3g} {name}" for name, error in accuracy(model, designs).items())
        print(f"error on {len(designs.val)} validation designs, from their conditions alone: {errors}")
    print(f"{folder}/design.png has all of them, design.npy the one {kept}")


if __name__ == "__main__":
    sys.exit(main())
