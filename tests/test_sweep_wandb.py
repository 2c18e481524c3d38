"""The sweeps on W&B: the unmodified client and its agents against a loopback server (wandb_server.py). About a minute."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from sweep_kit import create, current, rows, starts, wait_until, work

from sweeping import on_wandb

KEY = {"WANDB_API_KEY": "0" * 40}
SWEEP = [sys.executable, str(ROOT / "sweep.py")]


def command(*arguments, env, code=0):
    """Run sweep.py to its end; returns what it said."""
    done = subprocess.run([*SWEEP, *arguments], env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def write_sweep(**parameters):
    config = {
        "name": "quick",
        "program": str(ROOT / "tests/stub_train.py"),
        "method": "grid",
        "metric": {"name": "val_rec", "goal": "minimize"},
    }
    config |= {"command": ["${env}", "${interpreter}", "${program}", "${args}"], "description": "Does it work?"}
    config["parameters"] = {**parameters, "problem": {"value": "toy"}, "data": {"value": "auto"}}
    Path("quick.yaml").write_text(yaml.dump(config))


@pytest.mark.usefixtures("here")
def test_agents_on_wandb(wandb_server):
    """Two agents; Ctrl-C lets their runs finish; SIGTERM stops a run resumably, and the next agent continues it under its own id."""
    write_sweep(seed={"values": [1, 2, 3]}, nap={"value": 0.2})
    said = command("create", "quick.yaml", env=wandb_server.env)
    assert "backend: wandb, since you are logged in" in said and "3 runs" in said
    (server_sweep,) = wandb_server.sweeps.values()
    assert (
        server_sweep["config"]["parameters"]["data"] == {"value": "sample"}
        and os.environ["STUB_SHA"] in server_sweep["config"]["description"]
    )

    def launch(n):
        return subprocess.Popen(
            [*SWEEP, "agent", "--n", str(n)], env={**os.environ, **wandb_server.env}, stdout=subprocess.PIPE, text=True, process_group=0
        )

    agents = launch(2)
    wait_until(lambda: len(list(Path("runs").glob("*/checkpoint.pt"))) == 2)
    agents.send_signal(signal.SIGINT)
    said = agents.communicate(timeout=1800)[0]
    assert agents.returncode == 130 and "finishing the current runs" in said and "2/3 over (2 finished" in said
    agents = launch(1)
    wait_until(lambda: list(Path("runs").glob("*/checkpoint.pt")))
    agents.send_signal(signal.SIGTERM)
    said = agents.communicate(timeout=1800)[0]
    assert agents.returncode == 143 and "1 of them interrupted" in said and "0 failed" in said
    agents = launch(1)
    said = agents.communicate(timeout=1800)[0]
    assert (
        agents.returncode == 0
        and " continued (log: agent-0.log)" in said
        and "3/3 over (3 finished, 0 stopped early, 0 diverged, 0 failed), 0 running, 0 left" in said
    )
    assert len([e for e in wandb_server.events if e["what"] == "run handed out"]) == 3 and not wandb_server.unknown
    assert sorted(starts().values()) == [1, 1, 2]
    assert sorted((r["config"]["seed"]["value"], r["state"], len(r["history"])) for r in wandb_server.runs.values()) == [
        (seed, "finished", 20) for seed in (1, 2, 3)
    ]
    assert {row["id"]: row["status"] for row in rows()} == dict.fromkeys(wandb_server.runs, "finished")
    command("stop", env=wandb_server.env)
    assert server_sweep["state"] != "RUNNING"
    # a sweep made elsewhere is joined by its path, and refused where the designs are others
    path = f"stub/{server_sweep['project']}/{server_sweep['name']}"
    Path(".sweeps").rename("elsewhere")
    assert "3/3 over" in command("status", "--sweep", path, env=wandb_server.env)
    # what is left of a grid, after the points that are in the results, becomes one list of arms
    write_sweep(seed={"values": [1, 2, 3, 4]}, nap={"value": 0.2})
    said = command("create", "quick.yaml", env=wandb_server.env)
    assert "3 points are in results/quick.csv already" in said
    assert list(wandb_server.sweeps.values())[-1]["config"]["parameters"]["arm"] == {"values": ["seed=4"]}


@pytest.mark.usefixtures("here")
def test_failures_are_counted_from_the_runs(wandb_server):
    """`wandb agent` exits 0 whatever happens; sweep.py does not."""
    write_sweep(end={"values": ["crash"]}, seed={"value": 1})
    command("create", "quick.yaml", env=wandb_server.env)
    assert "1/1 over (0 finished, 0 stopped early, 0 diverged, 1 failed)" in command("agent", "--n", "2", env=wandb_server.env, code=1)


@pytest.mark.usefixtures("here")
def test_what_hyperband_stops_is_over_and_a_run_at_work_is_left_alone(wandb_server):
    write_sweep(seed={"values": [1]}, nap={"value": 0.2}, n_epochs={"value": 100})
    config = yaml.safe_load(Path("quick.yaml").read_text())
    Path("quick.yaml").write_text(yaml.dump({**config, "early_terminate": {"type": "hyperband", "min_iter": 2}}))
    command("create", "quick.yaml", env=wandb_server.env)
    agents = subprocess.Popen([*SWEEP, "agent"], env={**os.environ, **wandb_server.env}, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: list(Path("runs").glob("*/checkpoint.pt")))
    record = current()
    assert on_wandb.interrupted(record) == []  # it is at work
    assert not list(Path(".sweeps").glob("*/agent-0/wandb/sweep-*/*.tries"))
    (run,) = wandb_server.runs.values()
    run["stop"] = True  # as its heartbeat tells the agent
    assert "1/1 over (0 finished, 1 stopped early, 0 diverged, 0 failed)" in agents.communicate(timeout=600)[0]
    assert agents.returncode == 0 and [row["status"] for row in rows()] == ["stopped early"]
    assert on_wandb.interrupted(record) == []


@pytest.mark.usefixtures("here")
def test_train_itself_under_a_wandb_agent(wandb_server):
    """Not the stub: 01 on toy designs, for 2 epochs, with the flags that W&B's agent passes."""
    Path("train.py").symlink_to(ROOT / "train.py")
    settings = "strategy=plummet n_epochs=2 pruning_epoch=1 polynomial_schedule_n=1 latent_dim=8"
    command("create", "01", "--problem", "toy", "--seeds", "1", "--set", settings, env=wandb_server.env)
    assert "1/1 over (1 finished" in command("agent", env={**wandb_server.env, "OMP_NUM_THREADS": "1"})
    ((run_id, run),) = wandb_server.runs.items()
    (row,) = rows("01-trial")
    assert (run["state"], row["id"], row["status"], row["threads"]) == ("finished", run_id, "finished", "1")
    (sweep,) = wandb_server.sweeps.values()
    asked = {key: p["value"] if "value" in p else p["values"][0] for key, p in sweep["config"]["parameters"].items()}
    assert {key: run["config"][key]["value"] for key in asked} == asked and asked["n_epochs"] == 2
    epochs = [h for h in run["history"] if "val_rec" in h]
    assert [h["epoch"] for h in epochs] == [0, 1] and float(row["val_rec"]) == run["summary"]["val_rec"] > 0
    assert run["groupName"].startswith("01-trial_pruning_strategies-") and run["groupName"] == row["sweep"]
    assert any(name.endswith(".png") for name in run["files"])  # the figures, too
    report = [sys.executable, str(ROOT / "report.py"), "--sweep", "01", "--wandb", f"stub/lvae-pruning/{sweep['name']}"]
    done = subprocess.run(report, env={**os.environ, **wandb_server.env}, capture_output=True, text=True, timeout=300)
    assert "1 of 1 points finished, 0 other runs, 0 left out" in done.stdout, done.stdout + done.stderr


