"""What the tests of the sweeps share: sweeps over the stub program, agents as processes, and what became of runs."""

import collections
import contextlib
import csv
import functools
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from conftest import ROOT

import data
import sweep

STUB = ROOT / "tests" / "stub_train.py"
BASE = {"problem": {"value": "toy"}, "data": {"value": "auto"}, "wandb": {"value": "disabled"}}
CACHED = functools.cache(data.load)


def write(name="quick", **parameters):
    """Write name.yaml, a sweep over the stub; a list of values varies, anything else is what the file has."""
    settings = {
        k: parameters.pop(k) for k in ("method", "metric", "run_cap", "early_terminate", "program") if k in parameters
    }
    config = {"program": str(STUB), "method": "grid", "metric": {"name": "val_rec", "goal": "minimize"}, **settings}
    config["parameters"] = {**BASE, **{k: v if isinstance(v, dict) else {"values": v} for k, v in parameters.items()}}
    Path(f"{name}.yaml").write_text(yaml.dump(config, sort_keys=False))


def create(*flags, name="quick", code=0, **parameters):
    """Write a sweep over the stub and create it on the local backend; returns it as created."""
    write(name, **parameters)
    assert sweep.main(["create", f"{name}.yaml", "--backend", "local", *flags]) == code
    return None if code else current()


def current():
    return sweep.load_sweep(Path(".sweeps/current").read_text().split()[0])


def trials(made, *states):
    return sweep.Queue(made).trials(*states)


def points(made):
    return [t.user_attrs["run"]["point"] for t in trials(made)]


def states(made):
    return collections.Counter(t.state.name for t in trials(made))


def start_agents(*flags, **env):
    """`sweep.py agent`, as a process of its own that does not hear our Ctrl-C."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, str(ROOT / "sweep.py"), "agent", *flags]
    return subprocess.Popen(command, env={**os.environ, **env}, process_group=0, **pipes)


def end(agents, code=0):
    """Wait for agents to end with this exit code and no traceback; returns what they said."""
    said = agents.communicate(timeout=1800)[0]
    assert agents.returncode == code and "Traceback" not in said, said
    return said


def says(*arguments, code=0):
    """sweep.py in this process, which has imported its libraries already; returns all that it said."""
    out, handlers = io.StringIO(), {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            found = sweep.main(list(arguments))
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        sweep.CRASHED.clear()
    assert found == code, out.getvalue()
    return out.getvalue()


def work(*flags, code=0, **env):
    """Let agents work until they are done; returns what they said. Several are processes of their own."""
    return end(start_agents(*flags, **env), code) if env or "--n" in flags else says("agent", *flags, code=code)


def rows(name="quick"):
    with open(f"results/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def starts():
    """How often each run was started."""
    return collections.Counter(line.split()[0] for line in Path("starts.log").read_text().splitlines())


def checkpoints():
    return list(Path("runs").glob("*/checkpoint.pt"))


def wait_until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
