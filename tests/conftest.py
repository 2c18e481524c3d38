"""What several tests share: the scripts on the path, and W&B's server."""

import os
import sys
import time
from datetime import date
from pathlib import Path

import pytest

# Before NumPy and torch are imported. Where other work shares the cores, their threads wait spinning: a training with
# two threads beside another took eight times as long as with one
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SEED = time.time_ns() % 10**6  # other moments at each soak; its table says which
HEADER = """# Faults, and what was lost

`make soak` wrote this page, a row by each kind of fault; it is not edited by hand. Each fault was injected for real.

Faults of a run are injected into `train.py`, a process of its own that trains toy designs for 24 epochs. Each run was
then continued to its end and compared with an undisturbed run of the same flags: every column of metrics.csv but
`epoch_seconds`, pruning.csv, every number of summary.json, every weight of model.pt, and the names of the files, bit
for bit; with W&B, every epoch's val_rec on the server, too. Faults of a sweep are injected into its agents, each a
process of its own, whose runs take milliseconds: every run was made once, or continued, and equals an undisturbed one.

| fault | times | the process ended with | lost | day | seed |
| --- | --- | --- | --- | --- | --- |
"""


def note(text, times, ending, lost="nothing"):
    """Write the row of results/faults.md of what a soak injected."""
    table = ROOT / "results/faults.md"
    old = table.read_text() if table.exists() else HEADER
    table.write_text(f"{old}| {text} | {times} | {ending} | {lost} | {date.today()} | {SEED} |\n")


def pytest_xdist_auto_num_workers():
    """One worker more than cores: a quarter of the time a test waits, for W&B's client or a signal to arrive."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture
def wandb_server():
    """A loopback W&B server. Give its .env to a subprocess; look at its .runs and .sweeps."""
    from wandb_server import serve

    with serve() as server:
        yield server


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in; designs are loaded once for all tests."""
    from sweep_kit import CACHED

    import data

    monkeypatch.chdir(tmp_path)
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(data, "load", CACHED)
    monkeypatch.setenv("STUB_SHA", CACHED("toy").fingerprint["sha256"])
    return tmp_path
