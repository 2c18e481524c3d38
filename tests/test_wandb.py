"""train.py and W&B: the unmodified client against a loopback server, offline, and without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from wandb_server import serve

RUN = ["--problem=toy", "--n_epochs=4", "--latent_dim=6", "--batch_size=64", "--pruning_epoch=1", "--n_train=128"]
RUN += ["--polynomial_schedule_n=1", "--threads=1", "--save_model=False"]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"NETRC": os.devnull}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(*flags, env):
    """Run train.py as a process; returns its run folder and its stderr."""
    train, env = [sys.executable, str(ROOT / "train.py"), *RUN, *flags], {**CLEAN, **env}
    done = subprocess.run(train, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (folder,) = Path("runs").iterdir()
    return folder, done.stderr


def test_online(wandb_server):
    del (env := wandb_server.env)["WANDB_MODE"]  # logged in: online without being told
    folder, _ = command(env={**env, "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a,b"})
    run = wandb_server.runs[folder.name]
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    assert (run["displayName"], run["state"]) == (config["name"], "finished")
    assert (run["groupName"], sorted(run["tags"])) == ("g", ["a", "b"])
    epochs = [row for row in run["history"] if "val_rec" in row]
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert [f"{row['val_rec']:.9g}" for row in epochs] == [line.split(",")[4] for line in lines[1:]]
    assert set(lines[0].split(",")) >= {key for key in epochs[0] if not key.startswith("_")}
    assert run["config"]["latent_dim"]["value"] == 6
    assert run["summary"]["pca_rec"] == pytest.approx(summary["pca_rec"])
    assert any("spectrum" in row for row in run["history"])


def test_offline():
    folder, _ = command(env={})  # not logged in: offline, inside the run's own folder
    (offline,) = folder.glob("wandb/offline-run-*")
    assert list(offline.glob("*.wandb")) and not Path("wandb").exists()
    with serve() as server:
        sync = [sys.executable, "-m", "wandb", "sync", str(offline)]
        subprocess.run(sync, env={**CLEAN, **server.env}, capture_output=True, check=True)
        assert len([row for row in server.runs[folder.name]["history"] if "val_rec" in row]) == 4


def test_an_address_that_is_none_costs_no_run():
    folder, error = command("--wandb=auto", env={"WANDB_BASE_URL": "localhost:8080"})
    assert "W&B: cannot be used" in error and (folder / "summary.json").exists()


def test_a_server_that_is_not_there_costs_seconds_and_no_run():
    with serve() as server:
        del (env := server.env)["WANDB_MODE"]  # of a server that is gone by the time it is used
    folder, error = command("--wandb=online", env=env)
    assert "cannot be reached" in error and list(folder.glob("wandb/offline-run-*"))
