"""Train a least-volume autoencoder (LVAE) whose needless latent dimensions are pruned while it trains.

    python train.py --problem beams2d --strategy plummet        # EngiBench's designs, or the bundled ones; W&B if you are logged in
    python train.py --problem toy --toy_dims 2 --min_active_dims 1 --latent_dim 20 --w_v 0.1 --n_epochs 200 --pruning_epoch 120

Every flag: --help, or flags.py. Minimised is

    rec + w_v(epoch) * vol,    rec = mean squared pixel error,    vol = geometric mean of the latent standard deviations

(Chen & Fuge, Least Volume, ICLR 2024, arXiv 2404.17773), with a decoder of bounded Lipschitz constant (lvae.py). Dimensions whose
standard deviation has fallen off the cliff are frozen at their mean (pruning.py). What is written where: record.py.
"""

import contextlib
import datetime
import io
import json
import math
import signal
import sys
import time

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torch takes seconds to import: Ctrl-C ends them without a traceback

import torch
import torch.nn.functional as F
from torch.optim.adam import adam
from tqdm import tqdm

import data
import figures
import record
from data import InputError
from flags import DEFAULTS, parse, parser  # noqa: F401  parser is for the sweeps

parser()
LEGACY = {}  # TEMPORARY, until train.py brings its own
from lvae import LVAE, compact
from pruning import Pruner, volume


def warn(args):
    """Say on stderr where the schedule cannot do what it was asked for."""
    if args.strategy != "none" and args.pruning_epoch >= args.n_epochs:
        print(f"warning: --pruning_epoch {args.pruning_epoch} is not before --n_epochs {args.n_epochs}: never prunes", file=sys.stderr)
    elif args.strategy != "none" and args.pruning_epoch < args.polynomial_schedule_n:
        n = args.polynomial_schedule_n
        print(f"warning: --pruning_epoch {args.pruning_epoch} comes before w_v is reached (--polynomial_schedule_n {n})", file=sys.stderr)


