"""The Makefile: each target's command, variables that it does not take, Ctrl-C, and which Python it wants."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from sweep_kit import create

TARGETS = re.findall(r"^([a-z0-9%-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)


@pytest.fixture(autouse=True)
def a_copy(tmp_path, monkeypatch):
    """What make runs here, as links in an empty folder, with this Python as its .venv."""
    for name in ("Makefile", "sweep.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    for name in ("requirements.txt", ".venv/.done", ".venv/.data"):  # in this order: what is made is up to date
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for name in ("MAKEFLAGS", "MAKELEVEL", "WANDB_API_KEY", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def make(*arguments, code=0):
    """Run make; returns what it printed, on stdout and stderr."""
    done = subprocess.run(["make", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


COMMANDS = {  # variables and target: the command (`make -n`)
    "train": "train.py --problem beams2d --strategy plummet --data sample",
    "train PROBLEM=toy ARGS=--seed=2": "train.py --problem toy --strategy plummet --data sample --seed=2",
    "test": "pytest -q -n auto --dist worksteal tests",
    "soak": "pytest -q tests/test_sweep_queue.py tests/test_faults.py",
    "lint": "ruff format --check .",
    "data N=2 SEED=3 PROBLEM=photonics2d": "--problem photonics2d --n 2 --seed 3",
    "ground-truth": "tools.comparison ground-truth",
    "width N=3": "sweep.py agent --n 3",
    "baselines": "sweep.py create comparisons/baselines.yaml --backend local",
    "bench QUICK=1": "tools.bench --device cpu --quick",
    "budget DEVICE=cuda": "tools.bench --device cuda --budget",
    "sweep-01 PROBLEM=toy SEEDS=1 EPOCHS=9 EDITION=x": "01 --problem toy --seeds 1 --epochs 9 --edition x",
    "sweep-02 SET=lr=1": "sweep.py create 02 --set lr=1",
    "agents N=2 COUNT=3 SWEEP=01 CHANGED=1 LEAVE=1": "sweep.py agent --n 2 --count 3 --leave --changed --sweep 01",
    "resume FAILED=1": "sweep.py resume --n 1 --failed",
    "status": "sweep.py status",
    "stop SWEEP=02": "sweep.py stop --sweep 02",
    "rebuild SWEEP=02": "sweep.py rebuild --sweep 02",
    "list": "sweep.py list",
    "sync": "sweep.py sync",
    "dashboard": "sweep.py dashboard",
    "report SWEEP=02": "report.py --sweep 02 --runs runs",
    "verify RUNS=a.csv ARGS=--ids": "tools.verify --runs a.csv --ids",
    "ship RUNS=a.csv": "tools.ship --runs a.csv",
    "design CONDITIONS=a=1 POLISH=2": "tools.design --model models/beams2d --conditions a=1 --polish 2",
    "design-bench QUICK=1": "tools.design_bench --n 20",
    "demo": "tools.demo",
    "gallery RUN=runs/a": "tools.gallery --run runs/a",
    "clean": "rm -rf report",
    "distclean": "rm -rf .venv",
}


def test_each_target_is_listed_and_runs_its_command():
    for line, command in COMMANDS.items():
        assert command in " ".join(make("-n", *line.split()).replace('"', "").split()), line
    tested = {line.split()[0].replace("sweep-01", "sweep-%") for line in COMMANDS}
    assert set(TARGETS) - tested == {"help", "setup"}
    said = make()
    assert all(f"make {target.replace('%', '01')} " in said for target in TARGETS)


def test_a_variable_that_a_target_does_not_take_is_refused():
    for target in (t.replace("%", "01") for t in TARGETS):
        said = make(target, "PROBLM=beams2d", code=2)
        assert said.count("\n") == 1 and f"make {target}: no such variable: PROBLM; allowed: " in said
    assert "no such variable: EPOCHS" in make("train", "EPOCHS=4", code=2)


@pytest.mark.parametrize("version", ["3, 10", "3, 14"])
def test_another_python_is_refused_before_anything_is_made(version, tmp_path, monkeypatch):
    shutil.rmtree(".venv")
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.version_info = ({version}, 0)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = make("setup", f"PYTHON={sys.executable}", code=2)
    assert "Python 3.11 to 3.13 is needed, not " in said and not Path(".venv").exists()


def test_clean_removes_what_can_be_made_again_and_never_a_run():
    kept = [Path(name) for name in ("runs/a", "results", "data", "wandb")]
    for folder in (*kept, *map(Path, ("report", "tests/__pycache__", ".sweeps/a", ".venv"))):
        folder.mkdir(parents=True, exist_ok=True)
    make("clean")
    assert all(folder.exists() for folder in (*kept, Path(".sweeps/a"), Path(".venv"))) and not Path("report").exists()
    make("distclean")
    assert kept[0].exists() and kept[1].exists() and not Path(".venv").exists() and not Path(".sweeps").exists()


def test_a_graceful_end_of_agents_is_no_error():
    create(seed=[1, 2, 3], nap=[0.1])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a test in the background would not
    agents = subprocess.Popen(["make", "agents"], start_new_session=True, preexec_fn=hears, **pipes)
    next(line for line in agents.stdout if "started:" in line)
    os.killpg(agents.pid, signal.SIGINT)  # as a terminal does
    said = agents.communicate(timeout=120)[0]
    assert "1/3 over (1 finished" in said and "***" not in said and agents.returncode in (130, -signal.SIGINT)
