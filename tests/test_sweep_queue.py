"""The local queue under crashes, signals and many agents, with stub_train.py, which takes milliseconds, for runs.

What is looked at is the queue, and what the stub wrote down: which runs were started, and how often. With SOAK=1
(`make soak`) in larger numbers, and on PostgreSQL, too. It is started from the programs that Debian's package
`postgresql` installs; without them, or without psycopg, its tests are skipped.
"""

import collections
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pytest
import torch
from conftest import ROOT, note
from sweep_kit import STUB, Forked, checkpoints, create, rows, says, starts, states, trials, wait_until, work, write

import record
import sweep
from sweep import TrialState

pytestmark = pytest.mark.usefixtures("here")
SOAK = os.environ.get("SOAK")


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
    plain, url = create, f"postgresql+psycopg://sweep@/postgres?host={folder}"
    monkeypatch.setattr(f"{__name__}.create", lambda *flags, **more: plain("--storage", url, *flags, **more))
    yield control
    control("stop")
    shutil.rmtree(folder)


def exactly_once(agents, n):
    """n points, each run once to its end, by several agents, processes of their own, at the same time."""
    made = create(seed=list(range(n // 3)), lr=[0.1, 0.2, 0.3])
    said = "".join(agent.ends() for agent in [Forked("agent") for _ in range(agents)])
    assert states(made) == {"COMPLETE": n} and set(starts().values()) == {1} and len(starts()) == n
    assert len({row["metrics_sha256"] for row in rows()}) == n and said.count("finished, val_rec") == n


def killed_agents(n):
    """kill -9 of 2 of 5 agents in mid-run: every point is finished, and equal to one that nothing happened to."""
    create(name="calm", seed=list(range(n)))
    work("--n", "2")
    calm = {row["seed"]: row["metrics_sha256"] for row in rows("calm")}
    Path("starts.log").unlink()
    made = create(end=["hang"], end_epoch=[11], seed=list(range(n)))  # two epochs after a checkpoint
    agents = [Forked("agent") for _ in range(5)]
    wait_until(lambda: sum(len(sweep.history(p.parent, "val_rec")) == 11 for p in checkpoints()) == 5)
    killed = set()
    for agent in agents[:2]:
        (trial,) = (t for t in trials(made, TrialState.RUNNING) if t.user_attrs["held"]["pid"] == agent.pid)
        killed.add(trial.user_attrs["run"]["id"])
        agent.kill()
    for run in killed:
        wait_until(lambda run=run: not sweep.is_locked(Path("runs") / run))  # the program dies with its agent
    Path("go").touch()
    assert sum(agent.ends().count(" continued: ") for agent in agents[2:]) == 2
    assert states(made) == {"COMPLETE": n}
    assert starts() == {t.user_attrs["run"]["id"]: 1 + (t.user_attrs["run"]["id"] in killed) for t in trials(made)}
    assert {row["seed"]: row["metrics_sha256"] for row in rows()} == calm


HYPERBAND = {"type": "hyperband", "min_iter": 4, "eta": 2, "strict": True}


def search(*flags, cap):
    """A bayes sweep with hyperband over the stub, whose value rises with w_v: large ones are stopped."""
    space = {"lr": {"min": 0.01, "max": 0.1}, "nap": {"value": 0.05}, "n_epochs": {"value": 40}}
    space |= {"w_v": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}, "precision": {"value": "auto"}}
    space |= {"latent_dim": {"distribution": "int_uniform", "min": 8, "max": 30}}
    metric = {"name": "val_rec_pruned", "goal": "minimize"}
    how = {"method": "bayes", "run_cap": cap, "metric": metric, "early_terminate": HYPERBAND}
    return create("--problem", "toy", *flags, **how, **space)


def bayes_is_exact(agents, cap):
    """A bayes sweep with hyperband makes exactly run_cap different runs, and none is run again."""
    made = search(cap=cap)
    for agent in [Forked("agent") for _ in range(agents)]:
        agent.ends()
    found, n = trials(made), states(made)
    assert len(found) == len({json.dumps(t.params) for t in found}) == cap and set(n) <= {"COMPLETE", "PRUNED"}
    status = collections.Counter(row["status"] for row in rows())
    assert status == collections.Counter({"finished": n["COMPLETE"], "stopped early": n["PRUNED"]})
    for trial in found:  # the value is the best of the metric, as W&B's bayes takes it; the bands are among the reports
        values = sweep.history(Path("runs") / trial.user_attrs["run"]["id"], "val_rec_pruned")
        whole = trial.state == TrialState.COMPLETE
        assert trial.value == (min(values) if whole else values[-1]) and (len(values) == 36 or not whole)
        assert all(trial.intermediate_values[band] == values[band - 1] for band in sweep.bands(HYPERBAND, len(values)))


PROOFS = [  # what is proved, with how many agents and runs in a test, and in a soak; its row
    (exactly_once, (5, 30), (5, 225), "5 agents claim 225 runs at once", 1, "0"),
    (killed_agents, (8,), (40,), "`kill -9` of 2 of 5 agents in mid-run, of 40 runs", 2, "-9"),
    (bayes_is_exact, (3, 9), (5, 33), "5 agents on a search of 33 runs that hyperband stops", 1, "0"),
]


@pytest.mark.parametrize("storage", ["journal", "postgresql"] if SOAK else ["journal"])
@pytest.mark.parametrize("prove, few, many, text, times, ending", PROOFS)
def test_each_run_is_made_once_whatever_dies(prove, few, many, text, times, ending, storage, request):
    if storage == "postgresql":
        request.getfixturevalue("postgresql")
    prove(*(many if SOAK else few))
    if SOAK:
        note(f"{text}; queue: {storage}", times, ending)


@pytest.mark.skipif(not SOAK, reason="needs PostgreSQL")
def test_a_database_that_restarts_under_its_agents(postgresql):
    made = create(nap=[0.1], seed=list(range(12)))
    agents = Forked("agent", "--n", "3")
    for _ in range(2):
        wait_until(lambda: len(checkpoints()) == 3)
        postgresql("stop")
        time.sleep(6)
        postgresql("start")
    assert "no answer from its queue, asking again in" in agents.ends()
    assert states(made) == {"COMPLETE": 12} and set(starts().values()) == {1}
    note("PostgreSQL is away for 6 s under 3 agents at work", 2, "0")


def test_a_search_goes_on_from_its_table_when_its_machine_is_lost(capsys):
    """Its model and hyperband know of the rows what they knew of the runs; rows of another search are not its own."""

    def known(made):
        found, four = sweep.Queue(made).study.get_trials(), (4, 8, 16, 32)
        reports = [{band: t.intermediate_values[band] for band in four if band in t.intermediate_values} for t in found]
        return [(t.params, t.state, report) for t, report in zip(found, reports, strict=True)]

    first = search(cap=4)
    for lr, w_v in ((0.02, 0.001), (0.03, 0.001), (0.04, 0.1)):  # the third is above the median at every band
        sweep.Queue(first).study.enqueue_trial({"lr": lr, "w_v": w_v, "latent_dim": 9})
    work("--count", "3")
    table, seen = Path("results/quick.csv"), known(first)
    assert len(seen) == 3 and {"finished", "stopped early"} == {row["status"] for row in rows()}
    shutil.rmtree(".sweeps")
    again = search(cap=4)
    assert "3 points are in results/quick.csv already" in capsys.readouterr().out
    assert (again["runs"], again["config"]["run_cap"]) == (1, 4) and known(again) == seen
    for other in (("--set", "lr=0.2,0.3"), ("--set", "n_epochs=39")):  # what they varied is out of range; or fixed
        table.with_stem("quick-x").write_text(table.read_text().replace("quick-toy-", "quick-x-toy-"))
        assert search("--edition", "x", *other, cap=5)["runs"] == 5
    work("--sweep", again["id"])
    assert len(rows()) == len({row["id"] for row in rows()}) == len({(row["lr"], row["w_v"]) for row in rows()}) == 4
    search(cap=4)
    assert "nothing is left to run" in capsys.readouterr().out


def test_ends_of_a_run():
    """What an agent makes of each exit code of the program; what failed can be tried again, as the same run."""
    made = create(end=["crash", "diverge", "finish"], seed=[1])
    assert "given up" in work(code=1)
    ids = {t.params["end"]: t.user_attrs["run"]["id"] for t in trials(made)}
    causes = {t.params["end"]: t.user_attrs["cause"] for t in trials(made)}
    assert starts() == {ids["crash"]: 3, ids["diverge"]: 1, ids["finish"]: 1}
    assert causes["crash"] == "given up after 3 tries: exit code 1: RuntimeError: crash, as asked"
    assert causes["diverge"] == "diverged: epoch 3: nan" and states(made) == {"FAIL": 2, "COMPLETE": 1}
    assert {row["id"]: row["status"] for row in rows()} == {ids["diverge"]: "diverged", ids["finish"]: "finished"}
    assert "3/3 over (1 finished, 0 stopped early, 1 diverged, 1 failed), 0 running, 0 left" in work(code=1)
    assert sum(starts().values()) == 5  # and none of them is tried again, until told
    Path("mended").touch()
    said = says("resume", "--failed")
    assert "1 failed runs are tried again" in said and said.count(" continued: ") == 1 and len(rows()) == 3
    before = {row["id"]: row | {"recorded": ""} for row in rows()}
    for again in (lambda: says("rebuild"), work):  # by itself, and by agents
        Path("results/quick.csv").write_text("")
        assert "3 rows were not there" in again() and "has all rows" in says("rebuild")
        assert {row["id"]: row | {"recorded": ""} for row in rows()} == before


def test_agent_stops_where_no_run_could_work():
    """And takes no point from the agents of other machines."""
    for kind, code, said in (("refuse", 2, "stub: --end refuse: as asked"), ("full", 4, "cannot write, and this")):
        made = create(end=[kind], seed=[1, 2])
        assert said in work(code=code) and states(made) == {"WAITING": 2}
    made = create(end=["refuse", "finish"], seed=[1, 2])  # and a run that cannot start blocks no other
    work("--n", "3", code=2)
    assert states(made) == {"COMPLETE": 2, "WAITING": 2}


def test_a_run_that_hangs_is_ended_where_asked():
    made = create(nap=[0.02], end=["hang"], seed=[1])
    assert "crashed (hung)" in work("--patience", "99", code=1) and states(made) == {"FAIL": 1}


def test_agents_share_cores_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = [sweep.surroundings(k, 3) for k in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["4", "7", "4"]
    assert {env["OMP_NUM_THREADS"] for env in found} == {str(max(1, sweep.cores() // 3))}


@pytest.mark.parametrize("signals, code", [("INT", 130), ("INT INT", 130), ("TERM", 143)])
def test_signals(signals, code):
    """Once Ctrl-C: the current runs finish. Twice, or SIGTERM: they stop at the next epoch, and are continued later."""
    made = create(nap=[0.1], seed=[1, 2, 3])
    agents = Forked("agent", "--n", "2")
    wait_until(lambda: len(checkpoints()) == 2)
    for name in signals.split():
        os.kill(agents.pid, signal.Signals[f"SIG{name}"])
        time.sleep(0.3)
    said = agents.ends(code)
    once = signals == "INT"
    assert ("finishing the runs at work; Ctrl-C again stops them" if once else "stopping all runs, resumably") in said
    assert states(made) == ({"COMPLETE": 2, "WAITING": 1} if once else {"WAITING": 3})
    assert once or "0/3 over (0 finished, 0 stopped early, 0 diverged, 0 failed), 0 running, 3 left" in said
    said = work("--n", "2")
    assert states(made) == {"COMPLETE": 3} and sorted(starts().values()) == ([1, 1, 1] if once else [1, 2, 2])
    assert all("crashes" not in t.user_attrs for t in trials(made))  # a stop is no failure


def test_status_list_stop_and_resume():
    made = create(nap=[0.05], seed=[1, 2, 3])
    agent = Forked("agent")
    wait_until(checkpoints)
    assert "0/3 over" in (out := says("status")) and "1 running, 2 left" in out
    says("stop")
    agent.ends()
    assert states(made) == {"COMPLETE": 1, "WAITING": 2} and f"* {made['id']}" in says("list")
    work()
    assert states(made) == {"COMPLETE": 1, "WAITING": 2}
    assert "2/3 over" in says("resume", "--count", "1")


def test_the_dashboard_is_started_on_the_journal(monkeypatch):
    made, started = create(seed=[1]), []
    monkeypatch.setattr(sweep.shutil, "which", lambda name, path: f"{path}/{name}")
    monkeypatch.setattr(sweep.os, "execv", lambda *how: started.append(how))
    says("dashboard")
    command = f"{os.path.dirname(sys.executable)}/optuna-dashboard"
    assert started == [(command, [command, f".sweeps/{made['id']}/journal.log"])]


def test_a_fault_of_ours_ends_a_try_and_says_where_it_is(monkeypatch):
    def fails(*_):
        raise ValueError("postgresql://me:se/cret@host")

    made = create(seed=[1])
    monkeypatch.setattr(sweep, "objective", fails)
    said = work(code=1)
    assert "in settle" in said and "cannot go on: postgresql://me:***@host" in said and states(made) == {"FAIL": 1}
    assert "se/cret" not in said


def test_who_is_alive():
    """A lock tells of agents of this machine, the heartbeat of others; who was taken for dead gives its run up."""
    queue, other = sweep.Queue(create(seed=[1])), sweep.Queue(sweep.load_sweep("quick"))
    trial = queue.claim()
    assert queue.is_alive(trial) and other.claim() is None and other.is_busy()
    far = {**trial.user_attrs["held"], "kernel": "far"}
    for age, alive in ((sweep.engine.GRACE - 5, True), (sweep.engine.GRACE + 1, False)):
        queue.note(trial, held={**far, "beat": time.time() - age})
        assert queue.is_alive(queue.get(trial)) == alive
    taken = other.claim()
    queue.beat(trial)  # which is no longer its own
    queue.end(trial, TrialState.COMPLETE, 1.0)
    assert other.is_ours(taken) and not queue.is_ours(trial)


def test_torn_line_of_the_journal_is_cut():
    made = create(seed=[1, 2])
    journal = Path(".sweeps") / made["id"] / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "worker_id": "x", "trial_')
    assert states(made) == {"WAITING": 2}  # readers do not mind
    work()
    assert all(map(json.loads, journal.read_text().splitlines())) and journal.read_bytes().startswith(whole)


def test_hyperband_decides_as_wandb_does():
    """60 random sweeps: what W&B's own engine (PyPI sweeps 0.3.0) decided. Even runs run, odd ones are over."""
    for min_iter, eta, strict, texts, stopped in json.loads((ROOT / "tests/hyperband_cases.json").read_text()):
        histories = [[float(c) for c in h] for h in texts]
        rule = {"min_iter": min_iter, "eta": eta, "strict": strict}
        pools = {band: [h[band - 1] for h in histories if len(h) >= band] for band in sweep.bands(rule, 10**6)}
        stops = [sweep.engine.hyperband_stops(h, pools.get, rule) for h in histories[::2]]
        assert [2 * i for i, stop in enumerate(stops) if stop] == stopped


def test_growing_metrics_are_read_up_to_the_last_whole_line(tmp_path):
    assert sweep.history(tmp_path, "val_rec") == []
    (tmp_path / "metrics.csv").write_text("epoch,val_rec\n0,0.5\n1,\n2,nan\n3,0.25\n4,0.12")
    assert sweep.history(tmp_path, "val_rec") == [0.5, 0.25] and sweep.history(tmp_path, "other") == []


# ------------------------------------------------------------------------------- what must not go wrong without a word


def test_a_change_of_the_code_is_refused_unless_told_otherwise():
    shutil.copy(STUB, "program.py")
    made = create(nap=[0.1], seed=[1, 2, 3], program="program.py")
    agent = Forked("agent")
    wait_until(checkpoints)
    Path("program.py").write_text(STUB.read_text() + "# another\n")
    assert "program.py is " in agent.ends(2) and states(made) == {"COMPLETE": 1, "WAITING": 2}
    assert "program.py is " in work(code=2) and states(made) == {"COMPLETE": 1, "WAITING": 2}
    work("--changed")
    assert states(made) == {"COMPLETE": 3}


DAMAGED = [  # metrics.csv and summary.json of a run, and what its agent says
    ("epoch,val_rec\n77\n", '{"status": "finished"}', "metrics.csv: line 2 "),
    ("epoch,val_rec\n0,x\n", '{"status": "finished"}', "metrics.csv: val_rec is no number: ['x']"),
    ("", "", "summary.json is damaged; delete it"),
]


@pytest.mark.parametrize("metrics, summary, said", DAMAGED)
def test_a_damaged_run_ends_its_own_try_and_no_agent(metrics, summary, said):
    made = create(seed=[1, 2])
    folder = Path("runs") / trials(made)[0].user_attrs["run"]["id"]
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(summary)
    (folder / "metrics.csv").write_text(metrics)
    assert said in work(code=1) and states(made) == {"COMPLETE": 1, "FAIL": 1}


def test_damaged_state_is_named_and_in_nobodys_way():
    """sweep.json, journal, current or results/NN.csv damaged, emptied or gone."""
    old, made = create(seed=[1]), create(seed=[2, 3])
    for text in ("{", "77"):
        Path(f".sweeps/{old['id']}/sweep.json").write_text(text)
        assert f"{old['id']}/sweep.json" in (said := says("status")) and "damaged" in said and "0/2 over" in said
    assert "its sweep.json is damaged" in says("status", "--sweep", old["id"], code=2)
    work("--count", "1")
    journal = Path(f".sweeps/{made['id']}/journal.log")
    whole = journal.read_bytes().splitlines(keepends=True)
    for damaged in (*([*whole[:-2], line, *whole[-2:]] for line in (b"{{\n", b"77\n", b"\0\n")), []):
        journal.write_bytes(b"".join(damaged))
        for command in ("status", "agent", "stop"):
            assert f"{journal}: is away, gone or damaged. If gone, create the sweep anew" in says(command, code=2)
    made = create(seed=[2, 3])  # as advised
    assert work().count(" started: ") == 1 and states(made) == {"COMPLETE": 1} and set(starts().values()) == {1}
    Path("results/quick.csv").write_bytes(b"\xff\xfe" + Path("results/quick.csv").read_bytes())
    assert "results/quick.csv" in says("create", "quick.yaml", "--backend", "local", code=2)
    Path(".sweeps/current").write_text("")
    assert "no current sweep" in says("status", code=2)


def test_no_password_is_told_and_a_sweep_is_its_users_own():
    url = "postgresql+psycopg://me:secret@nowhere.invalid/db?password=secret"
    for storage in (url, "mysql://me:secret@nowhere/db"):
        assert "secret" not in says("create", "01", "--backend", "local", "--storage", storage, code=2)
    made = create(seed=[1])
    assert Path(f".sweeps/{made['id']}").stat().st_mode & 0o777 == 0o700


def test_disks_pipes_and_early_signals_end_in_one_line():
    """`status` into a closed pipe, Ctrl-C while agents start, `results` is a file."""
    create(seed=[1])
    command = [sys.executable, str(ROOT / "sweep.py")]
    done = subprocess.run(" ".join([*command, "status | head -0"]), shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    early = subprocess.Popen([*command, "agent"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: "torch" in Path(f"/proc/{early.pid}/maps").read_text())  # while it is imported
    early.send_signal(signal.SIGINT)
    assert early.communicate()[1] == "" and early.returncode in (-signal.SIGINT, 130)
    Path("results").write_text("a file where a folder should be")
    assert "cannot" in work(code=4) and os.listdir("runs")


def test_a_run_on_other_designs_is_not_recorded(monkeypatch):
    """They are replaced while agents work: one run fails, which says so, and can be tried again from nothing."""
    made, sha256 = create(seed=[1, 2]), os.environ["STUB_SHA"]
    monkeypatch.setenv("STUB_SHA", "b" * 64)
    assert "its designs (bbbbbbbbbbbb) are not the sweep's" in work(code=2)
    assert states(made) == {"FAIL": 1, "WAITING": 1} and not Path("results").exists() and not os.listdir("runs")
    assert "failed: " in (said := says("status")) and "(bbbbbbbbbbbb)" in said
    monkeypatch.setenv("STUB_SHA", sha256)
    says("resume", "--failed")
    assert {row["data_sha256"] for row in rows()} == {sha256} and states(made) == {"COMPLETE": 2}


def test_what_breaks_every_run_burns_no_point():
    made = create(end=["crash"], end_epoch=[0], seed=[1, 2, 3, 4])
    assert "two points have crashed alike" in work(code=2) and states(made) == {"WAITING": 4}
    Path("mended").touch()
    assert work().count(" finished, val_rec") == 4 and max(starts().values()) == 2


def test_status_shows_what_hangs_and_the_best_and_the_time_to_go():
    create(nap=[0.02], end=["finish", "hang"], seed=[1])
    agent = Forked("agent")
    wait_until(lambda: Path("results/quick.csv").exists() and "does it hang?" in says("status"))
    (best,) = rows()
    said = says("status")
    assert f"best val_rec {float(best['val_rec']):.6g} on toy (run {best['id']})" in said and " min to go" in said
    Path("go").touch()
    agent.ends()


def test_an_agent_that_cannot_write_stops_and_the_others_end():
    made = create(seed=[1, 2])
    (Path(".sweeps") / made["id"] / f"{trials(made)[0].user_attrs['run']['id']}.log").mkdir()
    assert "stops, and nothing is lost: cannot write" in work("--n", "2", code=4)
    assert states(made)["COMPLETE"] == 1


def test_a_grid_is_counted_first_and_its_journal_grows_linearly():
    write(**{key: [float(k) for k in range(1, 101)] for key in ("lr", "w_v", "plummet_threshold", "percentile")})
    assert "the grid has 100,000,000 points; allowed: at most 100,000" in says("create", "quick.yaml", code=2)
    sizes = []
    for n in (150, 300):
        made = create(lr=[k / 1000 for k in range(1, n + 1)])
        sizes.append(Path(f".sweeps/{made['id']}/journal.log").stat().st_size)
        assert len(trials(made)) == n
    assert sizes[1] < 2.2 * sizes[0]


def test_create_prints_its_plan_and_the_hours_and_knows_the_same_sweep(monkeypatch):
    Path("results").mkdir()
    known = ["toy,finished,10,3600", "toy,finished,10,7200", "toy,failed,10,9", "toy,finished,10,10800"]
    Path("results/a.csv").write_text("\n".join(["problem,status,n_epochs,seconds", *known, ""]))
    Path("results/b.csv").write_text("measure,problem\nother,toy\n")
    write(seed=[1, 2], lr=[0.1, 0.2, 0.3], n_epochs=[20])
    said = says("create", "quick.yaml", "--backend", "local")
    assert ": 6 runs = 2 seed x 3 lr, about 24.0 h for one agent by the rows in results/; toy from" in said
    monkeypatch.setenv("NETRC", os.devnull)  # not logged in; and W&B's service, if one were started, is too slow
    monkeypatch.setenv("WANDB_X_SERVICE_WAIT", "0.001")
    again = says("create", "quick.yaml")
    assert "is the same sweep" not in said and "is the same sweep" in again and "backend: local" in again
    write(seed=[1, 2], lr=[0.1, 0.2, 0.3], n_epochs=[20], run_cap=4)
    assert ": 4 runs, about 16.0 h" in says("create", "quick.yaml", "--backend", "local")


def test_a_database_that_is_away_is_waited_for_and_nothing_is_lost(monkeypatch):
    """For some tries at each place where agents ask it; then for good."""
    made, away = create(seed=[1, 2]), {"claim": 2, "report": 1, "end": 2, "is_busy": 1}

    def flaky(name, method):
        def asked(*args, **how):
            away[name] -= 1
            if away[name] >= 0:
                raise optuna.exceptions.StorageInternalError("gone: postgresql://me:secret@host/db")
            return method(*args, **how)

        return asked

    for name in away:
        monkeypatch.setattr(sweep.Queue, name, flaky(name, getattr(sweep.Queue, name)))
    said = work("--n", "2")
    assert said.count("no answer from its queue, asking again in ") == 6 and "secret" not in said
    assert states(made) == {"COMPLETE": 2} and set(starts().values()) == {1}
    made, away["end"] = create(seed=[3]), 10**6
    monkeypatch.setattr(sweep, "LONGEST", 2)
    assert "nothing is lost" in work(code=4)
    away["end"] = 0
    work()
    assert states(made) == {"COMPLETE": 1} and set(starts().values()) == {1} and len(rows()) == 3


def test_a_signal_is_named(monkeypatch):
    """And which job of a cluster a run was."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert record.describe_machine(torch.device("cpu"))["machine"]["slurm_job_id"] == "77"
    assert sweep.ending(-9) == "killed (signal 9; out of memory?)" and sweep.ending(1) == "exit code 1"
