"""The sweeps on W&B: its unmodified client against a loopback server (wandb_server.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from sweep_kit import BASE, Forked, checkpoints, create, rows, starts, wait_until, work, write

import report
import sweep

pytestmark = pytest.mark.usefixtures("here")
KEY = {"WANDB_API_KEY": "0" * 40}


@pytest.fixture(autouse=True)
def on_wandb(monkeypatch):
    """A sweep over the stub logs to W&B, as the agent's environment says."""
    monkeypatch.delitem(BASE, "wandb")


def test_agents_on_wandb(wandb_server):
    """SIGTERM stops runs resumably, and the next agents continue them under their own ids."""
    env = wandb_server.env
    write(seed=[1, 2], end={"value": "hang"})
    said = Forked("create", "quick.yaml", **env).ends()
    assert "backend: wandb" in said and "2 runs" in said
    (on_server,) = wandb_server.sweeps.values()
    assert on_server["config"]["parameters"]["data"] == {"value": "sample"}
    assert os.environ["STUB_SHA"] in on_server["config"]["description"]
    agents = Forked("agent", "--n", "2", **env)
    wait_until(lambda: len(checkpoints()) == 2)
    agents.terminate()
    assert "0/2 over (0 finished, 0 stopped early, 0 diverged, 0 failed), 0 running, 2 left" in agents.ends(143)
    Path("go").touch()
    said = Forked("agent", "--n", "2", **env).ends()
    assert said.count(" continued: seed=") == 2 and "2/2 over (2 finished" in said
    assert wandb_server.handed_out == 2 and not wandb_server.unknown
    runs = [(r["config"]["seed"]["value"], r["state"], len(r["history"])) for r in wandb_server.runs.values()]
    assert sorted(runs) == [(seed, "finished", 20) for seed in (1, 2)]
    assert {row["id"]: row["status"] for row in rows()} == dict.fromkeys(wandb_server.runs, "finished")
    Forked("stop", **env).ends()
    assert on_server["state"] != "RUNNING"
    # what is left of a grid, after the points that are in the results, becomes one list of arms
    write(seed=[1, 2, 3], end={"value": "hang"})
    assert "2 points are in results/quick.csv already" in Forked("create", "quick.yaml", **env).ends()
    assert list(wandb_server.sweeps.values())[-1]["config"]["parameters"]["arm"] == {"values": ["seed=3"]}


def test_a_sweep_of_another_machine_is_joined_and_what_crashes_is_tried_again(wandb_server):
    """And what the server's hyperband stops is over."""
    how = {"nap": {"value": 0.2}, "n_epochs": {"value": 100}, "early_terminate": {"type": "hyperband", "min_iter": 2}}
    write(end=["crash", "finish"], seed=[1], **how)
    Forked("create", "quick.yaml", **wandb_server.env).ends()
    Path(".sweeps").rename("elsewhere")
    (on_server,) = wandb_server.sweeps.values()
    path = f"stub/{on_server['project']}/{on_server['name']}"
    agents = Forked("agent", "--n", "2", "--sweep", path, **wandb_server.env)
    wait_until(lambda: any(run["config"]["end"]["value"] == "finish" for run in wandb_server.runs.values()))
    (whole,) = (run for run in wandb_server.runs.values() if run["config"]["end"]["value"] == "finish")
    wait_until(lambda: whole["history"])
    whole["stop"] = True  # as its heartbeat tells the agent
    assert "2/2 over (0 finished, 1 stopped early, 0 diverged, 1 failed)" in agents.ends(1)
    assert sorted(starts().values()) == [1, 3] and [row["status"] for row in rows()] == ["stopped early"]


