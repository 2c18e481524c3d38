"""The local queue of a sweep: Optuna 5 on a file journal or PostgreSQL, each run done to its end exactly once. agents.py works on it.

One trial is one run for its whole life. It is WAITING, then RUNNING with a holder that beats, then COMPLETE (finished), PRUNED (stopped
early by hyperband) or FAIL. A stopped run goes back to WAITING, a dead agent's run changes its holder: no run is ever copied, so none can
run twice. Every change of hands happens under one lock (a file's, or PostgreSQL's), in a single write, so that a kill -9 anywhere leaves
either the old state or the new one. Measured with tests/test_sweep_queue.py; SQLite is refused: 5 agents on it ran 15 of 225 points twice.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

BEAT = float(os.environ.get("SWEEP_BEAT", 30))  # seconds between two heartbeats of a run
GRACE = 4 * BEAT  # an agent of another machine that has not beaten for so long is dead. Clocks must agree to well within this
CRASHES, DEATHS = 3, 10  # a run that crashed so often, or that so many agents died over or could not start, is given up
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


class FileLock:
    """An exclusive lock that the kernel drops when its process dies: Optuna's own lock files block everybody for 30 s then.

    With a journal: whoever gets the lock cuts an unfinished last line, which a crash left. Appending to it would make the file unreadable.
    """

    def __init__(self, path, journal=None):
        self.path, self.journal = path, journal

    def acquire(self):
        file = open(self.path, "a")  # noqa: SIM115  held until release()
        fcntl.flock(file, fcntl.LOCK_EX)
        self.file = file
        if self.journal:
            cut_torn_line(self.journal)
        return True

    def release(self):
        self.file.close()

    __enter__ = acquire

    def __exit__(self, *error):
        self.release()


def cut_torn_line(path):
    """Cut what follows the last line end of a file. Call it only while nobody can be writing."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        position, tail = end, b""
        while position and b"\n" not in tail:
            position = max(0, position - 4096)
            file.seek(position)
            tail = file.read(end - position)
        keep = position + tail.rfind(b"\n") + 1
        if keep < end:
            print(f"{path}: cut an unfinished last line ({end - keep} bytes), left by a crash", file=sys.stderr)
            file.truncate(keep)


def _process(pid):
    """The start time of a living process, in clock ticks since boot; None if it is dead. With it, a reused pid is told apart."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19] if fields[0] not in "ZX" else None


def _machine():
    """This machine, boot and container, for which /proc tells at once whether a process lives; None where there is no /proc."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}/{boot}/{os.readlink('/proc/self/ns/pid')}"


def me():
    return {"host": platform.node(), "machine": _machine(), "pid": os.getpid(), "started": _process(os.getpid())}


def is_alive(held):
    """Whether the holder of a run lives. On this machine the process table says so; of others only the heartbeat is known."""
    if held["machine"] and held["machine"] == _machine():
        return held["started"] is not None and _process(held["pid"]) == held["started"]
    return time.time() - held["beat"] < GRACE


def bands(rule, n):
    """W&B's hyperband: the bands up to n logged values, min_iter * eta^k; none without a rule (early_terminate) that has a min_iter."""
    found, band = [], (rule or {}).get("min_iter", n + 1)
    while int(band) <= n and len(found) < 100:
        found.append(int(band))
        band *= rule.get("eta", 3)
    return found


def hyperband_stops(history, pool, rule):
    """W&B's decision (its package sweeps 0.3.0) to stop a run.

    history: the values of the metric logged so far, lower is better; pool(band): the values of all runs, this one included, that have
    logged at least `band` of them, at the band. Stop if the value at the last band (strict; else the best so far) is above the
    int(n / eta)-th smallest of the n.
    """
    passed = bands(rule, len(history))
    if not passed:
        return False
    values = sorted(pool(passed[-1]))
    value = history[passed[-1] - 1] if rule.get("strict") else min(history)
    return value > values[int(1 / rule.get("eta", 3) * len(values))]


