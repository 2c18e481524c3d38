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
import math
import os
import platform
import re
import secrets
import time
import warnings
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lvae import InputError, first_line, need
from record import bounded, is_locked, lock

STATE = Path(".sweeps")
BEAT = 30  # seconds between two heartbeats of a run
GRACE = 4 * BEAT  # an agent elsewhere that has not beaten for so long is dead. Clocks must agree to well within this
AWAY = (DBAPIError, optuna.exceptions.StorageInternalError)  # what a database raises that is away for a while
CRASHES = 3  # a run that crashed so often is given up
BOOT = Path("/proc/sys/kernel/random/boot_id")
KERNEL = BOOT.read_text().strip() if BOOT.exists() else platform.node()
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def say(text):
    with contextlib.suppress(OSError):  # a pipe that nobody reads any more ends no agent
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def redacted(text):
    """Text without the passwords of the URLs in it."""
    return re.sub(r"(//[^:@/\s]*):[^@\s]*@", r"\1:***@", re.sub(r"(password=)[^&\s]*", r"\1***", str(text)))


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
            try:
                found[k] = kinds[kind](p["min"], p["max"])
            except ValueError as error:
                raise InputError(f"parameter {k}: {error}") from None
    return found


def bands(rule, n):
    """W&B's hyperband: the bands up to n logged values, min_iter * eta^k; none without a rule (early_terminate)."""
    rule = rule or {"min_iter": math.inf}
    found, band, eta = [], rule.get("min_iter", 0), rule.get("eta", 3)
    need(band >= 1 and eta >= 1.1, "early_terminate needs min_iter >= 1 and eta >= 1.1")
    while band <= n:
        found.append(int(band))
        band *= eta
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
        return True

    def release(self, *error):
        self.file.close()

    __enter__, __exit__ = acquire, release


class Queue:
    """The runs of one sweep, as created: id, config, data, storage (None: a journal in its folder)."""

    every, over = BEAT, True  # seconds between two heartbeats of a run; whether nobody adds runs

    def __init__(self, sweep, create=False):
        self.sweep, self.name, self.folder = sweep, sweep["id"], STATE / sweep["id"]
        self.database, self.hold, self.token = None, None, secrets.token_hex(8)
        try:
            if sweep.get("storage"):
                self.database = optuna.storages.RDBStorage(sweep["storage"], engine_kwargs={"pool_pre_ping": True})
                self.storage = optuna.storages.get_storage(self.database)
            else:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                journal = self.folder / "journal.log"
                held = FileLock(self.folder / "journal.lock", journal)
                backend = optuna.storages.journal.JournalFileBackend(str(journal), held)
                self.storage = optuna.storages.JournalStorage(backend)
            how = {"study_name": self.name, "storage": self.storage}
            if create:
                optuna.create_study(**how, direction=sweep["config"]["metric"].get("goal"), load_if_exists=True)
            self.study = optuna.load_study(**how)
        except OSError:
            raise
        except Exception as error:  # optuna, sqlalchemy and psycopg raise a dozen types for what is damaged, or refuses
            where = "STORAGE" if sweep.get("storage") else journal
            advice = "is away, gone or damaged. If gone, create the sweep anew: what is in its results is not run again"
            raise InputError(f"{where}: {advice} ({redacted(first_line(error))})") from None
        if "config" not in sweep:  # joined from another machine: the sweep travels with Optuna's study
            self.sweep = self.study.user_attrs["sweep"] | {"storage": sweep["storage"]}
        self.config = self.sweep["config"]

    @contextlib.contextmanager
    def lock(self):
        """Only one agent at a time changes who works on what."""
        with self.database.engine.begin() if self.database else FileLock(self.folder / "queue.lock") as held:
            if self.database:  # dropped at the transaction's end, or the connection's
                held.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": self.name})
            yield

    def fill(self, points, known=()):
        """Put in the points of a grid, in order, or the trials that a search knows already; and the sweep."""
        # each trial repeats its distributions: a long list would make the journal huge
        space = distributions(self.config["parameters"], 100)
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

    def retry(self):
        """Queue what failed again, as the same run, so with its checkpoint: as a new trial, for an old one is over."""
        with self.lock():
            failed = [t for t in self.trials(TrialState.FAIL) if not t.user_attrs["cause"].startswith("diverged")]
            for t in failed:
                self._add(t.user_attrs["run"], params=t.params, distributions=t.distributions)
        return len(failed)

    def get(self, trial):
        return self.storage.get_trial(trial._trial_id)

    def note(self, trial, **attributes):
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def is_alive(self, trial):
        """Whether a run's holder lives. Of one that shares our kernel and folder its lock tells; of others the beat."""
        held = trial.user_attrs["held"]
        folder = self.folder / "held" / held["token"]
        here = held["kernel"] == KERNEL and folder.exists()
        return is_locked(folder) if here else time.time() - held["beat"] < GRACE

    def is_ours(self, trial):
        """Whether we still hold a run. False: we were taken for dead (suspended), and another agent has the run."""
        now = self.get(trial)
        return now.state == TrialState.RUNNING and self._holds(now)

    def _holds(self, trial):  # in claim(): the database took our claim, and its answer was lost
        return trial.user_attrs["held"]["token"] == self.token

    def claim(self):
        """Take a run: a dead agent's first, then the first one waiting, then a new point. None: there is none now."""
        with self.lock():
            if self.study.user_attrs.get("stopped"):
                return None
            trials = self.trials()  # once: each look at a database costs many queries
            free = [t for t in trials if t.state == TrialState.RUNNING and (self._holds(t) or not self.is_alive(t))]
            waiting = [t for t in trials if t.state == TrialState.WAITING]
            # what could not start, or crashed, is last
            free += sorted(waiting, key=lambda t: ("refused" in t.user_attrs, len(t.user_attrs.get("crashes", []))))
            return self._take(free[0]) if free else self._ask(len(trials))

    def _take(self, trial):
        if not self.hold:
            folder = self.folder / "held" / self.token
            folder.mkdir(parents=True)
            self.hold = FileLock(folder / "lock")
            self.hold.acquire()
        self._beat(trial)  # before the state: a RUNNING run always has its holder
        if trial.state == TrialState.WAITING:
            self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        return self.get(trial)

    def _beat(self, trial):
        held = {"pid": os.getpid(), "kernel": KERNEL, "token": self.token, "beat": time.time()}
        self.note(trial, held=held)

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
        """Say that this agent lives, unless the run is no longer its own."""
        with self.lock():
            if self.is_ours(trial):
                self._beat(trial)

    def report(self, trial, values):
        """Write down the metric's values at hyperband's bands. Returns whether it stops the run."""
        known, rule = trial.intermediate_values, self.config.get("early_terminate")
        new = [band for band in bands(rule, len(values)) if band not in known]
        for band in new:  # each is an fsync
            self.storage.set_trial_intermediate_value(trial._trial_id, band, values[band - 1])
            known[band] = values[band - 1]  # after it: a database that is away is asked again
        sign = -1 if self.config["metric"].get("goal") == "maximize" else 1

        def pool(band):  # of all runs, and of those that a search knew from the beginning
            theirs = [t.intermediate_values for t in self.study.get_trials(False)]
            return [sign * reports[band] for reports in theirs if band in reports]

        return bool(new) and hyperband_stops([sign * v for v in values], pool, rule)

    def end(self, trial, state, value=None, cause=None, crashed=None):
        """The run is over (COMPLETE, PRUNED, FAIL) or to be continued (WAITING), unless another agent has it by now.

        crashed: how this try failed; after CRASHES of them the run is given up. Returns the state that it has now.
        """
        with self.lock():
            if self.is_ours(trial):
                if crashed:
                    crashes = [*self.get(trial).user_attrs.get("crashes", []), crashed]
                    self.note(trial, crashes=crashes)
                    if len(crashes) >= CRASHES:
                        state, cause = TrialState.FAIL, f"given up after {len(crashes)} tries: {crashed}"
                self.note(trial, cause=cause)
                self.storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])
            return self.get(trial).state

    def is_busy(self):
        """Whether there may be runs yet: W&B hands out more, or one is still going, whose agent may die."""
        with self.lock():
            more = not self.over or bool(self.trials(TrialState.RUNNING))
            return more and not self.study.user_attrs.get("stopped")


