"""Stop and resume: bit for bit, with damaged, foreign or missing checkpoints."""

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


def reference_rows(name, n):
    return [{k: v for k, v in row.items() if k != "epoch_seconds"} for row in rows(Path("runs", name, "metrics.csv"))][
        :n
    ]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on_bit_for_bit(number, code):
    process = start("b", "--checkpoint_every=2")
    with pytest.raises(data.InputError, match="another process"):
        record.Run(Path("runs/b"))
    process.send_signal(number)
    assert process.wait(60) == code
    done = len(rows(Path("runs/b/metrics.csv")))
    # A resumed run may be made longer but not shorter: stop it again, a little later, through the loop's own switch.
    stop_at(done + 4)
    assert train.main(["--resume=runs/b"]) == 143
    stop_at(done + 4, clean=True)
    resumed = reference_rows("b", done + 4)
    assert len(resumed) == done + 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Stop", stopping_after(done + 4))
        run("--n_epochs=2000", name="whole", code=143)
    assert resumed == reference_rows("whole", done + 4)


def test_a_run_that_other_code_continues_says_so(capsys, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Stop", stopping_after(3))
        run("--n_epochs=6", name="a", code=143)
    here = record.describe_machine(torch.device("cpu"))
    monkeypatch.setattr(record, "describe_machine", lambda device: here | {"git": "another"})
    run("--n_epochs=6", name="a")
    said = f"commit {here['git']} -> another"
    assert f"from epoch 4 on, this run is made by others: {said}" in capsys.readouterr().err
    config = json.loads(Path("runs/a/config.json").read_text())
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


def stopping_after(epochs):
    """A Stop that asks to stop once metrics.csv of any run in runs/ in work holds so many rows."""

    class Switch:
        @property
        def code(self):
            newest = max(Path("runs").glob("*/metrics.csv"), key=lambda p: p.stat().st_mtime)
            return 143 if len(rows(newest)) >= epochs else None

    return Switch


_original_stop = train.Stop


def stop_at(epochs, clean=False):
    train.Stop = _original_stop if clean else stopping_after(epochs)


@pytest.fixture(autouse=True)
def no_stop_left_behind():
    yield
    train.Stop = _original_stop


def stopped(name, epochs=4, *flags):
    """A run stopped after so many epochs, with a checkpoint at each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Stop", stopping_after(epochs))
        return run("--checkpoint_every=1", *flags, name=name, code=143)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(damage, capsys):
    folder = stopped("a")
    path = folder / "checkpoint.pt"
    whole = bytearray(path.read_bytes())
    if damage == "flip":
        whole[len(whole) // 2] ^= 16
    path.write_bytes(whole[: len(whole) // 3] if damage == "cut" else whole)
    assert train.main(["--resume", str(folder)]) == 0
    assert f"{path} cannot be used" in capsys.readouterr().err
    assert summary(folder)["metrics_sha256"] == summary(run(name="whole"))["metrics_sha256"]
    assert not path.exists()


def test_an_arm_survives_a_resume_by_hand(monkeypatch):
    folder = stopped("a", 4, "--arm=plummet_threshold=0.1")
    stop_at(5)
    assert train.main(["--resume", str(folder)]) == 143
    flags = json.loads((folder / "config.json").read_text())["flags"]
    assert (flags["arm"], flags["plummet_threshold"], flags["out"]) == ("plummet_threshold=0.1", 0.1, "runs")
    stop_at(0, clean=True)
    run("--checkpoint_every=1", "--arm=plummet_threshold=0.1", name="a")  # as its agent goes on


def test_no_usable_checkpoint_is_an_error_that_changes_nothing(capsys):
    folder = stopped("a")
    for path in folder.glob("checkpoint*.pt"):
        path.write_bytes(b"")
    before = (folder / "metrics.csv").read_bytes()
    assert train.main(["--resume", str(folder)]) == 2
    assert "no usable checkpoint" in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_starts_over():
    folder = stopped("a", epochs=2)
    for path in folder.glob("checkpoint*.pt"):
        path.unlink()
    assert train.main(["--resume", str(folder)]) == 0
    assert [int(row["epoch"]) for row in rows(folder / "metrics.csv")] == list(range(6))


def test_resume_auto_finds_the_run_of_these_flags():
    folder = stopped("a")
    assert train.main([*FAST, "--resume=auto", "--seed=5"]) == 0  # another seed: a fresh run
    assert not (folder / "summary.json").exists()
    assert train.main([*FAST, "--resume=auto"]) == 0
    assert summary(folder)["status"] == "finished"
    assert len(list(Path("runs").iterdir())) == 2


def test_other_flags_or_designs_are_refused(capsys, monkeypatch):
    folder = stopped("a")
    assert train.main(["--resume", str(folder), "--lr=0.5"]) == 2
    assert "was started with other flags; allowed: --lr 0.002" in capsys.readouterr().err
    assert train.main(["--resume", str(folder), "--n_epochs=3"]) == 2
    monkeypatch.setattr(data, "_toy", lambda k, toy=data._toy: toy(k + 1))
    assert train.main(["--resume", str(folder)]) == 2
    assert "other designs" in capsys.readouterr().err
    assert train.main(["--config", str(folder / "config.json")]) == 2


def test_a_finished_run_is_not_run_again(capsys):
    folder = run(name="a")
    before = (folder / "metrics.csv").read_bytes()
    run(name="a")
    assert "finished already" in capsys.readouterr().out
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_checkpoint_of_other_flags_is_not_used(capsys):
    folder, other = stopped("a"), stopped("b", 4, "--lr=0.01")
    for path in other.glob("checkpoint*.pt"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert train.main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("it is of other flags or designs") == 2
    assert "no usable checkpoint" in error


def test_a_damaged_config_is_named(capsys):
    folder = stopped("a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"flags": config["flags"]}))
    assert train.main(["--resume", str(folder)]) == 2
    assert capsys.readouterr().err == f"train.py: --resume {folder}: its config.json is damaged\n"


def meanwhile(monkeypatch, act):
    """Let act() happen between train.py's look at a run folder and its lock."""
    monkeypatch.setattr(train, "Stop", lambda: (act(), _original_stop())[1])


def test_a_run_that_another_process_ends_meanwhile_is_left_alone(monkeypatch, capsys):
    folder = stopped("a")
    before = (folder / "metrics.csv").read_bytes()

    def other_process():  # between the look at the run and its lock
        (folder / "summary.json").write_text('{"status": "finished"}')
        for path in folder.glob("checkpoint*.pt"):
            path.unlink()

    meanwhile(monkeypatch, other_process)
    assert train.main(["--resume", str(folder)]) == 2
    assert "another process has just ended this run" in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.csv", "pruning.csv"])
def test_a_damaged_csv_is_not_continued(name, capsys):
    folder = stopped("a")
    shutil.copytree(folder, "runs/b")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(
        whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
    )  # in what the last checkpoint alone knows
    assert train.main(["--resume", str(folder)]) == 0
    assert f"checkpoint.pt cannot be used ({name} is damaged, or older)" in capsys.readouterr().err
    assert summary(folder)["metrics_sha256"] == summary(run(name="whole"))["metrics_sha256"]
    (Path("runs/b") / name).write_bytes(whole[:30] + b"\xff" + whole[31:])
    assert train.main(["--resume=runs/b"]) == 2
    assert "no usable checkpoint" in capsys.readouterr().err


def test_a_damaged_summary_is_named(capsys):
    folder = stopped("a")
    for text in ("null", "{}", '{"status": "finishe', '{"status": "x"}'):
        (folder / "summary.json").write_text(text)
        capsys.readouterr()
        assert train.main(["--resume", str(folder)]) == 2
        assert (
            capsys.readouterr().err
            == f"train.py: --resume {folder}: its summary.json is damaged; delete it to compute the run again\n"
        )
    before = (folder / "metrics.csv").read_bytes()
    assert train.main([*FAST, "--resume=auto"]) == 0  # another run
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_run_made_longer_says_so_and_is_not_run_again_as_if_it_had_not(capsys):
    folder = stopped("a")
    config = folder / "config.json"
    run("--n_epochs=8", name="a")
    assert len(rows(folder / "metrics.csv")) == 8
    assert json.loads(config.read_text())["extended"] == [{"epoch": 4, "n_epochs": 6}]
    assert train.main(["--config", str(config)]) == 2
    assert capsys.readouterr().err.startswith(
        f"train.py: --config {config}: was made longer while it ran, and cannot be run again"
    )
    assert train.main(["--config", str(config), "--n_epochs=6", "--out=again"]) == 0
    (again,) = Path("again").iterdir()
    assert summary(again)["metrics_sha256"] == summary(run(name="whole"))["metrics_sha256"]
    capsys.readouterr()
    assert train.main(["--resume", str(folder), "--n_epochs=9"]) == 2
    assert f"--n_epochs 9: {folder} is finished and cannot be made longer" in capsys.readouterr().err


def test_an_extension_is_known_from_the_checkpoint_whenever_the_run_stops_again():
    folder = stopped("a")
    stopped("a", 6, "--n_epochs=8")
    extended = [{"epoch": 4, "n_epochs": 6}]
    (folder / "checkpoint.pt").write_bytes(b"")  # back to the one before, of epoch 4
    assert train.main(["--resume", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["extended"] == extended
    never = stopped("b", 2)
    for path in never.glob("checkpoint*.pt"):
        path.unlink()
    run("--n_epochs=8", name="b")  # started over: all of it ran at the new length
    assert not json.loads((never / "config.json").read_text()).get("extended")


def test_resume_auto_makes_no_run_longer():
    folder = stopped("a")
    assert train.main([*FAST, "--resume=auto", "--n_epochs=7"]) == 0
    assert not (folder / "summary.json").exists()


def test_a_run_that_another_process_has_started_meanwhile_is_left_alone(monkeypatch, capsys):
    whole = stopped("a")
    before = (whole / "metrics.csv").read_bytes()
    shutil.move("runs", "elsewhere")
    meanwhile(monkeypatch, lambda: shutil.move("elsewhere", "runs"))  # between the look at the folder and its lock
    run(name="a", code=2)
    assert "another process has just started the run a" in capsys.readouterr().err
    assert (whole / "metrics.csv").read_bytes() == before


def test_a_run_killed_right_after_its_summary_keeps_no_checkpoint():
    folder = stopped("a")
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    assert train.main(["--resume", str(folder)]) == 0
    (folder / "checkpoint.pt").write_bytes(checkpoint)
    assert train.main(["--resume", str(folder)]) == 0
    assert not list(folder.glob("checkpoint*"))


def test_nothing_is_left_of_a_checkpoint_that_was_being_written():
    folder = stopped("a")
    (folder / "checkpoint.new.pt.tmp").write_bytes(b"half a checkpoint")
    assert train.main(["--resume", str(folder)]) == 0
    assert not list(folder.glob("checkpoint*"))


def test_a_file_that_does_not_fit_on_the_disk_leaves_no_part(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("old")

    def full(number):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        record.write_atomically(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
