"""Which latent dimensions to prune, and when: the strategies, the safeguards, and the pruner that joins them.

    pruner = Pruner(latent_dim, flags)              # flags: train.py's
    z = pruner.mask(encoder(x))                     # (B, latent_dim), the pruned ones at their frozen mean
    pruner.update(z)                                # each training batch, never validation
    row = pruner.step(epoch, val_rec)               # at the end of each epoch: None, or a row of pruning.csv

Two rules prune, strategies and trimming (docs/method.md). A dimension is an index of the latent vector. Where train.py
rotates the latents, the active indices are the principal axes in order of their variance. Then an index is a rank:
k_consecutive counts, and `probabilistic` draws, for a rank. lognorm's reference is the spectrum in the basis of its
epoch.
"""

import copy
import math

import torch

INF = float("inf")

# The safeguards, named as their flags and the columns of pruning.csv, in the order in which they act; and the profiles.
# The value that switches one off is that of "none". A profile of one safeguard has a short name for it.
SAFEGUARDS = ("k_consecutive", "recon_tol", "cooldown_epochs", "max_prune_per_epoch", "min_active_dims")
PROFILES = {
    "none": (1, INF, 0, INF, 0),
    "min_dims": (1, INF, 0, INF, 10),
    "max_prune": (1, INF, 0, 20, 0),
    "cooldown": (1, INF, 20, INF, 0),
    "consecutive": (5, INF, 0, INF, 0),
    "recon_tol": (1, 0.05, 0, INF, 0),
    "moderate": (3, 0.10, 10, 20, 5),
    "conservative": (5, 0.05, 20, 10, 10),
}
PROFILES = {name: dict(zip(SAFEGUARDS, values, strict=True)) for name, values in PROFILES.items()}


# ---- Strategies ------------------------------------------------------------------------------------------------------
# Pure functions. std, reference: (latent_dim,) floats, of all dimensions, the pruned ones at the std they had when
# pruned; active: (latent_dim,) bool; flags: the strategy's own, and eta, which is added to a std wherever its logarithm
# is taken; draws: see probabilistic(). The result: (latent_dim,) bool, the active dimensions that the rule proposes.
# A rule judges all dimensions, not only those that are left. Else each pruning would shift the spectrum it judges, and
# repeating it would eat up the dimensions one after the other. They compute in float64, wherever std lies.


def _log(std, eta):
    return (std.double() + eta).log()


def _ascending(std):
    """Indices from the smallest std to the largest, equal ones by index: the order in which dimensions are given up."""
    return torch.argsort(std, stable=True)


def plummet(std, active, reference, threshold, eta):
    """std < threshold * the std before the steepest fall between neighbours of the sorted log(std + eta).

    The spectrum of a least-volume autoencoder falls off a cliff after the dimensions it needs (Chen & Fuge). Of equally
    steep falls the first counts, the one from the larger std. No fall: none.
    """
    log, ranked = torch.sort(_log(std, eta), descending=True, stable=True)
    fall = log[:-1] - log[1:]
    if not (fall > 0).any():  # one dimension, or all alike
        return torch.zeros_like(active)
    return active & (std.double() < threshold * std.double()[ranked[fall.argmax()]])


def pca_cdf(std, active, reference, threshold, eta):
    """All outside the smallest set whose share of the total variance, sum(std**2), reaches threshold.

    Of equal ones on either side of that line, the lower index is proposed. No variance at all: none.
    """
    order = _ascending(std)
    share = std.double()[order].flip(0).square().cumsum(0)  # largest first
    proposed = torch.zeros_like(active)
    if share[-1] > 0:
        kept = int((share < threshold * share[-1]).sum()) + 1
        proposed[order[: max(0, len(order) - kept)]] = True
    return active & proposed


def lognorm(std, active, reference, percentile, alpha, eta):
    """log(std + eta) < mu + s * (the Normal's quantile at percentile), for log(std + eta) ~ Normal(mu, s) over all.

    mu and s (correction 0) are (1 - alpha) * those of the reference + alpha * those of the current std.
    """

    def fit(log):  # shifted, so that equal std give exactly their own log and s = 0, not a rounding error
        mu = log[0] + (log - log[0]).mean()
        return mu, (log - mu).square().mean().sqrt()

    (mu, s), (mu_now, s_now) = fit(_log(reference, eta)), fit(_log(std, eta))
    mu, s = mu + alpha * (mu_now - mu), s + alpha * (s_now - s)
    quantile = torch.special.ndtri(torch.tensor(percentile, dtype=torch.float64, device=std.device))
    return active & (_log(std, eta) < mu + s * quantile)


