"""What must not go wrong quietly in a sweep. A docstring, fault | ending, is a row of results/faults.md."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from sweep_kit import (
    STUB,
    checkpoints,
    create,
    end,
    points,
    rows,
    says,
    start_agents,
    starts,
    states,
    trials,
    wait_until,
    work,
    write,
)

import record
import sweep

pytestmark = pytest.mark.usefixtures("here")
SWEEP = [sys.executable, str(ROOT / "sweep.py")]


def test_a_run_on_other_designs_is_not_recorded():
    """a sweep's designs are replaced while agents work | 2, the run is set aside, no row"""
    made = create(seed=[1, 2])
    said = work(code=2, STUB_SHA="b" * 64)
    assert "bbbbbbbbbbbb, the sweep's" in said and "not recorded" in said and not Path("results").exists()
    assert states(made) == {"WAITING": 2} and not list(Path("runs").iterdir())
    work()
    assert {row["data_sha256"] for row in rows()} == {os.environ["STUB_SHA"]} and states(made) == {"COMPLETE": 2}


def test_a_change_of_the_code_is_refused_unless_told_otherwise():
    """a sweep's program changes between its runs, and while an agent works | 2"""
    shutil.copy(STUB, "program.py")
    made = create(nap=[0.1], seed=[1, 2, 3], program="program.py")
    agent = start_agents()
    wait_until(checkpoints)
    Path("program.py").write_text(STUB.read_text() + "# another\n")
    assert "program.py is " in end(agent, 2) and states(made) == {"COMPLETE": 1, "WAITING": 2}
    assert "program.py is " in work(code=2) and states(made) == {"COMPLETE": 1, "WAITING": 2}
    work("--changed", "--count", "1")
    work()
    assert states(made) == {"COMPLETE": 3}


def test_what_breaks_every_run_burns_no_point_and_what_failed_can_be_tried_again():
    """every run crashes before its first epoch, two after their first | 2, then 0; 1, then 0 with `--failed`"""
    made = create(end=["crash"], end_epoch=[0], seed=[1, 2, 3, 4])
    assert "two points have crashed alike" in work(code=2) and states(made) == {"WAITING": 4}
    Path("mended").touch()
    assert work().count(" finished, val_rec") == 4
    Path("mended").unlink()
    made = create(end=["crash"], end_epoch=[8], seed=[1, 2])  # after an epoch it is the point's own fault
    work(code=1)
    assert states(made) == {"FAIL": 2}
    Path("mended").touch()
    said = says("resume", "--failed")
    assert "2 failed runs are tried again" in said and said.count(" continued: ") == 2
    assert states(made) == {"COMPLETE": 2} and len(starts()) == 6 and len(rows()) == 6


def test_a_damaged_run_ends_its_own_try_and_no_agent():
    """a run's metrics.csv gets a line `77`, or NUL bytes | 0, mended; 1, that run alone"""
    made = create(nap=[0.05], seed=[1, 2])
    agent = start_agents()
    wait_until(checkpoints)
    agent.send_signal(signal.SIGTERM)
    end(agent, 143)
    folder = checkpoints()[0].parent
    (other,) = {t.user_attrs["run"]["id"] for t in trials(made)} - {folder.name}
    shutil.copytree(folder, f"runs/{other}")
    Path(f"runs/{other}/metrics.csv").write_text("epoch,val_rec\n77\n")
    with open(folder / "metrics.csv", "a") as file:
        file.write("77\n\0\0\n")  # as a kill -9 and a file system may leave it; the program cuts it
    assert "metrics.csv" in work(code=1) and states(made) == {"COMPLETE": 1, "FAIL": 1}
    assert [row["id"] for row in rows()] == [folder.name]


def test_damaged_state_is_named_and_in_nobodys_way():
    """sweep.json, journal, current or results/NN.csv damaged, emptied or gone | 2, the file is named"""
    old, made = create(seed=[1]), create(seed=[2, 3])
    Path(f".sweeps/{old['id']}/sweep.json").write_text("{")
    assert old["id"] not in says("list") and "0/2 over" in says("status")
    assert "its sweep.json is damaged" in says("status", "--sweep", old["id"], code=2)
    work("--count", "1")
    journal = Path(f".sweeps/{made['id']}/journal.log")
    whole = journal.read_bytes().splitlines(keepends=True)
    for damaged in (*([*whole[:-2], line, *whole[-2:]] for line in (b"{{\n", b"77\n", b"\0\n")), []):
        journal.write_bytes(b"".join(damaged))
        for command in ("status", "agent", "stop"):
            assert "journal.log: is gone or damaged; create the sweep anew" in says(command, code=2)
    made = create(seed=[2, 3])  # as advised
    assert work().count(" started: ") == 1 and states(made) == {"COMPLETE": 1} and set(starts().values()) == {1}
    Path("results/quick.csv").write_bytes(b"\xff\xfe" + Path("results/quick.csv").read_bytes())
    write(seed=[1])
    assert "results/quick.csv" in says("create", "quick.yaml", "--backend", "local", code=2)
    Path(".sweeps/current").write_text("")
    assert "no current sweep" in says("status", code=2)


