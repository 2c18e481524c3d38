"""Stop and resume: bit for bit, with damaged, foreign or missing checkpoints."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train import FAST, ROOT, in_an_empty_folder, rows, run, summary  # noqa: F401  a fixture

import data
import record
import train


def start(name, *flags):
    """Start train.py as a process of its own, as run `name`, and wait for its second epoch."""
    env = {**os.environ, "WANDB_RUN_ID": name}
    command = [sys.executable, str(ROOT / "train.py"), *FAST, "--n_epochs=2000", *flags]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        with_rows = Path("runs", name, "metrics.csv")
        if with_rows.exists() and with_rows.read_text().count("\n") > 3:
            return process
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


def stopping_after(epochs):
    """A Stop that asks to stop once metrics.csv of any run in runs/ in work holds so many rows."""

    class Switch:
        @property
        def code(self):
            newest = max(Path("runs").glob("*/metrics.csv"), key=lambda p: p.stat().st_mtime)
            return 143 if len(rows(newest)) >= epochs else None

    return Switch


def until(epochs, *arguments):
    """train.py with these arguments in this process, stopped after so many epochs of its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Stop", stopping_after(epochs))
        assert train.main(list(arguments)) == 143


def stopped(name, epochs=4, *flags):
    """The folder of a run stopped after so many epochs, with a checkpoint at each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", name)
        until(epochs, *FAST, "--checkpoint_every=1", *flags)
    return Path("runs", name)


@functools.cache
def digest():
    """What an undisturbed run of FAST computes."""
    return summary(run(name="whole"))["metrics_sha256"]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def refused(said, capsys, *arguments):
    """train.py refuses these arguments in one line, which has `said` in it."""
    capsys.readouterr()
    assert train.main(list(arguments)) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on_bit_for_bit(number, code):
    process = start("b", "--checkpoint_every=2")
    with pytest.raises(data.InputError, match="another process"):
        record.Run(Path("runs/b"))
    process.send_signal(number)
    assert process.wait(60) == code
    done = len(rows(Path("runs/b/metrics.csv"))) + 4
    until(done, "--resume=runs/b")
    stopped("whole", done, "--n_epochs=2000")
    cells = [
        [row | {"epoch_seconds": ""} for row in rows(Path("runs", name, "metrics.csv"))] for name in ("b", "whole")
    ]
    assert cells[0] == cells[1] and len(cells[0]) == done


def test_a_run_that_other_code_continues_says_so(capsys, monkeypatch):
    stopped("a", 3)
    here = record.describe_machine(torch.device("cpu"))
    monkeypatch.setattr(record, "describe_machine", lambda device: here | {"git": "another"})
    run(name="a")
    said = f"commit {here['git']} -> another"
    assert f"from epoch 4 on, this run is made by others: {said}" in capsys.readouterr().err
    config = config_of(Path("runs/a"))
    assert config["git"] == here["git"] and record.made_by(config) == f"{here['git']}; from epoch 4: {said}"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_while_torch_is_imported_ends_without_a_traceback():
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *FAST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1] and process.returncode in (-signal.SIGINT, 130)


def cut(whole):
    return whole[: len(whole) // 3]


def flip(whole):
    return whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 16]) + whole[len(whole) // 2 + 1 :]


def last(whole):
    """A bit of what the last checkpoint alone knows."""
    return whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]


DAMAGE = [("checkpoint.pt", cut), ("checkpoint.pt", flip), ("metrics.csv", last), ("pruning.csv", last)]


@pytest.mark.parametrize("name, damage", DAMAGE)
def test_a_damaged_checkpoint_or_table_is_named_and_the_one_before_used(name, damage, capsys):
    path = stopped("a") / name
    path.write_bytes(damage(path.read_bytes()))
    assert train.main(["--resume=runs/a"]) == 0
    error = capsys.readouterr().err
    assert "checkpoint.pt cannot be used" in error and (path.suffix == ".pt" or f"{name} is damaged, or older" in error)
    assert summary(path.parent)["metrics_sha256"] == digest() and not list(path.parent.glob("checkpoint*"))


def test_no_usable_checkpoint_is_an_error_that_changes_nothing(capsys):
    folder, other = stopped("a"), stopped("b", 4, "--lr=0.01")
    before, no_use = (folder / "metrics.csv").read_bytes(), "no usable checkpoint"
    (folder / "metrics.csv").write_bytes(before[:30] + b"\xff" + before[31:])
    refused(no_use, capsys, "--resume=runs/a")
    (folder / "metrics.csv").write_bytes(before)
    for path in other.glob("checkpoint*.pt"):  # of other flags
        (folder / path.name).write_bytes(path.read_bytes())
    refused(no_use, capsys, "--resume=runs/a")
    for path in folder.glob("checkpoint*.pt"):
        path.write_bytes(b"")
    refused(no_use, capsys, "--resume=runs/a")
    assert (folder / "metrics.csv").read_bytes() == before


def test_an_arm_survives_a_resume_by_hand():
    stopped("a", 4, "--arm=plummet_threshold=0.1")
    until(5, "--resume=runs/a")
    flags = config_of(Path("runs/a"))["flags"]
    assert (flags["arm"], flags["plummet_threshold"], flags["out"]) == ("plummet_threshold=0.1", 0.1, "runs")
    run("--checkpoint_every=1", "--arm=plummet_threshold=0.1", name="a")  # as its agent goes on


def test_a_run_killed_before_its_first_checkpoint_starts_over():
    folder = stopped("a", 2)
    for path in folder.glob("checkpoint*.pt"):
        path.unlink()
    run("--n_epochs=8", name="a")
    assert [int(row["epoch"]) for row in rows(folder / "metrics.csv")] == list(range(8))
    assert not config_of(folder).get("extended")  # all of it ran at the new length


def test_resume_auto_finds_the_run_of_these_flags_and_makes_none_longer():
    folder = stopped("a")
    for other in ("--seed=5", "--n_epochs=5"):
        assert train.main([*FAST, "--resume=auto", other]) == 0  # a fresh run
        assert not (folder / "summary.json").exists()
    assert train.main([*FAST, "--resume=auto"]) == 0
    assert summary(folder)["status"] == "finished" and len(list(Path("runs").iterdir())) == 3


def test_other_flags_or_designs_are_refused(capsys, monkeypatch):
    folder = stopped("a")
    refused("was started with other flags; allowed: --lr 0.002", capsys, "--resume=runs/a", "--lr=0.5")
    refused("was started with other flags", capsys, "--resume=runs/a", "--n_epochs=3")
    monkeypatch.setattr(data, "_toy", lambda k, toy=data._toy: toy(k + 1))
    refused("other designs", capsys, "--resume=runs/a")
    refused("other designs", capsys, "--config", str(folder / "config.json"))


def test_a_finished_run_is_not_run_again_and_keeps_no_checkpoint(capsys):
    folder = stopped("a")
    (folder / "checkpoint.new.pt.tmp").write_bytes(b"half a checkpoint")
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    run(name="a")
    before = (folder / "metrics.csv").read_bytes()
    (folder / "checkpoint.pt").write_bytes(checkpoint)  # as if it had been killed right after its summary
    run(name="a")
    assert "finished already" in capsys.readouterr().out and (folder / "metrics.csv").read_bytes() == before
    assert not list(folder.glob("checkpoint*"))


def test_a_damaged_config_or_summary_is_named(capsys):
    folder = stopped("a")
    before = (folder / "metrics.csv").read_bytes()
    for text in ("null", "{}", '{"status": "finishe', '{"status": "x"}'):
        (folder / "summary.json").write_text(text)
        refused(f"--resume {folder}: its summary.json is damaged; delete it", capsys, "--resume=runs/a")
    assert train.main([*FAST, "--resume=auto"]) == 0  # another run
    (folder / "config.json").write_text(json.dumps({"flags": config_of(folder)["flags"]}))
    refused(f"--resume {folder}: its config.json is damaged", capsys, "--resume=runs/a")
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_run_that_another_process_ends_or_starts_meanwhile_is_left_alone(monkeypatch, capsys):
    """Between train.py's look at a run folder and its lock."""
    folder, original = stopped("a"), train.Stop
    before = (folder / "metrics.csv").read_bytes()

    def meanwhile(act):
        monkeypatch.setattr(train, "Stop", lambda: (act(), original())[1])

    meanwhile(lambda: (folder / "summary.json").write_text('{"status": "finished"}'))
    refused("another process has just ended this run", capsys, "--resume=runs/a")
    shutil.move("runs", "elsewhere")
    meanwhile(lambda: shutil.move("elsewhere", "runs"))
    run(name="a", code=2)
    assert "another process has just started the run a" in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_run_made_longer_says_so_and_is_not_run_again_as_if_it_had_not(capsys):
    folder, extended = stopped("a"), [{"epoch": 4, "n_epochs": 6}]
    stopped("a", 6, "--n_epochs=8")
    (folder / "checkpoint.pt").write_bytes(b"")  # back to the one before: the extension is known from it, too
    run("--n_epochs=8", name="a")
    assert len(rows(folder / "metrics.csv")) == 8 and config_of(folder)["extended"] == extended
    config = str(folder / "config.json")
    refused(f"--config {config}: was made longer while it ran, and cannot be run again", capsys, "--config", config)
    assert train.main(["--config", config, "--n_epochs=6", "--out=again"]) == 0
    (again,) = Path("again").iterdir()
    assert summary(again)["metrics_sha256"] == digest()
    refused(f"--n_epochs 9: {folder} is finished and cannot be made longer", capsys, "--resume=runs/a", "--n_epochs=9")


def test_a_file_that_does_not_fit_on_the_disk_leaves_no_part(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("old")

    def full(number):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        record.write_atomically(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_run_that_older_code_began_keeps_its_columns():
    opened = record.Run(Path("runs/a"))
    opened.start({})
    Path("runs/a/metrics.csv").write_text("epoch,val_rec,epoch_seconds\n")
    opened.append("metrics.csv", dict.fromkeys(record.COLUMNS, 0.5))
    assert rows("runs/a/metrics.csv") == [dict.fromkeys(("epoch", "val_rec", "epoch_seconds"), "0.5")]
