"""The sweeps on W&B: its unmodified client against a loopback server (wandb_server.py)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from sweep_kit import BASE, Forked, checkpoints, create, end, rows, start_agents, starts, wait_until, work, write

import sweep

pytestmark = pytest.mark.usefixtures("here")
KEY = {"WANDB_API_KEY": "0" * 40}


def command(*arguments, env, code=0):
    """Run sweep.py to its end; returns what it said."""
    return end(Forked(*arguments, **env), code)


@pytest.fixture(autouse=True)
def on_wandb(monkeypatch):
    """A sweep over the stub logs to W&B, as the agent's environment says."""
    monkeypatch.delitem(BASE, "wandb")


def test_agents_on_wandb(wandb_server):
    """Ctrl-C lets the runs finish; SIGTERM stops one resumably, and the next agent continues it under its own id."""
    write(seed=[1, 2, 3], end={"value": "hang"})
    said = command("create", "quick.yaml", env=wandb_server.env)
    assert "backend: wandb, since you are logged in" in said and "3 runs" in said
    (on_server,) = wandb_server.sweeps.values()
    assert on_server["config"]["parameters"]["data"] == {"value": "sample"}
    assert os.environ["STUB_SHA"] in on_server["config"]["description"]
    agents = start_agents("--n", "2", **wandb_server.env)
    wait_until(lambda: len(checkpoints()) == 2)
    agents.send_signal(signal.SIGINT)
    wait_until(lambda: "finishing the current runs" in agents.said.read_text())
    Path("go").touch()
    said = end(agents, 130)
    Path("go").unlink()
    assert "finishing the current runs" in said and "2/3 over (2 finished" in said
    agents = start_agents(**wandb_server.env)
    wait_until(checkpoints)
    agents.send_signal(signal.SIGTERM)
    said = end(agents, 143)
    assert "1 of them interrupted" in said and "0 failed" in said
    Path("go").touch()
    said = work(**wandb_server.env)
    assert " continued: seed=" in said
    assert "3/3 over (3 finished, 0 stopped early, 0 diverged, 0 failed), 0 running, 0 left" in said
    assert wandb_server.handed_out == 3 and not wandb_server.unknown
    assert sorted(starts().values()) == [1, 1, 2]
    runs = [(r["config"]["seed"]["value"], r["state"], len(r["history"])) for r in wandb_server.runs.values()]
    assert sorted(runs) == [(seed, "finished", 20) for seed in (1, 2, 3)]
    assert {row["id"]: row["status"] for row in rows()} == dict.fromkeys(wandb_server.runs, "finished")
    command("stop", env=wandb_server.env)
    assert on_server["state"] != "RUNNING"
    # a sweep made elsewhere is joined by its path
    Path(".sweeps").rename("elsewhere")
    path = f"stub/{on_server['project']}/{on_server['name']}"
    assert "3/3 over (3 finished" in command("status", "--sweep", path, env=wandb_server.env)
    # what is left of a grid, after the points that are in the results, becomes one list of arms
    write(seed=[1, 2, 3, 4], end={"value": "hang"})
    assert "3 points are in results/quick.csv already" in command("create", "quick.yaml", env=wandb_server.env)
    assert list(wandb_server.sweeps.values())[-1]["config"]["parameters"]["arm"] == {"values": ["seed=4"]}


def test_what_crashes_is_tried_again_and_counted(wandb_server):
    write(end=["crash"], seed=[1])
    command("create", "quick.yaml", env=wandb_server.env)
    Path(".sweeps").rename("elsewhere")  # as from another machine
    (on_server,) = wandb_server.sweeps.values()
    path = f"stub/{on_server['project']}/{on_server['name']}"
    said = command("agent", "--n", "2", "--sweep", path, env=wandb_server.env, code=1)
    assert "1/1 over (0 finished, 0 stopped early, 0 diverged, 1 failed)" in said and list(starts().values()) == [3]


def test_what_hyperband_stops_is_over(wandb_server):
    write(seed=[1], nap={"value": 0.2}, n_epochs={"value": 100}, early_terminate={"type": "hyperband", "min_iter": 2})
    command("create", "quick.yaml", env=wandb_server.env)
    agents = start_agents(**wandb_server.env)
    wait_until(checkpoints)
    (run,) = wandb_server.runs.values()
    run["stop"] = True  # as its heartbeat tells the agent
    assert "1/1 over (0 finished, 1 stopped early, 0 diverged, 0 failed)" in end(agents)
    assert [row["status"] for row in rows()] == ["stopped early"] and "1/1 over" in work(**wandb_server.env)