def probabilistic(std, active, reference, temperature, midpoint, draws, eta):
    """p_i > draws_i, where p_i = sigmoid((log(midpoint * max std) - log std_i) / temperature), each log with eta.

    draws (latent_dim,): a uniform number in [0, 1) for each dimension, the same at every call. So p_i is the
    probability that dimension i is ever pruned at that std. With new draws every epoch each would be pruned in the end.
    """
    log = _log(std, eta)
    return active & (torch.sigmoid((math.log(midpoint) + log.max() - log) / temperature) > draws)


def none(std, active, reference, eta):
    """Nothing: the control."""
    return torch.zeros_like(active)


# Each rule, and the flags it takes (`draws` are the pruner's). The first is its level, which 01b varies
STRATEGIES = {"plummet": (plummet, "plummet_threshold"), "pca_cdf": (pca_cdf, "cdf_threshold")}
STRATEGIES |= {"lognorm": (lognorm, "percentile", "alpha")}
STRATEGIES |= {"probabilistic": (probabilistic, "temperature", "midpoint", "draws"), "none": (none,)}


# ---- The pruner ------------------------------------------------------------------------------------------------------


class Pruner:
    """Latent statistics over training, and the pruning they lead to: a pruned latent is a constant, its frozen mean.

    flags: train.py's; variance: of the validation designs' pixels, for trim_share. Public: active, std, mean
    (latent_dim,) on `device`; events, how many prunings there were; last_event, the epoch of the last one, or None.
    """

    def __init__(self, latent_dim, flags, device="cpu", variance=0.0):
        self.flags, self.variance = flags, variance
        self.active = torch.ones(latent_dim, dtype=torch.bool, device=device)
        self.std, self.mean = torch.zeros(latent_dim, device=device), torch.zeros(latent_dim, device=device)
        self.seen = False  # whether a batch has been seen: the first one initialises the averages
        self.reference = None  # std at the end of pruning_epoch, (latent_dim,) float64 on the CPU
        self.draws = None  # drawn then, for `probabilistic`
        self.counts = torch.zeros(latent_dim, dtype=torch.int64)  # epochs in a row in which a dimension was proposed
        self.best = INF  # best val_rec since the reference
        self.events, self.last_event = 0, None
        self.least = INF  # least val_rec of the whole run
        self.trimming = bool(flags.trim_share or flags.trim_rec) and flags.strategy != "none"
        self.trimmed, self.trim_epoch = [], None  # what went last, and comes back if the error does not recover

    @torch.no_grad()
    def update(self, z):
        """Average in a training batch z (B, latent_dim): EMA <- beta * EMA + (1 - beta) * batch, of std and mean.

        The first batch initialises them; pruned dimensions keep theirs. In place and without waiting for the device.
        """
        z = z.float()  # an average in bfloat16 would stop moving
        weight = 1 - self.flags.beta if self.seen else 1.0
        for ema, batch in ((self.std, z.std(0, correction=0)), (self.mean, z.mean(0))):
            ema.copy_(torch.where(self.active, torch.lerp(ema, batch, weight), ema))
        self.seen = True

    def mask(self, z):
        """z (B, latent_dim) with the pruned dimensions at their frozen mean, and no gradient through them."""
        return torch.where(self.active, z, self.mean.to(z.dtype))

    def batch_std(self, z):
        """std (latent_dim,) of a batch z (B, latent_dim), the pruned dimensions at their frozen one: for volume()."""
        return torch.where(self.active, z.float().std(0, correction=0), self.std)

    def step(self, epoch, val_rec, error_without=None):
        """End an epoch (they count from 0): prune, then trim. Returns a row of pruning.csv; nothing happened: None.

        error_without(dims): val_rec with these dimensions, too, at their mean; what trim_share asks.

        From pruning_epoch on: propose -> hold back by each of SAFEGUARDS in turn -> prune -> trim.
        The row says how many were proposed, how many of them each safeguard held back, how many were pruned, trimmed
        and restored, which (dims: pruned ones, then trimmed ones, each with the smallest std first), and their std.
        A val_rec or std that is not finite prunes nothing: there is nothing to judge by.
        """
        flags, val_rec = self.flags, float(val_rec)
        self.least = min(self.least, val_rec)  # a NaN changes nothing
        if epoch < flags.pruning_epoch:
            return None
        std, active = self.std.double().cpu(), self.active.cpu()
        if self.reference is None:
            self.reference = std
            # A generator of its own: the draws neither change nor follow what training draws. The seed is XORed with an
            # arbitrary number, or they would be the very numbers that training begins with.
            generator = torch.Generator().manual_seed(flags.seed ^ 0x50727565)
            self.draws = torch.rand(len(std), generator=generator, dtype=torch.float64)
        self.best = min(self.best, val_rec)

        proposed = self._propose(std, active)
        self.counts = torch.where(proposed, self.counts + 1, 0)  # they run on whatever holds a dimension back below
        row = {"epoch": epoch, "proposed": int(proposed.sum())}
        ready = proposed & (self.counts >= flags.k_consecutive)
        dims = [i for i in _ascending(std).tolist() if ready[i]]
        row["k_consecutive"] = row["proposed"] - len(dims)
        worse = not math.isfinite(val_rec) or val_rec > (1 + flags.recon_tol) * self.best
        cooling = self.last_event is not None and epoch - self.last_event <= flags.cooldown_epochs
        above = max(0, int(active.sum()) - max(1, flags.min_active_dims))
        limits = (0 if worse else INF, 0 if cooling else INF, flags.max_prune_per_epoch, above)
        for safeguard, most in zip(SAFEGUARDS[1:], limits, strict=True):
            keep = int(min(most, len(dims)))
            row[safeguard] = len(dims) - keep
            dims = dims[:keep]
        if dims:
            self.active[dims] = False
            self.events, self.last_event = self.events + 1, epoch
        trimmed, restored = self._trim(epoch, val_rec, std, error_without)
        row |= {"pruned": len(dims), "trimmed": len(trimmed), "restored": len(restored)}
        gone = dims + trimmed
        return row | {"dims": gone, "std": std[gone].tolist()} if row["proposed"] or gone or restored else None

    def _propose(self, std, active):
        if not torch.isfinite(std).all():
            return torch.zeros_like(active)
        (rule, *own), known = STRATEGIES[self.flags.strategy], vars(self.flags) | {"draws": self.draws}
        return rule(std, active, self.reference, *(known[name] for name in own), known["eta"])

    def _trim(self, epoch, val_rec, std, error_without):
        """Give up the smallest active dimensions, until three quarters of what is left of the run at pruning_epoch.

        With trim_share, those go that are worth less than this share of the designs' variance: that is what the error
        grows by where they are held at their mean. It is measured again after this epoch's pruning. One that is worth
        more goes, too, where val_rec is the least so far, for the model did without those before it. With trim_rec,
        they go while val_rec is at most that error.

        At most a fifth goes at a time from latent_dim 100, a smaller share from fewer and a larger one from more. So
        ten are left after as many epochs from every latent_dim. If val_rec is above trim_rec, or twice its least, a
        tenth of the run after the last ones went, those come back, with the weights they had, and no more are trimmed.
        Returns (those that went, those that came back).
        """
        flags, start = self.flags, self.flags.pruning_epoch
        if not self.trimming or not math.isfinite(val_rec) or not torch.isfinite(std).all():
            return [], []
        if val_rec > (flags.trim_rec or 2 * self.least):
            if not self.trimmed or epoch - self.trim_epoch < max(1, flags.n_epochs // 10):
                return [], []  # it may recover yet
            self.active[self.trimmed], self.trimming = True, False
            return [], self.trimmed
        self.trimming = epoch < start + 0.75 * (flags.n_epochs - start)
        active = self.active.cpu()
        k = int(active.sum())
        share = 1 - 0.8 ** math.log10(max(1, len(active) / 10))
        n = min(max(1, int(k * share + 1e-9)), k - max(1, flags.min_active_dims)) if self.trimming else 0
        dims = [i for i in _ascending(std).tolist() if active[i]][: max(0, n)]
        if dims and not flags.trim_rec:
            most, little = error_without([]) + flags.trim_share * self.variance, dims
            while little and error_without(little) > most:
                little = little[: len(little) // 2]
            dims = little or (dims[:1] if val_rec <= self.least else [])
        if dims:
            self.active[dims] = False
            self.trimmed, self.trim_epoch = dims, epoch
        return dims, []

    def state_dict(self):
        """All that later events depend on, copied: tensors and plain Python, for torch.load(weights_only=True)."""
        return copy.deepcopy({name: value for name, value in vars(self).items() if name not in ("flags", "variance")})

    def load_state_dict(self, state):
        """Continue from state_dict(), bit for bit. The tensors of `state` may lie on any device and are copied."""
        for name, value in copy.deepcopy(state).items():
            device = self.active.device if name in ("active", "std", "mean") else "cpu"
            setattr(self, name, value.to(device) if isinstance(value, torch.Tensor) else value)