def test_train_itself_under_an_agent(wandb_server):
    """Not the stub: 01 on toy designs, for 2 epochs, with the flags that W&B's agent passes."""
    Path("train.py").symlink_to(ROOT / "train.py")
    settings = "strategy=plummet n_epochs=2 pruning_epoch=1 polynomial_schedule_n=1 latent_dim=8"
    Forked("create", "01", "--problem", "toy", "--seeds", "1", "--set", settings, **wandb_server.env).ends()
    assert "1/1 over (1 finished" in Forked("agent", **wandb_server.env, OMP_NUM_THREADS="1").ends()
    ((run_id, run),) = wandb_server.runs.items()
    (row,) = rows("01-trial")
    assert (run["state"], row["id"], row["status"], row["threads"]) == ("finished", run_id, "finished", "1")
    (made,) = wandb_server.sweeps.values()
    flags = {key: sweep.levels(p)[0] for key, p in made["config"]["parameters"].items()}
    assert {key: run["config"][key]["value"] for key in flags} == flags and flags["n_epochs"] == 2
    assert [h["epoch"] for h in run["history"] if "val_rec" in h] == [0, 1]
    assert float(row["val_rec"]) == run["summary"]["val_rec"] > 0 and run["groupName"] == row["sweep"]
    path = f"stub/lvae-pruning/{made['name']}"
    said = Forked("--sweep", "01", "--wandb", path, main=report.main, **wandb_server.env).ends()
    assert "1 of 1 points finished, 0 other runs, 0 left out" in said


def test_offline_runs_of_a_local_sweep_are_uploaded_later(wandb_server):
    made = create("--set", "wandb=offline", "--project", "later", seed=[1, 2])
    work("--n", "2")
    assert not wandb_server.runs
    Forked("sync", **wandb_server.env).ends()
    assert set(wandb_server.runs) == set(starts())
    for run in wandb_server.runs.values():
        assert (run["groupName"], run["tags"], len(run["history"])) == (made["id"], ["sweep-quick", "grid"], 20)
    assert "nothing to upload" in Forked("sync", **wandb_server.env).ends()


def test_epochs_that_the_server_did_not_take_are_found_and_uploaded(wandb_server):
    """It answers 403 in mid-run: the run says finished, and the server lacks epochs."""
    write(seed=[1], end={"value": "hang"})
    Forked("create", "quick.yaml", **wandb_server.env).ends()
    agents = Forked("agent", **wandb_server.env)
    wait_until(checkpoints)
    wandb_server.refuses = True
    Path("go").touch()
    agents.ends()
    (run,) = wandb_server.runs.values()
    assert [row["status"] for row in rows()] == ["finished"] and len(run["history"]) < 20
    assert "of its epochs; once more: make sync" in Forked("sync", **wandb_server.env).ends(1)
    wandb_server.refuses = False
    Forked("sync", **wandb_server.env).ends()
    assert len(run["history"]) == 20
    assert "nothing to upload: W&B has every epoch of the 1 runs" in Forked("sync", **wandb_server.env).ends()


def test_wandb_sweep_by_hand_takes_every_file_and_wandb_agent_runs_it(wandb_server):
    write(seed=[1], name="hand")
    files, env = sorted((ROOT / "sweeps").glob("*.yaml")), {**os.environ, **wandb_server.env, "WANDB_SILENT": "false"}
    code = "import sys, wandb, yaml; [print(wandb.sweep(yaml.safe_load(open(f)), project='p')) for f in sys.argv[1:]]"
    wandb = {"env": env, "check": True, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", code, *files, "hand.yaml"], **wandb)
    assert len(wandb_server.sweeps) == 8
    env["PATH"] = f"{os.path.dirname(sys.executable)}:{env['PATH']}"
    subprocess.run([sys.executable, "-m", "wandb", "agent", f"stub/p/{done.stdout.split()[-1]}"], **wandb)
    assert [(r["state"], len(r["history"])) for r in wandb_server.runs.values()] == [("finished", 20)]


LOGINS = [({}, "local"), (KEY, "wandb"), ({"NETRC": "netrc"}, "wandb"), ({**KEY, "WANDB_MODE": "offline"}, "local")]


@pytest.mark.parametrize("env, backend", LOGINS)
def test_backend_is_wandb_when_logged_in(env, backend, monkeypatch):
    Path("netrc").write_text("machine api.test login user password " + "0" * 40)
    monkeypatch.setattr(sweep.record, "wandb_server", lambda: "http://api.test")
    for name, value in {"NETRC": os.devnull, **env}.items():
        monkeypatch.setenv(name, value)
    assert sweep.choose_backend() == backend
