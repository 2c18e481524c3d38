"""The queue of a sweep, on Optuna's storage: which run is whose, whatever dies. It is sweep.py's engine.

One trial is one run for its whole life. It is WAITING, then RUNNING with a holder that beats, then COMPLETE (finished),
PRUNED (stopped early) or FAIL. A stopped run goes back to WAITING, a dead agent's run changes its holder: no run is
ever copied, so none can run twice. Every change of hands happens under one lock (a file's or PostgreSQL's), in a single
write, so that a kill -9 anywhere leaves either the old state or the new one. Measured with tests/test_sweep_queue.py;
SQLite is refused: 5 agents on it ran 15 of 225 points twice.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import re
import secrets
import sys
import time
import warnings
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from lvae import InputError, first_line
from record import is_locked, lock

STATE = Path(".sweeps")
BEAT = float(os.environ.get("SWEEP_BEAT", 30))  # seconds between two heartbeats of a run
GRACE = 4 * BEAT  # an agent elsewhere that has not beaten for so long is dead. Clocks must agree to well within this
CRASHES, DEATHS = 3, 10  # a run is given up that crashed so often, or that so many agents died over or could not start
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def need(holds, message):
    if not holds:
        raise InputError(message)


def say(text):
    with contextlib.suppress(OSError):  # a pipe that nobody reads any more ends no agent
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def redacted(text):
    """Text without the passwords of the URLs in it."""
    return re.sub(r"(//[^:@/\s]*):[^@/\s]*@|(password=)[^&\s]*", r"\1\2:***@", str(text))


def levels(p):
    """All that a parameter of a sweep says about its values."""
    return p["values"] if "values" in p else [p[k] for k in ("value", "min", "max") if k in p]


def corners(config):
    """The lowest and the highest point of a search space: what stands for all its points when a sweep is checked."""
    return [{k: levels(p)[end] for k, p in config["parameters"].items()} for end in (0, -1)]


def distributions(parameters, most=math.inf):
    """Optuna's distribution of each parameter that varies; without lists of more than `most` values."""
    kinds = {"int_uniform": IntDistribution, "uniform": FloatDistribution}
    kinds |= {"log_uniform_values": functools.partial(FloatDistribution, log=True)}
    found = {}
    for k, p in parameters.items():
        if 1 < len(p.get("values", [])) <= most:
            found[k] = CategoricalDistribution(p["values"])
        elif "min" in p:
            whole = isinstance(p["min"], int) and isinstance(p["max"], int)
            kind = p.get("distribution", "int_uniform" if whole else "uniform")
            need(kind in kinds, f"parameter {k}: distribution {kind} is unknown here; allowed: {', '.join(kinds)}")
            found[k] = kinds[kind](p["min"], p["max"])
    return found


def bands(rule, n):
    """W&B's hyperband: the bands up to n logged values, min_iter * eta^k; none without a rule (early_terminate)."""
    found, band = [], rule["min_iter"] if rule else math.inf
    while band <= n:
        found.append(int(band))
        band *= rule.get("eta", 3)
    return list(dict.fromkeys(found))


def hyperband_stops(values, pool, rule):
    """W&B's decision (its package sweeps 0.3.0) to stop a run: its value at the last band is among the worst.

    values: the metric as logged so far, lower is better; pool(band): the values at a band of all runs that have it,
    this one included. Stop if the value (strict; else the best so far) is above the int(n / eta)-th smallest of the n.
    """
    if not (passed := bands(rule, len(values))):
        return False
    others = sorted(pool(passed[-1]))
    value = values[passed[-1] - 1] if rule.get("strict") else min(values)
    return value > others[int(1 / rule.get("eta", 3) * len(others))]


