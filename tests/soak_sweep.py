"""The local queue in large numbers, on the file journal and on PostgreSQL. Minutes: `make soak`, or pytest here.

PostgreSQL is started from the programs that Debian's package `postgresql` installs; without them, or without psycopg,
its tests are skipped.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import sweep_kit
from test_sweep_queue import bayes_is_exact, exactly_once, killed_agents


@pytest.fixture
def postgresql(here, monkeypatch):
    """A server on a socket in a folder of its own, as it refuses to run as root."""
    pytest.importorskip("psycopg", reason="no psycopg here; pip install 'psycopg[binary]'")
    found = [sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))) for name in ("initdb", "pg_ctl")]
    programs = [shutil.which(name) or (found.pop(0) or [None])[-1] for name in ("initdb", "pg_ctl")]
    if None in programs:
        pytest.skip("no initdb and pg_ctl here; Debian: apt install postgresql")
    (initdb, pg_ctl), folder, user = programs, Path(tempfile.mkdtemp(prefix="sweep-pg-")), {}
    if os.getuid() == 0:
        user = {"user": [entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")][-1]}
        shutil.chown(folder, user["user"])

    def run(*command):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)

    run(initdb, "-D", folder / "data", "-U", "sweep", "-A", "trust")
    options = ["-o", f"-c listen_addresses='' -k {folder} -c fsync=off", "-l", folder / "log"]

    def control(how):
        run(pg_ctl, "-D", folder / "data", *(options if how == "start" else ["-m", "immediate"]), "-w", how)

    control("start")
    create, url = sweep_kit.create, f"postgresql+psycopg://sweep@/postgres?host={folder}"
    monkeypatch.setattr("test_sweep_queue.create", lambda *flags, **more: create("--storage", url, *flags, **more))
    yield control
    control("stop")
    shutil.rmtree(folder)


@pytest.mark.parametrize("storage", ["journal", "postgresql"])
@pytest.mark.parametrize("prove, counts", [(exactly_once, (5, 225)), (killed_agents, (40,)), (bayes_is_exact, (5, 33))])
def test_in_large_numbers(prove, counts, storage, request, here):
    """225 points by 5 agents; runs of 2 killed agents of 5, of 40; a search with hyperband of 33 runs."""
    if storage == "postgresql":
        request.getfixturevalue("postgresql")
    prove(*counts)


def test_a_database_that_restarts_under_its_agents(postgresql):
    from test_sweep_queue import create

    made = create(nap=[0.1], seed=list(range(12)))
    agents = sweep_kit.Forked("agent", "--n", "3")
    for _ in range(2):
        sweep_kit.wait_until(lambda: len(sweep_kit.checkpoints()) == 3)
        postgresql("stop")
        time.sleep(6)
        postgresql("start")
    assert "no answer from its queue, asking again in" in agents.ends()
    assert sweep_kit.states(made) == {"COMPLETE": 12} and set(sweep_kit.starts().values()) == {1}
