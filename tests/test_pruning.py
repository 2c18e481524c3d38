"""The strategies and safeguards against spectra worked out by hand, what holds on any spectrum, and the volume."""

import io
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning import PROFILES, SAFEGUARDS, STRATEGIES, Pruner, lognorm, none, pca_cdf, plummet, probabilistic
from train import volume

# An overflow or a NaN that only warns is a failure, too; not what the garbage collector finds of other tests here
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
quick = settings(max_examples=100, deadline=None, derandomize=True)  # the same examples everywhere
INF, ETA = float("inf"), 1e-4
RULES = [name for name in STRATEGIES if name != "none"]


def make_flags(**given):
    """Aggressive strategies, so that random spectra are pruned, and no safeguard."""
    flags = dict(plummet_threshold=0.5, cdf_threshold=0.9, percentile=0.45, alpha=0.0, temperature=1.0, midpoint=0.5)
    flags |= dict(strategy="plummet", pruning_epoch=0, n_epochs=10, beta=0.0, eta=ETA, seed=1)
    return SimpleNamespace(**flags | dict(trim_share=0.0, trim_rec=None) | PROFILES["none"] | given)


def batch(std, mean=0.0):
    """z (2, latent_dim) of that std and mean."""
    std = torch.tensor(std)
    return torch.stack([mean - std, mean + std])


def play(pruner, spectra, val_recs=None, start=0, drift=0.0):
    """One epoch a spectrum, the mean moving by `drift` an epoch. Returns the rows by epoch, None left out."""
    rows = {}
    for epoch, (std, val_rec) in enumerate(zip(spectra, val_recs or [1.0] * len(spectra), strict=True), start):
        pruner.update(batch(std, mean=drift * epoch))
        if (row := pruner.step(epoch, val_rec)) is not None:
            assert row["epoch"] == epoch
            rows[epoch] = row
    return rows


def propose(name, std, active, reference, f, draws):
    (rule, *own), known = STRATEGIES[name], vars(f) | dict(draws=draws)
    return rule(std, active, reference, *(known[key] for key in own), f.eta)


def chosen(rule, std, *own, reference=None, eta=1e-12):
    """Indices that a rule proposes when all are active; eta too small to matter unless given."""
    std = torch.tensor(std, dtype=torch.float64)
    reference = std if reference is None else torch.tensor(reference, dtype=torch.float64)
    return rule(std, torch.ones(len(std), dtype=torch.bool), reference, *own, eta).nonzero().flatten().tolist()


# ---- Strategies, by hand ---------------------------------------------------------------------------------------------


def test_plummet_by_hand():
    # sorted 1, .5, .4, .02, .01, .002; ratios of neighbours 2, 1.25, 20, 2, 5: the plummet is .4 -> .02, so ref = .4
    std = [1.0, 0.5, 0.01, 0.4, 0.002, 0.02]
    assert chosen(plummet, std, 0.1) == [2, 4, 5]  # below .04
    assert chosen(plummet, std, 0.04) == [2, 4]  # below .016; with ref = max it were .04, and 5 too; with .02 none
    assert chosen(plummet, std, 0.02) == [4]  # below .008
    assert chosen(plummet, std, 0.004) == []  # below .0016
    # eta = 1 flattens the small ones: log of 2, 1.5, 1.4, 1.02: the largest ratio is 1.4 / 1.02 = 1.37, not 2 / 1.5.
    # eta = 4: 5 / 4.5 = 1.11, 4.5 / 4.4, 4.4 / 4.02 = 1.09: now the plummet is 1 -> .5, ref = 1, cut .04
    assert chosen(plummet, std, 0.04, eta=1.0) == [2, 4]
    assert chosen(plummet, std, 0.04, eta=4.0) == [2, 4, 5]


