"""The record of a run: its folder, lock, CSV files, checkpoints, and W&B. train.py writes its files through it.

runs/<id>/config.json       flags, data fingerprint, versions, machine; extended: where n_epochs grew, if it did
runs/<id>/metrics.csv       one row an epoch (COLUMNS; docs/records.md says what each means)
runs/<id>/pruning.csv       one row a proposal (PRUNING_COLUMNS)
runs/<id>/summary.json      written last: the run is finished
runs/<id>/checkpoint.pt     while running, with the one before it in checkpoint_previous.pt
"""

import argparse
import contextlib
import csv
import datetime
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from lvae import InputError, first_line, need
from pruning import SAFEGUARDS
from tools.hub import Hung, ask, within

COLUMNS = ["epoch", "rec_loss", "vol_loss", "total_loss", "val_rec", "val_vol_loss", "val_total_loss", "active_dims"]
COLUMNS += ["w_v", "pruned", "val_rec_pruned", "dims_within", "epoch_seconds"]
NOT_HASHED = ["dims_within", "epoch_seconds"]  # a new column is one of them, too: older rows have hashes without it
SEARCHED = ["dims_within", "val_rec_pruned"]  # what a search minimises: a row that does not say so, the latter
PRUNING_COLUMNS = ["epoch", "proposed", *SAFEGUARDS, "pruned", "trimmed", "restored", "dims", "std"]
# Older names of columns: today's
RENAMED = dict(cooldown="cooldown_epochs", cap="max_prune_per_epoch", floor="min_active_dims")
RENAMED |= {f"sum_{old}": f"sum_{new}" for old, new in RENAMED.items()}
# Flags that do not change what a run computes: a checkpoint continues under others. `n_epochs` may grow, too.
FREE_FLAGS = ("out", "resume", "config", "wandb", "wandb_project", "wandb_entity", "device", "figure_every")
FREE_FLAGS += ("checkpoint_every", "save_model", "test", "arm")  # an arm is compared by the flags that it sets
# Flags with a value that leaves the choice to the machine; a run that continues keeps the choice made at its start.
AUTO = {"threads": 0, "precision": "auto"}
# A row, config.json or checkpoint of before a flag existed lacks it. This value, of its type, does what was done then.
LEGACY = dict(volume="geometric", rotate_every=0, trim_share=0.0, trim_rec=None, mirror=False, n_train=0, keep="last")

# ---- Files -----------------------------------------------------------------------------------------------------------


def write_atomically(path, data):
    """Write bytes or text to path so that a reader, or a crash, sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # or the full disk stays full
        raise
    os.replace(temporary, path)


def to_json(value):
    """JSON text with infinities and NaN as strings ("inf"), which every JSON reader takes."""
    plain = json.loads(json.dumps(value), parse_constant=lambda name: str(float(name)))
    return json.dumps(plain, indent=1) + "\n"


def read_text(path):
    """The text of a file. OSError for what is none: a pipe or a device may never end."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file")
    return path.read_text()


def read_json(path):
    """The value in a JSON file; None where it is missing, damaged or nested too deep."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.loads(read_text(path))
    return None


def read_csv(path):
    """A CSV as a DataFrame of strings, "" where a cell is empty; an empty frame where there is no file. InputError.

    A last line without its end is left out: somebody is writing it, or was killed.
    """
    import pandas

    path = Path(path)
    try:
        text = path.read_text() if path.exists() else ""
        rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV in UTF-8 ({first_line(error)}); delete or mend it") from None
    for i, row in enumerate(rows, 1):
        if len(row) != len(rows[0]) or "\0" in "".join(row) or (len(row) == 1 and ";" in row[0]):
            what = f"line {i} has {len(row)} cells, the header {len(rows[0])}, or NUL bytes, or semicolons for commas"
            raise InputError(f"{path}: {what}; delete or mend the line")
    found = pandas.DataFrame(rows[1:], columns=rows[0], dtype=str) if rows else pandas.DataFrame()
    for old in RENAMED.keys() & {*found}:  # with the new name, too, where older code added rows
        if (new := RENAMED[old]) in found:
            found[new] = found[new].where(found[new] != "", found.pop(old))
    return found.rename(columns=RENAMED)


def slug(text):
    """Text as a name of a file, a folder or an HTML id: [A-Za-z0-9._-], 1 to 100 letters, not starting with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(text)).lstrip(".")[:100] or "-"


