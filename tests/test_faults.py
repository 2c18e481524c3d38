"""A few faults of each kind, injected for real: what a run loses is nothing. Many of them, and more kinds: soak_faults.py"""

import os
import signal
import subprocess
from pathlib import Path

import faults_kit as kit
import pytest

namespace = pytest.mark.skipif(not kit.may_mount(), reason="this user may not mount, even in a namespace of its own")
freezing = pytest.mark.skipif(not kit.may_freeze(), reason="this user may not make a folder immutable")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(autouse=True)
def in_one_folder(folder, monkeypatch):
    """All tests of this file share a folder, and so the undisturbed run."""
    monkeypatch.chdir(folder)


def test_stopped_in_the_middle_of_a_checkpoint():
    assert kit.stopped_in_a_checkpoint([signal.SIGTERM]) == []


def test_two_processes_at_once():
    assert kit.two_at_once(1) == []


@namespace
def test_a_full_disk():
    assert kit.full_disks([(7.5, 2)]) == []


@freezing
def test_a_folder_that_turns_read_only():
    assert kit.read_only(1) == []


def test_a_full_disk_that_holds_the_log_too():
    with open("/dev/full", "w") as log:
        done = subprocess.run([*kit.TRAIN, *kit.TOY, "--wandb=disabled"], env=kit.CLEAN, stdout=log, stderr=log)
    assert done.returncode == 4


def test_unreadable_designs():
    for kind, code, error, written in kit.unreadable():
        assert (code, written) == (2, False), (kind, error)
        assert error.startswith(f"train.py: --data {kind}: ") and error.count("\n") == 1


def test_a_wandb_server_that_dies_and_comes_back():
    assert kit.server_trouble("dies", "die", "heal", 3) == []


def test_wandbs_own_process_may_die():
    process = kit.start("orphan", "--wandb=offline")
    kit.wait_for(lambda: kit.epochs("orphan") > 3, process)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    assert "W&B: its client died" in kit.end(process, 0)
    assert kit.lost("orphan") == []