class FileLock:
    """An exclusive lock that the kernel drops when its process dies: Optuna's own lock files block everybody for 30 s.

    With a journal: whoever has the lock cuts an unfinished last line, left by a crash: nobody could read what follows.
    """

    def __init__(self, path, journal=None):
        self.path, self.journal = path, journal

    def acquire(self):
        self.file = open(self.path, "a")  # noqa: SIM115  held until release()
        lock(self.file, fcntl.LOCK_EX)
        if self.journal and self.journal.stat().st_size:
            with open(self.journal, "rb+") as journal:
                journal.seek(-1, os.SEEK_END)
                if journal.read() != b"\n":
                    journal.seek(0)
                    journal.truncate(journal.read().rfind(b"\n") + 1)
                    print(f"{self.journal}: cut an unfinished last line, left by a crash", file=sys.stderr)
        return True

    def release(self, *error):
        self.file.close()

    __enter__, __exit__ = acquire, release


class StorageAway(OSError):
    """The database did not come back: exit code 4, and nothing is lost."""


def patient(method):
    """A method of Queue that waits for a database that is away, 15 minutes at most, with a line for each try."""

    @functools.wraps(method)
    def wrapped(queue, *args, **kwargs):
        for pause in (1, 2, 4, 8, 15, 30, *[60] * 14):
            try:
                return method(queue, *args, **kwargs)
            except json.JSONDecodeError:
                raise InputError(queue.damage()) from None
            except queue.away as error:
                said = first_line(error)
                say(f"STORAGE: the database is away; trying again in {pause} s ({said})")
                time.sleep(pause)
        raise StorageAway(f"STORAGE: the database does not come back ({said})")

    return wrapped


