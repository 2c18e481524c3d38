"""A few faults of each kind, injected for real into train.py: what a run loses is nothing. Many of them: `make soak`.

soak_faults.py runs this file with SOAK=1: then each kind is injected many times, and what was injected, how often, and
what was lost becomes a row of results/faults.md; pytest -k renews the rows of these kinds alone. SOAK=0.1 injects a
tenth of each, for a trial, and prints the rows instead.
"""

import os
import re
import subprocess
import sys
import time
from datetime import date
from signal import SIGINT, SIGKILL, SIGTERM

import faults_kit as kit
import pytest

import record

SCALE = float(os.environ.get("SOAK", 0))  # 0: a few of each
SEED = int(os.environ.get("SOAK_SEED", 0)) or time.time_ns() % 10**6  # other moments at each soak; the table says which
TABLE = kit.ROOT / "results/faults.md"
HEADER = f"""# Faults, and what was lost

Written by `make soak` (tests/test_faults.py), a row by each kind of fault; it is not edited by hand. Each was injected
for real into `train.py`, as a process of its own, training toy designs for {kit.EPOCHS} epochs. Each run was then
continued to its end and compared with an undisturbed run of the same flags: every column of metrics.csv but
`epoch_seconds`, pruning.csv, every number of summary.json, every weight of model.pt, and the names of the files, bit
for bit; with W&B, every epoch's val_rec on the server, too. The rows of a sweep are the tests of
tests/test_sweep_faults.py: agents work on runs of a stub, and what became of runs and rows is compared.

| fault | times | the process ended with | lost | day | seed |
| --- | --- | --- | --- | --- | --- |
"""


def fuzz_in_process(times):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-show-statistics"]
    env = {**kit.CLEAN, "FUZZ": str(times)}
    done = subprocess.run([*command, str(kit.ROOT / "tests/test_fuzz.py")], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"(\d+) passing", done.stdout), done.stdout
    return []


FAULTS = []


def fault(text, ending, few, many, function, *arguments, skip=None):
    """A kind of fault: its row's text, how the process ends, how often it is injected in a test, and in a soak."""
    marks = [pytest.mark.skipif(bool(skip), reason=skip or "")]
    if SCALE or few:
        FAULTS.append(pytest.param(text, ending, few, many, function, arguments, id=text[:40], marks=marks))


fault("`kill -9` at random moments, from Python's start to the last figure", "-9", 0, 50, kit.kills, SEED)
for number, ending in ((SIGTERM, "143"), (SIGINT, "130"), (SIGKILL, "-9")):
    text, few = f"{number.name} while checkpoint.pt is being written", int(number == SIGTERM)
    fault(text, ending, few, 5, kit.stopped_in_a_checkpoint, number)
text = "disk full: a tmpfs with room for nothing, for a part of the first, second or third checkpoint, or of figures"
fault(text, "4", 1, 10, kit.full_disks, skip=None if kit.may_mount() else "this user may not mount in a namespace")
for text, few, *trouble in (
    ("hangs for 20 s and goes on", 0, "hang", "heal", 20),
    ("dies and returns after some seconds", 1, "die", "heal", 20 if SCALE else 3),
    ("dies, and is back only after the run", 0, "die"),
    ("hangs, and is back only after the run", 0, "hang"),
    ("hangs, then dies, and is back only after the run", 0, "hang", "die", 5),
):
    fault(f"W&B's server {text}", "0", few, 2, kit.server_trouble, *trouble)
fault("W&B's server hangs while the run starts", "0", 0, 2, kit.server_trouble, "hang", None, 0, True)
fault("W&B's own process is killed beside the run", "0", 1, 1, kit.wandb_process_dies)
for mode in ("online", "offline"):
    fault(f"`kill -9` of a run that W&B logs {mode}", "-9", 0, 4, kit.killed_with_wandb, mode)
    for file in ("summary.new.json", "summary.json"):
        text = f"`kill -9` at the moment {file} appears, of a run that W&B logs {mode}"
        fault(text, "-9", 0, 2, kit.killed_with_wandb, mode, file)
text = "made-up flags, in process; besides, not counted: damaged .npz, .npy, .pt, .json and .yaml files"
fault(text, "0, 2, 3 or 143; no traceback", 0, 2000, fuzz_in_process)


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """All tests of this file share a folder, and so the undisturbed run. A soak of everything starts its table anew."""
    option = request.config.option
    if SCALE >= 1 and not option.keyword and not any("::" in argument for argument in request.config.args):
        TABLE.unlink(missing_ok=True)
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("text, ending, few, many, inject, arguments", FAULTS)
def test_nothing_is_lost(text, ending, few, many, inject, arguments, folder, monkeypatch):
    monkeypatch.chdir(folder)
    times = max(1, round(many * SCALE)) if SCALE else few
    lost = inject(times, *arguments)
    said = f"{len(lost)} differences" if lost else "nothing"
    write_row(text, times, ending, said)
    assert lost == []


def write_row(text, times, ending, said):
    """A row of results/faults.md; what it said of this fault before goes."""
    line = f"| {text} | {times} | {ending} | {said} | {date.today()} | {SEED} |"
    if SCALE >= 1:
        old = [row for row in TABLE.read_text().splitlines() if row.startswith("| ")][2:] if TABLE.exists() else []
        rows = {row.split(" | ")[0]: row for row in [*old, line]}
        record.write_atomically(TABLE, HEADER + "\n".join(rows.values()) + "\n")
    elif SCALE:
        print(line)


def test_a_full_disk_that_holds_the_log_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with open("/dev/full", "w") as log:
        done = subprocess.run([*kit.TRAIN, *kit.TOY, "--wandb=disabled"], env=kit.CLEAN, stdout=log, stderr=log)
    assert done.returncode == 4
