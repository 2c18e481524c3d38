"""The local queue in large numbers, on the file journal and on PostgreSQL. Minutes: `make soak`, or pytest tests/soak_sweep.py

PostgreSQL is started for the test from the programs that Debian's package `postgresql` installs; without them, or without psycopg, its
tests are skipped.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import sweep_kit
from test_sweep_queue import bayes_is_exact, exactly_once, killed_agents


def _program(name):
    found = [shutil.which(name), *sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))]
    return next((path for path in found if path), None)


@pytest.fixture(params=["journal", "postgresql"])
def storage(request, here, monkeypatch):
    """Where the queue is kept. PostgreSQL listens on a socket in a folder of its own, since it refuses to run as root."""
    if request.param == "journal":
        yield
        return
    pytest.importorskip("psycopg", reason="no psycopg here; pip install 'psycopg[binary]'")
    programs = [_program(name) for name in ("initdb", "pg_ctl")]
    if None in programs:
        pytest.skip("no initdb and pg_ctl here; Debian: apt install postgresql")
    initdb, pg_ctl = programs
    folder, user = Path(tempfile.mkdtemp(prefix="sweep-pg-")), {}
    if os.getuid() == 0:
        user = {"user": [entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")][-1]}
        shutil.chown(folder, user["user"])
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run([initdb, "-D", folder / "data", "-U", "sweep", "-A", "trust"], **run)
    options = f"-c listen_addresses='' -k {folder} -c fsync=off"
    subprocess.run([pg_ctl, "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start"], **run)
    url = f"postgresql+psycopg://sweep@/postgres?host={folder}"
    create = sweep_kit.create
    monkeypatch.setattr("test_sweep_queue.create", lambda *flags, **more: create("--storage", url, *flags, **more))
    yield
    subprocess.run([pg_ctl, "-D", folder / "data", "-m", "immediate", "stop"], **run)
    shutil.rmtree(folder)


@pytest.mark.usefixtures("storage")
def test_225_points_by_5_agents_are_each_run_exactly_once():
    exactly_once(5, 225)


@pytest.mark.usefixtures("storage")
def test_runs_of_2_killed_agents_of_5_are_continued_and_come_out_equal():
    killed_agents(40)


@pytest.mark.usefixtures("storage")
def test_bayes_with_hyperband_makes_exactly_33_runs():
    bayes_is_exact(5, 33)