def ask_wandb(what, function):
    """function(), which asks W&B's server, for a minute at most. Raises InputError where W&B does not answer."""
    try:
        return bounded(function, 60)
    except Exception as error:  # wandb raises its own, requests' and ValueError
        raise InputError(f"W&B: {what} ({first_line(error)})") from None


class WandbQueue(Queue):
    """The runs of a W&B sweep that this folder has taken. W&B's server hands them out, and its hyperband stops them;
    what was interrupted it does not hand out again: for that they are in a queue of our own.

    _register_agent and _agent_heartbeat are what `wandb agent` itself calls, private to wandb 0.31, which is pinned.
    """

    every = 5  # as often as `wandb agent` asks
    agent, mine, asked, over, stops = None, None, -math.inf, False, False

    def _heartbeat(self, *running):
        """Tell the server which runs this agent works on. Returns the server's commands."""
        import wandb
        from wandb.apis.public.sweeps import _agent_heartbeat, _register_agent

        if self.agent is None:
            self.api, (entity, project, name) = wandb.Api(), self.sweep["path"].split("/")
            self.agent = _register_agent(self.api, platform.node(), sweep_id=name, project=project, entity=entity)["id"]
        return _agent_heartbeat(self.api, self.agent, {}, dict.fromkeys(running, True))

    def _ask(self, runs):
        if self.over or time.monotonic() < self.asked + self.every:
            return None
        for command in ask_wandb("does not hand out runs", self._heartbeat):
            self.over |= command["type"] == "exit"
            if command["type"] in ("run", "resume"):
                self.mine, self.stops = command["run_id"], False
                self._add({"id": self.mine, "point": {k: v["value"] for k, v in command["args"].items()}})
                return self._take(self.trials(TrialState.WAITING)[-1])
        self.asked = time.monotonic()

    def beat(self, trial):
        if (run_id := trial.user_attrs["run"]["id"]) == self.mine:
            commands = ask_wandb("does not answer", lambda: self._heartbeat(run_id))
            self.stops |= any(command["type"] == "stop" for command in commands)
        super().beat(trial)

    def report(self, trial, values):
        return self.stops and trial.user_attrs["run"]["id"] == self.mine  # the server, to which the program reports


def queue_of(sweep):
    return WandbQueue(sweep, create=True) if sweep["backend"] == "wandb" else Queue(sweep)
