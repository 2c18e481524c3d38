"""Stands in for train.py in the tests of the sweeps: same flags, exit codes and files, but an epoch is a hash.

    python stub_train.py --seed=1 --n_epochs=20 --nap=0.01    # runs/<id>/ with config.json, metrics.csv, summary.json

The value of an epoch depends on all before it: a run that was resumed wrongly cannot end up equal to an undisturbed.
"""

import argparse
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

FLAGS = {"problem": "toy", "data": "auto", "toy_dims": 3, "strategy": "plummet", "safeguards": "moderate", "arm": None}
FLAGS |= {"seed": 1, "n_epochs": 20, "pruning_epoch": 4, "polynomial_schedule_n": 2, "latent_dim": 20, "lr": 0.001}
FLAGS |= {"w_v": 0.01, "plummet_threshold": 0.05, "percentile": 0.2, "precision": "fp32"}
FLAGS |= {"out": "runs", "resume": None, "threads": 1, "wandb": "auto", "wandb_project": "stub", "wandb_entity": None}
# finish | crash: unless a file `mended` exists | diverge | refuse | full | hang: until a file `go` exists
FLAGS |= {"nap": 0.0, "end": "finish", "end_epoch": 3}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def parser():
    p = Parser(allow_abbrev=False)
    for name, default in FLAGS.items():
        kind = str if default is None else type(default)
        p.add_argument(f"--{name}", default=default, type=lambda x, kind=kind: None if x == "None" else kind(x))
    return p


def parse(argv):
    args = parser().parse_args(argv)
    for pair in args.arm.split(",") if args.arm else ():
        key, _, value = pair.partition("=")
        if any(a.startswith(f"--{key}=") for a in argv):
            raise ValueError(f"--{key}: given as a flag and in --arm")
        vars(args)[key] = getattr(parser().parse_args([f"--{key}={value}"]), key)
    if args.lr <= 0:
        raise ValueError(f"--lr {args.lr}: must be positive")
    return args


def settle(args):
    """What train.py makes of `precision: auto` on a machine without a GPU."""
    args.precision = "fp32"


def write(path, content):
    path.with_suffix(".tmp").write_text(json.dumps(content))
    os.replace(path.with_suffix(".tmp"), path)


def main():
    try:
        args = parse(sys.argv[1:])
        if args.end == "refuse":
            raise ValueError("--end refuse: as asked")
    except ValueError as error:
        print(f"stub: {error}", file=sys.stderr)
        return 2
    stop, run = [], None
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, frame: stop.append(128 + signum))
    folder = Path(args.out) / os.environ.get("WANDB_RUN_ID", str(os.getpid()))
    folder.mkdir(parents=True, exist_ok=True)
    metrics, checkpoint = folder / "metrics.csv", folder / "checkpoint.pt"
    lock = open(folder / "lock", "w")  # noqa: SIM115  held for the life of the process
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open("starts.log", "a") as file:  # one line for each start of a run, whoever started it
        print(folder.name, os.environ.get("OMP_NUM_THREADS"), file=file)
    if args.end == "full" or (folder / "summary.json").exists():
        return 4 if args.end == "full" else 0
    state, first = hashlib.sha256(json.dumps([args.seed, args.lr, args.w_v]).encode()).hexdigest(), 0
    if args.resume == "auto" and checkpoint.exists():
        state, first, size = json.loads(checkpoint.read_text())
        os.truncate(metrics, size)
    else:
        data = {"source": args.data, "sha256": os.environ.get("STUB_SHA", "")}
        write(folder / "config.json", {"id": folder.name, "flags": vars(args), "data": data})
        metrics.write_text("epoch,val_rec,active_dims,val_rec_pruned,epoch_seconds\n")
    online = args.wandb == "auto" and "WANDB_SWEEP_ID" in os.environ
    if online or args.wandb == "offline":
        import wandb

        how = {"mode": "online", "resume": "allow"} if online else {"mode": "offline"}
        run = wandb.init(id=folder.name, dir=str(folder), config=vars(args), project=args.wandb_project, **how)
    for epoch in range(first, args.n_epochs):
        time.sleep(args.nap)
        if epoch == args.end_epoch and args.end == "crash" and not Path("mended").exists():
            raise RuntimeError("crash, as asked")
        if epoch == args.end_epoch and args.end == "diverge":
            summary = {"status": "diverged", "cause": f"epoch {epoch}: nan", "id": folder.name, "epoch": epoch}
            write(folder / "summary.json", summary)
            return 3
        while epoch == args.end_epoch and args.end == "hang" and not (stop or Path("go").exists()):
            time.sleep(0.1)
        state = hashlib.sha256(state.encode()).hexdigest()
        value = 0.01 + args.w_v + int(state[:6], 16) / 2**24 / (10 + epoch)
        late = {"val_rec_pruned": value} if epoch >= args.pruning_epoch else {}
        with open(metrics, "a") as file:
            print(epoch, f"{value:.9g}", args.latent_dim, f"{value:.9g}" if late else "", args.nap, sep=",", file=file)
        if run:
            run.log({"epoch": epoch, "val_rec": value, **late})
        if epoch % 3 == 0 or stop:  # not after every epoch: what a killed run wrote since must be cut
            write(checkpoint, [state, epoch + 1, metrics.stat().st_size])
        if stop:
            if run:
                run.finish(exit_code=stop[0])
            return stop[0]
    whole = "\n".join(line.rpartition(",")[0] for line in metrics.read_text().splitlines())  # without epoch_seconds
    summary = {"status": "finished", "cause": None, "id": folder.name, "epoch": epoch, "val_rec": value}
    summary |= {"active_dims": args.latent_dim, "seconds": args.nap * args.n_epochs}
    summary |= {"metrics_sha256": hashlib.sha256(whole.encode()).hexdigest()}
    if run:
        run.summary.update(summary)
        run.finish()
    write(folder / "summary.json", summary)
    checkpoint.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