def test_pca_cdf_by_hand():
    # variances 1, 49, 0, 25, 25; total 100; shares, largest first: .49, .74 (one of the two 5s), .99 (the other), 1, 1
    std = [1.0, 7.0, 0.0, 5.0, 5.0]
    assert chosen(pca_cdf, std, 0.95) == [0, 2]
    assert chosen(pca_cdf, std, 0.99) == [0, 2]  # reached exactly: enough
    assert chosen(pca_cdf, std, 0.999) == [2]  # dimension 0 crosses it and stays
    assert chosen(pca_cdf, std, 0.7) == [0, 2, 3]  # of the two 5s, one is enough: the lower index goes
    assert chosen(pca_cdf, std, 0.4) == [0, 2, 3, 4]


def test_lognorm_by_hand():
    # log std 0, -2, -4: mu = -2, s = sqrt(8 / 3) = 1.633. ppf(.1) = -1.2816, ppf(.2) = -.8416, ppf(.6) = .2533
    std = [1.0, math.exp(-2), math.exp(-4)]
    assert chosen(lognorm, std, 0.1, 0.0) == []  # below -4.093
    assert chosen(lognorm, std, 0.2, 0.0) == [2]  # below -3.374
    assert chosen(lognorm, std, 0.6, 0.0) == [1, 2]  # below -1.586
    # now the third is -3.2, the reference as before. Fit now: mu = -1.7333, s = sqrt(5.226 / 3) = 1.320
    now = [1.0, math.exp(-2), math.exp(-3.2)]
    assert chosen(lognorm, now, 0.2, 0.0, reference=std) == []  # below -3.374
    assert chosen(lognorm, now, 0.2, 1.0, reference=std) == [2]  # below -1.7333 - .8416 * 1.320 = -2.844
    assert chosen(lognorm, now, 0.2, 0.3, reference=std) == []  # mu = -1.92, s = 1.539: below -3.215
    assert chosen(lognorm, now, 0.2, 0.4, reference=std) == [2]  # mu = -1.893, s = 1.508: below -3.162


def test_probabilistic_by_hand():
    # max 1, midpoint .02; T = 1: p = .02 / (.02 + std), that is .0196; 1 / (1 + 1/e) = .7311 for .02/e; .2689 for .02e
    std = [1.0, 0.02 / math.e, 0.02 / math.e, 0.02 * math.e]
    draws = torch.tensor([0.0190, 0.7305, 0.7315, 0.2685], dtype=torch.float64)
    assert chosen(probabilistic, std, 1.0, 0.02, draws) == [0, 1, 3]
    # T = 1/4: 1 / (1 + 50**4) = 1.6e-7; 1 / (1 + exp(-4)) = .982; 1 / (1 + exp(4)) = .018
    assert chosen(probabilistic, std, 0.25, 0.02, draws) == [1, 2]


def test_none_proposes_nothing():
    assert chosen(none, [1.0, 0.0]) == []
    assert play(Pruner(2, make_flags(strategy="none")), [[1.0, 0.0]] * 3) == {}


# 45 real dimensions of 100
CLIFF = [1.7 * 0.15 ** (i / 44) for i in range(45)] + [0.023 * (1.2 - 0.4 * i / 54) for i in range(55)]
LEVELS = {  # from the mildest to the most aggressive; the last on flat dimensions: on real ones the other way round
    "plummet": ("plummet_threshold", [0.01, 0.02, 0.05, 0.1]),
    "pca_cdf": ("cdf_threshold", [0.9999, 0.999, 0.99, 0.95]),
    "lognorm": ("percentile", [0.1, 0.2, 0.3, 0.4]),
    "probabilistic": ("temperature", [1.0, 0.5, 0.25, 0.1]),
}


@pytest.mark.parametrize("rule", RULES)
def test_levels_of_the_study(rule):
    (flag, levels), pruned = LEVELS[rule], []
    for level in levels:
        pruner = Pruner(100, make_flags(strategy=rule, midpoint=0.02, **{flag: level}))
        play(pruner, [CLIFF])
        pruned.append(set((~pruner.active[45:]).nonzero().flatten().tolist()))
    assert all(milder <= bolder for milder, bolder in itertools.pairwise(pruned))
    assert len(pruned[-1]) > len(pruned[0])


