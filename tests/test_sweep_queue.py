"""The local queue under crashes, signals and many agents, with stub_train.py, which takes milliseconds, for runs.

soak_sweep.py has larger numbers. Agents are processes of their own; what is looked at is the queue, and what the stub
wrote down: which runs were started, and how often.
"""

import collections
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import ROOT
from sweep_kit import checkpoints, create, end, rows, says, start_agents, starts, states, trials, wait_until, work

import sweep
from sweep import TrialState

pytestmark = pytest.mark.usefixtures("here")


def exactly_once(agents, n):
    """n points, each run once to its end, by several agents at the same time."""
    made = create(seed=list(range(n // 3)), lr=[0.1, 0.2, 0.3])
    said = work("--n", str(agents))
    assert states(made) == {"COMPLETE": n} and set(starts().values()) == {1} and len(starts()) == n
    assert len({row["metrics_sha256"] for row in rows()}) == n and said.count("finished, val_rec") == n


def killed_agents(n):
    """kill -9 of 2 of 5 agents in mid-run: every point is finished, and equal to one that nothing happened to."""
    create(name="calm", seed=list(range(n)))
    work("--n", "2")
    calm = {row["seed"]: row["metrics_sha256"] for row in rows("calm")}
    Path("starts.log").unlink()
    made = create(end=["hang"], end_epoch=[11], seed=list(range(n)))  # two epochs after a checkpoint
    agents = start_agents("--n", "5")
    wait_until(lambda: sum(len(sweep.history(p.parent, "val_rec")) == 11 for p in checkpoints()) == 5)
    victims = trials(made, TrialState.RUNNING)[:2]
    for trial in victims:
        os.kill(trial.user_attrs["held"]["pid"], signal.SIGKILL)
        run = Path("runs") / trial.user_attrs["run"]["id"]
        wait_until(lambda run=run: not sweep.is_locked(run))  # the program dies with its agent
    Path("go").touch()
    assert end(agents, 1).count("was killed (signal 9; out of memory?)") == 2
    killed = {t.user_attrs["run"]["id"] for t in victims}
    ends = {t.user_attrs["run"]["id"]: t.user_attrs.get("ends", []) for t in trials(made)}
    assert states(made) == {"COMPLETE": n} and all(len(found) == (run in killed) for run, found in ends.items())
    assert starts() == {run: 1 + (run in killed) for run in ends}
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
    work("--n", str(agents))
    found, n = trials(made), states(made)
    assert len(found) == len({json.dumps(t.params) for t in found}) == cap and set(n) <= {"COMPLETE", "PRUNED"}
    status = collections.Counter(row["status"] for row in rows())
    assert status == collections.Counter({"finished": n["COMPLETE"], "stopped early": n["PRUNED"]})
    for trial in found:  # the value is the best of the metric, as W&B's bayes takes it; the bands are among the reports
        values = sweep.history(Path("runs") / trial.user_attrs["run"]["id"], "val_rec_pruned")
        whole = trial.state == TrialState.COMPLETE
        assert trial.value == (min(values) if whole else values[-1]) and (len(values) == 36 or not whole)
        assert all(trial.intermediate_values[band] == values[band - 1] for band in sweep.bands(HYPERBAND, len(values)))


def test_each_point_is_run_exactly_once():
    exactly_once(5, 30)


def test_runs_of_killed_agents_are_continued_and_come_out_equal():
    killed_agents(8)


def test_bayes_with_hyperband_makes_exactly_run_cap_runs():
    bayes_is_exact(3, 9)


def test_a_search_goes_on_from_its_table_when_its_machine_is_lost(capsys):
    """Its model and hyperband know of the rows what they knew of the runs; rows of another search are not its own."""

    def known(made):
        found, four = sweep.Queue(made).study.get_trials(), (4, 8, 16, 32)
        reports = [{band: t.intermediate_values[band] for band in four if band in t.intermediate_values} for t in found]
        return [(t.params, t.state, t.value, report) for t, report in zip(found, reports, strict=True)]

    first = search(cap=5)
    for lr, w_v in ((0.02, 0.001), (0.03, 0.001), (0.04, 0.1)):  # the third is above the median at every band
        sweep.Queue(first).study.enqueue_trial({"lr": lr, "w_v": w_v, "latent_dim": 9})
    work("--count", "3")
    table, seen = Path("results/quick.csv"), known(first)
    assert len(seen) == 3 and {"finished", "stopped early"} == {row["status"] for row in rows()}
    shutil.rmtree(".sweeps")
    again = search(cap=5)
    assert "3 points are in results/quick.csv already; the search goes on from them" in capsys.readouterr().out
    assert (again["runs"], again["config"]["run_cap"]) == (2, 5) and states(again) == {}
    assert known(again) == seen
    for other in (("--set", "lr=0.2,0.3"), ("--set", "n_epochs=39")):  # what they varied is out of range; or fixed
        table.with_stem("quick-x").write_text(table.read_text().replace("quick-toy-", "quick-x-toy-"))
        assert search("--edition", "x", *other, cap=5)["runs"] == 5
    damaged = table.read_text().replace("4:0.", "4:x0.", 1)
    table.with_stem("quick-y").write_text(damaged.replace("quick-toy-", "quick-y-toy-"))
    assert search("--edition", "y", cap=5)["runs"] == 3  # all but the damaged row
    work("--n", "2", "--sweep", again["id"])
    assert len(rows()) == len({row["id"] for row in rows()}) == len({(row["lr"], row["w_v"]) for row in rows()}) == 5
    search(cap=5)
    assert "nothing is left to run" in capsys.readouterr().out


def test_ends_of_a_run():
    """What an agent makes of each exit code of the program."""
    made = create(end=["crash", "diverge", "finish"], seed=[1])
    assert "given up" in work(code=1)
    ids = {t.params["end"]: t.user_attrs["run"]["id"] for t in trials(made)}
    causes = {t.params["end"]: t.user_attrs.get("cause", "") for t in trials(made)}
    assert starts() == {ids["crash"]: 3, ids["diverge"]: 1, ids["finish"]: 1}
    assert causes["crash"] == "given up after 3 tries: exit code 1: RuntimeError: crash, as asked"
    assert causes["diverge"] == "diverged: epoch 3: nan" and states(made) == {"FAIL": 2, "COMPLETE": 1}
    assert {row["id"]: row["status"] for row in rows()} == {ids["diverge"]: "diverged", ids["finish"]: "finished"}
    assert sorted(run["kind"] for run in sweep.outcomes(made).values()) == ["diverged", "failed", "finished"]
    work(code=1)  # and none of them is tried again
    assert sum(starts().values()) == 5


def test_agent_stops_where_no_run_could_work():
    """And takes no point from the agents of other machines, where it may; but is not in their way for ever."""
    for kind, code, said in (("refuse", 2, "stub: --end refuse: as asked"), ("full", 4, "cannot write, and this")):
        made = create(end=[kind], seed=[1, 2])
        assert said in work(code=code) and states(made) == {"WAITING": 2}
    queue = sweep.Queue(create(seed=[1]))
    ends = [queue.end(queue.claim(), TrialState.WAITING, tried="cannot start: as asked") for _ in range(10)]
    assert ends == [False] * 9 + [True]


def test_nohup():
    made, before = create(nap=[0.1], seed=[1]), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    agent = start_agents()
    signal.signal(signal.SIGHUP, before)
    wait_until(checkpoints)
    agent.send_signal(signal.SIGHUP)
    end(agent)
    assert states(made) == {"COMPLETE": 1}


def test_agents_share_cores_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = [sweep.surroundings(k, 3) for k in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["4", "7", "4"]
    assert {env["OMP_NUM_THREADS"] for env in found} == {str(max(1, sweep.cores() // 3))}


@pytest.mark.parametrize("signals, code", [("INT", 130), ("INT INT", 130), ("TERM", 143)])
def test_signals(signals, code):
    """Once Ctrl-C: the current run finishes. Twice, or SIGTERM: it stops at the next epoch, and is continued later."""
    made = create(nap=[0.1], seed=[1, 2])
    agent = start_agents()
    wait_until(checkpoints)
    for name in signals.split():
        agent.send_signal(signal.Signals[f"SIG{name}"])
        time.sleep(0.3)
    end(agent, code)
    once = signals == "INT"
    assert states(made) == ({"COMPLETE": 1, "WAITING": 1} if once else {"WAITING": 2})
    work()
    assert states(made) == {"COMPLETE": 2} and sorted(starts().values()) == ([1, 1] if once else [1, 2])
    assert all("ends" not in t.user_attrs for t in trials(made))  # a stop is no failure


def test_launcher_passes_signals_on_and_leaves_nobody_behind(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    made, queue = create(nap=[0.1], seed=[1, 2, 3, 4]), None
    launcher = start_agents("--n", "2")
    wait_until(lambda: len(checkpoints()) == 2)
    launcher.send_signal(signal.SIGINT)
    end(launcher, 130)
    assert states(made) == {"COMPLETE": 2, "WAITING": 2}
    threads = {line.split()[1] for line in Path("starts.log").read_text().splitlines()}
    assert threads == {str(max(1, sweep.cores() // 2))}
    launcher, queue = start_agents("--n", "2"), sweep.Queue(made)
    wait_until(lambda: len(checkpoints()) == 2)
    running = trials(made, TrialState.RUNNING)
    launcher.kill()  # its agents stop resumably, and so do their runs
    wait_until(lambda: not any(queue.is_alive(t) for t in running))
    launcher.join()
    assert states(made) == {"COMPLETE": 2, "WAITING": 2}
    before, launcher = sum(starts().values()), start_agents("--n", "2")
    wait_until(lambda: sum(starts().values()) == before + 2)
    os.kill(trials(made, TrialState.RUNNING)[0].user_attrs["held"]["pid"], signal.SIGKILL)
    said = end(launcher, 1)
    assert states(made) == {"COMPLETE": 4} and said.count(" continued: seed=") == 3 and " started: " not in said


def test_status_stop_and_resume(capsys):
    made = create(nap=[0.05], seed=[1, 2, 3])
    agent = start_agents()
    wait_until(checkpoints)
    sweep.main(["status"])
    assert "0/3 over" in (out := capsys.readouterr().out) and "1 running, 2 left" in out
    sweep.main(["stop"])
    end(agent)
    assert states(made) == {"COMPLETE": 1, "WAITING": 2}
    work()
    assert states(made) == {"COMPLETE": 1, "WAITING": 2}
    assert "2/3 over" in says("resume", "--count", "1")
    assert states(made) == {"COMPLETE": 2, "WAITING": 1}
    assert "3/3 over (3 finished, 0 stopped early, 0 diverged, 0 failed), 0 running, 0 left, best val_rec" in work()


def test_hyperband_decision_survives_its_agent():
    """An agent that dies between stopping a run and saying so: the next one says so, and does not run it again."""
    made = create(seed=[1])
    queue = sweep.Queue(made)
    queue.note(queue.claim(), stops=True)
    queue.hold.release()  # as its death does
    assert "stopped early by hyperband" in work() and states(made) == {"PRUNED": 1} and not Path("starts.log").exists()


def test_who_is_alive():
    """A lock tells of agents of this machine, the heartbeat of others; who was taken for dead gives its run up."""
    queue, other = sweep.Queue(create(seed=[1])), sweep.Queue(sweep.load_sweep("quick"))
    trial = queue.claim()
    assert queue.is_alive(trial) and other.claim() is None and other.is_busy()
    far = {**trial.user_attrs["held"], "where": ["far", 0, 0]}
    for age, alive in ((sweep.engine.GRACE - 5, True), (sweep.engine.GRACE + 1, False)):
        queue.note(trial, held={**far, "beat": time.time() - age})
        assert queue.is_alive(queue.get(trial)) == alive
    queue.hold.release()
    taken = other.claim()
    assert len(taken.user_attrs["ends"]) == 1 and other.beat(taken) and not queue.beat(trial)
    queue.end(trial, TrialState.COMPLETE, 1.0)
    assert other.get(taken).state == TrialState.RUNNING


def test_torn_line_of_the_journal_is_cut():
    made = create(seed=[1, 2])
    journal = Path(".sweeps") / made["id"] / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "worker_id": "x", "trial_')
    assert states(made) == {"WAITING": 2}  # readers do not mind
    assert "cut an unfinished last line" in work() and states(made) == {"COMPLETE": 2}
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
