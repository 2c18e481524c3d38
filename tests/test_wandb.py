"""train.py and W&B: the unmodified client against a loopback server, offline, and where W&B cannot start, or hangs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_train import ROOT, in_an_empty_folder  # noqa: F401  a fixture

import train

RUN = ["--problem=toy", "--n_epochs=4", "--latent_dim=6", "--batch_size=64", "--pruning_epoch=1", "--n_train=128"]
RUN += ["--polynomial_schedule_n=1", "--threads=1", "--save_model=False"]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
CLEAN |= {"NETRC": os.devnull, "PYTHONPATH": str(ROOT)}
HANG = "import record, sys, time, train; record.Wandb = lambda *_: (print('hangs', flush=True), time.sleep(99)); "
SHORT = "old = record.bounded; record.bounded = lambda f, s=1: old(f, 1); "
MAIN = "train.draw = lambda *_: None; record.leave(train.main(sys.argv[1:]))"


def start(*flags, code=None, env=()):
    """Start train.py, or this code, as a process that is not logged in."""
    program, pipes = ["-c", code] if code else [str(ROOT / "train.py")], {"stdout": -1, "stderr": -1, "text": True}
    return subprocess.Popen([sys.executable, *program, *RUN, *flags], env=CLEAN | dict(env), **pipes)


def command(*flags, **how):
    """Run it to its end; returns its run folder, and what it said on stdout and stderr."""
    process = start(*flags, **how)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0 and "Traceback" not in error, error
    (folder,) = Path("runs").iterdir()
    return folder, out, error


def test_online(wandb_server):
    del (env := wandb_server.env)["WANDB_MODE"]  # logged in: online without being told
    folder, _, _ = command(env={**env, "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a,b"})
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
    pictures = {"spectrum", "reconstructions", "interpolation", "samples", "curves"}
    assert {path.name for path in (folder / "figures").iterdir()} == {f"{name}.png" for name in pictures}
    assert any(pictures <= row.keys() for row in run["history"])


def test_offline(wandb_server):
    folder, out, error = command()  # not logged in: offline, inside the run's own folder
    assert f"W&B: logged offline, in {folder}/wandb; " in out and not error
    (offline,) = folder.glob("wandb/offline-run-*")
    assert list(offline.glob("*.wandb")) and not Path("wandb").exists()
    sync = [sys.executable, "-m", "wandb", "sync", str(offline)]
    subprocess.run(sync, env=CLEAN | wandb_server.env, capture_output=True, check=True)
    assert len([row for row in wandb_server.runs[folder.name]["history"] if "val_rec" in row]) == 4


GONE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
USELESS = [  # environment, flags, what is said
    ({"WANDB_BASE_URL": "localhost:8080"}, ["--wandb=auto"], "W&B: cannot be used"),
    ({"WANDB_X_SERVICE_WAIT": "0.001"}, [], r"\A.* going on without it\n\Z"),
    (GONE, ["--wandb=online"], "cannot be reached; this run is logged offline"),
]


@pytest.mark.parametrize("env, flags, said", USELESS)
def test_a_wandb_that_cannot_be_used_costs_seconds_and_no_run(env, flags, said):
    folder, _, error = command(*flags, env=env)
    assert re.search(said, error) and (folder / "summary.json").exists()
    assert env is not GONE or list(folder.glob("wandb/offline-run-*"))


def test_a_wandb_that_hangs_is_left_behind():
    folder, _, error = command(code=HANG + SHORT + MAIN)
    assert "W&B: cannot start (no answer within 1 s); going on without it" in error
    assert (folder / "summary.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_the_first_epoch_ends_at_once(number):
    child = start(code=HANG + MAIN)
    assert "hangs" in [child.stdout.readline().strip() for _ in range(2)]
    begun = time.monotonic()
    child.send_signal(number)
    assert child.wait(30) == 128 + number and time.monotonic() - begun < 3
    assert child.stderr.read() == "stopped before the first epoch\n"
    (folder,) = Path("runs").iterdir()
    assert train.main([f"--resume={folder}", "--wandb=disabled"]) == 0