ODD = [[0.5], [0.0], [0.0] * 5, [0.3] * 7, [1e-30, 0.0, 0.0], [1e30, 1.0, 0.0], [1e-42, 1e-3, 3e38]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("std", ODD)
def test_odd_spectra(rule, std):
    flags = make_flags(strategy=rule, temperature=1e-9, midpoint=0.02)
    std = torch.tensor(std)
    for active in torch.ones(len(std), dtype=torch.bool), torch.arange(len(std)) == 0:  # and all pruned but one
        proposed = propose(rule, std, active, std, flags, torch.full((len(std),), 0.5))
        assert proposed.dtype == torch.bool and proposed.shape == std.shape
        assert not (proposed & ~active).any()
        fewer = rule == "pca_cdf" and std.any() and len(std) > 1  # of equal ones, too, fewer may reach its share
        assert fewer or (std != std[0]).any() or not proposed.any()
    pruner = Pruner(len(std), flags)
    play(pruner, [std.tolist()] * 2)
    assert pruner.active.any()


WIDTHS = st.sampled_from([0.0, 1e-30, 1e-5, 1e-3, 0.01, 0.02, 0.1, 0.5, 0.6, 1.0, 2.0, 2e3])
spectra = st.lists(WIDTHS, min_size=1, max_size=9)


@quick
@given(st.sampled_from(RULES), spectra, st.data())
def test_a_strategy_is_pure_and_idempotent(rule, std, data):
    size = len(std)
    reference = torch.tensor(data.draw(st.lists(st.floats(0, 3, width=32), min_size=size, max_size=size)))
    draws = torch.tensor(data.draw(st.lists(st.floats(0, 0.999), min_size=size, max_size=size)), dtype=torch.float64)
    active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    flags, std = make_flags(alpha=data.draw(st.sampled_from([0.0, 0.3, 1.0]))), torch.tensor(std)
    inputs = [t.clone() for t in (std, active, reference, draws)]
    proposed = propose(rule, std, active, reference, flags, draws)
    assert all(torch.equal(a, b) for a, b in zip(inputs, (std, active, reference, draws), strict=True))
    assert not (proposed & ~active).any()
    assert not propose(rule, std, active & ~proposed, reference, flags, draws).any()


# ---- Safeguards, by hand ---------------------------------------------------------------------------------------------

FLAT = [1.0, 1.0, 1.0, 0.01, 0.02, 0.03]  # the plummet at 0.5 of 1: proposes 3, 4, 5
MISS = [FLAT, FLAT[:5] + [1.0], *[FLAT] * 6]  # dimension 5: proposed, not, then again from epoch 2 on
FOUR, BEST = [[1.0] * 3 + [0.01, 0.02, 0.03, 0.04]] * 7, [0.5, 1.0, 1.26, 1.25, 0.9, 1.13, 1.12]
TIES = [[1.0, 1.0, 0.03, 0.02, 0.02, 0.01]] * 3
# of lognorm. log std at epoch 1: 0, -2, -4, cut at p = .2 by hand above: -3.374. Of epoch 0 or 2 alone it were 0 or -5
LATER = [[1.0] * 3, [1.0, math.exp(-2), math.exp(-4)], [math.exp(-5)] * 3, [1.0, math.exp(-3.3), math.exp(-3.4)]]
HELD_BACK = [  # flags, a spectrum an epoch, what is pruned at which epoch, val_rec of each epoch if not 1
    (dict(pruning_epoch=0, k_consecutive=1), [FLAT] * 8, {0: [3, 4, 5]}),
    (dict(pruning_epoch=0, k_consecutive=3), [FLAT] * 8, {2: [3, 4, 5]}),
    (dict(pruning_epoch=2, k_consecutive=1), [FLAT] * 8, {2: [3, 4, 5]}),
    (dict(pruning_epoch=2, k_consecutive=3), [FLAT] * 8, {4: [3, 4, 5]}),
    (dict(k_consecutive=3), MISS, {2: [3, 4], 4: [5]}),
    (dict(cooldown_epochs=0, max_prune_per_epoch=1), [FLAT] * 9, {0: [3], 1: [4], 2: [5]}),
    (dict(cooldown_epochs=1, max_prune_per_epoch=1), [FLAT] * 9, {0: [3], 2: [4], 4: [5]}),
    (dict(cooldown_epochs=2, max_prune_per_epoch=1), [FLAT] * 9, {0: [3], 3: [4], 6: [5]}),
    # counts run on under cooldown_epochs, max_prune_per_epoch and recon_tol
    (dict(k_consecutive=2, max_prune_per_epoch=1, cooldown_epochs=2), [FLAT] * 9, {1: [3], 4: [4], 7: [5]}),
    (dict(k_consecutive=3, max_prune_per_epoch=1), [FLAT] * 9, {2: [3], 3: [4], 4: [5]}),
    (dict(k_consecutive=2, recon_tol=0.1), [FLAT] * 3, {2: [3, 4, 5]}, [1.0, 2.0, 1.0]),
    # the 0.5 before pruning starts is no reference. Best: 1, 1, 1, .9, .9, .9, allowed: 1.25 to 1.125
    (dict(pruning_epoch=1, recon_tol=0.25, max_prune_per_epoch=1), FOUR, {1: [3], 3: [4], 4: [5], 6: [6]}, BEST),
    # the smallest std first, then the lower index
    (dict(max_prune_per_epoch=2), TIES, {0: [5, 3], 1: [4, 2]}),
    (dict(min_active_dims=4), TIES, {0: [5, 3]}),
    # the reference has mu = log .5 and s = 0; then all fall below it, and all are proposed: the last dimension stays
    (dict(strategy="lognorm"), [[0.5] * 3, [0.02, 0.03, 0.01], [0.02, 0.001, 0.01]], {1: [2, 0]}),
    # at epoch 2 a NaN holds back; at 3 dimension 2 is gone, and 1 above the cut
    (dict(strategy="lognorm", percentile=0.2, pruning_epoch=1), LATER, {1: [2]}, [1.0, 1.0, math.nan, 1.0]),
]


@pytest.mark.parametrize("flags, spectra, expected, val_recs", [(*case, None)[:4] for case in HELD_BACK])
def test_a_safeguard_to_the_epoch(flags, spectra, expected, val_recs):
    pruner = Pruner(len(spectra[0]), make_flags(**flags))
    rows = play(pruner, spectra, val_recs)
    assert {epoch: row["dims"] for epoch, row in rows.items() if row["dims"]} == expected
    assert (pruner.events, pruner.last_event) == (len(expected), max(expected))


def test_row_says_what_held_each_dimension_back():
    # 10 dimensions, 6 flat, the last from epoch 1 on. Epoch 1: 6 proposed; 1 is short of k = 2, one is beyond the
    # 4 that may go at once, and one of the 7 that stay
    flags = make_flags(k_consecutive=2, max_prune_per_epoch=4, min_active_dims=7, recon_tol=0.1, cooldown_epochs=1)
    late = [1.0] * 4 + [0.05, 0.04, 0.03, 0.02, 0.01, 1.0]
    flat = late[:9] + [0.06]
    rows = play(Pruner(10, flags), [late, flat, flat, flat], [1.0, 1.0, 2.0, 1.0])
    keys = ("proposed", *SAFEGUARDS, "pruned")
    held = {epoch: [row[key] for key in keys] for epoch, row in rows.items()}
    first, then = {0: [5, 5, 0, 0, 0, 0, 0], 1: [6, 1, 0, 0, 1, 1, 3]}, {2: [3, 0, 3, 0, 0, 0, 0]}
    assert held == first | then | {3: [3, 0, 0, 0, 0, 3, 0]}
    assert rows[1]["dims"] == [8, 7, 6] and rows[1]["std"] == pytest.approx([0.01, 0.02, 0.03])
    rows = play(Pruner(6, make_flags(max_prune_per_epoch=1, cooldown_epochs=1)), [FLAT] * 2)
    assert (rows[1]["proposed"], rows[1]["cooldown_epochs"], rows[1]["max_prune_per_epoch"]) == (2, 2, 0)


# ---- Trimming --------------------------------------------------------------------------------------------------------


def trim(std, val_recs, worth=(0.5, 0.2, 0.1, 0.05, 0.02, 0.01), variance=1.0, **given):
    """(epoch, trimmed or restored, dims left) of each change, of a run of 20 epochs whose strategy proposes nothing.

    worth: what each dimension is worth, in the order of the std; together they are worth their sum.
    """
    flags = make_flags(**dict(strategy="pca_cdf", cdf_threshold=1.0, n_epochs=20, trim_share=0.06) | given)
    pruner, found = Pruner(len(std), flags, variance=variance), []
    worth = dict(zip(sorted(range(len(std)), key=lambda i: -std[i]), worth, strict=True))
    for epoch, val_rec in enumerate(val_recs):
        pruner.update(batch(std))
        gone = sum(worth[i] for i in range(len(std)) if not pruner.active[i])
        row = pruner.step(epoch, val_rec, lambda dims, gone=gone: gone + sum(worth[i] for i in dims))
        if row:
            found.append((epoch, row["trimmed"] - row["restored"], pruner.active.nonzero().flatten().tolist()))
    return found


def test_trimming_gives_up_the_smallest_that_are_worth_little():
    std, flat = [3.0, 6.0, 5.0, 4.0, 2.0, 1.0], [1.0] + [1.1] * 19
    gone = [(0, 1, [0, 1, 2, 3, 4]), (1, 1, [0, 1, 2, 3]), (2, 1, [1, 2, 3])]
    assert trim(std, flat) == gone  # worth .01, .02 and .05; the next one is worth .1
    assert trim(std, flat, variance=0.4) == gone[:2]  # .06 of it is .024
    assert trim(std, flat, min_active_dims=4) == gone[:2]
    assert trim(std, [1.0, 1.1, math.nan]) == gone[:2]
    assert trim(std, flat, strategy="none") == trim(std, flat, trim_share=0.0) == []
    assert trim(std, flat, pruning_epoch=5)[0][0] == 5
    many = list(range(100, 0, -1))  # a fifth at a time, or the half of it that is worth little enough, and so on
    kept = [len(left) for _, _, left in trim(many, flat, worth=[1.0] * 50 + [0.019] * 20 + [0.0] * 30)]
    assert kept[:4] == [80, 72, 69, 66]
    # at the least error so far one goes that is worth more; not in the last quarter of the run
    assert trim(std, [*flat[:9], 0.9, 1.0, 0.8, *flat[12:]]) == [*gone, (9, 1, [1, 2]), (11, 1, [1])]
    # and it comes back where the error is not within twice its least in a tenth of the run
    back = trim(std, [*flat[:9], 0.9, 1.9, 1.9, 0.8, *flat[13:]])
    assert back == [*gone, (9, 1, [1, 2]), (11, -1, [1, 2, 3])]
    assert trim(std, [*flat[:15], 0.9]) == gone


@pytest.mark.parametrize("width", [50, 100, 250, 500])
def test_every_width_comes_to_ten_dimensions_in_as_many_epochs(width):
    kept = [len(left) for _, _, left in trim(list(range(width, 0, -1)), [1.0] * 15, worth=[0.0] * width)]
    assert kept[0] == {50: 43, 100: 80, 250: 184, 500: 343}[width]
    assert next(epoch for epoch, k in enumerate(kept) if k <= 10) in (9, 10, 11)


def test_a_stated_error_is_kept_to_and_what_broke_it_comes_back():
    std, given = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], {"trim_rec": 1.5}
    gone = [(0, 1, [0, 1, 2, 3, 4]), (1, 1, [0, 1, 2, 3])]
    # Above it at epoch 2: nothing goes. Down at 3 in time (a tenth of 20 epochs): on it goes
    assert trim(std, [1.0, 1.0, 1.6, 1.4, 1.0], **given)[:3] == [*gone, (3, 1, [0, 1, 2])]
    assert trim(std, [1.0, 1.0, 1.6, 1.6, 1.0, 1.0], **given) == [*gone, (3, -1, [0, 1, 2, 3, 4])]
    unknown = [1.0, 1.0, math.nan, math.nan, 1.6]  # a NaN says nothing
    assert trim(std, unknown, **given)[2:] == [(4, -1, [0, 1, 2, 3, 4])]
    assert trim(std, [1.6] * 9, **given) == []
    assert len(trim(std, [1.0] * 20, **given)) == 5  # one is always left