def _distribution(name, p):
    if "values" in p:
        return CategoricalDistribution(p["values"])
    whole = isinstance(p["min"], int) and isinstance(p["max"], int)
    kind = p.get("distribution", "int_uniform" if whole else "uniform")
    if kind == "int_uniform":
        return IntDistribution(p["min"], p["max"])
    if kind not in ("uniform", "log_uniform_values"):
        raise ValueError(f"parameter {name}: distribution {kind} is unknown here; allowed: int_uniform, uniform, log_uniform_values")
    return FloatDistribution(float(p["min"]), float(p["max"]), log=kind == "log_uniform_values")


def distributions(parameters):
    """Optuna's distribution of each parameter that varies; the constant ones stay out of its search."""
    return {k: _distribution(k, p) for k, p in parameters.items() if "value" not in p and p.get("values", [0, 1])[1:]}


def constants(parameters):
    return {
        k: p.get("value", p.get("values", [None])[0]) for k, p in parameters.items() if "value" in p or len(p.get("values", [0, 1])) == 1
    }


def _database(url):
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError:
        raise ValueError("STORAGE: psycopg is missing; pip install 'psycopg[binary]'") from None
    except Exception as error:  # sqlalchemy, psycopg and optuna raise many types for a server that is not there or refuses
        raise ValueError(f"STORAGE: the database cannot be used ({str(error).strip().splitlines()[0]})") from None


