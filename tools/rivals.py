"""Other ways to few latents, on the network, designs and steps of train.py's defaults: rows into results/rivals.csv.

    python -m tools.rivals                      # what results/rivals.csv lacks; make baselines runs it, too

Each of these methods trains one autoencoder of 100 latents in which some axes matter more than others. Cut after k axes
it gives an error for every k, its *front*. No weight is trained after the cut.

- PCA of latents: a plain autoencoder, and the principal axes of its latents.
- nested dropout: in training each design keeps its first k latents, k uniform, the rest are 0 (Rippel et al., ICML
  2014, arXiv 1402.0915, who draw k from a geometric law).
- IRMAE-WD: four square linear layers after the encoder and weight decay lower the rank of the latents (Zeng et al.,
  arXiv 2305.01090; the layers are from Jing et al., NeurIPS 2020); then the principal axes. With two weight decays.

Without a network stand beside them PCA of the designs, and two estimates of the intrinsic dimension of the training
designs: TwoNN (Facco et al., 2017) and MLE (Levina & Bickel, 2004), by scikit-dimension.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

import data
import train
from lvae import principal_axes
from record import Parser, guarded, read_csv, write_atomically

FRONT = (4, 6, 8, 10, 13, 16, 20, 24, 32)  # k
# Each method, with its weight decay
METHODS = {"PCA of latents": 0.0, "nested dropout": 0.0, "IRMAE-WD 1e-6": 1e-6, "IRMAE-WD 1e-1": 1e-1}
FREE = ("PCA", "TwoNN", "MLE")  # they draw nothing: one seed is enough
FIXED = {"strategy": "none", "w_v": 0, "rotate_every": 0, "data": "sample", "wandb": "disabled"}


class Squares(nn.Sequential):
    """The encoder's last layer, and four square linear layers after it."""

    def __init__(self, last, n=4):
        super().__init__(last, *(nn.Linear(last.out_features, last.out_features, bias=False) for _ in range(n)))
        self.weight = last.weight


class Rival(train.Trainer):
    """train.py's Trainer of a plain autoencoder that one of METHODS changes."""

    def __init__(self, method, args, designs, device):
        super().__init__(args, designs, device)
        self.method = method
        if method.startswith("IRMAE"):
            self.model.encoder[-1] = Squares(self.model.encoder[-1]).to(device)
            self.optimizer = train.Adam(self.model.parameters())
        if method == "nested dropout":
            decode = self.model.decode
            self.model.decode = lambda z: decode(self._cut(z) if self.model.training else z)
        adam = self.optimizer.step
        self.optimizer.step = lambda lr: (adam(lr), self._decay(lr * METHODS[method]))

    def _cut(self, z):
        ranks = torch.arange(z.shape[1], device=z.device)
        return torch.where(ranks <= torch.randint(z.shape[1], (len(z), 1), device=z.device), z, 0.0)

    @torch.no_grad()
    def _decay(self, share):
        for parameter in self.optimizer.parameters if share else ():
            parameter.mul_(1 - share)

    @torch.no_grad()
    def front(self):
        """val_rec behind the first k axes for each k of FRONT, of the weights with the least val_rec."""
        self.model.load_state_dict(self.best["weights"]["model"])
        z, held = (self.reconstruct(x)[0].double().cpu() for x in (self.train, self.val))
        mean, axes = torch.zeros_like(z[0]), torch.eye(z.shape[1], dtype=z.dtype)
        if self.method != "nested dropout":
            mean, _, axes = principal_axes(z)
            axes = axes.flip(1)  # the largest variance first
        cut = [mean + (held - mean) @ axes[:, :k] @ axes[:, :k].T for k in FRONT]
        return [F.mse_loss(self.model.decode(z.to(self.val)), self.val).item() for z in cut]


def rows_of(problem, method, seed):
    common = dict(problem=problem, method=method, seed=seed)
    args = train.parse([f"--{key}={value}" for key, value in (FIXED | dict(problem=problem, seed=seed)).items()])
    designs = data.load(problem, args.data)
    if method in ("TwoNN", "MLE"):
        import skdim

        estimator = getattr(skdim.id, method)()
        return [common | dict(dims=round(float(estimator.fit(designs.train.flatten(1).numpy()).dimension_), 2))]
    if method == "PCA":
        errors = train.pca_errors(designs.train, designs.val)[list(FRONT)].tolist()
        return [common | dict(dims=k, val_rec=error) for k, error in zip(FRONT, errors, strict=True)]
    train.schedule(args, len(designs.train))
    rival = Rival(method, args, designs, train.settle(args))
    for epoch in range(args.n_epochs):
        rival.epoch(epoch)
    return [common | dict(dims=k, val_rec=error) for k, error in zip(FRONT, rival.front(), strict=True)]


def run(args):
    path = Path("results/rivals.csv")
    for seed, method, problem in ((s, m, p) for s in args.seeds for m in (*FREE, *METHODS) for p in data.CONDITIONS):
        rows = read_csv(path)
        seeds = {*rows[(rows["problem"] == problem) & (rows["method"] == method)]["seed"]} if len(rows) else set()
        if str(seed) not in seeds and not (method in FREE and seeds):
            found = pd.DataFrame(rows_of(problem, method, seed))
            write_atomically(path, pd.concat([rows, found]).to_csv(index=False, lineterminator="\n"))
            print(found.to_string(index=False), flush=True)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--seeds", nargs="+", type=int, default=[2001], help="of the weights, batches and draws (2001)")
    return guarded("tools.rivals", run, p.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
