"""Speed against the published network, on the same designs in one run: time to quality, images a second.

    make bench                  # writes results/bench.csv and results/bench.md
    make bench QUICK=1          # beams2d alone, one seed, shorter budgets
    make bench DEVICE=cuda      # the same on a GPU
    make budget                 # hours of the six sweeps at the measured rate: results/budget.md

The published network is the one of EngiOpt's LVAE: 4x4/2, 4x4/2, 3x3/2, 3x3/2 convolutions with batch norm (64 to 512
channels) and its mirror image, designs resized to 100x100 and back, every step logged and read back with .item().
Every measurement is a process of its own.
"""

import contextlib
import datetime
import functools
import math
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas
import torch
import torch.nn.functional as F
from torch import nn

import data
import train
from data import CONDITIONS
from record import Parser, cores, cpu_model, write_atomically
from report import markdown
from sweep import FILES, expand, levels, read_yaml

LATENT, BATCH = 100, 128
# The run of the first edition that the README once showed: beams, seed 1, 26 dimensions at val_rec .00173
FORMER = dict(volume="geometric", w_v=0.01, rotate_every=0, trim_share=0, keep="last", mirror=False, n_train=716)
FORMER |= dict(batch_size=64, n_epochs=500, pruning_epoch=100, polynomial_schedule_n=100)


