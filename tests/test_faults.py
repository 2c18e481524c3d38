"""A few faults of each kind, injected for real into train.py: what a run loses is nothing. Many of them: `make soak`.

With SOAK=1 each kind is injected many times, and what was injected, how often, and what was lost becomes a row of
results/faults.md.
"""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SEED, note
from wandb_server import serve

SOAK = os.environ.get("SOAK")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
CLEAN |= {"NETRC": os.devnull, "OMP_NUM_THREADS": "1"}
EPOCHS = 24 if SOAK else 12  # some seconds of toy designs that prune at several epochs
TOY = f"""--problem=toy --latent_dim=8 --batch_size=512 --pruning_epoch=2 --polynomial_schedule_n=2 --strategy=lognorm
    --percentile=0.4 --safeguards=none --max_prune_per_epoch=1 --cooldown_epochs=3 --threads=1 --checkpoint_every=2
    --save_model --test --n_epochs={EPOCHS}""".split()
TRAIN = [sys.executable, str(ROOT / "train.py")]


def start(name, *flags, env=CLEAN):
    """Start run `name`, or continue it, as an agent would: by its id."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*TRAIN, *TOY, "--wandb=disabled", *flags], env={**env, "WANDB_RUN_ID": name}, **pipes)


def end(process, *codes):
    """Wait for a process to end with one of these exit codes and no traceback; returns its stderr."""
    errors = process.communicate(timeout=1200)[1]
    assert process.returncode in codes and "Traceback" not in errors, (process.returncode, errors)
    return errors


def whole():
    """The folder of the undisturbed run, which is trained at the first call in a folder."""
    if not Path("runs/whole").exists():
        end(start("whole"), 0)
    return Path("runs/whole")


def epochs(name):
    """How many epochs stand in a run's metrics.csv."""
    path = Path("runs", name, "metrics.csv")
    return path.read_text().count("\n") - 1 if path.exists() else -1


def wait_for(condition, process):
    """Wait until condition() holds, looking all the time, or the process has ended. Returns whether it holds."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return condition()


def training(name, more, *flags, env=CLEAN):
    """Start run `name`, or continue it, and wait until it has trained `more` epochs or ended. Returns its process."""
    until = epochs(name) + more
    process = start(name, *flags, env=env)
    wait_for(lambda: epochs(name) > until, process)
    return process


def lost(name):
    """What run `name` lacks or has otherwise than the undisturbed one: lines of its tables, summary, model, files."""
    a, b, differences = whole(), Path("runs", name), []
    if not (b / "summary.json").exists():
        return [f"{name}: not finished"]
    for file, last in (("metrics.csv", 1), ("pruning.csv", 0)):  # the last column of the first is epoch_seconds
        one, other = ([line.rsplit(",", last)[0] for line in (f / file).read_text().splitlines()] for f in (a, b))
        differences += [f"{name}: {file} {line}" for line in sorted({*one} ^ {*other})]
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (a, b))
    changed = [k for k in one | other if k not in ("id", "name", "seconds") and one.get(k) != other.get(k)]
    differences += [f"{name}: summary {key}" for key in changed]
    one, other = (torch.load(folder / "model.pt", weights_only=True) for folder in (a, b))
    weights = one["state"].items()
    differences += [f"{name}: model {k}" for k, value in weights if not torch.equal(value, other["state"][k])]
    one, other = ({p.relative_to(f) for p in f.rglob("*") if "wandb" not in p.relative_to(f).parts} for f in (a, b))
    return differences + [f"{name}: file {path}" for path in sorted(one ^ other)]


def kills(times):
    """kill -9 at random moments, from the start of Python to the last figure; each run is continued to its end."""
    gone, left, n, rng = [], times, 0, random.Random(SEED)
    while left:
        name, n = f"killed{n}", n + 1
        while not (Path("runs", name) / "summary.json").exists():
            # most while it trains: an import takes longer than the training does
            process = training(name, 1) if left and rng.random() < 0.8 else start(name)
            if left:
                time.sleep(rng.uniform(0, 3))
                process.kill()
            end(process, 0, -signal.SIGKILL)
            left -= process.returncode != 0
        gone += lost(name)
    return gone


def stopped_in_a_checkpoint(times, number):
    """A signal while a checkpoint is being written: the process is frozen, and gets the signal if a part is there."""
    gone = []
    for i in range(times):
        name, hit = f"writing-{number.name}-{i}", False
        part, process = Path("runs", name, "checkpoint.new.pt.tmp"), start(name, "--checkpoint_every=1")
        while not hit:
            assert wait_for(part.exists, process), f"{name}: ended before a checkpoint was seen"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            hit = part.exists()
            if hit:
                process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        end(process, -number if number == signal.SIGKILL else 128 + number)
        end(start(name, "--checkpoint_every=1"), 0)
        gone += lost(name)
    return gone


def may_mount():
    """Whether this user may mount in a namespace of its own, where a mount ends with the process."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
        return done.returncode == 0
    return False