class Queue:
    """The runs of one sweep, as created: id, config, data, storage (None: a journal in its folder)."""

    def __init__(self, sweep, create=False):
        self.sweep, self.name, self.folder = sweep, sweep["id"], STATE / sweep["id"]
        self.hold, self.database, self.away, self.journal = None, None, (), self.folder / "journal.log"
        try:
            self.storage = self._connect() if sweep.get("storage") else self._open_journal()
            if create:
                goal = sweep["config"]["metric"].get("goal", "minimize")
                optuna.create_study(study_name=self.name, storage=self.storage, direction=goal, load_if_exists=True)
            self.study = optuna.load_study(study_name=self.name, storage=self.storage)
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError):  # of Optuna: not there, or damaged
            raise InputError(self.damage()) from None
        (self.folder / "held").mkdir(parents=True, exist_ok=True)
        if "config" not in sweep:  # joined from another machine: the sweep travels with Optuna's study
            self.sweep = self.study.user_attrs["sweep"] | {"storage": sweep["storage"]}
        self.config = self.sweep["config"]
        boot = Path("/proc/sys/kernel/random/boot_id")
        disk = (self.folder / "held").stat()  # who shares our kernel and this folder sees by our lock that we live
        where = [boot.read_text().strip() if boot.exists() else platform.node(), disk.st_dev, disk.st_ino]
        self.me = {"host": platform.node(), "pid": os.getpid(), "where": where, "token": secrets.token_hex(8)}

    def _connect(self):
        from sqlalchemy.exc import DBAPIError

        self.away = (DBAPIError, optuna.exceptions.StorageInternalError)
        try:
            self.database = optuna.storages.RDBStorage(self.sweep["storage"], engine_kwargs={"pool_pre_ping": True})
            return optuna.storages.get_storage(self.database)
        except ImportError:
            raise InputError("STORAGE: psycopg is missing; pip install 'psycopg[binary]'") from None
        except Exception as error:  # sqlalchemy, psycopg and optuna raise many types for a server that refuses
            raise InputError(f"STORAGE: the database cannot be used ({redacted(first_line(error))})") from None

    def _open_journal(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(self.folder / "journal.lock", self.journal)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(self.journal), held))

    def damage(self):
        """One line on what is wrong with a queue that Optuna cannot read."""
        if self.sweep.get("storage"):
            return f"SWEEP {self.name}: not in that STORAGE, or not of this sweep"
        return f"{self.journal}: is gone or damaged; create the sweep anew: what is in its results is not run again"

    @contextlib.contextmanager
    def lock(self):
        """Only one agent at a time changes who works on what."""
        from sqlalchemy import text

        with self.database.engine.begin() if self.database else FileLock(self.folder / "queue.lock") as held:
            if self.database:  # dropped at the transaction's end, or the connection's
                held.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": self.name})
            yield

    def fill(self, points, known=()):
        """Put in the points of a grid, in order, or the trials that a search knows already; and the sweep."""
        # each trial repeats its distributions: a long list would make the journal huge
        space = distributions(self.config["parameters"], 100 if points else math.inf)
        self.study.add_trials(known)
        for k, point in enumerate(points):
            params = {name: point[name] for name in space}
            self._add({"id": self._run_id(k), "point": point}, params=params, distributions=space)
        self.study.set_user_attr("sweep", {k: v for k, v in self.sweep.items() if k != "storage"})

    def _add(self, run, **params):
        self.study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"run": run}, **params))

    def _run_id(self, k):
        return hashlib.sha256(f"{self.name}/{k}".encode()).hexdigest()[:8]

    def trials(self, *states):
        """The runs, by their last trial; without a search's point that an agent died over before it was complete."""
        runs = {t.user_attrs["run"]["id"]: t for t in self.study.get_trials(False) if "run" in t.user_attrs}
        return [t for t in runs.values() if not states or t.state in states]

    def pool(self, band):
        """The values of all runs at a band, those that a search knew from the beginning included."""
        known = [t for t in self.study.get_trials(False) if "run" not in t.user_attrs]
        return [t.intermediate_values[band] for t in known + self.trials() if band in t.intermediate_values]

    def retry(self):
        """Queue what failed again, as the same run, so with its checkpoint: as a new trial, for an old one is over."""
        with self.lock():
            over = self.trials(TrialState.FAIL)
            failed = [t for t in over if not t.user_attrs.get("cause", "").startswith("diverged")]
            for t in failed:
                self._add(t.user_attrs["run"], params=t.params, distributions=t.distributions)
        return len(failed)

    def get(self, trial):
        return self.storage.get_trial(trial._trial_id)

    def note(self, trial, **attributes):
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def _set(self, trial, state, value=None):
        self.storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])

    def is_alive(self, trial):
        """Whether a run's holder lives. Of one that shares our kernel and folder its lock tells; of others the beat."""
        held = trial.user_attrs["held"]
        here = held.get("where") == self.me["where"]
        return is_locked(self.folder / "held" / str(trial.number)) if here else time.time() - held["beat"] < GRACE

    def is_ours(self, trial):
        """Whether we still hold a run. False: we were taken for dead (suspended), and another agent has the run."""
        now = self.get(trial)
        return now.state == TrialState.RUNNING and now.user_attrs["held"].get("token") == self.me["token"]

    @patient
    def claim(self):
        """Take a run: a dead agent's first, then the first one waiting, then a new point. None: there is none now."""
        with self.lock():
            if self.study.user_attrs.get("stopped"):
                return None
            trials = self.trials()  # once: each look at a database costs many queries
            for trial in (t for t in trials if t.state == TrialState.RUNNING):
                held = trial.user_attrs["held"]
                ours = held.get("token") == self.me["token"]  # the database took our claim, and its answer was lost
                died = f"its agent died ({held['host']}, pid {held['pid']})"
                if ours or not (self.is_alive(trial) or self._give_up(trial, died)):
                    return self._take(trial)
            waiting = [t for t in trials if t.state == TrialState.WAITING]
            if waiting:
                return self._take(min(waiting, key=lambda t: len(t.user_attrs.get("ends", []))))  # what crashed is last
            return self._ask(len(trials))

    def _take(self, trial):
        folder = self.folder / "held" / str(trial.number)
        folder.mkdir(exist_ok=True)
        if self.hold:
            self.hold.release()
        self.hold = FileLock(folder / "lock")
        self.hold.acquire()
        self.note(trial, held=self.me | {"beat": time.time()})  # before the state: a RUNNING run always has its holder
        if trial.state == TrialState.WAITING:
            self._set(trial, TrialState.RUNNING)
        return self.get(trial)

    def _ask(self, runs):
        """A search's next point. The sampler's seed is the run's id: no two agents or searches draw alike."""
        if self.config["method"] == "grid" or runs >= self.sweep["runs"]:
            return None
        seed, samplers = int(self._run_id(len(self.study.get_trials(False))), 16), optuna.samplers
        bayes = functools.partial(samplers.TPESampler, multivariate=True, constant_liar=True, n_startup_trials=10)
        self.study.sampler = (bayes if self.config["method"] == "bayes" else samplers.RandomSampler)(seed=seed)
        trial = self._take(self.get(self.study.ask(distributions(self.config["parameters"]))))
        run = {"id": self._run_id(trial.number), "point": corners(self.config)[0] | trial.params}
        self.note(trial, run=run)  # last: with it, the point counts
        return self.get(trial)

    def beat(self, trial):
        """Say that this agent lives. False: the run is no longer its own."""
        with self.lock():
            if ours := self.is_ours(trial):
                self.note(trial, held=self.me | {"beat": time.time()})
            return ours

    @patient
    def end(self, trial, state, value=None, tried=None, **notes):
        """The run is over (COMPLETE, PRUNED, FAIL) or to be continued (WAITING), unless another agent has it by now.

        tried: how this try failed. Returns whether it was one too many: then the run is given up, and FAIL.
        """
        with self.lock():
            self.hold.release()
            if not self.is_ours(trial) or (tried and self._give_up(trial, tried)):
                return self.get(trial).state == TrialState.FAIL
            self.note(trial, **notes)
            self._set(trial, state, value)
            return False

    def _give_up(self, trial, how):
        """Note how a try ended, and whether it was one too many."""
        ends = [*self.get(trial).user_attrs.get("ends", []), how]
        self.note(trial, ends=ends)
        if given_up := sum(end.startswith("crashed") for end in ends) >= CRASHES or len(ends) >= DEATHS:
            self.note(trial, cause=f"given up after {len(ends)} tries: {how.removeprefix('crashed: ')}")
            self._set(trial, TrialState.FAIL)
        return given_up

    @patient
    def is_busy(self):
        """Whether a run is still going: its agent may yet die, so the others stay."""
        return bool(self.trials(TrialState.RUNNING)) and not self.study.user_attrs.get("stopped")