def lock(file, how):
    """fcntl.flock; where a file system has no locks, its OSError names the file and the remedy."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        said = f"no locks on this file system ({os.strerror(error.errno)}); work in a folder on another disk"
        raise OSError(error.errno, said, str(file.name)) from None


def is_locked(folder):
    """True if a process is at work in a run folder: train.py holds an exclusive lock on its file `lock`."""
    with contextlib.suppress(FileNotFoundError), open(folder / "lock") as file:
        try:
            lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def number(value):
    """float(value), NaN for anything that is none (None, "", text, a truncated cell)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def plain(value):
    """A flag's value as it is compared: an int or a float where it is one, else text (None, True)."""
    x = math.nan if isinstance(value, bool) else number(value)
    return str(value) if math.isnan(x) else int(x) if x.is_integer() else x


class Parser(argparse.ArgumentParser):
    """argparse, with a module's docstring as its help, and errors of one line."""

    def __init__(self, doc=None, **how):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **how)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def guarded(program, function, *arguments, cannot="cannot write", shown=str):
    """function(*arguments) as an exit code: what is the matter is one line on stderr, not a traceback.

    0, or what the function returns; 2: bad input; 4: cannot write; 130: Ctrl-C. shown: makes text of an error.
    """
    try:
        return int(function(*arguments) or 0)
    except InputError as error:
        print(f"{program}: {shown(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        with contextlib.suppress(OSError):  # stderr may lie on the full disk, too
            print(f"{program}: {cannot} ({shown(error)})", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130


# ---- A run -----------------------------------------------------------------------------------------------------------


class Run:
    """An open run folder, locked by this process until it ends. InputError if another has it, OSError if unwritable."""

    def __init__(self, folder):
        self.folder, self.id, self.config = folder, folder.name, None  # open_run sets the config
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / "lock", "w")  # noqa: SIM115  held for the life of the process
        try:
            lock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = "another process is working on this run; wait for it or stop it"
            raise InputError(f"--resume {folder}: {busy}") from None

    def start(self, config):
        """Write config.json and the headers of a fresh run."""
        write_atomically(self.folder / "metrics.csv", ",".join(COLUMNS) + "\n")
        write_atomically(self.folder / "pruning.csv", ",".join(PRUNING_COLUMNS) + "\n")
        write_atomically(self.folder / "config.json", to_json(config))

    def append(self, name, row):
        """Append one row to a CSV. Floats in 9 digits: enough to tell any two float32 apart."""

        def cell(value):
            if isinstance(value, list):
                return " ".join(map(cell, value))
            return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)

        with open(self.folder / name, "a+") as file:
            file.seek(0)
            columns = file.readline().rstrip("\n").split(",")  # of a run that older code began: fewer
            file.write(",".join(cell(row[RENAMED.get(key, key)]) for key in columns) + "\n")

    def checkpoint(self, state):
        """Save the state, with length and hash of both CSV files, and keep the checkpoint before it."""
        state = state | dict(flags=self.config["flags"], extended=self.config.get("extended", []))
        state |= dict(sha256=self.config["data"]["sha256"], positions={})
        for name in ("metrics.csv", "pruning.csv"):
            with open(self.folder / name, "rb+") as file:
                os.fsync(file.fileno())
                text = file.read()
            state["positions"][name] = (len(text), hashlib.sha256(text).hexdigest())
        buffer = io.BytesIO()
        torch.save(state, buffer)
        new, path = (self.folder / name for name in ("checkpoint.new.pt", "checkpoint.pt"))
        write_atomically(new, buffer.getvalue())
        if path.exists():
            os.replace(path, self.folder / "checkpoint_previous.pt")
        os.replace(new, path)

    def restore(self, device):
        """The newest whole checkpoint, with the CSV files cut back to it; None if there is none. Names broken ones."""
        broken = []
        names = ("checkpoint.new.pt", "checkpoint.pt", "checkpoint_previous.pt")
        for path in (self.folder / name for name in names if (self.folder / name).exists()):
            try:
                with zipfile.ZipFile(path) as archive:  # torch verifies no checksums: a flipped bit would go unseen
                    if archive.testzip():
                        raise ValueError("checksum mismatch")
                state = torch.load(path, map_location=device, weights_only=True)
                other_designs = state["sha256"] != self.config["data"]["sha256"]
                if other_designs or different_flags(state["flags"], self.config["flags"]):
                    raise ValueError("it is of other flags or designs")
                for file, (size, digest) in state["positions"].items():
                    if hashlib.sha256((self.folder / file).read_bytes()[:size]).hexdigest() != digest:
                        raise ValueError(f"{file} is damaged, or older")
            except Exception as error:  # zipfile, pickle and torch raise their own
                said = f"checkpoint {path} cannot be used ({first_line(error)}); trying the one before it"
                print(said, file=sys.stderr)
                broken.append(path.name)
                continue
            for file, (size, _) in state["positions"].items():
                os.truncate(self.folder / file, size)
            epoch, n_epochs = state["epoch"] + 1, state["flags"]["n_epochs"]
            grown = [dict(epoch=epoch, n_epochs=n_epochs)] if n_epochs < self.config["flags"]["n_epochs"] else []
            self.config["extended"] = [*state["extended"], *grown]
            self.config["continued"] = _changes(self.config, epoch, describe_machine(device))
            write_atomically(self.folder / "config.json", to_json(self.config))
            return state
        need(not broken, f"--resume {self.folder}: no usable checkpoint ({', '.join(broken)}: see above)")
        self.start(self.config)  # stopped before its first checkpoint: from the beginning
        return None

    def metrics_digest(self):
        """sha256 of metrics.csv without the columns NOT_HASHED: equal for two runs that computed the same."""
        header, *lines = [line.split(",") for line in (self.folder / "metrics.csv").read_text().splitlines()]
        kept = [i for i, name in enumerate(header) if name not in NOT_HASHED]
        text = "\n".join(",".join(cells[i] for i in kept) for cells in (header, *lines))
        return hashlib.sha256(text.encode()).hexdigest()

    def finish(self, summary, tracker, code):
        """End W&B's run, then write summary.json: the run is over, whatever its status.

        Not before W&B has everything, since nobody continues a run that is over; but its place on the disk is taken
        before.
        """
        write_atomically(self.folder / "summary.new.json", to_json(summary))
        tracker.finish(summary, code)
        os.replace(self.folder / "summary.new.json", self.folder / "summary.json")
        tidy(self.folder)


