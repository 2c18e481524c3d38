"""The agents of a sweep: they take its runs, watch over them and write down what came of them. Started by `sweep.py agent`.

Local backend: each agent is a process of its own that takes runs from queue.py. W&B backend: each is an unmodified `wandb agent`.
Ctrl-C once: no new runs, the current ones finish. Twice, or SIGTERM: they write a checkpoint and stop; the next agent continues them.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from optuna.trial import TrialState

from sweeping.queue import BEAT, bands, hyperband_stops
from sweeping.results import history, is_locked, objective, read_json, record_result

REPORTS = 25  # of a run to the queue, besides hyperband's bands: each is an fsync
PATIENCE = 300  # seconds for a stopped run to finish its epoch and write its checkpoint, before it is killed

stops = []  # the signals received so far; the handlers only take note, so that nothing is interrupted halfway


def handle_signals():
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup make agents
            signal.signal(signum, lambda signum, frame: stops.append(signum))


def stop_level():
    """0: go on; 1: finish the current runs; 2: stop them now, resumably."""
    return 2 if any(s != signal.SIGINT for s in stops) else min(2, len(stops))


def exit_code():
    return 143 if any(s != signal.SIGINT for s in stops) else 130 if stops else 0


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# --------------------------------------------------------------------------------------------------------------- a run's surroundings


def command_line(point):
    """The arguments W&B's agent passes for a point: --flag=value, in alphabetical order, values as Python prints them."""
    return [f"--{key}={point[key]!s}" for key in sorted(point)]


def devices():
    """The GPUs this process may use, by the names CUDA_VISIBLE_DEVICES takes."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d.strip()]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
        return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]
    return []


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def surroundings(slot, agents):
    """The environment of agent `slot` of `agents`: its share of the cores, one GPU of those there are, this Python first on the PATH."""
    env = dict(os.environ, PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]))
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // agents)))
    gpus = devices()
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return env


def labels(record):
    """What W&B shows of a run's sweep, online or offline: group, tags and notes."""
    config = record["config"]
    return {
        "WANDB_RUN_GROUP": record["id"],
        "WANDB_TAGS": f"sweep-{Path(record['results']).stem},{config['method']}",
        "WANDB_NOTES": config.get("description", ""),
    }


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up here: after a fork it may not be


def _die_with_parent(signum):
    """For preexec_fn: Linux sends the child `signum` when its parent dies, so that no run goes on without its agent."""
    parent = os.getpid()

    def set_signal():
        if _prctl:
            _prctl(1, signum)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

    return set_signal


def start(command, env, log=None, death=signal.SIGKILL):
    """Start a process in a group of its own, out of reach of the terminal's Ctrl-C."""
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log and subprocess.STDOUT,
        process_group=0,
        preexec_fn=_die_with_parent(death),
    )


def wait_for_folder(folder):
    """Wait while another process works in a run folder: the run of a dead agent where Linux's parent-death signal is missing.

    Returns False if this agent was asked to stop meanwhile.
    """
    waited = False
    while is_locked(folder):
        waited or say(f"{folder}: another process still works on this run; waiting for it")
        waited = True
        time.sleep(1)
        if stop_level():
            return False
    return True


# -------------------------------------------------------------------------------------------------------------- the local backend


def work(queues, env, name, count=None):
    """Work through the sweeps in order until nothing is left in any; at most `count` runs. Returns the exit code."""
    finished = 0
    while not stop_level() and (count is None or finished < count):
        claimed = next(((q, trial) for q in queues if (trial := q.claim())), None)
        if claimed:
            code = run(*claimed, env, name)
            finished += 1
            if code in (2, 4):
                return code
        elif any(q.is_busy() for q in queues):
            time.sleep(1)
        else:
            break
    return exit_code()


