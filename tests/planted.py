"""Synthetic sweeps with known answers, as rows of results/NN.csv or as run folders like train.py's."""

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from report import RESULT_METRICS, SWEEPS

BASE = {"beams2d": 0.012, "heatconduction2d": 0.02, "photonics2d": 0.05}
EPOCHS = 40
PROPOSALS = "epoch,proposed,k_consecutive,recon_tol,cooldown,cap,floor,pruned\n"  # as older runs named them
PROPOSALS += "12,30,10,0,5,5,0,10\n15,30,10,0,5,5,0,10\n"


def points(name):
    """Every point of a grid sweep as flags, arms resolved, at a length that suits a test."""
    parameters = yaml.safe_load(SWEEPS[name].read_text())["parameters"]
    lists = {k: p.get("values", [p.get("value")]) for k, p in parameters.items()}
    for values in itertools.product(*lists.values()):
        flags = dict(zip(lists, values, strict=True))
        flags.update(pair.split("=") for pair in flags.get("arm", "").split(",") if pair)
        start = (flags["pruning_epoch"] or 25) * EPOCHS / (flags["n_epochs"] or 100)
        flags |= dict(safeguards=flags.get("safeguards", "moderate"), pruning_epoch=round(start))
        yield flags | dict(n_epochs=EPOCHS)


def row(flags, val_rec, dims=40, **other):
    """A finished run as a row of results/NN.csv."""
    pca = 1.3 * BASE[flags["problem"]] * (40 / dims) ** 0.5
    found = dict(status="finished", epoch=EPOCHS - 1, val_rec=val_rec, active_dims=dims, best_val_rec=0.98 * val_rec)
    found |= dict(pca_rec=pca, pca_ratio=val_rec / pca, prune_events=2, seconds=60.0, git="0123", cpu="cpu")
    found |= dict(data_source="sample", data_sha256=f"{zlib.crc32(flags['problem'].encode()):x}", recorded="2026-11-23")
    return flags | found | other


def runs_of(name, effect=lambda f: 0, noise=0.02, seed=0, dims=lambda f: 40, keep=lambda f: True, **other):
    """Rows of points of sweep `name`: val_rec = base * exp(effect(flags) + noise that arms share + their own)."""
    rng, rows = np.random.default_rng(seed), []
    for i, flags in enumerate(points(name)):
        own = rng.normal(0, noise)
        shared = np.random.default_rng([seed, zlib.crc32(flags["problem"].encode()), flags["seed"]]).normal(0, 0.1)
        if keep(flags):
            val_rec = BASE[flags["problem"]] * float(np.exp(effect(flags) + shared + own))
            made = dict(id=f"r{i:04d}", sweep=f"{name}_x-abc123") | other
            rows.append(row(flags, val_rec, dims(flags), **made))
    return rows


def search(runs=33, seed=0, problems=tuple(BASE), strong="w_v", scale=0.8):
    """A random search in the ranges of 03: `strong` and latent_dim x w_v decide; every fifth is stopped."""
    rng, rows, base = np.random.default_rng(seed), [], next(points("01"))
    for problem, i in itertools.product(problems, range(runs)):
        u = dict(zip(("latent_dim", "lr", "w_v", "pruning_epoch"), rng.uniform(-1, 1, 4), strict=True))
        flags = base | dict(problem=problem, seed=1, lr=1e-3 * 10 ** u["lr"], w_v=0.01 * 10 ** u["w_v"])
        flags |= dict(latent_dim=round(100 * 5 ** ((u["latent_dim"] + 1) / 2)), strategy="plummet")
        flags |= dict(batch_size=int(rng.choice([32, 64, 128])), pruning_epoch=round(4 + u["pruning_epoch"] * 2))
        value = BASE[problem] * np.exp(scale * (u[strong] - 0.4 * u["latent_dim"] * u["w_v"]) + rng.normal(0, 0.1))
        made = dict(id=f"{problem}-{i:03d}", sweep="03-x_hyperparameter_sensitivity-abc", objective=value)
        rows.append(row(flags, value, **made, **(dict(status="stopped early", epoch=14) if i % 5 == 4 else {})))
    return rows


def write_rows(rows, name):
    """results/NAME.csv of these rows; its path."""
    Path("results").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(f"results/{name}.csv", index=False)
    return f"results/{name}.csv"


def write_runs(rows, spike=lambda f: 1.0):
    """A folder below runs/ for each row, with a falling curve that ends at its val_rec; their paths.

    spike: of a row, the rise of its curve after pruning began.
    """
    folders = [Path("runs", row["id"]) for row in rows]
    for folder, row in zip(folders, rows, strict=True):
        folder.mkdir(parents=True)
        start, rise = int(row["pruning_epoch"]), spike(row)
        curve = row["val_rec"] * (1 + 3 * np.exp(-np.arange(EPOCHS) / (EPOCHS / 8)))
        if rise > 1:
            curve[start + 2] = rise * curve[start : start + 3].min()
        curve[-1] = row["val_rec"]
        late = np.where(np.arange(EPOCHS) < start + EPOCHS // 10, np.nan, curve)
        metrics = pd.DataFrame(dict(epoch=range(EPOCHS), val_rec=curve, val_rec_pruned=late, active_dims=40))
        metrics.to_csv(folder / "metrics.csv", index=False)
        (folder / "pruning.csv").write_text(PROPOSALS)
        named = {key: row[key] for key in (*RESULT_METRICS, "status") if key in row}
        other = (*named, "id", "sweep", "git", "cpu", "recorded", "data_source", "data_sha256")
        config = dict(id=row["id"], flags={k: v for k, v in row.items() if k not in other}, git=row["git"])
        config |= dict(sweep=row["sweep"], started=row["recorded"], machine=dict(cpu=row["cpu"]))
        config |= dict(data=dict(source=row["data_source"], sha256=row["data_sha256"]))
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text(json.dumps(named))
    return folders