def tidy(folder):
    """Delete the checkpoints of a finished run, not a diverged run's last good one. Any process may, at any time."""
    if status(folder) == "finished":
        for path in folder.glob("checkpoint*"):
            path.unlink(missing_ok=True)


def status(folder):
    """None while a run is unfinished, else what its summary says: finished or diverged; damaged if it says neither."""
    if not (folder / "summary.json").exists():
        return None
    summary = read_json(folder / "summary.json")
    found = summary.get("status") if isinstance(summary, dict) else None
    return found if found in ("finished", "diverged") else "damaged"


def different_flags(old, new):
    """Names of the flags whose values forbid that a run of flags `old` is continued with flags `new`."""
    old, new = LEGACY | json.loads(to_json(old)), json.loads(to_json(new))
    bound = [k for k in new if k not in FREE_FLAGS and k != "n_epochs"]
    different = [k for k in bound if old.get(k) != new[k] and (k not in AUTO or new[k] != AUTO[k])]
    return different + (["n_epochs"] if new["n_epochs"] < old.get("n_epochs", 0) else [])


def run_id():
    """The id that an agent gave this run, or None. It names a folder, so that a path is refused."""
    given = os.environ.get("WANDB_RUN_ID")
    if given and slug(given) != given:
        raise InputError(f"WANDB_RUN_ID {given}: allowed: letters, digits, and . _ - inside it, as it names a folder")
    return given or None