# (size of a disk in model.pt's, --checkpoint_every). A checkpoint takes 3: a disk of 1.5 is full in the first, of 4.5
# in the second, of 7.5 in the third, while there are two; the last two have room for the one, but for no more.
DISKS = [(7.5, 2), (0.004, 2), (0.5, 2), (1.5, 2), (3.5, 2), (4.5, 2), (6.5, 2), (8.5, 2), (3.1, EPOCHS // 2)]
DISKS += [(3.6, EPOCHS // 2)]


def full_disks(times):
    """A disk that fills up; exit code 4. Then there is room, and the run goes on."""
    gone, unit = [], (whole() / "model.pt").stat().st_size
    for i, (size, every) in enumerate(DISKS[:times]):
        train = f"{' '.join(TRAIN + TOY)} --wandb=disabled --checkpoint_every={every} > ../log 2>&1; echo $?"
        script = f"mkdir disk; mount -t tmpfs -o size={int(size * unit)} none disk; cd disk; {train}; cat ../log >&2\n"
        script += f"mount -o remount,size=1g .; {train}; cp -r runs ..; cd ..; umount disk; rmdir disk"
        env = {**CLEAN, "WANDB_RUN_ID": f"full{i}"}
        done = subprocess.run(["unshare", "-rm", "bash", "-c", script], env=env, capture_output=True, text=True)
        assert done.stdout.split() == ["4", "0"] and "No space left" in done.stderr, (size, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        gone += lost(f"full{i}")
    return gone


def lost_on_wandb(name, server):
    """Epochs of run `name` that the server does not have, after `wandb sync` of what stayed behind if it lacks any."""
    folder = Path("runs", name)

    def missing():
        with open(folder / "metrics.csv") as file:
            mine = {(int(row["epoch"]), row["val_rec"]) for row in csv.DictReader(file)}
        history = server.runs.get(name, {"history": []})["history"]
        theirs = {(row["epoch"], f"{row['val_rec']:.9g}") for row in history if "val_rec" in row}
        return [f"{name}: epoch {epoch} on W&B" for epoch, _ in sorted(mine - theirs)]

    behind = sorted(map(str, folder.glob("wandb/offline-run-*")))
    if missing() and behind:
        command = [sys.executable, "-m", "wandb", "sync", *behind]
        subprocess.run(command, env={**CLEAN, **server.env}, capture_output=True, check=True)
    return missing()


def server_trouble(times, trouble, then=None, seconds=0, early=False):
    """A run whose W&B server hangs or dies (`trouble`) after a few epochs, or its first answer; later `then`."""
    gone = []
    for i in range(times):
        with serve() as server:
            name = f"server-{trouble}-{then}-{early}-{i}"
            process = training(name, -1 if early else 4, "--wandb=online", env={**CLEAN, **server.env})
            wait_for(lambda server=server: not early or len(server.connections) > 1, process)
            getattr(server, trouble)()
            if then:
                time.sleep(seconds)
                getattr(server, then)()
            end(process, 0)
            server.heal()
            gone += lost(name) + lost_on_wandb(name, server)
    return gone


def killed_with_wandb(times, mode, file=None):
    """kill -9 of a run that W&B logs `online` or `offline`, some epochs after each start, or as its `file` appears."""
    gone, names = [], [f"ends-{mode}-{file}-{i}" for i in range(times)] if file else [f"killed-{mode}"]
    for name in names:
        with serve() as server:
            env = {**CLEAN, **server.env, "WANDB_MODE": mode}
            for _ in range(1 if file else times):
                process = start(name, "--wandb=auto", env=env) if file else training(name, 5, "--wandb=auto", env=env)
                assert not file or wait_for(Path("runs", name, file).exists, process), f"{name}: ended without {file}"
                process.kill()
                end(process, -signal.SIGKILL)
            end(start(name, "--wandb=auto", env=env), 0)
            gone += lost(name) + lost_on_wandb(name, server)
    return gone


def wandb_process_dies(_times):
    """W&B's own process is killed beside the run, which goes on without it."""
    process = training("orphan", 4, "--wandb=offline")
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    assert "W&B: its client died" in end(process, 0)
    return lost("orphan")


FAULTS = [  # its row's text, how the process ends, how often it is injected in a test, and in a soak, and by what
    ("`kill -9` at random moments, from Python's start to the last figure", "-9", 0, 50, kills),
    ("SIGTERM while checkpoint.pt is being written", "143", 1, 5, stopped_in_a_checkpoint, signal.SIGTERM),
    ("SIGINT while checkpoint.pt is being written", "130", 0, 5, stopped_in_a_checkpoint, signal.SIGINT),
    ("SIGKILL while checkpoint.pt is being written", "-9", 0, 5, stopped_in_a_checkpoint, signal.SIGKILL),
    ("disk full, in a checkpoint or in figures", "4", 1, 10, full_disks),
    ("W&B's server hangs for 20 s and goes on", "0", 0, 2, server_trouble, "hang", "heal", 20),
    ("W&B's server dies and returns after some seconds", "0", 1, 2, server_trouble, "die", "heal", 3),
    ("W&B's server dies, and is back only after the run", "0", 0, 2, server_trouble, "die"),
    ("W&B's server hangs, and is back only after the run", "0", 0, 2, server_trouble, "hang"),
    ("W&B's server hangs while the run starts", "0", 0, 2, server_trouble, "hang", None, 0, True),
    ("W&B's own process is killed beside the run", "0", 1, 1, wandb_process_dies),
]
for mode in ("online", "offline"):
    FAULTS.append((f"`kill -9` of a run that W&B logs {mode}", "-9", 0, 4, killed_with_wandb, mode))
    for name in ("summary.new.json", "summary.json"):
        text = f"`kill -9` at the moment {name} appears, of a run that W&B logs {mode}"
        FAULTS.append((text, "-9", 0, 2, killed_with_wandb, mode, name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All tests of this file share a folder, and so the undisturbed run."""
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if SOAK or fault[2]], ids=lambda fault: fault[0][:40])
def test_nothing_is_lost(fault, folder, monkeypatch):
    text, ending, few, many, inject, *arguments = fault
    if inject is full_disks and not may_mount():
        pytest.skip("this user may not mount in a namespace")
    monkeypatch.chdir(folder)
    gone = inject(many if SOAK else few, *arguments)
    if SOAK:
        note(text, many, ending, len(gone) or "nothing")
    assert gone == []


def test_a_full_disk_that_holds_the_log_too(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with open("/dev/full", "w") as log:
        done = subprocess.run([*TRAIN, *TOY, "--wandb=disabled"], env=CLEAN, stdout=log, stderr=log)
    assert done.returncode == 4
