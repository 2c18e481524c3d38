"""Synthetic studies with known answers, written as run folders like train.py's: what tests/test_report.py reads."""

import itertools
import json
import zlib

import numpy as np
import yaml

from reporting.collect import LEVEL
from reporting.studies import SWEEPS

COLUMNS = [
    "epoch",
    "rec_loss",
    "vol_loss",
    "total_loss",
    "val_rec",
    "val_vol_loss",
    "val_total_loss",
    "active_dims",
    "w_v",
    "pruned",
    "val_rec_pruned",
    "epoch_seconds",
]
BASE = {"beams2d": 0.012, "heatconduction2d": 0.02, "photonics2d": 0.05, "toy": 0.001}
EPOCHS = 40


def write_run(folder, flags, val_rec, dims=40, status="finished", spike=1.0, epochs=EPOCHS, stop=None, events=2, data=None, sweep=None):
    """One run folder. val_rec: of the last epoch; spike: its largest rise after pruning, as a factor; stop: epochs of an unfinished run."""
    folder.mkdir(parents=True)
    flags = dict(flags, n_epochs=epochs)
    start = int(flags["pruning_epoch"])
    curve = val_rec * (1 + 3 * np.exp(-np.arange(epochs) / (epochs / 8)))
    if spike > 1 and start + 2 < epochs:
        curve[start + 2] = spike * curve[start : start + 3].min()
    curve[-1] = val_rec
    n = epochs if stop is None else stop
    lines = [",".join(COLUMNS)]
    for e in range(n):
        pruned = curve[e] if e >= start + epochs // 10 else ""
        lines.append(f"{e},{curve[e]},0.1,{curve[e]},{curve[e]},0.1,{curve[e] + 0.001},{dims},{flags.get('w_v', 0.01)},0,{pruned},0.5")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    header = "epoch,proposed,k_consecutive,recon_tol,cooldown,cap,floor,pruned,dims,std"
    rows = [f"{start + 3 * i},30,10,0,5,5,0,10,1 2 3,0.1 0.1 0.1" for i in range(events)]
    (folder / "pruning.csv").write_text("\n".join([header, *rows]) + "\n")
    data = data or dict(
        source="sample", train=700, val=150, test=150, height=50, width=100, sha256=f"{zlib.crc32(flags['problem'].encode()):x}"
    )
    config = dict(
        id=folder.name,
        name=f"{flags['problem']}-{flags['strategy']}",
        flags=flags,
        data=data,
        git="0123456789abcdef",
        versions=dict(python="3.11", torch="2.13.0"),
        machine=dict(host="h", cpu="cpu", cores=2, device="cpu"),
        sweep=sweep,
        started="2026-11-23T10:00:00",
    )
    (folder / "config.json").write_text(json.dumps(config))
    if stop is None:
        summary = dict(
            status=status,
            cause=None if status == "finished" else "loss is NaN",
            id=folder.name,
            epoch=epochs - 1,
            val_rec=val_rec,
            rec_loss=val_rec,
            val_vol_loss=0.1,
            val_total_loss=val_rec + 0.001,
            active_dims=dims,
            best_val_rec=0.98 * val_rec,
            best_epoch=epochs - 2,
            pca_rec=1.3 * BASE[flags["problem"]] * (40 / dims) ** 0.5,
            pca_ratio=val_rec / (1.3 * BASE[flags["problem"]] * (40 / dims) ** 0.5),
            prune_events=events,
            seconds=60.0,
        )
        (folder / "summary.json").write_text(json.dumps(summary))


def points(name):
    """Every point of a grid sweep as flags, arms resolved, at a length that suits a test."""
    (path,) = SWEEPS.glob(f"{name}_*.yaml")
    parameters = yaml.safe_load(path.read_text())["parameters"]
    lists = {k: p.get("values", [p.get("value")]) for k, p in parameters.items()}
    for values in itertools.product(*lists.values()):
        flags = dict(zip(lists, values, strict=True))
        flags.update(pair.split("=") for pair in flags.get("arm", "").split(",") if pair)
        flags.setdefault("safeguards", "moderate")
        flags["pruning_epoch"] = flags["pruning_epoch"] // 50
        yield flags


def plant(root, name, effect, noise=0.02, seed=0, dims=lambda flags: 40, keep=lambda flags: True, spike=lambda flags: 1.0, **kwargs):
    """Write every point of sweep `name` below root: val_rec = base * exp(effect(flags) + noise of problem and seed + own noise)."""
    rng, folders = np.random.default_rng(seed), []
    for i, flags in enumerate(points(name)):
        own = rng.normal(0, noise)
        shared = np.random.default_rng([seed, zlib.crc32(flags["problem"].encode()), flags["seed"]]).normal(0, 0.1)
        if keep(flags):
            folder = root / f"r{i:04d}"
            val_rec = BASE[flags["problem"]] * float(np.exp(effect(flags) + shared + own))
            write_run(folder, flags, val_rec, dims=dims(flags), spike=spike(flags), **kwargs)
            folders.append(folder)
    return folders


def level(flags):
    """The level of a run's strategy as a number; NaN for none."""
    return float(flags[LEVEL[flags["strategy"]]]) if flags["strategy"] in LEVEL else float("nan")


def plant_search(root, runs=33, seed=0, problems=("beams2d", "heatconduction2d", "photonics2d"), product=-0.3, strong="w_v"):
    """A random search in the ranges of 03: `strong` and latent_dim x w_v decide val_rec_pruned; every fifth run is stopped."""
    rng, folders = np.random.default_rng(seed), []
    base = next(points("01"))
    for problem, i in itertools.product(problems, range(runs)):
        u = dict(zip(("latent_dim", "lr", "w_v", "pruning_epoch"), rng.uniform(-1, 1, 4), strict=True))
        flags = dict(
            base,
            problem=problem,
            seed=1,
            latent_dim=round(100 * 5 ** ((u["latent_dim"] + 1) / 2)),
            lr=1e-4 * 10 ** u["lr"],
            w_v=0.01 * 10 ** u["w_v"],
            batch_size=int(rng.choice([32, 64, 128, 256])),
            pruning_epoch=round(2 + (u["pruning_epoch"] + 1) * 2),
            strategy="plummet",
            arm=None,
        )
        value = BASE[problem] * np.exp(0.8 * u[strong] + product * u["latent_dim"] * u["w_v"] + rng.normal(0, 0.1))
        folder = root / f"{problem}-{i:03d}"
        write_run(folder, flags, float(value), stop=15 if i % 5 == 4 else None)
        folders.append(folder)
    return folders