def _read_config(path):
    """A run's config.json, or None where it is missing or damaged."""
    with contextlib.suppress(KeyError, TypeError):
        config = read_json(path)
        needed = [config["name"], config["data"]["sha256"], config["data"]["source"]]
        needed += [config["flags"][flag] for flag in AUTO]
        return config if None not in needed and isinstance(config["flags"]["n_epochs"], int) else None


def locate(args, fingerprint):
    """The folder to work in, and the config of its run or None. Flags left to `auto` take that run's values."""
    folder, old = Path(args.out) / (run_id() or secrets.token_hex(4)), None
    if args.resume == "auto":
        # an agent's run has its id, and is none of those that another sweep's agents left or work on
        others = [] if run_id() else Path(args.out).glob("*/config.json")
        for path in sorted(others, key=lambda p: -p.stat().st_mtime):
            config = _read_config(path)
            if not config or status(path.parent) or config["data"] != fingerprint:
                continue
            if config["flags"]["n_epochs"] == args.n_epochs and not different_flags(config["flags"], vars(args)):
                folder, old = path.parent, config
                break
    elif args.resume:
        folder = Path(args.resume).resolve() if Path(args.resume).name in ("", "..") else Path(args.resume)
        old = _read_config(folder / "config.json")
        need(old, f"--resume {folder}: its config.json is damaged")
        if different := different_flags(old["flags"], vars(args)):
            allowed = ", ".join(f"--{key} {(LEGACY | old['flags']).get(key)}" for key in different[:5])
            raise InputError(f"--resume {folder}: was started with other flags; allowed: {allowed}")
        if old["data"]["sha256"] != fingerprint["sha256"]:
            raise InputError(f"--resume {folder}: was started on other designs (source {old['data']['source']})")
        if (over := status(folder)) == "damaged":
            raise InputError(f"--resume {folder}: its summary.json is damaged; delete it to compute the run again")
        if over and args.n_epochs > old["flags"]["n_epochs"]:
            raise InputError(f"--n_epochs {args.n_epochs}: {folder} is {over} and cannot be made longer")
    elif args.config:
        theirs = (_read_config(Path(args.config)) or {}).get("data", fingerprint)
        if theirs["sha256"] != fingerprint["sha256"]:
            raise InputError(f"--config {args.config}: ran on other designs than --data {args.data}")
    if old:
        vars(args).update({flag: old["flags"][flag] for flag in AUTO})
    return folder, old