def run(queue, trial, env, name):
    """Run a claimed point to its end, or until it is stopped. Returns the program's exit code."""
    info, config, metric = trial.user_attrs["run"], queue.config, queue.config["metric"]["name"]
    sign = -1 if config["metric"].get("goal") == "maximize" else 1
    folder = Path(info["point"].get("out", "runs")) / info["id"]
    rule = config.get("early_terminate")
    every = max(1, int(info["point"].get("n_epochs", REPORTS)) // REPORTS)
    reported = set(trial.intermediate_values)
    lost, over = threading.Event(), threading.Event()

    def beat():  # in a thread: the run's progress must not decide whether its agent seems alive
        while not over.wait(BEAT):
            try:
                if not queue.beat(trial):
                    return lost.set()
            except Exception as error:  # the database is away for a while: the next beat may reach it
                say(f"{name}: no heartbeat for {info['id']}: {first_line(error)}")

    def watch():
        """Report what metrics.csv has grown by; True if hyperband stops the run."""
        values = [sign * v for v in history(folder, metric)]
        due = set(range(every, len(values) + 1, every)) | set(bands(rule, len(values)))
        new = sorted(due - reported)
        for step in new:
            queue.report(trial, step, sign * values[step - 1])
        reported.update(new)
        return bool(rule and new) and hyperband_stops(values, lambda band: [sign * v for v in queue.pool(band)], rule)

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    stopped_early = trial.user_attrs.get("stops", False)  # by an agent that died before it could say so
    code, killed_at, log = None, None, queue.folder / f"{info['id']}.log"
    is_over = stopped_early or (folder / "summary.json").exists()
    if not is_over and wait_for_folder(folder) and stop_level() < 2:
        command = [sys.executable, config["program"], *command_line(info["point"]), "--resume=auto"]
        env = {**env, **labels(queue.record), "WANDB_RUN_ID": info["id"]}
        verb = "continued" if (folder / "metrics.csv").exists() else "started"
        with open(log, "a") as file:
            print("$", *command, file=file, flush=True)
            child = start(command, env, file)
        point = " ".join(f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in trial.params.items())
        say(f"{name}: run {info['id']} {verb}: {point} (log: {log})")
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(0.5)
                break
            if lost.is_set():
                child.kill()
            elif killed_at is None:
                if watch():
                    queue.mark_stopping(trial)
                    stopped_early = True
                if stopped_early or stop_level() == 2:
                    child.terminate()
                    killed_at = time.monotonic() + PATIENCE
            elif time.monotonic() > killed_at:
                child.kill()
        if not lost.is_set():
            watch()  # what it wrote in its last half second
    over.set()
    beating.join()
    summary = read_json(folder / "summary.json") or {}
    status = summary.get("status")
    values = history(folder, metric)
    tail = _last_line(log)
    if lost.is_set():
        outcome = "taken over by another agent, while this machine was suspended"
    elif status == "finished":
        record_result(queue.record, folder, "finished")
        if values:
            value = objective(config, values)
            queue.finish(trial, TrialState.COMPLETE, value)
            outcome = f"finished, {metric} {value:.6g} with {summary.get('active_dims')} dims"
        else:
            outcome = f"finished without a value of {metric}"
            queue.finish(trial, TrialState.FAIL, None, outcome)
    elif status == "diverged":
        record_result(queue.record, folder, "diverged")
        queue.finish(trial, TrialState.FAIL, None, f"diverged: {summary.get('cause')}")
        outcome = f"diverged: {summary.get('cause')}"
    elif stopped_early:
        record_result(queue.record, folder, "stopped early")
        queue.finish(trial, TrialState.PRUNED, values[-1] if values else None)
        outcome = "stopped early by hyperband"
    elif code == 2:
        # most likely this machine's fault, so others may try: but a run that nobody can start must not be in the way for ever
        queue.crashed(trial, tail, "cannot start")
        outcome = f"cannot start, and this agent stops: {tail}"
    elif code == 4:
        queue.release(trial)
        outcome = f"cannot write, and this agent stops: {tail}"
    elif code is None or code in (130, 143, -signal.SIGINT, -signal.SIGTERM) or killed_at is not None:
        queue.release(trial)
        outcome = "stopped; the next agent continues it"
    else:
        cause = f"exit code {code}: {tail}"
        outcome = f"crashed ({cause})" + (", and given up" if queue.crashed(trial, cause) else ", will be tried again")
    say(f"{name}: run {info['id']} {outcome}")
    return code


def _last_line(log):
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("$ ")]
        return lines[-1][:200] if lines else "it printed nothing"
    return "no log"


# -------------------------------------------------------------------------------------------------- several agents side by side


class Slot:
    """One agent of several: the commands it runs one after the other, and how it is asked to stop."""

    def __init__(self, env, commands, log=None):
        self.env, self.commands, self.log = env, commands, log
        self.process = self.kind = None
        self.sent = 0

    def step(self):
        """Start the next command if none runs. Returns False when there is nothing left to do."""
        if self.process is None or self.process.poll() is not None:
            if not self.commands or stop_level():
                return False
            self.kind, command, extra = self.commands.pop(0)
            # a `wandb agent` that lost its launcher finishes its run, and a local one stops resumably
            death = signal.SIGINT if self.kind == "wandb" else signal.SIGTERM
            self.process, self.sent = start(command, {**self.env, **extra}, self.log, death), 0
            if self.kind == "program":
                say(f"run {extra['WANDB_RUN_ID']} continued (log: {Path(self.log.name).name})")
        self._signal(stop_level())
        return True

    def _signal(self, level):
        # `wandb agent`: a first SIGINT lets its run finish, a second one sends it SIGTERM. SIGTERM would orphan the run, and with
        # --forward-signals the run would get the first one too. One signal a second: it must have handled the one before.
        if self.kind == "program":
            if level == 2 and not self.sent:
                self.process.terminate()
                self.sent = 2
        elif self.sent < level:
            if self.kind == "local" and exit_code() == 143:
                self.process.terminate()
                self.sent = 2
            else:
                self.process.send_signal(signal.SIGINT)
                self.sent += 1


def launch(slots, stagger, watch=lambda: None):
    """Run the slots side by side, started `stagger` seconds apart. Returns the highest exit code."""
    announced, active, dead = 0, [], set()
    while True:
        if len(active) < len(slots) and not stop_level():
            active.append(slots[len(active)])
        if stop_level() > announced:
            announced = stop_level()
            say("finishing the current runs; Ctrl-C once more stops them, resumably" if announced == 1 else "stopping the runs, resumably")
        busy = [slot.step() for slot in active]
        for k, slot in enumerate(active, 1):
            if k not in dead and slot.process and (slot.process.poll() or 0) < 0:
                say(f"agent {k} was killed (signal {-slot.process.returncode}); another agent continues its run, or the next `make agents`")
                dead.add(k)
        watch()
        if not any(busy) and (len(active) == len(slots) or stop_level()):
            break
        time.sleep(stagger if len(active) < len(slots) else 1)
    codes = [slot.process.returncode for slot in slots if slot.process and slot.kind == "local"]
    return exit_code() or max([c if c > 0 else 1 for c in codes if c], default=0)
