"""What bad input, full disks and odd designs get: one line, an exit code, and nothing half-written."""

import errno
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_train import FAST, ROOT, in_an_empty_folder, own_designs, rows, run, summary  # noqa: F401  a fixture

import record
import train
from pruning import PROFILES


def test_divergence_is_recorded(capsys):
    folder = run("--volume=geometric", "--w_v=1e308", "--polynomial_schedule_n=4", name="a", code=3)
    assert summary(folder)["status"] == "diverged" and "epoch 1" in summary(folder)["cause"]
    assert "diverged: epoch 1" in capsys.readouterr().err and len(rows(folder / "metrics.csv")) == 1


@pytest.mark.skipif(os.getuid() == 0 and not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_exits_with_4(capsys, monkeypatch):
    def full(self, name, row):
        with open("/dev/full", "w") as file:
            file.write("x")

    monkeypatch.setattr(record.Run, "append", full)
    run(name="a", code=4)
    assert "cannot write" in capsys.readouterr().err
    Path("file").write_text("")
    assert train.main([*FAST, "--out=file/runs"]) == 4


BAD = [
    (["--problem=beam"], "--problem: 'beam' is unknown; did you mean 'beams2d'?; allowed: beams2d"),
    (["--lr=nan"], "--lr: nan is out of range; allowed: 0 < value < inf"),
    (["--latent_dim=0"], "--latent_dim: 0 is out of range; allowed: 1 <= value"),
    (["--latent_dim=2.5"], "--latent_dim: '2.5' is not an integer"),
    (["--toy_dims=7"], "--toy_dims: 7 is out of range; allowed: 1 <= value <= 6"),
    (["--save_model=perhaps"], "--save_model: 'perhaps' is not a boolean"),
    (["--min_active_dims=300", "--latent_dim=250"], "--min_active_dims 300: must not exceed --latent_dim 250"),
    (["--arm=colour=3"], "--arm colour=3: 'colour' is not flag=value"),
    (["--arm=lr=0.1", "--lr=0.1"], "--lr: given as a flag and in --arm"),
    (["--device=tpu"], "--device tpu: not usable here; allowed: auto, cpu"),
    (["--nosuchflag=1"], "unrecognized arguments: --nosuchflag=1"),
    (["--latentdim=1"], "unrecognized arguments: --latentdim=1; did you mean --latent_dim?"),
    (["--data=nosuch.npz", "--problem=beams2d"], "--data nosuch.npz: cannot be read"),
    (["--resume=nosuch"], "--resume nosuch"),
    (["--config=nosuch"], "--config nosuch"),
    (["--problem=custom"], "--problem custom: needs your own designs"),
    (["--problem=toy", "--data=own.npz"], "--data own.npz: toy designs are made, not read"),
    (["--batch_size=1"], "--batch_size: 1 is out of range; allowed: 2 <= value"),  # one design has no std
    (["--resume=a", "--config=b"], "--config b: not together with --resume a"),
]


def test_bad_input_gets_one_line_and_nothing_is_written(capsys):
    for flags, message in BAD:
        assert train.main([*flags, "--wandb=disabled"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"train.py: {message}") and error.count("\n") == 1
        assert list(Path().iterdir()) == []


def test_a_record_is_a_file_and_a_run_id_is_a_plain_name(capsys, monkeypatch):
    os.mkfifo("pipe")
    Path("deep").write_text("[" * 100_000)
    for path in ("pipe", "/dev/zero", "deep"):  # the first two never end
        assert train.main([f"--config={path}", "--wandb=disabled"]) == 2
        assert f"--config {path}: not the config.json of a run" in capsys.readouterr().err
    np.savez("own.npz", designs=np.zeros((9, 16, 24), np.uint8), split=["train"] * 6 + ["val"] * 3)
    assert train.main(["--problem=custom", "--data=own.npz", "--test", "--wandb=disabled"]) == 2
    assert "--test: 0 designs in the test split" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_RUN_ID", "../elsewhere")
    assert train.main([*FAST, "--wandb=disabled"]) == 2
    assert "WANDB_RUN_ID ../elsewhere: allowed: letters, digits" in capsys.readouterr().err
    assert not Path("runs").exists() and not Path("../elsewhere").exists()


def test_a_disk_without_locks_cannot_be_written(capsys, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(record.fcntl, "flock", no_locks)
    assert train.main([*FAST, "--wandb=disabled"]) == 4
    said = capsys.readouterr().err
    assert "no locks on this file system" in said and "/lock'" in said and said.count("\n") == 1


def test_the_command_line_shows_what_the_terminal_cannot():
    """A path may hold letters that the terminal's encoding lacks."""
    command, env = [sys.executable, str(ROOT / "train.py")], {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, *FAST, "--n_epochs=1", "--out=é"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert "run      \\xe9/" in done.stdout


def test_precedence_flag_over_arm_over_profile_over_default():
    args = train.parse(
        ["--safeguards=conservative", "--arm=cooldown_epochs=7,k_consecutive=2", "--recon_tol=inf", "--lr=None"]
    )
    expected = {**PROFILES["conservative"], "cooldown_epochs": 7, "k_consecutive": 2, "recon_tol": math.inf}
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.lr == train.DEFAULTS["lr"]
    assert {key: getattr(train.parse([]), key) for key in expected} == PROFILES["moderate"]
    assert train.parse(["--arm=safeguards=conservative"]).min_active_dims == 10
    assert train.parse(["--save_model=True"]).save_model and not train.parse(["--save_model=False"]).save_model


def test_a_schedule_that_cannot_work_is_a_warning(capsys):
    for flag, said in (("pruning_epoch=6", "never prunes"), ("polynomial_schedule_n=5", "before w_v is reached")):
        train.schedule(train.parse([*FAST, f"--{flag}"]), 1792)
        assert said in capsys.readouterr().err


CORNERS = {
    "two designs a batch": ["--batch_size=2"],
    "constant designs": ["--data=0.3"],
    "latent_dim 1": ["--latent_dim=1"],
    "all pruned but one": ["--strategy=probabilistic", "--midpoint=0.999999", "--temperature=1e-9"],
    "batch larger than the data": ["--batch_size=100000"],
}


@pytest.mark.parametrize("corner", CORNERS)
def test_corners_stay_finite(corner):
    flags = CORNERS[corner]
    value = float(flags[0][7:]) if flags[0].startswith("--data=") else None
    flags = [f"--data={own_designs(value=value)}", *[f for f in flags if not f.startswith("--data=")]]
    folder = run("--problem=custom", *flags, name="a")
    assert all(math.isfinite(float(row[key])) for row in rows(folder / "metrics.csv") for key in record.COLUMNS[:8])
    assert all(math.isfinite(value) for value in summary(folder).values() if isinstance(value, float))
    assert not list(folder.glob("*.tmp"))
    active = summary(folder)["active_dims"]
    assert active == int(rows(folder / "metrics.csv")[-1]["active_dims"]) >= 1
    assert active == 1 or corner != "all pruned but one"
    if value is not None:  # all latents alike: their std is 0, to rounding
        dims, vol = (float(rows(folder / "metrics.csv")[-1][key]) for key in ("active_dims", "val_vol_loss"))
        assert vol == pytest.approx(dims * math.log(1e-4), rel=0.02)


@pytest.mark.parametrize("name", ["report", "sweep", "tools.bench", "tools.design", "tools.gallery", "tools.verify"])
def test_a_wrong_flag_of_a_tool_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--no_such_flag"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