class Adam:
    """torch's fused Adam, by its functional form: torch.optim.Adam itself imports the compiler, which takes seconds."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.means, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self, lr):
        """One step down the gradients, which are used up."""
        state = ([p.grad for p in self.parameters], self.means, self.squares, [], self.steps)
        fixed = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0, amsgrad=False, maximize=False, fused=True)
        adam(self.parameters, *state, lr=lr, **fixed)
        for p in self.parameters:
            p.grad = None

    def state_dict(self):
        return dict(means=self.means, squares=self.squares, steps=self.steps)

    def load_state_dict(self, state):
        self.means, self.squares, self.steps = (state[key] for key in ("means", "squares", "steps"))


class Trainer:
    """Model, optimiser, pruner and designs on their device; `epoch()` trains one epoch and returns its row of metrics.csv."""

    def __init__(self, args, designs, device):
        torch.manual_seed(args.seed)
        self.args, self.device = args, device
        self.train, self.val = designs.train.to(device), designs.val.to(device)
        self.model = LVAE(self.train.shape[2:], args.latent_dim, args.lipschitz).to(device)
        self.pruner = Pruner(args.latent_dim, args, device)
        self.optimizer = Adam(self.model.parameters())
        self.batch = min(args.batch_size, len(self.train))
        self.bf16 = args.precision == "bf16"

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def w_v(self, epoch):
        n = self.args.polynomial_schedule_n
        return self.args.w_v * (min(1.0, epoch / n) ** self.args.polynomial_schedule_p if n else 1.0)

    def steps(self, epoch, w_v):
        """The training steps of epoch `epoch` (from 0). Returns the means of rec, vol and total loss (3,), still on the device.

        Everything random is drawn from a generator seeded by (seed, epoch): a resumed run needs no random state to go on bit for bit.
        Nothing is read back from the device before the epoch is over.
        """
        args = self.args
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
        steps = len(self.train) // self.batch
        order = torch.randperm(len(self.train), generator=generator)[: steps * self.batch].view(steps, self.batch).to(self.device)
        lr = args.lr * (0.51 + 0.49 * math.cos(math.pi * epoch / args.n_epochs))  # cosine, down to 2 %
        sums = torch.zeros(3, device=self.device)
        self.model.train()
        for batch in order:
            x = self.train[batch]
            with self.autocast():
                z = self.model.encode(x)
                self.pruner.update(z.detach())
                rec = F.mse_loss(self.model.decode(self.pruner.mask(z)), x)
            vol = volume(self.pruner.batch_std(z), args.eta)
            loss = rec + w_v * vol
            loss.backward()
            self.optimizer.step(lr)
            sums += torch.stack((rec.detach(), vol.detach(), loss.detach()))
        return sums / steps

    def epoch(self, epoch):
        """Train epoch `epoch`, validate, prune. Returns (row of metrics.csv, row of pruning.csv or None)."""
        args, start, w_v = self.args, time.perf_counter(), self.w_v(epoch)
        losses = self.steps(epoch, w_v)
        val_rec, val_vol = self.validate(self.val)
        rec_loss, vol_loss, total_loss, val_rec, val_vol = torch.stack((*losses, val_rec, val_vol)).tolist()
        proposal = self.pruner.step(epoch, val_rec)
        row = dict(epoch=epoch, rec_loss=rec_loss, vol_loss=vol_loss, total_loss=total_loss)
        row |= dict(val_rec=val_rec, val_vol_loss=val_vol, val_total_loss=val_rec + w_v * val_vol)
        row |= dict(active_dims=int(self.pruner.active.sum()), w_v=w_v, pruned=proposal["pruned"] if proposal else 0)
        # What an optimiser may minimise: only after pruning had a tenth of the run to act
        row["val_rec_pruned"] = val_rec if epoch >= args.pruning_epoch + args.n_epochs // 10 else None
        row["epoch_seconds"] = time.perf_counter() - start
        return row, proposal

    @torch.no_grad()
    def reconstruct(self, x):
        """Designs (N, 1, H, W) through the autoencoder -> their latents (N, latent_dim) and reconstructions (N, 1, H, W)."""
        self.model.eval()
        latents, images = [], []
        with self.autocast():
            for batch in x.split(256):
                latents.append(self.pruner.mask(self.model.encode(batch)))
                images.append(self.model.decode(latents[-1]))
        return torch.cat(latents), torch.cat(images)

    def validate(self, x):
        """Mean squared error and volume of designs x, as 0-d tensors."""
        z, images = self.reconstruct(x)
        return F.mse_loss(images, x), volume(self.pruner.batch_std(z), self.args.eta)

    def state(self, epoch, best):
        parts = dict(model=self.model.state_dict(), optimizer=self.optimizer.state_dict(), pruner=self.pruner.state_dict())
        return dict(**parts, epoch=epoch, best=best)

    def load_state(self, state):
        for name in ("model", "optimizer", "pruner"):
            getattr(self, name).load_state_dict(state[name])


def pca_errors(train, x):
    """Mean squared errors (rank + 1,) of designs x (N, 1, H, W) behind their first 0, 1, 2, ... principal components, fitted on `train`."""
    train, x = train.flatten(1).double(), x.flatten(1).double()
    mean = train.mean(0)
    train, x = train - mean, x - mean
    # The components are eigenvectors of the covariance; the smaller of its two forms has the same ones, and is faster than an SVD.
    small = len(train) < train.shape[1]
    values, vectors = torch.linalg.eigh(train @ train.T if small else train.T @ train)
    components = vectors.T[values > 1e-12 * values[-1]].flip(0)  # beyond the rank there is only rounding
    if small:
        components = F.normalize(components @ train, dim=1)
    explained = (x @ components.T).square().mean(0) / x.shape[1]
    return (x.square().mean() - F.pad(explained.cumsum(0), (1, 0))).clamp_min(0)


# ----------------------------------------------------------------------------------------------------------------------- main


class Stop:
    """Turns SIGINT and SIGTERM into a wish that the loop looks at between epochs; a second SIGINT interrupts at once."""

    def __init__(self):
        self.code = None
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number, _frame):
        if self.code is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = 128 + number


def multiplies_bf16(device):
    """Whether the hardware multiplies matrices in bf16: elsewhere it is emulated, and slower than fp32 by an order of magnitude."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def settle(args):
    """Settle what `auto` means for device, precision and threads; returns the torch.device."""
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(args.device)
    if args.precision == "auto":
        args.precision = "bf16" if multiplies_bf16(device) else "fp32"
    if args.threads:
        torch.set_num_threads(args.threads)
    args.threads = torch.get_num_threads()
    return device