class Queue:
    """The runs of one sweep. `record` is what sweep.py created: id, config, data, storage (None: a journal in its folder)."""

    def __init__(self, record, create=False):
        self.record, self.name = record, record["id"]
        self.folder = Path(".sweeps") / self.name
        if record.get("storage"):
            self.database = _database(record["storage"])
            self.storage = optuna.storages.get_storage(self.database)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not record.get("storage"):
            journal = self.folder / "journal.log"
            backend = JournalFileBackend(str(journal), lock_obj=FileLock(self.folder / "journal.lock", journal))
            self.storage = optuna.storages.JournalStorage(backend)
        if create:
            maximize = record["config"].get("metric", {}).get("goal") == "maximize"
            optuna.create_study(study_name=self.name, storage=self.storage, direction="maximize" if maximize else "minimize")
        self.study = self.storage.get_study_id_from_name(self.name)
        if "config" not in record:  # joined from another machine: the sweep's record travels with its study
            self.record = {**self.storage.get_study_user_attrs(self.study)["sweep"], "storage": record["storage"]}
        self.config = self.record["config"]
        self.distributions = distributions(self.config["parameters"])

    @contextlib.contextmanager
    def lock(self):
        """Only one agent at a time changes who works on what."""
        if self.record.get("storage"):
            from sqlalchemy import text

            key = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big", signed=True)
            with self.database.engine.begin() as connection:  # PostgreSQL drops it at the transaction's end, or the connection's
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
                yield
        else:
            with FileLock(self.folder / "queue.lock"):
                yield

    def fill(self, points, known=()):
        """Put the points of a grid into the queue, in order, or what a search knows already, and the sweep's record beside them.

        A known trial has no run: nobody will run it, and it is not counted."""
        study = optuna.load_study(study_name=self.name, storage=self.storage)
        study.add_trials(known)
        for number, point in enumerate(points):
            params = {k: point[k] for k in self.distributions}
            run = {"id": self._run_id(number), "point": point}
            study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING, params=params, distributions=self.distributions, user_attrs={"run": run}
                )
            )
        study.set_user_attr("sweep", {k: v for k, v in self.record.items() if k != "storage"})

    def _run_id(self, number):
        return hashlib.sha256(f"{self.name}/{number}".encode()).hexdigest()[:8]

    def trials(self, *states):
        """The runs, without a bayes point that an agent died over before it was complete."""
        found = self.storage.get_all_trials(self.study, deepcopy=False, states=states or None)
        return [t for t in found if "run" in t.user_attrs]

    def stopped(self):
        return bool(self.storage.get_study_user_attrs(self.study).get("stopped"))

    def stop(self, value):
        self.storage.set_study_user_attr(self.study, "stopped", value)

    def _attribute(self, trial, key, value):
        self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def _hold(self, trial):
        self._attribute(trial, "held", {**me(), "beat": time.time()})

    def claim(self):
        """Take a run: a dead agent's first, then the first one waiting, then (bayes) a new point. None: there is none to take now."""
        with self.lock():
            if self.stopped():
                return None
            trials = self.trials()  # once: each look at a database costs many queries
            for trial in (t for t in trials if t.state == TrialState.RUNNING):
                held = trial.user_attrs["held"]
                if is_alive(held):
                    continue
                ends = [*trial.user_attrs.get("ends", []), f"its agent died ({held['host']}, pid {held['pid']})"]
                self._attribute(trial, "ends", ends)
                if len(ends) >= DEATHS:
                    self._finish(trial, TrialState.FAIL, None, f"given up after {len(ends)} tries: {ends[-1]}")
                    continue
                self._hold(trial)
                return self.get(trial)
            for trial in (t for t in trials if t.state == TrialState.WAITING):
                self._hold(trial)  # before the state: a RUNNING run always has its own holder
                self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                return self.get(trial)
            if self.config["method"] == "grid" or len(trials) >= self.record["runs"]:
                return None
            return self._ask()

    def _ask(self):
        """A new point from TPE. Its seed is the run's id: neither agents that ask in turn nor two searches ever draw the same."""
        number = len(self.storage.get_all_trials(self.study, deepcopy=False))
        seed = int(self._run_id(number), 16)
        if self.config["method"] == "bayes":
            sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=10, seed=seed)
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        asked = optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler).ask(self.distributions)
        trial = self.get(asked)
        self._hold(trial)
        point = {**constants(self.config["parameters"]), **trial.params}
        self._attribute(trial, "run", {"id": self._run_id(number), "point": point})  # last: with it, the point counts
        return self.get(trial)

    def get(self, trial):
        return self.storage.get_trial(trial._trial_id)

    def holds(self, trial):
        """Whether this process still holds a run. False: it was taken for dead (a suspended machine) and another agent has the run."""
        now = self.get(trial)
        held = now.user_attrs["held"]
        return now.state == TrialState.RUNNING and (held["machine"], held["pid"], held["started"]) == tuple(
            me()[k] for k in ("machine", "pid", "started")
        )

    def beat(self, trial):
        """Say that this process lives. False: the run is no longer its own."""
        with self.lock():
            if not self.holds(trial):
                return False
            self._hold(trial)
            return True

    def report(self, trial, step, value):
        """The metric after `step` logged values. Each report is written to disk: report the bands and a few more, not every epoch."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.storage.set_trial_intermediate_value(trial._trial_id, step, value)

    def pool(self, band):
        """The values of all runs at a band."""
        found = self.storage.get_all_trials(self.study, deepcopy=False)
        return [t.intermediate_values[band] for t in found if band in t.intermediate_values]

    def mark_stopping(self, trial):
        """Hyperband's decision stands from here on, whatever happens to this agent."""
        self._attribute(trial, "stops", True)

    def _finish(self, trial, state, value, cause):
        if cause:
            self._attribute(trial, "cause", cause)
        self.storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])

    def finish(self, trial, state, value=None, cause=None):
        """The run is over. False: it was no longer ours, and its result is another agent's to give."""
        with self.lock():
            if not self.holds(trial):
                return False
            self._finish(trial, state, value, cause)
            return True

    def release(self, trial):
        """The run was stopped and can be continued: back into the queue."""
        with self.lock():
            if self.holds(trial):
                self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def crashed(self, trial, cause, how="crashed"):
        """The run crashed, or cannot start: back into the queue, or given up. Returns True if given up."""
        with self.lock():
            if not self.holds(trial):
                return False
            ends = [*self.get(trial).user_attrs.get("ends", []), f"{how}: {cause}"]
            self._attribute(trial, "ends", ends)
            given_up = sum(e.startswith("crashed") for e in ends) >= CRASHES or len(ends) >= DEATHS
            if given_up:
                self._finish(trial, TrialState.FAIL, None, f"given up after {len(ends)} tries: {cause}")
            else:
                self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            return given_up

    def is_busy(self):
        """Whether a run is still going: its agent may yet die, so the others stay."""
        return bool(self.trials(TrialState.RUNNING)) and not self.stopped()
