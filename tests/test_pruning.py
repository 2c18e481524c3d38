"""The strategies against spectra worked out by hand, the safeguards to the epoch, and what holds on any spectrum."""

import io
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import PROFILES, STRATEGIES, Pruner, lognorm, none, pca_cdf, plummet, probabilistic

# An overflow or a NaN that only warns is a failure, too; not what the garbage collector finds of other tests here
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
quick = settings(max_examples=100, deadline=None, derandomize=True)  # the same examples everywhere
INF, ETA = float("inf"), 1e-4
RULES = [name for name in STRATEGIES if name != "none"]


def make_flags(**given):
    """Aggressive strategies, so that random spectra are pruned, and no safeguard."""
    rules = dict(plummet_threshold=0.5, cdf_threshold=0.9, percentile=0.45, alpha=0.0, temperature=1.0, midpoint=0.5)
    off = dict(trim_share=0.0, trim_rec=None, n_epochs=10)
    return SimpleNamespace(
        **(
            dict(strategy="plummet", pruning_epoch=0, beta=0.0, eta=ETA, seed=1)
            | off
            | rules
            | PROFILES["none"]
            | given
        )
    )


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


def events(rows):
    return {epoch: row["dims"] for epoch, row in rows.items() if row["dims"]}


def propose(name, std, active, reference, flags, draws):
    own = {
        "plummet": (flags.plummet_threshold,),
        "pca_cdf": (flags.cdf_threshold,),
        "lognorm": (flags.percentile, flags.alpha),
        "probabilistic": (flags.temperature, flags.midpoint, draws),
        "none": (),
    }[name]
    return STRATEGIES[name](std, active, reference, *own, flags.eta)


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
    assert chosen(plummet, std, 0.04) == [
        2,
        4,
    ]  # below .016; with ref = max it were .04, and 5 too; with ref = .02 none
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


CLIFF = [1.7 * 0.15 ** (i / 44) for i in range(45)] + [
    0.023 * (1.2 - 0.4 * i / 54) for i in range(55)
]  # 45 real dimensions of 100


