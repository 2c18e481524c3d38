"""Synthetic studies with known answers, written as run folders like train.py's: what tests/test_report.py reads."""

import itertools
import json
import zlib

import numpy as np
import pandas as pd
import yaml

from report import SWEEPS

BASE = {"beams2d": 0.012, "heatconduction2d": 0.02, "photonics2d": 0.05, "toy": 0.001}
EPOCHS = 40
PROPOSALS = (
    "epoch,proposed,k_consecutive,recon_tol,cooldown,cap,floor,pruned\n12,30,10,0,5,5,0,10\n15,30,10,0,5,5,0,10\n"
)


def write_run(folder, flags, val_rec, dims=40, spike=1.0, epochs=EPOCHS, stop=None, sha256=None, sweep=None):
    """One run folder. val_rec: of the last epoch; spike: its rise after pruning; stop: epochs of an unfinished run."""
    folder.mkdir(parents=True)
    flags, start = dict(flags, n_epochs=epochs), int(flags["pruning_epoch"])
    curve = val_rec * (1 + 3 * np.exp(-np.arange(epochs) / (epochs / 8)))
    if spike > 1:
        curve[start + 2] = spike * curve[start : start + 3].min()
    curve[-1] = val_rec
    late = np.where(np.arange(epochs) < start + epochs // 10, np.nan, curve)
    metrics = pd.DataFrame(dict(epoch=range(epochs), val_rec=curve, val_rec_pruned=late, active_dims=dims))
    metrics[:stop].to_csv(folder / "metrics.csv", index=False)
    (folder / "pruning.csv").write_text(PROPOSALS)
    config = dict(id=folder.name, flags=flags, git="0123456789abcdef", started="2026-11-23T10:00:00", sweep=sweep)
    config |= dict(data=dict(source="sample", sha256=sha256 or f"{zlib.crc32(flags['problem'].encode()):x}"))
    (folder / "config.json").write_text(json.dumps(config | dict(machine=dict(host="h", cpu="cpu"))))
    if stop is None:
        pca = 1.3 * BASE[flags["problem"]] * (40 / dims) ** 0.5
        summary = dict(status="finished", cause=None, epoch=epochs - 1, val_rec=val_rec, active_dims=dims, seconds=60.0)
        summary |= dict(best_val_rec=0.98 * val_rec, pca_rec=pca, pca_ratio=val_rec / pca, prune_events=2)
        (folder / "summary.json").write_text(json.dumps(summary))


def points(name):
    """Every point of a grid sweep as flags, arms resolved, at a length that suits a test."""
    parameters = yaml.safe_load(SWEEPS[name].read_text())["parameters"]
    lists = {k: p.get("values", [p.get("value")]) for k, p in parameters.items()}
    for values in itertools.product(*lists.values()):
        flags = dict(zip(lists, values, strict=True))
        flags.update(pair.split("=") for pair in flags.get("arm", "").split(",") if pair)
        yield flags | dict(safeguards=flags.get("safeguards", "moderate"), pruning_epoch=flags["pruning_epoch"] // 50)


def plant(root, name, effect=lambda f: 0, noise=0.02, seed=0, dims=lambda f: 40, keep=lambda f: True, **kwargs):
    """Write points of sweep `name` below root: val_rec = base * exp(effect(flags) + shared noise + own)."""
    rng, folders, spike = np.random.default_rng(seed), [], kwargs.pop("spike", lambda f: 1.0)
    kwargs = dict(sweep=f"{name}_x-abc123") | kwargs
    for i, flags in enumerate(points(name)):
        own = rng.normal(0, noise)
        shared = np.random.default_rng([seed, zlib.crc32(flags["problem"].encode()), flags["seed"]]).normal(0, 0.1)
        if keep(flags):
            folders.append(root / f"r{i:04d}")
            val_rec = BASE[flags["problem"]] * float(np.exp(effect(flags) + shared + own))
            write_run(folders[-1], flags, val_rec, dims=dims(flags), spike=spike(flags), **kwargs)
    return folders


def plant_search(root, runs=33, seed=0, problems=tuple(BASE)[:3], strong="w_v", scale=0.8):
    """A random search in the ranges of 03: `strong` and latent_dim x w_v decide; every fifth is stopped."""
    rng, folders, base = np.random.default_rng(seed), [], next(points("01"))
    for problem, i in itertools.product(problems, range(runs)):
        u = dict(zip(("latent_dim", "lr", "w_v", "pruning_epoch"), rng.uniform(-1, 1, 4), strict=True))
        flags = base | dict(problem=problem, seed=1, lr=1e-3 * 10 ** u["lr"], w_v=0.01 * 10 ** u["w_v"])
        flags |= dict(latent_dim=round(100 * 5 ** ((u["latent_dim"] + 1) / 2)), strategy="plummet")
        flags |= dict(batch_size=int(rng.choice([32, 64, 128])), pruning_epoch=round(4 + u["pruning_epoch"] * 2))
        value = BASE[problem] * np.exp(scale * (u[strong] - 0.4 * u["latent_dim"] * u["w_v"]) + rng.normal(0, 0.1))
        folders.append(root / f"{problem}-{i:03d}")
        made = dict(stop=15 if i % 5 == 4 else None, sweep="03-x_hyperparameter_sensitivity-abc")
        write_run(folders[-1], flags, float(value), **made)
    return folders
