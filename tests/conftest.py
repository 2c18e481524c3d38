"""What several tests share: the scripts on the path, and W&B's server."""

import os
import sys
from pathlib import Path

import pytest

# Before NumPy and torch are imported. Where other work shares the cores, their threads wait spinning: a training with
# two threads beside another took eight times as long as with one
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


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
