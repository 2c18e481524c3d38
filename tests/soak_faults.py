"""Faults in large numbers, injected for real. `make soak`, or pytest tests/soak_faults.py

When all have passed, what was injected, how often, and what was lost is written to results/faults.md.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import faults_kit as kit
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_faults import in_one_folder, namespace  # noqa: F401  a fixture
from test_fuzz import FLAG, VALUES

SEED = int(os.environ.get("SOAK_SEED", 0)) or time.time_ns() % 10**6  # other moments at each run; the table says which
ROWS = []
HEADER = """# Faults, and what was lost

Written by `make soak` (tests/soak_faults.py) on {day}, seed {seed}, from its own run; it is not edited by hand. Each fault was injected for
real into `train.py`, as a process of its own, training toy designs for {epochs} epochs. Each run was then continued to its end and compared
with an undisturbed run of the same flags: every column of metrics.csv but `epoch_seconds`, pruning.csv, every number of summary.json, every
weight of model.pt, and the names of the files, bit for bit; with W&B, every epoch's val_rec on the server, too.

| fault | times | the process ended with | lost |
| --- | --- | --- | --- |
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    yield tmp_path_factory.mktemp("soak")
    tests = [item for item in request.session.items if item.module is request.module]
    if len(ROWS) == len(tests) == sum(name.startswith("test_") for name in globals()) and not request.session.testsfailed:
        rows = "".join(f"| {' | '.join(row)} |\n" for row in ROWS)
        path = kit.ROOT / "results/faults.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER.format(day=date.today(), seed=SEED, epochs=kit.EPOCHS) + rows)


def row(fault, times, ending, lost):
    """Note a row of the table; anything lost fails the test."""
    ROWS.append((fault, str(times), ending, f"{len(lost)} differences" if lost else "nothing"))
    assert lost == []


def test_killed_at_random_moments():
    row("`kill -9` at random moments, from Python's start to the last figure", 50, "-9", kit.kills(50, random.Random(SEED)))


@pytest.mark.parametrize("number, ending", [(signal.SIGTERM, "143"), (signal.SIGINT, "130"), (signal.SIGKILL, "-9")])
def test_in_the_middle_of_a_checkpoint(number, ending):
    row(f"{number.name} while checkpoint.pt is being written", 5, ending, kit.stopped_in_a_checkpoint([number] * 5))


def test_two_processes_at_once():
    row("two processes continue the same run at once", 5, "0, and 2 for the one refused", kit.two_at_once(5))


@namespace
def test_full_disks():
    sizes = [4, 16, 100, 300, 600, 900, 1000, 1300]
    row(f"disk full: a tmpfs of {sizes[0]} KB to {sizes[-1]} KB", len(sizes), "4", kit.full_disks(sizes))


def test_read_only():
    row("the run's folder turns immutable while it trains (`chattr +i`)", 3, "4", kit.read_only(3))


def test_unreadable_designs():
    found = list(kit.unreadable())
    assert [(code, written) for _, code, _, written in found] == [(2, False)] * len(found)
    row("designs cut short, bit-flipped, empty, a folder, forbidden, or with an I/O error", len(found), "2, nothing written", [])


TROUBLES = {
    "hangs for 20 s and goes on": ("hang", "heal", 20),
    "dies and returns after 20 s": ("die", "heal", 20),
    "dies, and is back only after the run": ("die",),
    "hangs, and is back only after the run": ("hang",),
    "hangs, then dies, and is back only after the run": ("hang", "die", 5),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_wandb_server(trouble):
    lost = []
    for i in range(2):
        lost += kit.server_trouble(f"server{list(TROUBLES).index(trouble)}{i}", *TROUBLES[trouble])
    row(f"W&B's server {trouble}", 2, "0", lost)


def test_wandb_server_hangs_at_the_start():
    row("W&B's server hangs while the run starts", 2, "0", kit.server_hangs_at_the_start("s0") + kit.server_hangs_at_the_start("s1"))


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_killed_with_wandb(mode):
    row(f"`kill -9` of a run that W&B logs {mode}", 4, "-9", kit.killed_with_wandb(mode, mode, 4))


def test_fuzz_in_process():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-show-statistics",
        str(kit.ROOT / "tests/test_fuzz.py"),
    ]
    done = subprocess.run(command, env={**kit.CLEAN, "FUZZ": "2000"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    cases = sum(map(int, re.findall(r"(\d+) passing examples", done.stdout)))
    row("made-up flags, and damaged .npz, .npy, .pt and .json files, in process", cases, "0, 2, 3 or 143; no traceback", [])


def test_fuzz_of_the_command_line():
    codes = []

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None)
    @given(st.lists(st.tuples(FLAG, VALUES), max_size=2))
    def run(pairs):
        argv = [f"--{flag}={value}" for flag, value in pairs if "\0" not in value]
        tiny = ["--n_epochs=1", "--latent_dim=4", "--problem=toy", "--wandb=disabled", "--threads=1", "--out=made_up"]
        command = [*kit.TRAIN, *argv, *tiny]
        done = subprocess.run(command, env=kit.CLEAN, capture_output=True, text=True, timeout=1200)
        assert "Traceback" not in done.stderr, (argv, done.stderr)
        assert done.returncode in (0, 2, 3), (argv, done.stderr)
        assert done.returncode != 2 or done.stderr.count("\n") == 1, (argv, done.stderr)
        for folder in Path("made_up").glob("*"):
            assert (folder / "summary.json").exists()
        codes.append(done.returncode)

    run()
    row("made-up flags, as commands", len(codes), f"0 ({codes.count(0)}), 2 ({codes.count(2)}) or 3 ({codes.count(3)})", [])