class Published(nn.Module):
    """The published autoencoder: (B, 1, H, W) -> (B, latent_dim) -> (B, 1, H, W), through 100x100."""

    def __init__(self, shape, latent_dim):
        super().__init__()
        self.shape = tuple(shape)

        def down(inputs, outputs, k):
            return nn.Conv2d(inputs, outputs, k, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)

        def up(inputs, outputs, k):
            return nn.ConvTranspose2d(inputs, outputs, k, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

        head = (nn.Conv2d(512, latent_dim, 7), nn.Flatten())
        self.encoder = nn.Sequential(*down(1, 64, 4), *down(64, 128, 4), *down(128, 256, 3), *down(256, 512, 3), *head)
        first = (nn.Linear(latent_dim, 512 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (512, 7, 7)))
        last = (nn.ConvTranspose2d(64, 1, 4, 2, 1, bias=False), nn.Sigmoid())
        self.decoder = nn.Sequential(*first, *up(512, 256, 3), *up(256, 128, 3), *up(128, 64, 4), *last)

    def encode(self, x):
        return self.encoder(F.interpolate(x, (100, 100), mode="bilinear", antialias=True))

    def decode(self, z):
        return F.interpolate(self.decoder(z), self.shape, mode="bilinear", antialias=True)


def published(t):
    """The published network and its optimiser, as new, for a train.Trainer's designs."""
    torch.manual_seed(t.args.seed)
    model = Published(t.train.shape[2:], LATENT).to(t.device)
    return model, torch.optim.Adam(model.parameters(), lr=4e-4)


def published_epoch(t, model, optimizer, epoch, log=None):
    """One epoch of the published training loop on a Trainer's designs; log: every step is logged, as published."""
    model.train()
    for indices in torch.randperm(len(t.train)).split(t.batch):
        x = t.train[indices.to(t.device)]
        z = model.encode(x)
        rec = F.mse_loss(model.decode(z), x)
        vol = train.volume(z.std(0), t.pruner.active, "geometric", t.args.eta)
        loss = rec + t.w_v(epoch) * vol
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if log:
            log(dict(rec_loss=rec.item(), vol_loss=vol.item(), total_loss=loss.item(), epoch=epoch))
    return published_error(model, t.val)


@torch.no_grad()
def published_error(model, x):
    model.eval()
    return F.mse_loss(torch.cat([model.decode(model.encode(part)) for part in x.split(256)]), x).item()


def trainer(problem, device, seed=1001, **flags):
    """A train.Trainer on the bundled designs, in fp32. Seeds from 1001 on: the sweeps' own stay untouched."""
    torch.backends.cudnn.allow_tf32 = False  # fp32 means the same for convolutions as for matrix products
    settings = dict(problem=problem, device=device, seed=seed, data="sample", latent_dim=LATENT, precision="fp32")
    args = train.parse([f"--{key}={value}" for key, value in (settings | dict(wandb="disabled") | flags).items()])
    designs = data.load(args.problem, args.data, n_train=args.n_train)
    train.schedule(args, len(designs.train))
    return train.Trainer(args, designs, train.settle(args))


@contextlib.contextmanager
def wandb_log():
    """W&B's own log(), offline in a folder that is thrown away."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(console="off", silent=True))
        yield run.log
        run.finish()


def measure_rate(problem, network, device, seconds):
    """Training images a second at batch 128."""
    t = trainer(problem, device, batch_size=BATCH, strategy="none")
    # One or two whole batches an epoch, and next to no validation: the steps are what is measured
    t.train, t.val = t.train[: min(2, len(t.train) // BATCH) * BATCH], t.val[:2]
    with wandb_log() if network == "published, as shipped" else contextlib.nullcontext() as log:
        step = functools.partial(t.epoch, 0)
        if network != "ours":
            step = functools.partial(published_epoch, t, *published(t), 0, log)
        step()
        start, epochs = time.perf_counter(), 0
        while epochs == 0 or time.perf_counter() - start < seconds:
            step()  # its errors are read back, so that a GPU is done with it
            epochs += 1
        return epochs * len(t.train) / (time.perf_counter() - start)


def measure_published_quality(problem, device, seed, seconds):
    """The published network, as shipped, for a fixed budget: its best val_rec, when, and the mean design's error."""
    t = trainer(problem, device, seed, batch_size=BATCH)
    published_error(published(t)[0], t.val)  # what the first call loads is not timed
    model, optimizer = published(t)
    best, at, epoch = math.inf, 0.0, 0
    with wandb_log() as log:
        start = time.perf_counter()
        while (now := time.perf_counter() - start) < seconds:
            error = published_epoch(t, model, optimizer, epoch, log)
            epoch += 1
            if error < best:
                best, at = error, time.perf_counter() - start
    mean = F.mse_loss(t.train.mean(0).expand_as(t.val), t.val).item()
    return dict(best_val_rec=best, seconds=at, epochs=epoch, budget=now, mean_design=mean)


def measure_our_quality(problem, device, seed, epochs, quality, dims=math.inf):
    """Ours: seconds until val_rec first reaches `quality` with at most `dims`, in `epochs` at most; else inf."""
    trainer(problem, device, seed).epoch(0)  # what the first call loads is not timed
    t = trainer(problem, device, seed)
    with wandb_log() as log:
        start = time.perf_counter()
        for epoch in range(epochs):
            row, _ = t.epoch(epoch)
            log(row)
            if row["val_rec"] <= quality and row["active_dims"] + row["pruned"] <= dims:
                return time.perf_counter() - start
    return math.inf


def measure_outside(problem, device, epochs):
    """Share of the loop spent outside the training steps: validation, pruning, CSV, W&B offline."""
    spent = dict(steps=0.0, fit=0.0)

    def timed(function, name):
        def call(*args):
            start = time.perf_counter()
            result = function(*args)
            if device == "cuda":
                torch.cuda.synchronize()
            spent[name] += time.perf_counter() - start
            return result

        return call

    train.Trainer.steps, train.fit = timed(train.Trainer.steps, "steps"), timed(train.fit, "fit")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        flags = dict(problem=problem, device=device, data="sample", latent_dim=LATENT, seed=1001, wandb="offline")
        flags |= dict(out=folder, n_epochs=epochs, polynomial_schedule_n=epochs // 3, pruning_epoch=epochs // 2)
        train.main([f"--{key}={value}" for key, value in flags.items()])
    return 1 - spent["steps"] / spent["fit"]


def measure_epoch(problem, device, seconds, **flags):
    """Seconds an epoch, validation and all, at the defaults of train.py or flags; the first epoch does not count."""
    t = trainer(problem, device, **(dict(precision="auto") | flags))
    t.epoch(0)
    spent = []
    while sum(spent) < seconds or not spent:
        spent.append(t.epoch(len(spent) + 1)[0]["epoch_seconds"])
    return statistics.mean(spent)


def apart(measure, threads=None, copies=1, **asked):
    """What copies of a measurement return, each in a process of its own with so many threads (None: all cores)."""
    os.environ |= {"OMP_NUM_THREADS": str(threads or cores())}  # the processes read it at their start
    with ProcessPoolExecutor(copies, mp_context=get_context("spawn")) as pool:
        return [job.result() for job in [pool.submit(measure, **asked) for _ in range(copies)]]


def spread(values):
    """Median and range of some numbers, as text."""
    median, low, high = (f"{v:.3g}" for v in (statistics.median(values), min(values), max(values)))
    return median if len(values) == 1 else f"{median} ({low} to {high})"


COLUMNS = ("measure", "problem", "setting", "published", "ours", "ratio")


def machine(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cores()} cores of {cpu_model()}"


def bench(device, quick):
    """Measure everything, into results/bench.md and .csv; each row is printed as it comes."""
    rate_s, budget_s, epochs, seeds = (3, 60, 20, [1001]) if quick else (8, 300, 40, [1001, 1002, 1003])
    problems, rows = [*CONDITIONS][: 1 if quick else None], []
    command = f"make bench{' QUICK=1' * quick}{' DEVICE=cuda' * (device == 'cuda')}"
    about = f"`{command}` on {machine(device)}, torch {torch.__version__}, {datetime.date.today()}; latent_dim "
    about += f"{LATENT}, bundled designs, fp32. Batch 128, no pruning; to quality: ours at its defaults, published "
    about += "with Adam at 4e-4, 4 times its default. Ratio: in our favour."

    def add(*row):
        rows.append([f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row])
        print(" | ".join(rows[-1]), flush=True)

    for problem in problems:
        asked = dict(problem=problem, seconds=rate_s, device=device)
        networks = ("published, as shipped", "published", "ours")
        shipped, plain, ours = (apart(measure_rate, network=network, **asked)[0] for network in networks)
        add("training images/s", problem, "fp32, published logs each step", shipped, ours, ours / shipped)
        add("training images/s", problem, "fp32", plain, ours, ours / plain)
    beams = dict(problem="beams2d", device=device)
    if device == "cpu" and (half := cores() // 2):  # two of ours side by side, against one with half the threads
        asked = beams | dict(network="ours", seconds=2 * rate_s, threads=half)
        (one,), both = apart(measure_rate, **asked), sum(apart(measure_rate, copies=2, **asked))
        setting = f"{half} thread(s) each; ratio to one such run"
        add("two runs at once, images/s", "beams2d", setting, "", both, both / one)
    # Time to quality, with all threads, seed after seed; published as shipped
    theirs = [apart(measure_published_quality, seconds=budget_s, seed=seed, **beams)[0] for seed in seeds]
    best, first = [run["best_val_rec"] for run in theirs], theirs[0]
    setting = f"val_rec {spread(best)}, its best in {first['budget']:.0f} s or {first['epochs']} epochs"
    setting += f"; the mean design's: {first['mean_design']:.3g}"
    pairs = zip(best, seeds, strict=True)
    ours = [apart(measure_our_quality, epochs=epochs, quality=q, seed=seed, **beams)[0] for q, seed in pairs]
    spent = [run["seconds"] for run in theirs]
    ratio = spread([a / b for a, b in zip(spent, ours, strict=True)])
    if max(best) >= first["mean_design"]:
        ratio = "none: published is above the mean design"
    elif math.inf in ours:
        ratio = f"none: not reached in {epochs} epochs by every seed"
    add("seconds to quality", "beams2d", setting, spread(spent), spread(ours), ratio)
    # Until ours has reached the run of the first edition in both numbers, against the time of that run
    former = apart(measure_epoch, seconds=rate_s, seed=1, **beams, **FORMER)[0] * FORMER["n_epochs"]
    (ours,) = apart(measure_our_quality, epochs=60, quality=0.00173, dims=26, seed=1, **beams)
    add("seconds to 26 dims at val_rec .00173", "beams2d", "against the first edition", former, ours, former / ours)
    for problem in problems:
        (share,) = apart(measure_outside, problem=problem, epochs=20 if quick else 60, device=device)
        add("share of the loop outside the steps", problem, "W&B offline", "", share, "")
    path = Path("results") / f"bench{'-quick' * quick}{'' if device == 'cpu' else f'-{device}'}.md"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, f"{about}\n\n{markdown(COLUMNS, rows)}\n")
    write_atomically(path.with_suffix(".csv"), pandas.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
    print(f"written: {path}, and as .csv")


def budget(device):
    """Hours of each sweep at the rate measured now, one agent a core (a GPU: one agent), into results/budget.md."""
    agents, rows, total = cores() if device == "cpu" else 1, [], 0.0
    how = dict(threads=1, copies=agents, device=device, seconds=15)
    epoch_s = {problem: statistics.mean(apart(measure_epoch, problem=problem, **how)) for problem in CONDITIONS}
    usual = {problem: trainer(problem, "cpu").args.n_epochs for problem in CONDITIONS}  # where none are given
    for path in sorted(FILES.glob("*.yaml")):
        _, config = read_yaml(str(path))
        parameters = config["parameters"]
        runs, problems = config.get("run_cap", 0) * len(CONDITIONS), CONDITIONS  # a sweep a problem
        if config["method"] == "grid":
            runs, problems = len(expand(config)), levels(parameters["problem"])
        epochs = {problem: parameters["n_epochs"]["value"] or usual[problem] for problem in problems}
        hours = runs * statistics.mean(n * epoch_s[problem] for problem, n in epochs.items()) / agents / 3600
        total += hours
        told = " to ".join(str(n) for n in sorted({min(epochs.values()), max(epochs.values())}))
        rows.append([path.stem.replace("_", " "), runs, told, f"{hours:.1f}"])
    seconds = ", ".join(f"{problem} {rate:.2f} s" for problem, rate in epoch_s.items())
    command = f"make budget{' DEVICE=cuda' * (device == 'cuda')}"
    about = f"`{command}` on {machine(device)}, {agents} agent(s) at a time, {datetime.date.today()}, on the bundled "
    about += f"designs.\nAn epoch: {seconds}. 03 at the defaults: hyperband stops runs early, but latent_dim "
    about += "and batch vary."
    text = f"{about}\n\n{markdown(['sweep', 'runs', 'epochs', 'hours'], [*rows, ['all', '', '', f'{total:.1f}']])}\n"
    path = Path("results") / ("budget.md" if device == "cpu" else f"budget-{device}.md")
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text)
    print(f"{text}\nwritten: {path}")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, shorter budgets")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(cpu)")
    parser.add_argument("--budget", action="store_true", help="hours of the sweeps instead of the benchmark")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU that torch can use; allowed here: cpu")
    budget(args.device) if args.budget else bench(args.device, args.quick)


if __name__ == "__main__":
    main()