class WandbQueue(Queue):
    """The runs of a W&B sweep that this folder has taken. W&B's server hands them out, and its hyperband stops them;
    what was interrupted it does not hand out again: for that they are in a queue of our own.

    _register_agent and _agent_heartbeat are what `wandb agent` itself calls, private to wandb 0.31, which is pinned.
    """

    agent, mine, asked, over = None, None, -math.inf, False

    def _heartbeat(self, *running):
        """Tell the server which runs this agent works on. Returns the server's commands."""
        import wandb
        from wandb.apis.public.sweeps import _agent_heartbeat, _register_agent

        if self.agent is None:
            self.api, (entity, project, name) = wandb.Api(), self.sweep["path"].split("/")
            self.agent = _register_agent(self.api, platform.node(), sweep_id=name, project=project, entity=entity)["id"]
        return _agent_heartbeat(self.api, self.agent, {}, dict.fromkeys(running, True))

    def _ask(self, runs):
        if self.over or time.monotonic() < self.asked + 5:  # as often as `wandb agent` asks
            return None
        for command in self._heartbeat():
            self.over |= command["type"] == "exit"
            if command["type"] in ("run", "resume"):
                self.mine = command["run_id"]
                self._add({"id": self.mine, "point": {k: v["value"] for k, v in command["args"].items()}})
                return self._take(self.trials(TrialState.WAITING)[-1])
        self.asked = time.monotonic()

    def beat(self, trial):
        run_id = trial.user_attrs["run"]["id"]
        if run_id == self.mine and any(command["type"] == "stop" for command in self._heartbeat(run_id)):
            self.note(trial, stops=True)
        return super().beat(trial)

    def is_busy(self):
        return not self.over or super().is_busy()


def queue_of(sweep):
    return WandbQueue(sweep, create=True) if sweep["backend"] == "wandb" else Queue(sweep)