def train(args):
    """Train a run to its end, or until it is stopped. Returns the exit code."""
    designs = data.load(args.problem, args.data, args.toy_dims)
    args.data = designs.fingerprint["source"] if args.data == "auto" else args.data
    if args.test and len(designs.test) < 2:
        raise InputError(f"--test: {len(designs.test)} designs in the test split of --data {args.data}; at least 2 are needed")
    folder, old = record.locate(args, designs.fingerprint)
    device = settle(args)
    if old and (status := record.status(folder)):
        record.tidy(folder)  # killed after its summary
        print(f"{folder}: this run is {status} already")
        return 3 if status == "diverged" else 0
    warn(args)
    stop = Stop()
    run, config = record.open_run(folder, old, args, designs.fingerprint, device)
    trainer = Trainer(args, designs, device)
    state = run.restore(device) if old else None
    wandb, code = record.NoWandb(), 4
    try:
        wandb = record.open_wandb(args, run, config)
        code, summary = fit(args, trainer, run, config, state, wandb, stop)
        if summary:
            if code == 0:
                summary |= conclude(args, trainer, designs, run)
                if math.isinf(summary["best_val_rec"]):  # pruned in the very last epoch
                    summary |= dict(best_val_rec=summary["val_rec"], best_epoch=summary["epoch"])
                wandb.images(run.folder / "figures", summary["epoch"])
            run.finish(summary, wandb, code)
            report(run, summary, args.latent_dim)
        else:
            print(f"\nstopped; continue with: python train.py --resume {run.folder}", flush=True)
            wandb.finish({}, code)
    except OSError as error:
        code = 4
        with contextlib.suppress(OSError):  # stderr may lie on the full disk, too
            print(f"train.py: {run.folder}: cannot write ({error}); what was written is kept", file=sys.stderr)
        wandb.finish({}, code)
    wandb.leave(code)
    return code


