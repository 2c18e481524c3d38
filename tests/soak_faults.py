"""Faults in large numbers, injected for real. `make soak`, or pytest tests/soak_faults.py

What was injected, how often, and what was lost is written to results/faults.md, a row after each kind of fault; pytest -k renews the rows
of these kinds alone. SOAK=0.1 injects a tenth of each, for a trial, and prints the row instead.
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
from test_faults import freezing, in_one_folder, namespace  # noqa: F401  a fixture
from test_fuzz import FLAG, VALUES

import record

SEED = int(os.environ.get("SOAK_SEED", 0)) or time.time_ns() % 10**6  # other moments at each run; the table says which
SCALE = float(os.environ.get("SOAK", 1))
TABLE = kit.ROOT / "results/faults.md"
HEADER = """# Faults, and what was lost

Written by `make soak` (tests/soak_faults.py), a row by each of its tests; it is not edited by hand. Each fault was injected for real into
`train.py`, as a process of its own, training toy designs for {epochs} epochs. Each run was then continued to its end and compared with an
undisturbed run of the same flags: every column of metrics.csv but `epoch_seconds`, pruning.csv, every number of summary.json, every weight
of model.pt, and the names of the files, bit for bit; with W&B, every epoch's val_rec on the server, too.

| fault | times | the process ended with | lost | day | seed |
| --- | --- | --- | --- | --- | --- |
"""


def times(n):
    return max(1, round(n * SCALE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module", autouse=True)
def fresh(request):
    """A soak of everything starts its table anew."""
    option = request.config.option
    if SCALE >= 1 and not option.keyword and not any("::" in argument for argument in request.config.args):
        TABLE.unlink(missing_ok=True)


@pytest.fixture
def row():
    """Notes a row of the table, and fails the test if anything was lost."""

    def note(fault, times, ending, lost):
        line = f"| {fault} | {times} | {ending} | {f'{len(lost)} differences' if lost else 'nothing'} | {date.today()} | {SEED} |"
        if SCALE < 1:
            print(line)
        else:
            old = [text for text in TABLE.read_text().splitlines() if text.startswith("| ")][2:] if TABLE.exists() else []
            rows = {text.split(" | ")[0]: text for text in [*old, line]}
            record.write_atomically(TABLE, HEADER.format(epochs=kit.EPOCHS) + "\n".join(rows.values()) + "\n")
        assert lost == []

    return note


def test_killed_at_random_moments(row):
    n = times(50)
    row("`kill -9` at random moments, from Python's start to the last figure", n, "-9", kit.kills(n, random.Random(SEED)))


@pytest.mark.parametrize("number, ending", [(signal.SIGTERM, "143"), (signal.SIGINT, "130"), (signal.SIGKILL, "-9")])
def test_in_the_middle_of_a_checkpoint(row, number, ending):
    n = times(5)
    row(f"{number.name} while checkpoint.pt is being written", n, ending, kit.stopped_in_a_checkpoint([number] * n))


def test_two_processes_at_once(row):
    n = times(5)
    row("two processes continue the same run at once", n, "0, and 2 for the one refused", kit.two_at_once(n))


@namespace
def test_full_disks(row):
    cases = [(0.004, 2), (0.5, 2), (1.5, 2), (3.5, 2), (4.5, 2), (6.5, 2), (7.5, 2), (8.5, 2)]
    cases += [(3.1, kit.EPOCHS // 2), (3.6, kit.EPOCHS // 2)]  # room for the one checkpoint, but not the figures, or the model
    cases = cases[-times(10) :]
    fault = "disk full: a tmpfs with room for nothing, for a part of the first, second or third checkpoint, of the figures, of model.pt"
    row(fault, len(cases), "4", kit.full_disks(cases))


@freezing
def test_read_only(row):
    n = times(3)
    row("the run's folder turns immutable while it trains (`chattr +i`)", n, "4", kit.read_only(n))


def test_unreadable_designs(row):
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
def test_wandb_server(row, trouble):
    lost, n = [], times(2)
    for i in range(n):
        lost += kit.server_trouble(f"server{list(TROUBLES).index(trouble)}{i}", *TROUBLES[trouble])
    row(f"W&B's server {trouble}", n, "0", lost)


def test_wandb_server_hangs_at_the_start(row):
    lost, n = [], times(2)
    for i in range(n):
        lost += kit.server_hangs_at_the_start(f"start{i}")
    row("W&B's server hangs while the run starts", n, "0", lost)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_killed_with_wandb(row, mode):
    n = times(4)
    row(f"`kill -9` of a run that W&B logs {mode}", n, "-9", kit.killed_with_wandb(mode, mode, n))


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("file", ["summary.new.json", "summary.json"])
def test_killed_as_it_ends(row, mode, file):
    lost, n = [], times(2)
    for i in range(n):
        lost += kit.killed_as_it_ends(f"ends-{mode}-{file}-{i}", mode, file)
    row(f"`kill -9` at the moment {file} appears, of a run that W&B logs {mode}", n, "-9", lost)


def test_fuzz_in_process(row):
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
    done = subprocess.run(command, env={**kit.CLEAN, "FUZZ": str(times(2000))}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    cases = sum(map(int, re.findall(r"(\d+) passing", done.stdout)))
    fault = "made-up flags, in process; besides, not counted: damaged .npz, .npy, .pt, .json and .yaml files"
    row(fault, cases, "0, 2, 3 or 143; no traceback", [])


def test_fuzz_of_the_command_line(row):
    codes = []

    @settings(max_examples=times(40), deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None)
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