@pytest.mark.parametrize(
    "rule, levels",  # from the mildest to the most aggressive
    [
        ("plummet", [{"plummet_threshold": v} for v in (0.01, 0.02, 0.05, 0.1)]),
        ("pca_cdf", [{"cdf_threshold": v} for v in (0.9999, 0.999, 0.99, 0.95)]),
        ("lognorm", [{"percentile": v} for v in (0.1, 0.2, 0.3, 0.4)]),
        (
            "probabilistic",
            [{"temperature": v} for v in (1.0, 0.5, 0.25, 0.1)],
        ),  # on flat ones; real ones the other way round
    ],
)
def test_levels_of_the_study(rule, levels):
    pruned = []
    for level in levels:
        pruner = Pruner(100, make_flags(strategy=rule, midpoint=0.02, **level))
        play(pruner, [CLIFF])
        pruned.append(set((~pruner.active[45:]).nonzero().flatten().tolist()))
    assert all(milder <= bolder for milder, bolder in itertools.pairwise(pruned))
    assert len(pruned[-1]) > len(pruned[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "std", [[0.5], [0.0], [0.0] * 5, [0.3] * 7, [1e-30, 0.0, 0.0], [1e30, 1.0, 0.0], [1e-42, 1e-3, 3e38]]
)
def test_odd_spectra(rule, std):
    flags = make_flags(strategy=rule, temperature=1e-9, midpoint=0.02)
    std = torch.tensor(std)
    for active in torch.ones(len(std), dtype=torch.bool), torch.arange(len(std)) == 0:  # and all pruned but one
        proposed = propose(rule, std, active, std, flags, torch.full((len(std),), 0.5))
        assert proposed.dtype == torch.bool and proposed.shape == std.shape
        assert not (proposed & ~active).any()
        alike = (std == std[0]).all() and (
            rule != "pca_cdf" or not std.any() or len(std) == 1
        )  # pca_cdf: fewer may reach the share
        assert not alike or not proposed.any()
    pruner = Pruner(len(std), flags)
    play(pruner, [std.tolist()] * 2)
    assert pruner.active.any()


spectra = st.lists(
    st.sampled_from([0.0, 1e-30, 1e-5, 1e-3, 0.01, 0.02, 0.1, 0.5, 0.6, 1.0, 2.0, 2e3]), min_size=1, max_size=9
)


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


@quick
@given(st.sampled_from(RULES), spectra)
def test_an_unchanged_spectrum_is_pruned_once(rule, std):
    pruner = Pruner(len(std), make_flags(strategy=rule, alpha=0.5))
    assert set(events(play(pruner, [std] * 4))) <= {0}


# ---- Safeguards, by hand ---------------------------------------------------------------------------------------------

FLAT = [1.0, 1.0, 1.0, 0.01, 0.02, 0.03]  # the plummet at 0.5 of 1: proposes 3, 4, 5


def test_k_consecutive_counts_from_pruning_epoch():
    for pruning_epoch, k in (0, 1), (0, 3), (2, 1), (2, 3):
        pruner = Pruner(6, make_flags(pruning_epoch=pruning_epoch, k_consecutive=k))
        assert events(play(pruner, [FLAT] * 8)) == {pruning_epoch + k - 1: [3, 4, 5]}


def test_a_miss_resets_k_consecutive():
    spectra = [FLAT] * 8
    spectra[1] = FLAT[:5] + [1.0]  # dimension 5: proposed, not, then again from epoch 2 on
    assert events(play(Pruner(6, make_flags(k_consecutive=3)), spectra)) == {2: [3, 4], 4: [5]}


def test_cooldown_to_the_epoch():
    for cooldown, expected in (0, [0, 1, 2]), (1, [0, 2, 4]), (2, [0, 3, 6]):
        pruner = Pruner(6, make_flags(cooldown_epochs=cooldown, max_prune_per_epoch=1))
        assert list(events(play(pruner, [FLAT] * 9))) == expected
        assert (pruner.events, pruner.last_event) == (3, expected[-1])


def test_counts_run_on_under_cooldown_cap_and_recon_tol():
    assert list(
        events(play(Pruner(6, make_flags(k_consecutive=2, max_prune_per_epoch=1, cooldown_epochs=2)), [FLAT] * 9))
    ) == [1, 4, 7]
    assert list(events(play(Pruner(6, make_flags(k_consecutive=3, max_prune_per_epoch=1)), [FLAT] * 9))) == [2, 3, 4]
    assert list(events(play(Pruner(6, make_flags(k_consecutive=2, recon_tol=0.1)), [FLAT] * 3, [1.0, 2.0, 1.0]))) == [2]


def test_recon_tol():
    flat = [1.0] * 3 + [0.01, 0.02, 0.03, 0.04]
    # pruning starts at epoch 1: the 0.5 before it is no reference. Best: 1, 1, 1, .9, .9, .9, allowed: 1.25 to 1.125
    val_recs = [0.5, 1.0, 1.26, 1.25, 0.9, 1.13, 1.12]
    rows = play(Pruner(7, make_flags(pruning_epoch=1, recon_tol=0.25, max_prune_per_epoch=1)), [flat] * 7, val_recs)
    assert events(rows) == {1: [3], 3: [4], 4: [5], 6: [6]}
    assert [row["recon_tol"] for row in rows.values()] == [0, 3, 0, 0, 1, 0]


def test_cap_and_floor_take_the_smallest_std_first_then_the_lower_index():
    std = [1.0, 1.0, 0.03, 0.02, 0.02, 0.01]
    assert events(play(Pruner(6, make_flags(max_prune_per_epoch=2)), [std] * 3)) == {0: [5, 3], 1: [4, 2]}
    rows = play(Pruner(6, make_flags(min_active_dims=4)), [std] * 3)
    assert events(rows) == {0: [5, 3]}
    assert [row["floor"] for row in rows.values()] == [2, 2, 2]


def test_the_last_dimension_stays():
    # the reference has mu = log .5 and s = 0; then all fall below it, and all are proposed
    rows = play(Pruner(3, make_flags(strategy="lognorm")), [[0.5] * 3, [0.02, 0.03, 0.01], [0.02, 0.001, 0.01]])
    assert events(rows) == {1: [2, 0]}
    assert (rows[2]["proposed"], rows[2]["floor"]) == (1, 1)


def test_the_reference_is_the_spectrum_at_the_end_of_pruning_epoch():
    # log std at epoch 1: 0, -2, -4, cut at p = .2 by hand above: -3.374. Of epoch 0 or 2 alone it were 0 or -5.
    spectra = [[1.0] * 3, [1.0, math.exp(-2), math.exp(-4)], [math.exp(-5)] * 3, [1.0, math.exp(-3.3), math.exp(-3.4)]]
    rows = play(
        Pruner(3, make_flags(strategy="lognorm", percentile=0.2, pruning_epoch=1)), spectra, [1.0, 1.0, math.nan, 1.0]
    )
    assert {epoch: row["proposed"] for epoch, row in rows.items()} == {
        1: 1,
        2: 2,
    }  # at 3 dimension 2 is gone, 1 above the cut
    assert events(rows) == {1: [2]}


def test_row_says_what_held_each_dimension_back():
    # 10 dimensions, 6 flat, the last from epoch 1 on. Epoch 1: 6 proposed, 1 short of k = 2, cap 4 and floor 7 hold 1
    flags = make_flags(k_consecutive=2, max_prune_per_epoch=4, min_active_dims=7, recon_tol=0.1, cooldown_epochs=1)
    late = [1.0] * 4 + [0.05, 0.04, 0.03, 0.02, 0.01, 1.0]
    flat = late[:9] + [0.06]
    rows = play(Pruner(10, flags), [late, flat, flat, flat], [1.0, 1.0, 2.0, 1.0])
    keys = ("proposed", "k_consecutive", "recon_tol", "cooldown", "cap", "floor", "pruned")
    held = {epoch: [row[key] for key in keys] for epoch, row in rows.items()}
    assert held == {
        0: [5, 5, 0, 0, 0, 0, 0],
        1: [6, 1, 0, 0, 1, 1, 3],
        2: [3, 0, 3, 0, 0, 0, 0],
        3: [3, 0, 0, 0, 0, 3, 0],
    }
    assert rows[1]["dims"] == [8, 7, 6]
    assert rows[1]["std"] == pytest.approx([0.01, 0.02, 0.03])
    rows = play(Pruner(6, make_flags(max_prune_per_epoch=1, cooldown_epochs=1)), [FLAT] * 2)
    assert (rows[1]["proposed"], rows[1]["cooldown"], rows[1]["cap"]) == (2, 2, 0)


def test_profiles():
    assert PROFILES["moderate"] == dict(
        min_active_dims=5, max_prune_per_epoch=20, cooldown_epochs=10, k_consecutive=3, recon_tol=0.10
    )
    assert PROFILES["conservative"] == dict(
        min_active_dims=10, max_prune_per_epoch=10, cooldown_epochs=20, k_consecutive=5, recon_tol=0.05
    )
    off = dict(min_active_dims=0, max_prune_per_epoch=INF, cooldown_epochs=0, k_consecutive=1, recon_tol=INF)
    alone = dict(min_dims={"min_active_dims": 10}, max_prune={"max_prune_per_epoch": 20},
                 cooldown={"cooldown_epochs": 20},
                 consecutive={"k_consecutive": 5}, recon_tol={"recon_tol": 0.05}, none={})  # fmt: skip
    assert {name: PROFILES[name] for name in alone} == {name: off | part for name, part in alone.items()}
    assert len(PROFILES) == 8


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
    assert trim(std, [1.0, 1.0, math.nan, math.nan, 1.6], **given)[2:] == [
        (4, -1, [0, 1, 2, 3, 4])
    ]  # a NaN says nothing
    assert trim(std, [1.6] * 9, **given) == []
    assert len(trim(std, [1.0] * 20, **given)) == 5  # one is always left


# ---- Everything at once, on random histories -------------------------------------------------------------------------


@st.composite
def histories(draw):
    """Flags, a spectrum an epoch, and a val_rec an epoch."""
    size = draw(st.integers(1, 8))
    flags = make_flags(
        strategy=draw(st.sampled_from(RULES)),
        alpha=draw(st.sampled_from([0.0, 0.5])),
        beta=draw(st.sampled_from([0.0, 0.5])),
        seed=draw(st.integers(0, 99)),
        pruning_epoch=draw(st.integers(0, 2)),
        k_consecutive=draw(st.integers(1, 3)),
        recon_tol=draw(st.sampled_from([0.0, 0.1, INF])),
        cooldown_epochs=draw(st.integers(0, 3)),
        max_prune_per_epoch=draw(st.sampled_from([1, 2, INF])),
        min_active_dims=draw(st.integers(0, size // 2)),
        n_epochs=9,
    )
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
        ready = [
            i
            for i in range(size)
            if len(proposals) >= flags.k_consecutive and all(p[i] for p in proposals[-flags.k_consecutive :])
        ]
        best = min((v for v in val_recs[flags.pruning_epoch : epoch + 1] if math.isfinite(v)), default=INF)
        allowed = val_rec <= (1 + flags.recon_tol) * best and (last is None or epoch - last > flags.cooldown_epochs)
        left = int(pruner.active.sum())
        assert set(pruned) <= set(ready)
        assert len(pruned) <= flags.max_prune_per_epoch
        assert not pruned or (allowed and left >= max(1, flags.min_active_dims))
        kept = [(float(now[i]), i) for i in ready if i not in pruned]
        assert not pruned or not kept or max((float(now[i]), i) for i in pruned) < min(kept)
        # and nothing else holds a dimension back
        assert (
            not allowed or not kept or len(pruned) == flags.max_prune_per_epoch or left <= max(1, flags.min_active_dims)
        )

        if row:
            held = sum(row[key] for key in ("k_consecutive", "recon_tol", "cooldown", "cap", "floor"))
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