def fit(args, trainer, run, config, state, wandb, stop):
    """The epochs. Returns (exit code, summary), the summary None if the run was stopped."""
    first, best = 0, (math.inf, -1)
    if state:
        trainer.load_state(state)
        first, best = state["epoch"] + 1, tuple(state["best"])
        print(f"{config['name']}: continuing at epoch {first}", flush=True)
    bar = tqdm(total=args.n_epochs, initial=first, disable=not sys.stderr.isatty(), bar_format="{percentage:3.0f}%|{bar:20}| {desc}")
    started = saved = time.monotonic()
    for epoch in range(first, args.n_epochs):
        row, proposal = trainer.epoch(epoch)
        if not all(math.isfinite(row[key]) for key in ("rec_loss", "vol_loss", "total_loss", "val_rec")):
            cause = f"epoch {epoch}: rec_loss {row['rec_loss']}, vol_loss {row['vol_loss']}, val_rec {row['val_rec']}"
            summary = dict(status="diverged", cause=cause, id=run.id, name=config["name"], epoch=epoch)
            return 3, summary
        run.append("metrics.csv", row)
        if proposal:
            run.append("pruning.csv", proposal)
        if row["pruned"]:
            best = (math.inf, -1)  # the best after the last pruning: val_rec of this epoch was measured before it
        elif row["val_rec"] < best[0]:
            best = (row["val_rec"], epoch)
        wandb.log(row)
        eta = (time.monotonic() - started) / (epoch - first + 1) * (args.n_epochs - epoch - 1)
        line = (
            f"epoch {epoch + 1:5d}/{args.n_epochs}  val_rec {row['val_rec']:.6f}  vol {row['vol_loss']:.5f}  dims {row['active_dims']:4d}"
        )
        line += f"  pruned {row['pruned']:3d}  {row['epoch_seconds']:6.2f} s/epoch  ETA {datetime.timedelta(seconds=round(eta))}"
        bar.set_description_str(line, refresh=False)
        bar.update()
        if bar.disable:
            print(line, flush=True)
        if args.figure_every and (epoch + 1) % args.figure_every == 0:
            figures.draw(trainer, run.folder)
            wandb.images(run.folder / "figures", epoch)
        last = epoch + 1 == args.n_epochs
        due = (epoch + 1) % args.checkpoint_every == 0 if args.checkpoint_every else time.monotonic() - saved > 60
        if (due or stop.code) and not last:
            run.checkpoint(trainer.state(epoch, best))
            saved = time.monotonic()
        if stop.code and not last:
            bar.close()
            return stop.code, None
    bar.close()
    keys = ("epoch", "rec_loss", "val_rec", "val_vol_loss", "val_total_loss")
    summary = dict(status="finished", cause=None, id=run.id, name=config["name"], **{key: row[key] for key in keys})
    return 0, summary | dict(active_dims=int(trainer.pruner.active.sum()), best_val_rec=best[0], best_epoch=best[1])


def conclude(args, trainer, designs, run):
    """What is measured once, at the end: PCA at the same dims, the test error, the figures, the model. Returns entries of the summary."""
    val_rec, val_vol = (value.item() for value in trainer.validate(trainer.val))  # after the last pruning
    pca = pca_errors(designs.train, designs.val)
    pca = pca[min(int(trainer.pruner.active.sum()), len(pca) - 1)].item()
    seconds = [float(line.rsplit(",", 1)[1]) for line in (run.folder / "metrics.csv").read_text().splitlines()[1:]]
    summary = dict(val_rec=val_rec, val_vol_loss=val_vol, val_total_loss=val_rec + trainer.w_v(args.n_epochs - 1) * val_vol)
    summary |= dict(pca_rec=pca, pca_ratio=val_rec / pca if pca else None, prune_events=trainer.pruner.events)
    summary |= dict(seconds=round(sum(seconds), 1), metrics_sha256=run.metrics_digest())
    if args.test:
        summary["test_rec"] = trainer.validate(designs.test.to(trainer.device))[0].item()
    figures.draw(trainer, run.folder)
    if args.save_model:
        z, _ = trainer.reconstruct(trainer.train)
        buffer = io.BytesIO()
        torch.save(compact(trainer.model, trainer.pruner, z, json.loads(record.to_json(vars(args)))), buffer)
        record.write_atomically(run.folder / "model.pt", buffer.getvalue())
    return summary


def report(run, summary, dims):
    """Print what was found, and where it is."""
    if summary["status"] == "diverged":
        print(f"diverged: {summary['cause']}; a smaller --lr may help", file=sys.stderr)
        return
    ratio = f" (ratio {summary['pca_ratio']:.3g})" if summary["pca_ratio"] else ""
    print(f"\n{summary['name']}: {summary['active_dims']} of {dims} latent dimensions kept, val_rec {summary['val_rec']:.3g}")
    print(f"PCA with as many dimensions: {summary['pca_rec']:.3g}{ratio}")
    print(f"record   {run.folder}\nfigures  {run.folder / 'figures'}")


def main(argv=None):
    try:
        return train(parse(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        with contextlib.suppress(OSError):
            print(f"train.py: cannot write ({error})", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold characters that the terminal's encoding lacks
    sys.exit(main())