def test_a_hanging_run_is_shown_and_ended_where_asked():
    """a run hangs after an epoch | shown by `status`; 1 with `--patience`"""
    made = create(nap=[0.02], end=["hang"], seed=[1])
    agent = start_agents("--patience", "99", SWEEP_BEAT="1")
    wait_until(lambda: "does it hang?" in says("status"))
    assert "crashed (hung: no epoch for" in end(agent, 1) and states(made) == {"FAIL": 1}


def test_rows_that_were_lost_are_made_again():
    """results/NN.csv deleted or emptied | 0, all rows made again"""
    made = create(end=["finish", "diverge"], seed=[1, 2])
    work()
    before = {row["id"]: row | {"recorded": ""} for row in rows()}
    Path("results/quick.csv").unlink()
    assert "4 rows were not there" in says("rebuild")
    assert {row["id"]: row | {"recorded": ""} for row in rows()} == before and states(made)["COMPLETE"] == 2
    Path("results/quick.csv").write_text("")
    assert "4 rows were not there" in work() and len(rows()) == 4 and "has all rows" in says("rebuild")


def test_grids_are_counted_first_and_their_journal_grows_linearly():
    """a grid of 10^8 points; one of 50 and of 200 levels | 2; journal grows linearly"""
    write(**{key: [float(k) for k in range(1, 101)] for key in ("lr", "w_v", "plummet_threshold", "percentile")})
    assert "the grid has 100,000,000 points; allowed: at most 100,000" in says("create", "quick.yaml", code=2)
    sizes = []
    for n in (50, 200):
        made = create(lr=[k / 1000 for k in range(1, n + 1)], arm=[f"w_v={k}" for k in range(2)])
        sizes.append(Path(f".sweeps/{made['id']}/journal.log").stat().st_size)
        assert len(points(made)) == 2 * n
    assert sizes[1] < 4.2 * sizes[0]


def test_a_file_that_says_something_twice_or_names_no_file_is_refused():
    """a sweep's file with a value or key twice, 2,000 brackets, a name that is a path | 2"""
    text = (
        "program: {}\nmethod: grid\nmetric: {{name: val_rec}}\nname: {}\nparameters:\n  problem: {{value: toy}}\n  {}\n"
    )
    cases = {"lr: {values: [1, 2, 1]}": "each of them once", "lr: {value: 1}\n  lr: {value: 2}": "lr is given twice"}
    for parameters, said in (cases | {f"lr: {{values: {'[' * 2000}": "cannot be read"}).items():
        Path("bad.yaml").write_text(text.format(STUB, "bad", parameters))
        assert "sweep.py: bad.yaml: " in (line := says("create", "bad.yaml", code=2)) and said in line
    for name in ("two words", "../up", '"a\\nb"', ".hidden", '""'):
        Path("bad.yaml").write_text(text.format(STUB, name, "seed: {value: 1}"))
        assert "bad.yaml: name " in says("create", "bad.yaml", code=2)
    assert not Path("runs").exists()


def test_no_password_is_told_and_a_sweep_is_its_users_own(capsys):
    """a database's URL with a password, refused | 2, no password said; sweep.json has mode 600"""
    url = "postgresql+psycopg://me:secret@nowhere.invalid/db?password=secret"
    for storage in (url, "mysql://me:secret@nowhere/db"):
        assert sweep.main(["create", "01", "--backend", "local", "--storage", storage]) == 2
        assert "secret" not in capsys.readouterr().err
    made = create(seed=[1])
    assert Path(f".sweeps/{made['id']}/sweep.json").stat().st_mode & 0o777 == 0o600


def test_a_database_that_is_away_is_waited_for(monkeypatch, capsys):
    """a database is away for three tries, and for good | goes on; 4"""
    queue, naps, answers = sweep.Queue(create(seed=[1])), [], [ConnectionError("gone")] * 3 + ["a run"]
    queue.away = (ConnectionError,)
    monkeypatch.setattr(time, "sleep", naps.append)

    @sweep.engine.patient
    def ask(queue):
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    assert ask(queue) == "a run" and naps == [1, 2, 4]
    assert capsys.readouterr().out.count("the database is away; trying again in") == 3
    answers = [ConnectionError("gone")] * 99
    assert record.guarded("sweep.py", ask, queue) == 4 and 600 < sum(naps) < 1200


def test_disks_pipes_and_early_signals_end_in_one_line():
    """`status` into a closed pipe, Ctrl-C while agents start, `results` is a file | no traceback; 4"""
    create(seed=[1])
    done = subprocess.run(" ".join([*SWEEP, "status | head -0"]), shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    early = subprocess.Popen([*SWEEP, "agent"], stderr=subprocess.PIPE, text=True)
    time.sleep(1)  # Python itself has started, and imports take seconds more
    early.send_signal(signal.SIGINT)
    assert early.communicate()[1] == "" and early.returncode in (-signal.SIGINT, 130)
    Path("results").write_text("a file where a folder should be")
    assert "cannot" in work(code=4)