def open_run(folder, old, args, fingerprint, device):
    """Open and lock the run in `folder`; a fresh one is started, with its config. Returns the Run."""
    run = Run(folder)
    if old:
        if status(folder):  # by the process that had the lock until now
            raise InputError(f"--resume {folder}: another process has just ended this run")
        given = vars(args) | dict(arm=args.arm or old["flags"].get("arm"), out=str(folder.parent))
        run.config = old | {"flags": given}  # n_epochs may have grown: restore() sees to it
    elif (folder / "config.json").exists():
        raise InputError(f"--out {args.out}: another process has just started the run {folder.name}")
    else:
        name = f"{args.problem}-{args.strategy}-s{args.seed}-{folder.name}"
        run.config = dict(id=folder.name, name=name, flags=vars(args), data=fingerprint) | describe_machine(device)
        run.config["started"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        run.config["sweep"] = os.environ.get("WANDB_RUN_GROUP")  # set by sweep.py's agents
        run.start(run.config)
    return run


# ---- What a run ran on: its results are equal bit for bit only where the CPU is --------------------------------------


def _git_commit():
    command = ["git", "-C", Path(__file__).parent, "status", "--porcelain=v2", "--branch", "-uno", "--", ":/"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # agents add rows to results/
        said = subprocess.run([*command, ":!/results"], capture_output=True, timeout=5).stdout.decode(errors="replace")
        commit = re.search(r"# branch.oid (\w+)", said)
        return commit and commit[1] + "+changes" * bool(re.search("^[^#]", said, re.M))


def cpu_model():
    """The CPU, as far as it decides which kernels torch takes: "Intel(R) Xeon(R) Processor 207, AVX512"."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
    found = [re.search(rf"^{key}\s*:(.*)", text, re.M) for key in ("model name", "model")]
    name = " ".join(match[1].strip() for match in found if match) or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def cores():
    """How many cores this process may use: its affinity, and the CPU quota of its container (cgroup v2 or v1)."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # "max": no quota
            text = " ".join(Path("/sys/fs/cgroup", name).read_text() for name in names)
            quota, period = map(int, text.split())
            n = min(n, max(1, quota // period)) if quota > 0 else n
    return n


def describe_machine(device):
    """Commit, versions and machine, as config.json records them."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "engibench", "wandb"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = {"host": platform.node(), "system": platform.platform(), "cpu": cpu_model()}
    machine |= {"cores": cores(), "device": str(device)}
    slurm = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")  # which job, and after how many restarts
    machine |= {k.lower(): os.environ[k] for k in slurm if k in os.environ}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return {"git": _git_commit(), "versions": versions, "machine": machine}


def _changes(config, epoch, now):
    """config["continued"]: where a run went on with another commit, version or CPU, which is said on stderr, too."""
    earlier = [entry for entry in config.get("continued", []) if entry["epoch"] < epoch]  # later ones are lost

    def what(entry):
        versions = {f"{k} version": v for k, v in entry.get("versions", {}).items()}
        return {"commit": entry.get("git"), "cpu": entry.get("machine", {}).get("cpu")} | versions

    then = what(earlier[-1] if earlier else config)
    other = [f"{k} {then.get(k)} -> {v}" for k, v in what(now).items() if then.get(k) != v]
    if other:
        print(f"warning: from epoch {epoch + 1} on, this run is made by others: {'; '.join(other)}", file=sys.stderr)
    return [*earlier, {"epoch": epoch, "changed": other} | now] if other else earlier


def made_by(config):
    """The commit that made a run; where it was continued by others, those, too, with what changed."""
    later = []
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # a damaged config.json: nothing is known of it
        later = [f"from epoch {e['epoch'] + 1}: {', '.join(e['changed'])}" for e in config.get("continued", [])]
    return "; ".join([str(config.get("git")), *later])


# ---- W&B -------------------------------------------------------------------------------------------------------------

HUNG = []  # third parties' calls that did not return, or whose process died: their exit hooks would not return, either


def bounded(function, seconds=30):
    """function(), waited for so long: the start of W&B's service may never end. TimeoutError."""
    try:
        return within(function, seconds)
    except Hung:
        HUNG.append(function)
        raise


def leave(code):
    """End the process with this exit code; at once where an exit hook would wait for what hangs."""
    if HUNG:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()  # each line of stderr is out already
        os._exit(code)
    sys.exit(code)


def wandb_server():
    """The address of W&B's server. wandb.setup() says it, too, but starts its service for that."""
    from wandb.sdk.wandb_setup import singleton

    return singleton().settings.base_url


def logged_in(server):
    """True if there is a W&B key for this server: in the environment, or in ~/.netrc, where `wandb login` puts it."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    told = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    with contextlib.suppress(Exception):  # what ~/.netrc has is no key
        return bool(told or read_netrc_auth(host=server))
    return False


class NoWandb:
    """Stands in for a W&B run when there is none, so that the training loop has no branches."""

    def log(self, *_):
        pass

    images = finish = log


class Wandb(NoWandb):
    """A W&B run that can neither delay the start by more than a few seconds nor end the training. Its steps are epochs.

    What a process had not sent when it was killed is lost to W&B's client, even offline. So a resumed run first logs
    the rows of metrics.csv that W&B lacks. At its end, what its earlier processes left in wandb/ goes to
    wandb/superseded/: it is incomplete, and in the way of `wandb sync`.
    """

    def __init__(self, mode, run, project, entity):
        import wandb

        self.lost, folder, resume = False, str(run.folder), "allow" if mode == "online" else None
        names = dict(id=run.id, name=run.config["name"], project=project, entity=entity, dir=folder)
        settings = wandb.Settings(init_timeout=10, root_dir=folder)
        self.run = wandb.init(mode=mode, resume=resume, config=run.config["flags"], settings=settings, **names)
        self.folder, self.image = Path(self.run.settings.sync_dir), wandb.Image
        self.first = self.run.starting_step  # a server that has epochs 0..e: e + 1
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        about = {f"_{key}": run.config[key] for key in ("data", "git", "versions", "machine")}
        self.run.config.update(about, allow_val_change=True)
        for row in read_csv(run.folder / "metrics.csv").to_dict("records"):
            self.log({key: int(text) if text.isdigit() else float(text) for key, text in row.items() if text})
        self.earlier = [path for path in (run.folder / "wandb").glob(f"*run-2*-{run.id}") if path != self.folder]

    def _call(self, function, *args, **kwargs):
        """Call W&B's client; when its service process has died, which raises many types, the run goes on without it."""
        try:
            if not self.lost:
                function(*args, **kwargs)
        except Exception as error:
            self.lost = True
            HUNG.append(function)
            print(f"W&B: its client died ({first_line(error)}); going on without it", file=sys.stderr, flush=True)

    def log(self, row):
        if row["epoch"] >= self.first:
            self._call(self.run.log, {key: value for key, value in row.items() if value is not None}, step=row["epoch"])

    def images(self, folder, epoch):
        read, paths, step = self.image, sorted(folder.glob("*.png")), max(epoch, self.first)
        self._call(lambda: self.run.log({path.stem: read(str(path)) for path in paths}, step=step))

    def finish(self, summary, code):
        """Send what is left, for a minute at most: a dead server would hold W&B's client for many."""
        self._call(self.run.summary.update, summary)
        try:
            bounded(lambda: self._call(self.run.finish, exit_code=code), 60)
        except TimeoutError:
            offline = self.folder.with_name("offline-" + self.folder.name.removeprefix("offline-"))
            with contextlib.suppress(OSError):
                os.rename(self.folder, offline)  # under this name `wandb sync` takes it
            print(f"W&B does not answer; later: wandb sync {offline}", file=sys.stderr, flush=True)
            return
        for path in () if self.lost else self.earlier:
            with contextlib.suppress(OSError):
                path.parent.joinpath("superseded").mkdir(exist_ok=True)
                path.rename(path.parent / "superseded" / path.name)


def open_wandb(args, run):
    """The W&B run that --wandb asks for; WANDB_MODE has the last word on `auto`."""
    mode = args.wandb if args.wandb != "auto" else os.environ.get("WANDB_MODE") or "auto"
    if mode == "disabled":
        return NoWandb()

    def say(text):
        print(f"W&B: {text}", file=sys.stderr, flush=True)

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        server = wandb_server()
        if mode == "auto":  # online when logged in or under an agent
            mode = "online" if "WANDB_SWEEP_ID" in os.environ or logged_in(server) else "offline"
    except Exception as error:  # its settings are checked by pydantic, which raises its own
        say(f"cannot be used ({first_line(error)}); going on without it")
        return NoWandb()
    if mode == "online" and str(ask(server, 3)).startswith("no answer"):
        say("its server cannot be reached; this run is logged offline (`wandb sync` uploads it later)")
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            found = bounded(lambda mode=attempt: Wandb(mode, run, args.wandb_project, args.wandb_entity), 60)
        except Exception as error:  # wandb.Error, or what the client's service raises
            last = HUNG or attempt == "offline"
            what = "start" if HUNG else f"log {attempt}"
            say(f"cannot {what} ({first_line(error)})" + ("; going on without it" if last else ""))
            if last:
                return NoWandb()
            with contextlib.suppress(Exception):
                bounded(wandb.teardown)  # or the second attempt finds the run "in use"
        else:
            if attempt == "offline":
                how = "`wandb login` logs online, --wandb disabled not at all"
                print(f"W&B: logged offline, in {run.folder / 'wandb'}; {how}", flush=True)
            return found
