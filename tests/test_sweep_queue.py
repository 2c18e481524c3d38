"""The local queue under crashes, signals and many agents, with stub_train.py, which takes milliseconds, for runs.

soak_sweep.py has larger numbers. Every agent is a process of its own; what is looked at is the queue, and what the stub wrote down: which
runs were started, and how often.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from sweep_kit import create, rows, start_agent, starts, states, wait_until, work

import sweep
import sweeping.agents
import sweeping.queue
import sweeping.results


def exactly_once(agents, n):
    """n points, each run once to its end, by several agents at the same time."""
    record = create(seed=list(range(n // 3)), lr=[0.1, 0.2, 0.3])
    said = work(agents)
    assert states(record) == {"COMPLETE": n} and set(starts().values()) == {1} and len(starts()) == n
    assert len({row["metrics_sha256"] for row in rows()}) == n and said.count("finished, val_rec") == n


def killed_agents(n):
    """kill -9 of 2 of 5 agents in mid-run: every point is finished, and equal to one that nothing happened to."""
    create(name="calm", seed=list(range(n)))
    work(2)
    calm = {row["seed"]: row["metrics_sha256"] for row in rows("calm")}
    Path("starts.log").unlink()
    record = create(end=["hang"], end_epoch=[11], seed=list(range(n)))  # two epochs after a checkpoint
    agents = [start_agent() for _ in range(5)]
    queue = sweep.Queue(record)

    def held_by(pids):
        running = queue.trials(sweeping.queue.TrialState.RUNNING)
        return [t.user_attrs["run"]["id"] for t in running if t.user_attrs["held"]["pid"] in pids]

    victims = [agent.pid for agent in agents[:2]]

    def at_the_hang():
        runs = [path.parent for path in Path("runs").glob("*/checkpoint.pt")]
        return sum(len(sweeping.results.history(run, "val_rec")) == 11 for run in runs) == 5

    wait_until(at_the_hang)
    killed = held_by(victims)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    Path("go").touch()
    for agent in agents[2:]:
        agent.communicate(timeout=1800)
        assert agent.returncode == 0
    assert states(record) == {"COMPLETE": n}
    disturbed = {t.user_attrs["run"]["id"]: t.user_attrs["ends"] for t in sweep.Queue(record).trials() if "ends" in t.user_attrs}
    assert (
        len(killed) == 2
        and set(disturbed) == set(killed)
        and all(len(ends) == 1 and "agent died" in ends[0] for ends in disturbed.values())
    )
    assert starts() == {t.user_attrs["run"]["id"]: 1 + (t.user_attrs["run"]["id"] in killed) for t in sweep.Queue(record).trials()}
    assert {row["seed"]: row["metrics_sha256"] for row in rows()} == calm
    for agent in agents[:2]:
        agent.communicate()


def search(*flags, cap):
    """A bayes sweep with hyperband over the stub. random.seed() before it settles its id, and by that its first ten points."""
    return create(
        *("--problem", "toy", *flags),
        **{"method": "bayes", "run_cap": cap, "metric": {"name": "val_rec_pruned", "goal": "minimize"}},
        early_terminate={"type": "hyperband", "min_iter": 4, "eta": 2, "strict": True},
        lr={"min": 0.01, "max": 0.1},
        w_v={"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        latent_dim={"distribution": "int_uniform", "min": 8, "max": 30},
        nap={"value": 0.05},
        n_epochs={"value": 40},
        precision={"value": "auto"},
    )


def bayes_is_exact(agents, cap):
    """A bayes sweep with hyperband makes exactly run_cap different runs, some of them stopped early, and none is run again."""
    random.seed(2)  # some searches stop none of their first runs; this one stops several, at any speed of the machine
    record = search(cap=cap)
    work(agents)
    trials = sweep.Queue(record).trials()
    assert len(trials) == cap and len({json.dumps(t.params) for t in trials}) == cap
    assert set(states(record)) == {"COMPLETE", "PRUNED"} and states(record)["PRUNED"] > 0
    assert collections.Counter(row["status"] for row in rows()) == {
        "finished": states(record)["COMPLETE"],
        "stopped early": states(record)["PRUNED"],
    }
    for trial in trials:  # the value is the best of the metric, as W&B's bayes takes it, and the bands are among the reports
        if trial.state.name == "COMPLETE":
            values = sweeping.results.history(Path("runs") / trial.user_attrs["run"]["id"], "val_rec_pruned")
            assert trial.value == min(values) and all(trial.intermediate_values[band] == values[band - 1] for band in (4, 8, 16, 32))


@pytest.mark.usefixtures("here")
def test_each_point_is_run_exactly_once():
    exactly_once(5, 30)


@pytest.mark.usefixtures("here")
def test_runs_of_killed_agents_are_continued_and_come_out_equal():
    killed_agents(8)


@pytest.mark.usefixtures("here")
def test_bayes_with_hyperband_makes_exactly_run_cap_runs():
    bayes_is_exact(3, 9)


@pytest.mark.usefixtures("here")
def test_a_search_goes_on_from_its_table_when_its_machine_is_lost(capsys):
    """Its model and hyperband know of the rows what they knew of the runs; rows of another search are not taken for its own."""

    def known(record):
        trials = sweep.Queue(record).storage.get_all_trials(sweep.Queue(record).study)
        return [
            (t.params, t.state, t.value, {b: t.intermediate_values[b] for b in (4, 8, 16, 32) if b in t.intermediate_values})
            for t in trials
        ]

    random.seed(2)  # as in bayes_is_exact
    first = search(cap=7)
    work(1, "--count", "5")
    table, seen = Path("results/quick.csv"), known(first)
    assert len(seen) == 5 and {state.name for _, state, _, _ in seen} == {"COMPLETE", "PRUNED"}
    shutil.rmtree(".sweeps")
    again = search(cap=7)
    assert "5 points are in results/quick.csv already; the search goes on from them" in capsys.readouterr().out
    assert (again["runs"], again["config"]["run_cap"]) == (2, 7) and states(again) == {} and known(again) == seen
    for other in (("--set", "lr=0.2,0.3"), ("--set", "n_epochs=39")):  # what they varied is out of range; what they fixed is another
        table.with_stem("quick-x").write_text(table.read_text().replace("quick-toy-", "quick-x-toy-"))
        assert search("--edition", "x", *other, cap=7)["runs"] == 7
    damaged = table.read_text().replace("4:0.", "4:x0.", 1).replace("finished", "", 1)
    table.with_stem("quick-y").write_text(damaged.replace("quick-toy-", "quick-y-toy-"))
    assert search("--edition", "y", cap=7)["runs"] in (3, 4)  # all but the rows with a damage, which may be one
    (record,) = (json.loads(path.read_text()) for path in Path(".sweeps").glob(f"{again['id']}/sweep.json"))
    work(2, "--sweep", record["id"])
    assert len(rows()) == len({row["id"] for row in rows()}) == len({(row["lr"], row["w_v"]) for row in rows()}) == 7
    search(cap=7)
    assert "nothing is left to run" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_ends_of_a_run():
    """What an agent makes of each exit code of the program."""
    record = create(end=["crash", "diverge", "finish"], seed=[1])
    said = work()
    trials = {t.params["end"]: t for t in sweep.Queue(record).trials()}
    ids = {end: t.user_attrs["run"]["id"] for end, t in trials.items()}
    assert starts() == {ids["crash"]: 3, ids["diverge"]: 1, ids["finish"]: 1}
    assert (
        trials["crash"].state.name == "FAIL"
        and "given up after 3 tries: exit code 1: RuntimeError: crash, as asked" in trials["crash"].user_attrs["cause"]
    )
    assert trials["diverge"].state.name == "FAIL" and trials["diverge"].user_attrs["cause"].startswith("diverged: epoch 3")
    assert {row["id"]: row["status"] for row in rows()} == {ids["diverge"]: "diverged", ids["finish"]: "finished"}
    counts = sweep.counts(record)
    assert (counts["finished"], counts["diverged"], counts["failed"]) == (1, 1, 1) and "given up" in said
    work()  # and none of them is tried again
    assert sum(starts().values()) == 5


@pytest.mark.usefixtures("here")
def test_agent_stops_where_no_run_could_work():
    """And takes no point from the agents of other machines, where it may."""
    for end, code, said in (
        ("refuse", 2, "cannot start, and this agent stops: stub: --end refuse: as asked"),
        ("full", 4, "cannot write, and this"),
    ):
        record = create(end=[end], seed=[1, 2])
        assert said in work(code=code)
        assert states(record) == {"WAITING": 2}
    queue = sweep.Queue(create(seed=[1]))  # but is not in their way for ever
    assert [queue.crashed(queue.claim(), "as asked", "cannot start") for _ in range(10)] == [False] * 9 + [True]


@pytest.mark.usefixtures("here")
def test_nohup():
    record = create(nap=[0.1], seed=[1])
    command = ["nohup", sys.executable, str(ROOT / "sweep.py"), "agent", "--checked"]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: list(Path("runs").glob("*/checkpoint.pt")))
    agent.send_signal(signal.SIGHUP)
    agent.communicate(timeout=1800)
    assert agent.returncode == 0 and states(record) == {"COMPLETE": 1}


@pytest.mark.usefixtures("here")
def test_agents_share_cores_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    found = [sweeping.agents.surroundings(k, 3) for k in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["4", "7", "4"]
    assert {env["OMP_NUM_THREADS"] for env in found} == {str(max(1, len(os.sched_getaffinity(0)) // 3))}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("signals, code", [([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM], 143)])
def test_signals(signals, code):
    """Once Ctrl-C: the current run finishes. Twice, or SIGTERM: it stops at the next epoch, and the next agent continues it."""
    record = create(nap=[0.1], seed=[1, 2])
    agent = start_agent()
    wait_until(lambda: list(Path("runs").glob("*/checkpoint.pt")))
    for signum in signals:
        agent.send_signal(signum)
        time.sleep(0.3)
    said = agent.communicate(timeout=1800)[0]
    assert agent.returncode == code
    once = signals == [signal.SIGINT]
    assert states(record) == ({"COMPLETE": 1, "WAITING": 1} if once else {"WAITING": 2}), said
    work()
    assert states(record) == {"COMPLETE": 2} and sorted(starts().values()) == ([1, 1] if once else [1, 2])
    assert all("ends" not in t.user_attrs for t in sweep.Queue(record).trials())  # a stop is no failure


@pytest.mark.usefixtures("here")
def test_launcher_starts_agents_passes_signals_on_and_leaves_nobody_behind():
    record = create(nap=[0.1], seed=[1, 2, 3, 4])
    command = [sys.executable, str(ROOT / "sweep.py"), "agent", "--n", "2"]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)
    wait_until(lambda: len(list(Path("runs").glob("*/checkpoint.pt"))) == 2)
    launcher.send_signal(signal.SIGINT)
    said = launcher.communicate(timeout=1800)[0]
    assert launcher.returncode == 130 and states(record) == {"COMPLETE": 2, "WAITING": 2}, said
    cores = len(os.sched_getaffinity(0))
    assert {line.split()[1] for line in Path("starts.log").read_text().splitlines()} == {str(max(1, cores // 2))}
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)
    wait_until(lambda: len(list(Path("runs").glob("*/checkpoint.pt"))) == 2)
    held = [t.user_attrs["held"] for t in sweep.Queue(record).trials(sweeping.queue.TrialState.RUNNING)]
    launcher.kill()  # its agents stop resumably, and so do their runs
    wait_until(lambda: not any(sweeping.queue.is_alive(h) for h in held))
    launcher.communicate()
    assert states(record) == {"COMPLETE": 2, "WAITING": 2}
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)
    wait_until(lambda: len(sweep.Queue(record).trials(sweeping.queue.TrialState.RUNNING)) == 2)
    os.kill(sweep.Queue(record).trials(sweeping.queue.TrialState.RUNNING)[0].user_attrs["held"]["pid"], signal.SIGKILL)
    said = launcher.communicate(timeout=1800)[0]
    assert launcher.returncode == 1 and states(record) == {"COMPLETE": 4}
    assert "was killed (signal 9)" in said and said.count(" continued: seed=") == 3 and " started: " not in said


@pytest.mark.usefixtures("here")
def test_status_stop_and_resume(capsys):
    record = create(nap=[0.05], seed=[1, 2, 3])
    agent = start_agent()
    wait_until(lambda: list(Path("runs").glob("*/checkpoint.pt")))
    sweep.main(["status"])
    assert "0/3 over" in (out := capsys.readouterr().out) and "1 running, 2 left" in out
    sweep.main(["stop"])
    agent.communicate(timeout=1800)
    assert agent.returncode == 0 and states(record) == {"COMPLETE": 1, "WAITING": 2}
    work()
    assert states(record) == {"COMPLETE": 1, "WAITING": 2}
    with pytest.raises(SystemExit) as exit_:
        sweep.main(["resume", "--checked", "--count", "1"])
    assert exit_.value.code == 0 and states(record) == {"COMPLETE": 2, "WAITING": 1}
    work()
    sweep.main(["status"])
    assert "3/3 over (3 finished, 0 stopped early, 0 diverged, 0 failed), 0 running, 0 left, best val_rec" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_hyperband_decision_survives_its_agent():
    """An agent that dies between stopping a run and saying so: the next one says so, and does not run it again."""
    record = create(seed=[1])
    queue = sweep.Queue(record)
    queue.mark_stopping(queue.claim())
    for trial in queue.trials():
        queue._attribute(trial, "held", {**trial.user_attrs["held"], "pid": 2**22 + 1, "started": "1"})
    assert "stopped early by hyperband" in work()
    assert states(record) == {"PRUNED": 1} and not Path("starts.log").exists()


@pytest.mark.usefixtures("here")
def test_who_is_alive(monkeypatch):
    """On this machine the process table tells, elsewhere the heartbeat; and an agent that was taken for dead gives its run up."""
    queue = sweep.Queue(create(seed=[1]))
    trial = queue.claim()
    held = trial.user_attrs["held"]
    assert sweeping.queue.is_alive({**held, "beat": 0}) and not sweeping.queue.is_alive({**held, "started": "1"})
    far = {**held, "machine": "far", "beat": time.time() - sweeping.queue.GRACE + 5}
    assert sweeping.queue.is_alive(far) and not sweeping.queue.is_alive({**far, "beat": time.time() - sweeping.queue.GRACE - 1})
    assert queue.claim() is None and queue.is_busy()
    queue._attribute(trial, "held", {**far, "beat": 0})
    assert not queue.beat(trial) and not queue.finish(trial, sweeping.queue.TrialState.COMPLETE, 1.0)
    taken = queue.claim()
    assert taken.user_attrs["held"]["machine"] == held["machine"] and len(taken.user_attrs["ends"]) == 1 and queue.beat(taken)


@pytest.mark.usefixtures("here")
def test_torn_line_of_the_journal_is_cut(capsys):
    record = create(seed=[1, 2])
    journal = Path(".sweeps") / record["id"] / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "worker_id": "x", "trial_')
    assert states(record) == {"WAITING": 2}  # readers do not mind
    work()
    assert states(record) == {"COMPLETE": 2}
    assert all(json.loads(line) for line in journal.read_text().splitlines()) and journal.read_bytes().startswith(whole)


def test_hyperband_decides_as_wandb_does():
    """60 random sweeps: what W&B's own engine (PyPI sweeps 0.3.0) decided on them, recorded. Even runs are running, odd ones are over."""
    for min_iter, eta, strict, histories, stopped in json.loads((ROOT / "tests/hyperband_cases.json").read_text()):
        histories = [[float(c) for c in h] for h in histories]

        def pool(band, histories=histories):
            return [h[band - 1] for h in histories if len(h) >= band]

        rule = {"min_iter": min_iter, "eta": eta, "strict": strict}
        assert [i for i in range(0, len(histories), 2) if sweeping.queue.hyperband_stops(histories[i], pool, rule)] == stopped


def test_growing_metrics_are_read_up_to_the_last_whole_line(tmp_path):
    assert sweeping.results.history(tmp_path, "val_rec") == []
    (tmp_path / "metrics.csv").write_text("epoch,val_rec\n0,0.5\n1,\n2,nan\n3,0.25\n4,0.12")
    assert sweeping.results.history(tmp_path, "val_rec") == [0.5, 0.25] and sweeping.results.history(tmp_path, "other") == []