@pytest.mark.usefixtures("here")
def test_offline_runs_of_a_local_sweep_are_uploaded_later(wandb_server, capsys):
    record = create("--set", "wandb=offline", "--project", "later", seed=[1, 2])
    work()
    assert not wandb_server.runs
    command("sync", env=wandb_server.env)
    assert set(wandb_server.runs) == set(starts())
    for run in wandb_server.runs.values():
        assert (run["groupName"], run["tags"], len(run["history"])) == (record["id"], ["sweep-quick", "grid"], 20)
    command("sync", env=wandb_server.env)
    assert len(wandb_server.runs) == 2


@pytest.mark.usefixtures("here")
def test_wandb_sweep_by_hand_takes_every_file(wandb_server):
    files = sorted((ROOT / "sweeps").glob("*.yaml"))
    code = "import sys, wandb, yaml\nfor path in sys.argv[1:]: wandb.sweep(yaml.safe_load(open(path)), project='hand')"
    env = {**os.environ, **wandb_server.env, "WANDB_SILENT": "false"}  # a run in this process may have silenced W&B
    subprocess.run([sys.executable, "-c", code, *files[1:]], env=env, check=True, capture_output=True, timeout=300)
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sweep", files[0]], env=env, check=True, capture_output=True, text=True, timeout=300
    )
    assert "wandb agent stub/" in done.stderr
    sizes = {s["config"]["name"].split("_")[0]: s["size"] or s["config"]["run_cap"] for s in wandb_server.sweeps.values()}
    assert sizes == {"01": 36, "01b": 117, "02": 120, "03": 33, "04": 200, "05": 200, "06": 200}


LOGINS = [({}, "local"), (KEY, "wandb"), ({"NETRC": "netrc"}, "wandb"), ({**KEY, "WANDB_MODE": "offline"}, "local")]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("env, backend", LOGINS)
def test_backend_is_wandb_when_logged_in(env, backend):
    Path("netrc").write_text("machine api.test login user password " + "0" * 40)
    env = {**os.environ, "NETRC": os.devnull, "WANDB_BASE_URL": "http://api.test", "PYTHONPATH": str(ROOT), **env}
    code = "import sweeping.create; print(sweeping.create.choose_backend(None)[0])"
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60).stdout.strip() == backend
