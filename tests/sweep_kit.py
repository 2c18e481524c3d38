"""What the tests of the sweeps share: sweeps over the stub program, agents as processes, and what became of runs."""

import collections
import contextlib
import functools
import io
import multiprocessing
import os
import sys
import time
from pathlib import Path
from unittest import mock

import yaml
from conftest import ROOT

import data
import report  # noqa: F401  agents would import it for their first row
import sweep
import train
from tools import figures

STUB = ROOT / "tests" / "stub_train.py"
BASE = {"problem": {"value": "toy"}, "data": {"value": "auto"}, "wandb": {"value": "disabled"}}
CACHED = functools.cache(data.load)


def write(name="quick", **parameters):
    """Write name.yaml, a sweep over the stub; a list of values varies, anything else is what the file has."""
    config = {"program": str(STUB), "method": "grid", "metric": {"name": "val_rec", "goal": "minimize"}}
    keys = {*config, "run_cap", "early_terminate"} & set(parameters)
    config |= {k: parameters.pop(k) for k in keys}
    config["parameters"] = BASE | {k: v if isinstance(v, dict) else {"values": v} for k, v in parameters.items()}
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


class Forked(multiprocessing.get_context("fork").Process):
    """sweep.py in a fork of this process, as importing takes 8 s of CPU; it does not hear our Ctrl-C."""

    def __init__(self, *arguments, main=sweep.main, **env):
        super().__init__()
        self.said, self.main = Path(f"said-{time.monotonic_ns()}.log").absolute(), main
        self.arguments, self.env = arguments, env
        self.start()

    def run(self):
        os.setpgid(0, 0)
        os.environ.update(self.env)
        for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
            del sys.modules[name]  # or it would talk through our process's client
        for stream in (1, 2):
            os.dup2(os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = self.main(list(self.arguments))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def ends(self, code=0):
        """Wait for its end, with this exit code and no traceback; returns what it said."""
        self.join(1800)
        said = self.said.read_text()
        assert self.exitcode == code and "Traceback" not in said, (self.exitcode, said)
        return said


def says(*arguments, code=0):
    """sweep.py in this process, which has imported its libraries already; returns all that it said."""
    out = io.StringIO()
    with mock.patch("signal.signal"), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        found = sweep.main(list(arguments))  # whose handlers would outlive it
    assert found == code, out.getvalue()
    return out.getvalue()


def work(*flags, code=0):
    """Let agents work until they are done; returns what they said."""
    return says("agent", *flags, code=code)


def rows(name="quick"):
    return sweep.read_csv(f"results/{name}.csv").to_dict("records")


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


def two_seeds(patch, flags, name):
    """Two runs of train.py here, s1 and s2, without figures; the path of results/NAME.csv, which has their rows."""
    patch.setattr(figures, "draw", lambda *_: None)
    results = Path(f"results/{name}.csv")
    Path(".sweeps").mkdir()
    for seed in (1, 2):
        patch.setenv("WANDB_RUN_ID", f"s{seed}")
        assert train.main([*flags.split(), f"--seed={seed}"]) == 0
        sweep.add_row({"id": f"{name}-x", "results": str(results)}, Path(f"runs/s{seed}"), "finished")
    patch.delenv("WANDB_RUN_ID")
    return results
