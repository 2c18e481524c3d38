"""bench.py's parts with tiny budgets: what is measured, not how fast. No timed assertions."""

import dataclasses
import math
import os

import pytest
import torch
import wandb

from tools import bench

COMMON = dict(problem="photonics2d", device="cpu")
SAMPLE = bench.data.load("photonics2d", "sample")
SPLITS = {split: getattr(SAMPLE, split)[:32] for split in ("train", "val", "test")}
FEW = dataclasses.replace(SAMPLE, **SPLITS, conditions=dict(train={}, val={}, test={}))


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "BATCH", 4)
    monkeypatch.setattr(bench.data, "load", lambda *_, **__: FEW)
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()  # W&B's service process, and the variable by which the commands of later tests would find it
    assert "WANDB_SERVICE" not in os.environ


def test_the_published_network_has_its_published_shapes():
    model, x = bench.Published((101, 101), 7), torch.rand(2, 1, 101, 101)
    sizes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sizes == [(64, 1, 4, 4), (128, 64, 4, 4), (256, 128, 3, 3), (512, 256, 3, 3), (7, 512, 7, 7)]
    z = model.encode(x)
    assert z.shape == (2, 7) and model.decode(z).shape == x.shape


def test_each_measurement(monkeypatch):
    monkeypatch.setattr(bench.train.Trainer, "steps", bench.train.Trainer.steps)  # wrapped for good: undo it afterwards
    monkeypatch.setattr(bench.train, "fit", bench.train.fit)
    monkeypatch.setattr("tools.figures.draw", lambda *_: None)
    assert all(bench.measure_rate(network=name, seconds=0, **COMMON) > 0 for name in ("ours", "published, as shipped"))
    theirs = bench.measure_published_quality(seed=1001, seconds=0.1, **COMMON)
    assert theirs["epochs"] >= 1 and 0 < theirs["best_val_rec"] < 1 and theirs["seconds"] <= theirs["budget"]
    assert theirs["mean_design"] == pytest.approx((FEW.val - FEW.train.mean(0)).square().mean().item())
    for quality, dims, reached in ((1.0, 100, True), (1e-9, 100, False), (1.0, 99, False)):
        seconds = bench.measure_our_quality(seed=1001, epochs=1, quality=quality, dims=dims, **COMMON)
        assert (seconds < math.inf) is reached
    assert bench.measure_epoch(seconds=0, **COMMON) > 0
    assert 0 < bench.measure_outside(epochs=2, **COMMON) < 1


def test_budget_counts_the_runs_of_the_sweeps(monkeypatch, capsys):
    monkeypatch.setattr(bench, "cores", lambda: 2)
    seconds = dict(beams2d=1.0, heatconduction2d=2.0, photonics2d=3.0)
    monkeypatch.setattr(bench, "apart", lambda measure, problem, **_: [seconds[problem]])
    bench.main(["--budget"])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0")]
    lines = dict(line.strip("| ").split(" | ", 1) for line in said)
    mean = 100 * (1 + 2 + 3) / 3 / 2 / 3600  # hours of a run, two at a time: with so few designs it has 100 epochs
    assert lines["01 pruning strategies"] == f"36 | 100 | {36 * mean:.1f}"
    assert lines["03 hyperparameter sensitivity"] == f"99 | 100 | {99 * mean:.1f}"
    assert lines["06 photonics2d deep dive"] == f"200 | 100 | {200 * 100 * 3 / 2 / 3600:.1f}"


def test_the_whole_table(monkeypatch):
    """Every row, from made-up measurements: medians, ratios, and what is said where the quality is not reached."""
    theirs = dict(best_val_rec=0.01, seconds=60.0, epochs=9, budget=61.0, mean_design=0.08)
    made_up = dict(measure_rate=10.0, measure_published_quality=theirs, measure_our_quality=2.0, measure_outside=0.03)
    made_up |= dict(measure_epoch=0.02)
    apart = lambda measure, copies=1, **_: [made_up[measure.__name__]] * copies  # noqa: E731
    monkeypatch.setattr(bench, "apart", apart)
    monkeypatch.setattr(bench, "machine", lambda device: "a machine")
    bench.bench("cpu", quick=False)
    text = bench.Path("results/bench.md").read_text()
    setting = "val_rec 0.01 (0.01 to 0.01), its best in 61 s or 9 epochs; the mean design's: 0.08"
    assert f"| seconds to quality | beams2d | {setting} | 60 (60 to 60) | 2 (2 to 2) | 30 (30 to 30) |" in text
    assert len(bench.Path("results/bench.csv").read_text().splitlines()) == len(text.splitlines()) - 3
    assert "thread(s) each; ratio to one such run |  | 20 | 2 |" in text
    assert "| against the first edition | 10 | 2 | 5 |" in text  # 500 epochs
    theirs["best_val_rec"] = 0.1
    bench.bench("cuda", quick=False)
    assert "none: published is above the mean design" in bench.Path("results/bench-cuda.md").read_text()
    theirs["best_val_rec"], made_up["measure_our_quality"] = 0.01, math.inf
    bench.bench("cpu", quick=True)
    assert "not reached in 20 epochs by every seed" in bench.Path("results/bench-quick.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--device", "cuda"])
    assert "no GPU" in capsys.readouterr().err