# ---- Everything at once, on random histories -------------------------------------------------------------------------


DRAWN = dict(strategy=st.sampled_from(RULES), alpha=st.sampled_from([0.0, 0.5]), beta=st.sampled_from([0.0, 0.5]))
DRAWN |= dict(seed=st.integers(0, 99), pruning_epoch=st.integers(0, 2), k_consecutive=st.integers(1, 3))
DRAWN |= dict(recon_tol=st.sampled_from([0.0, 0.1, INF]), max_prune_per_epoch=st.sampled_from([1, 2, INF]))
DRAWN |= dict(cooldown_epochs=st.integers(0, 3), n_epochs=st.just(9))


@st.composite
def histories(draw):
    """Flags, a spectrum an epoch, and a val_rec an epoch."""
    size = draw(st.integers(1, 8))
    flags = make_flags(**draw(st.fixed_dictionaries(DRAWN | dict(min_active_dims=st.integers(0, size // 2)))))
    widths = st.sampled_from([0.0, 1e-3, 0.01, 0.01, 0.02, 0.5, 1.0])
    spectra = draw(st.lists(st.lists(widths, min_size=size, max_size=size), min_size=9, max_size=9))
    if draw(st.booleans()):  # some held for a while, so that k_consecutive and cooldown are reached
        spectra[3:] = [spectra[3]] * 6
    return flags, spectra, draw(st.lists(st.sampled_from([1.0, 1.0, 1.05, 0.9, 2.0, math.nan]), min_size=9, max_size=9))


@quick
@given(histories())
def test_every_rule_on_random_histories(history):
    flags, spectra, val_recs = history
    size = len(spectra[0])
    pruner, reference, last, proposals, frozen = Pruner(size, flags), None, None, [], {}
    for epoch, (std, val_rec) in enumerate(zip(spectra, val_recs, strict=True)):
        pruner.update(batch(std, mean=float(epoch)))
        before, now, mean = pruner.active.clone(), pruner.std.clone(), pruner.mean.clone()
        row = pruner.step(epoch, val_rec)
        if epoch < flags.pruning_epoch:
            assert row is None and pruner.active.all()
            continue
        reference = now if reference is None else reference
        proposed = propose(flags.strategy, now, before, reference, flags, pruner.draws)
        proposals.append(proposed)
        assert (row is None) == (not proposed.any())
        pruned = (before & ~pruner.active).nonzero().flatten().tolist()
        assert sorted(row["dims"] if row else []) == pruned

        # each safeguard in its own words
        recent = proposals[-flags.k_consecutive :] if len(proposals) >= flags.k_consecutive else []
        ready = [i for i in range(size) if recent and all(p[i] for p in recent)]
        best = min((v for v in val_recs[flags.pruning_epoch : epoch + 1] if math.isfinite(v)), default=INF)
        allowed = val_rec <= (1 + flags.recon_tol) * best and (last is None or epoch - last > flags.cooldown_epochs)
        left = int(pruner.active.sum())
        assert set(pruned) <= set(ready)
        assert len(pruned) <= flags.max_prune_per_epoch
        assert not pruned or (allowed and left >= max(1, flags.min_active_dims))
        kept = [(float(now[i]), i) for i in ready if i not in pruned]
        assert not pruned or not kept or max((float(now[i]), i) for i in pruned) < min(kept)
        # and nothing else holds a dimension back
        full = len(pruned) == flags.max_prune_per_epoch or left <= max(1, flags.min_active_dims)
        assert not allowed or not kept or full

        if row:
            held = sum(row[key] for key in SAFEGUARDS)
            assert row["proposed"] == int(proposed.sum()) == held + row["pruned"] and row["pruned"] == len(pruned)
            assert row["std"] == [float(now[i]) for i in row["dims"]]
        last = epoch if pruned else last
        frozen |= {i: (float(now[i]), float(mean[i])) for i in pruned}
        for i, (std_then, mean_then) in frozen.items():  # a pruned dimension never returns, and its latent is constant
            assert not pruner.active[i] and (float(pruner.std[i]), float(pruner.mean[i])) == (std_then, mean_then)
            assert (pruner.mask(batch(std, mean=7.0))[:, i] == mean_then).all()
    assert pruner.last_event == last


@quick
@given(histories(), st.integers(0, 8))
def test_a_resumed_pruner_goes_on_bit_for_bit(history, cut):
    flags, spectra, val_recs = history
    whole = Pruner(len(spectra[0]), flags)
    play(whole, spectra[:cut], val_recs[:cut], drift=1.0)
    state = whole.state_dict()
    rest = play(whole, spectra[cut:], val_recs[cut:], start=cut, drift=1.0)  # which must not change the state in hand
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    resumed = Pruner(len(spectra[0]), flags)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert play(resumed, spectra[cut:], val_recs[cut:], start=cut, drift=1.0) == rest
    for name, value in whole.state_dict().items():
        other = resumed.state_dict()[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


# ---- The volume, the statistics of the latents, the draws of `probabilistic` -----------------------------------------


def test_volume_by_hand():
    std, active = torch.tensor([0.99, 0.09, 0.0], dtype=torch.float64), torch.tensor([True, True, False])
    std.requires_grad_()
    # geometric mean of 1, .1 and .01 (eta included) is .1
    assert volume(std, active, "geometric", 0.01).item() == pytest.approx(0.1)
    # log 1 + log .1, the last one pruned: it is not in it, and feels no pull
    log = volume(std, active, "log", 0.01)
    assert log.item() == pytest.approx(math.log(0.1))
    assert torch.autograd.grad(log, std)[0].tolist() == pytest.approx([1, 10, 0])


@quick
@given(st.integers(0, 10**6), spectra)
def test_a_pruning_event_leaves_the_volume_and_its_gradient(seed, scale):
    z = torch.randn(16, len(scale), generator=torch.Generator().manual_seed(seed)) * torch.tensor(scale) + 1.0
    pruner = Pruner(len(scale), make_flags())
    pruner.update(z)  # the first batch: the EMA std is this batch's

    def vol_and_gradients():
        raw, sigma = z.clone().requires_grad_(), pruner.std.clone().requires_grad_()
        vol = volume(pruner.batch_std(pruner.mask(raw)), pruner.active, "geometric", ETA)
        (to_z,) = torch.autograd.grad(vol, raw)
        mixed = torch.where(pruner.active, sigma, pruner.std)
        (to_sigma,) = torch.autograd.grad(volume(mixed, pruner.active, "geometric", ETA), sigma)
        return vol.detach(), to_z, to_sigma

    vol, to_z, to_sigma = vol_and_gradients()
    row = pruner.step(0, 1.0)
    assume(row and row["pruned"])
    active = pruner.active
    vol_after, to_z_after, to_sigma_after = vol_and_gradients()
    assert vol_after == vol
    assert torch.equal(to_z_after[:, active], to_z[:, active]) and torch.equal(to_sigma_after[active], to_sigma[active])
    assert not to_z_after[:, ~active].any() and not to_sigma_after[~active].any()


def test_no_gradient_through_a_pruned_latent():
    pruner = Pruner(6, make_flags())
    play(pruner, [FLAT])
    z = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(pruner.mask(z).sum(), z)
    assert torch.equal(gradient, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).expand(8, 6))


def test_ema_by_hand_and_pruned_dimensions_ignored():
    pruner = Pruner(2, make_flags(beta=0.9))
    pruner.update(torch.tensor([[-1.0, 4.0], [1.0, 6.0]], requires_grad=True))  # std 1, 1 (correction 0), mean 0, 5
    assert (pruner.std.tolist(), pruner.mean.tolist()) == ([1.0, 1.0], [0.0, 5.0])
    assert not pruner.std.requires_grad
    pruner.active[1] = False
    pruner.update(torch.tensor([[7.0, math.nan], [13.0, 1.0]]))  # .9 * 1 + .1 * 3 = 1.2; .9 * 0 + .1 * 10 = 1
    assert pruner.std.tolist() == pytest.approx([1.2, 1.0]) and pruner.mean.tolist() == pytest.approx([1.0, 5.0])
    assert pruner.std[1] == 1.0 and pruner.mean[1] == 5.0
    pruner.update(torch.full((4, 2), 2.0, dtype=torch.bfloat16))  # what autocast hands over
    assert pruner.std.dtype == torch.float32 and pruner.mean[0] == pytest.approx(1.1)
    assert pruner.mask(torch.ones(3, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_batch_is_averaged_in_without_waiting_for_the_device():
    pruner = Pruner(4, make_flags(), device="meta")  # has no values: reading one raises
    for _ in range(2):
        z = torch.randn(8, 4, device="meta")
        pruner.update(z)
        volume(pruner.batch_std(pruner.mask(z)), pruner.active, "log", ETA)
    with pytest.raises((RuntimeError, NotImplementedError)):
        pruner.step(0, 1.0)  # reads them, once an epoch


def test_probabilistic_prunes_with_its_probabilities():
    # midpoint * max = .5 and T = .5: p = 1 / (1 + (std / .5)**2), so .8 at 1/4, .5 at 1/2, 4/13 at 3/4. Two at the max
    # (p = 1/65 each) keep the floor out of it.
    p = torch.tensor([0.8, 0.5, 4 / 13])
    seeds, observed = 1500, torch.zeros(2, 2, 2)
    for seed in range(seeds):
        pruner = Pruner(5, make_flags(strategy="probabilistic", temperature=0.5, midpoint=0.125, eta=1e-9, seed=seed))
        play(pruner, [[0.25, 0.5, 0.75, 4.0, 4.0]] * 3)  # three epochs: new draws in each would prune more
        observed[tuple((~pruner.active[:3]).int().tolist())] += 1
    expected = torch.empty(2, 2, 2)
    for cell in itertools.product((0, 1), repeat=3):  # independent: one draw for all would fill 4 cells of 8
        expected[cell] = seeds * torch.where(torch.tensor(cell) == 1, p, 1 - p).prod()
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 24.3  # 7 degrees of freedom, one in a thousand


def test_draws_depend_on_the_seed_and_on_nothing_in_training():
    def draws(seed, training_seed):
        torch.manual_seed(training_seed)
        before = torch.get_rng_state()
        pruner = Pruner(50, make_flags(strategy="probabilistic", seed=seed))
        play(pruner, [[1.0] * 50])
        assert torch.equal(torch.get_rng_state(), before)
        return pruner.draws

    assert torch.equal(draws(1, 1), draws(1, 2))
    assert not torch.equal(draws(1, 1), draws(2, 1))
    torch.manual_seed(1)
    assert not torch.equal(draws(1, 1), torch.rand(50, dtype=torch.float64))
