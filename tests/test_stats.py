"""The verdicts on synthetic studies with known answers: planted winners are found, planted ties stay undecided, in 1,000 studies each."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from reporting import stats

STUDIES = 1000


def studies(effects, seeds, noise=0.05, problems=3, rng=None):
    """log val_rec (STUDIES, arms, problems * seeds): arm effects, plus what arms share (problem and seed), plus noise of their own."""
    rng = rng or np.random.default_rng(1)
    shared = rng.normal(0, 0.5, (STUDIES, 1, problems, 1)) + rng.normal(0, 0.1, (STUDIES, 1, problems, seeds))
    own = rng.normal(0, noise, (STUDIES, len(effects), problems, seeds))
    return (-4 + np.array(effects)[:, None, None] + shared + own).reshape(STUDIES, len(effects), -1)


def verdicts(logs, seeds, margin=0.0):
    """What report.py decides for arm 0 against each other arm: (STUDIES, arms - 1) of -1, 0, 1."""
    _, low, high, p = stats.paired(logs[:, :1] - logs[:, 1:])
    return stats.decide(low, high, stats.holm(p), seeds, margin)


@pytest.mark.parametrize("seeds, problems", [(3, 3), (5, 3), (3, 1), (5, 1)])
def test_ties_are_undecided(seeds, problems):
    found = verdicts(studies([0, 0, 0, 0], seeds, problems=problems), seeds)
    assert (found != 0).any(1).mean() <= 0.05  # one false verdict anywhere in a study is a false study
    two_tied = verdicts(studies([0, 0, 0.5, 0.5], seeds, problems=problems, rng=np.random.default_rng(2)), seeds)
    assert (two_tied[:, 0] != 0).mean() <= 0.05


@pytest.mark.parametrize("arms, seeds, headline", [(4, 3, slice(None)), (8, 5, slice(0, 1))])
def test_headline_of_a_tie_at_the_sweeps_own_level(arms, seeds, headline):
    """The word on the page of 01 (the subject against all) and 02 (moderate, first of seven) at the level in their rules."""
    logs = studies([0] * arms, seeds, rng=np.random.default_rng(8))
    differences = logs[:, :1] - logs[:, 1:] if arms == 4 else logs[:, 1:] - logs[:, :1]
    _, low, high, p = stats.paired(differences)
    signs = stats.decide(low, high, stats.holm(p), seeds)[:, headline]
    false = (signs == -1).all(1) | (signs == 1).any(1)
    assert 0 < false.mean() <= 0.05


def test_the_bound_on_false_verdicts_is_not_met_by_never_deciding():
    """Without Holm, seven comparisons (02) would call far more than 5 % of ties: the correction is what holds the bound."""
    logs = studies([0] * 8, 5)
    _, low, high, p = stats.paired(logs[:, :1] - logs[:, 1:])
    assert (stats.decide(low, high, p, 5) != 0).any(1).mean() > 0.1
    corrected = (stats.decide(low, high, stats.holm(p), 5) != 0).any(1).mean()
    assert 0.005 < corrected <= 0.05


def test_planted_winner_is_found_in_both_directions():
    assert (verdicts(studies([-0.2, 0, 0, 0], 3), 3) == -1).all(1).mean() > 0.95
    assert (verdicts(studies([0.2, 0, 0, 0], 3), 3) == 1).all(1).mean() > 0.95


def test_fewer_than_three_seeds_decide_nothing():
    assert not verdicts(studies([-1, 0, 0, 0], 2), 2).any()


def test_interval_that_straddles_the_margin_is_undecided():
    logs = studies([-0.10, 0], 5)  # 10 % better, and found so
    assert (verdicts(logs, 5) == -1).mean() > 0.9
    assert (verdicts(logs, 5, margin=0.10) == 0).mean() > 0.9  # but not shown to be more than 10 % better
    assert (verdicts(studies([-0.30, 0], 5), 5, margin=0.10) == -1).mean() > 0.9


@pytest.mark.parametrize("effects", [[0, 0, 0, 0], [0, 0, 0.5, 0.5], [0, 0]])
@pytest.mark.parametrize("seeds", [3, 5])
def test_winner_per_problem_is_rarely_false(effects, seeds):
    """Three problems, a winner claimed on any of them where there is a tie: at most 5 % of the studies, with Holm over the problems."""
    per_problem = studies(effects, seeds).reshape(STUDIES, len(effects), 3, seeds).swapaxes(1, 2)  # (STUDIES, problem, arm, seed)
    _, p = stats.winner(per_problem)
    assert (stats.holm(p) < stats.ALPHA).any(1).mean() <= 0.05


def test_winner_is_found_and_named():
    index, p = stats.winner(studies([0, -0.3, 0, 0], 5, problems=1, noise=0.03))
    assert (index == 1).mean() > 0.99 and (p < 0.05).mean() > 0.95


def test_planted_interaction_is_seen_and_a_flat_surface_is_not():
    epochs, w_v, rng = [300, 400, 500, 700], [0.002, 0.005, 0.01, 0.02, 0.05], np.random.default_rng(3)
    e, w = np.meshgrid(stats.unit(epochs), stats.unit(w_v), indexing="ij")
    seen = wrong = 0
    for _ in range(100):
        base = 0.1 * w**2 + rng.normal(0, 0.1, (1, 5, 1, 1)) + rng.normal(0, 0.05, (2, 5, 4, 5))
        planted = {row["a"]: row for row in stats.effects(epochs, w_v, base - 0.2 * e * w)}
        seen += planted["interaction"]["verdict"] == -1
        assert planted["interaction"]["mean"] == pytest.approx(-0.2, abs=0.1)
        # base has a curvature in w_v, and no interaction, arm effect or slope
        wrong += any(row["verdict"] for row in stats.effects(epochs, w_v, base))
    assert seen >= 95 and wrong <= 5


def test_arm_effect_on_the_surface():
    logs = np.random.default_rng(4).normal(0, 0.05, (2, 5, 4, 5))
    logs[1] -= 0.3
    rows = {row["a"]: row for row in stats.effects([300, 400, 500, 700], [0.002, 0.005, 0.01, 0.02, 0.05], logs)}
    assert rows["arms"]["verdict"] == -1 and rows["arms"]["mean"] == pytest.approx(-0.3, abs=0.05)


def test_surface_recovers_its_coefficients_with_holes():
    epochs, w_v = [300, 400, 500, 700], [0.002, 0.005, 0.01, 0.02, 0.05]
    e, w = np.meshgrid(stats.unit(epochs), stats.unit(w_v), indexing="ij")
    truth = np.array([-4, 0.1, -0.2, 0.3, 0.4, -0.5])
    logs = truth[0] + truth[1] * e + truth[2] * w + truth[3] * e * e + truth[4] * w * w + truth[5] * e * w
    holes = logs.copy()
    holes[0, 0] = holes[3, 4] = np.nan
    few = np.full_like(logs, np.nan)
    few[0] = logs[0]
    fits = stats.surface(epochs, w_v, np.stack([logs, holes, few]))
    assert np.allclose(fits[:2], truth) and np.isnan(fits[2]).all()


def test_optimum_and_regret():
    rng = np.random.default_rng(5)
    cost = np.array([[0.5, 0.3, 0.5], [0.4, 0.0, 0.4]])
    logs = cost + rng.normal(0, 0.02, (5, 2, 3))
    cell, share = stats.optimum(logs)
    assert cell == (1, 1) and share[1, 1] == 1 and share.sum() == pytest.approx(1)
    assert np.allclose(stats.regret(logs, (1, 1)), 0)
    assert stats.regret(logs, (0, 1)).mean() == pytest.approx(0.3, abs=0.05)
    logs[:, 1, 1] = np.nan  # a cell without runs is not the optimum
    assert stats.optimum(logs)[0] == (0, 1)
    assert stats.optimum(np.full((3, 2, 2), np.nan))[0] is None


def test_paired_agrees_with_scipy_and_takes_holes():
    a, b = np.random.default_rng(6).normal(size=(2, 9))
    mean, low, high, p = stats.paired(a - b)
    test = scipy_stats.ttest_rel(a, b)
    assert (mean, p) == (pytest.approx((a - b).mean()), pytest.approx(test.pvalue))
    assert (low, high) == pytest.approx(tuple(test.confidence_interval()))
    holed = stats.paired(np.append(a - b, np.nan))
    assert holed[0] == pytest.approx(mean) and holed[3] == pytest.approx(p)
    assert stats.paired(np.zeros(4))[3] == 1 and np.isnan(stats.paired([0.3])[3])


def test_holm_against_a_worked_example():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm (1979), steps 4, 3, 2, 1
    assert stats.holm([np.nan, 0.01]) == pytest.approx([1.0, 0.02])
    assert stats.holm([[0.01, 0.5], [0.5, 0.01]]) == pytest.approx(np.array([[0.02, 0.5], [0.5, 0.02]]))


def test_family_pairs_by_problem_and_seed():
    values = {"a": {("p", 1): 1.0, ("p", 2): 2.0, ("p", 3): 3.0, ("q", 1): 9.0}, "b": {("p", 3): 6.0, ("p", 1): 2.0, ("p", 2): 4.1}}
    row = stats.family(values, [("a", "b")])[0]
    assert row["n"] == 3 and row["seeds"] == 3 and row["problems"] == ["p"]
    assert row["mean"] == pytest.approx(np.log([0.5, 2 / 4.1, 0.5]).mean()) and row["verdict"] == -1
    assert stats.family(values, [("a", "nothing")])[0]["verdict"] == 0
    dims = stats.family(values, [("b", "a")], log=False)[0]
    assert dims["mean"] == pytest.approx((1 + 2.1 + 3) / 3)


def test_instability_of_known_curves():
    falling = stats.instability(range(10), np.linspace(2, 1, 10), 0)
    assert falling == dict(rise=0, epochs_above=0, collapses=0)
    curve = [9, 1.0, 1.04, 1.2, 2.5, 2.1, 1.0, 3.0, 1.0]  # before epoch 1: not counted
    assert stats.instability(range(9), curve, 1) == dict(rise=2.0, epochs_above=4, collapses=2)
    assert np.isnan(stats.instability(range(3), [1, 1, 1], 5)["rise"])


def test_bootstrap_interval_and_correlation():
    x = np.random.default_rng(7).normal(10, 1, 50)
    mean, low, high = stats.interval(x)
    assert low < mean < high and (low, high) == pytest.approx(scipy_stats.t.interval(0.95, 49, mean, 1 / 50**0.5), abs=0.15)
    assert np.isnan(stats.interval([1.0])[1]) and stats.interval([2.0, 2.0, 2.0]) == (2, 2, 2)
    assert stats.correlation([1, 2, 3, 4], [1, 4, 9, 16])[0] == pytest.approx(1)
    assert np.isnan(stats.correlation([1, 1, 1, 1], [1, 2, 3, 4])[0])


def planted_search(n=33, seed=0, effect=1.0, product=0.0):
    rng = np.random.default_rng(seed)
    parameters = dict(
        latent_dim=rng.integers(100, 501, n),
        lr=np.exp(rng.uniform(np.log(1e-5), np.log(1e-3), n)),
        w_v=np.exp(rng.uniform(np.log(1e-3), np.log(1), n)),
        batch_size=rng.choice([64, 128, 256], n),
        pruning_epoch=rng.integers(200, 601, n),
    )
    u = {k: stats.unit(v) for k, v in parameters.items()}
    return parameters, np.exp(-4 + effect * u["w_v"] + product * u["latent_dim"] * u["w_v"] + rng.normal(0, 0.1, n))


def test_importance_finds_the_parameter_that_matters():
    for seed in range(3):
        parameters, values = planted_search(seed=seed)
        ped, _ = stats.importance(parameters, values)
        tests, _ = stats.f_tests(parameters, values)
        assert max(ped, key=ped.get) == "w_v" and tests["w_v"][2] < 0.001 and tests["w_v"][0] > 0.5


def test_f_tests_call_noise_noise_and_see_a_product():
    false = sum(any(t[2] < stats.ALPHA for t in stats.f_tests(*planted_search(seed=s, effect=0))[0].values()) for s in range(200))
    assert false <= 10
    found = [stats.f_tests(*planted_search(seed=s, effect=0, product=-0.5))[1] for s in range(20)]
    assert all(p < stats.ALPHA for _, p in found) and np.mean([c for c, _ in found]) == pytest.approx(-0.5, abs=0.1)


def test_f_tests_with_too_few_runs_say_so():
    tests, (_, p) = stats.f_tests(*planted_search(n=14))
    assert all(np.isnan(t[1]) and t[2] == 1 for t in tests.values()) and np.isnan(p)