def test_train_itself_under_an_agent(wandb_server):
    """Not the stub: 01 on toy designs, for 2 epochs, with the flags that W&B's agent passes."""
    Path("train.py").symlink_to(ROOT / "train.py")
    settings = "strategy=plummet n_epochs=2 pruning_epoch=1 polynomial_schedule_n=1 latent_dim=8"
    command("create", "01", "--problem", "toy", "--seeds", "1", "--set", settings, env=wandb_server.env)
    assert "1/1 over (1 finished" in command("agent", env={**wandb_server.env, "OMP_NUM_THREADS": "1"})
    ((run_id, run),) = wandb_server.runs.items()
    (row,) = rows("01-trial")
    assert (run["state"], row["id"], row["status"], row["threads"]) == ("finished", run_id, "finished", "1")
    (made,) = wandb_server.sweeps.values()
    flags = {key: sweep.levels(p)[0] for key, p in made["config"]["parameters"].items()}
    assert {key: run["config"][key]["value"] for key in flags} == flags and flags["n_epochs"] == 2
    assert [h["epoch"] for h in run["history"] if "val_rec" in h] == [0, 1]
    assert float(row["val_rec"]) == run["summary"]["val_rec"] > 0 and run["groupName"] == row["sweep"]
    report = [sys.executable, str(ROOT / "report.py"), "--sweep", "01", "--wandb", f"stub/lvae-pruning/{made['name']}"]
    done = subprocess.run(report, env={**os.environ, **wandb_server.env}, capture_output=True, text=True, timeout=300)
    assert "1 of 1 points finished, 0 other runs, 0 left out" in done.stdout, done.stdout + done.stderr


def test_offline_runs_of_a_local_sweep_are_uploaded_later(wandb_server):
    made = create("--set", "wandb=offline", "--project", "later", seed=[1, 2])
    work()
    assert not wandb_server.runs
    for _ in range(2):  # the second time there is nothing new
        command("sync", env=wandb_server.env)
        assert set(wandb_server.runs) == set(starts())
    for run in wandb_server.runs.values():
        assert (run["groupName"], run["tags"], len(run["history"])) == (made["id"], ["sweep-quick", "grid"], 20)


def test_epochs_that_the_server_did_not_take_are_found_and_uploaded(wandb_server):
    """It answers 403, or as a captive portal does, in mid-run: the run says finished, and the server lacks epochs."""
    write(seed=[1, 2], end={"value": "hang"})
    command("create", "quick.yaml", env=wandb_server.env)
    agents = start_agents("--n", "2", **wandb_server.env)
    wait_until(lambda: len(checkpoints()) == 2)
    wandb_server.refuses = True
    Path("go").touch()
    end(agents)
    assert {row["status"] for row in rows()} == {"finished"}
    assert all(len(run["history"]) < 20 for run in wandb_server.runs.values())
    assert command("sync", env=wandb_server.env, code=1).count("of its epochs; once more: make sync") == 2
    wandb_server.refuses = False
    command("sync", env=wandb_server.env)
    assert all(len(run["history"]) == 20 for run in wandb_server.runs.values())
    assert "nothing to upload: W&B has every epoch of the 2 runs" in command("sync", env=wandb_server.env)


def test_wandb_sweep_by_hand_takes_every_file_and_wandb_agent_runs_it(wandb_server):
    files, env = sorted((ROOT / "sweeps").glob("*.yaml")), {**os.environ, **wandb_server.env, "WANDB_SILENT": "false"}
    code = "import sys, wandb, yaml\nfor path in sys.argv[1:]: wandb.sweep(yaml.safe_load(open(path)), project='hand')"
    subprocess.run([sys.executable, "-c", code, *files], env=env, check=True, capture_output=True, timeout=300)
    assert len(wandb_server.sweeps) == 7
    write(seed=[1], name="hand")
    env |= {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    wandb = {"env": env, "check": True, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-m", "wandb", "sweep", "hand.yaml"], **wandb)
    path = done.stderr.split("wandb agent ")[1].split()[0]
    subprocess.run([sys.executable, "-m", "wandb", "agent", path], **wandb)
    assert [(r["state"], len(r["history"])) for r in wandb_server.runs.values()] == [("finished", 20)]


LOGINS = [({}, "local"), (KEY, "wandb"), ({"NETRC": "netrc"}, "wandb"), ({**KEY, "WANDB_MODE": "offline"}, "local")]


@pytest.mark.parametrize("env, backend", LOGINS)
def test_backend_is_wandb_when_logged_in(env, backend, monkeypatch):
    Path("netrc").write_text("machine api.test login user password " + "0" * 40)
    monkeypatch.setattr(sweep.record, "wandb_server", lambda: "http://api.test")
    for name, value in {"NETRC": os.devnull, **env}.items():
        monkeypatch.setenv(name, value)
    assert sweep.choose_backend(None)[0] == backend
