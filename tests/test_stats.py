"""The verdicts on synthetic sweeps with known answers: planted winners are found, planted ties stay undecided."""

import numpy as np
import pandas as pd
import planted
import pytest
import scipy.stats

import report

STUDIES = 1000


def sweeps(effects, seeds, problems=3, seed=1):
    """log val_rec (STUDIES, arms, problems * seeds): effects, what arms share, noise of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.5, (STUDIES, 1, problems, 1)) + rng.normal(0, 0.1, (STUDIES, 1, problems, seeds))
    own = rng.normal(0, 0.05, (STUDIES, len(effects), problems, seeds))
    return (-4 + np.array(effects)[:, None, None] + shared + own).reshape(STUDIES, len(effects), -1)


def verdicts(logs, seeds, holm=report.holm):
    """What report.py decides for arm 0 against each other arm: (STUDIES, arms - 1) of -1, 0, 1."""
    mean, _, _, p = report.paired(logs[:, :1] - logs[:, 1:])
    return report.decide(mean, holm(p), seeds)


@pytest.mark.parametrize("seeds, problems", [(3, 3), (5, 3), (3, 1), (5, 1)])
def test_ties_are_undecided(seeds, problems):
    found = verdicts(sweeps([0, 0, 0, 0], seeds, problems=problems), seeds)
    assert (found != 0).any(1).mean() <= 0.05  # one false verdict anywhere makes a sweep false
    two_tied = verdicts(sweeps([0, 0, 0.5, 0.5], seeds, problems=problems, seed=2), seeds)
    assert (two_tied[:, 0] != 0).mean() <= 0.05


def test_holm_is_what_holds_the_bound():
    logs = sweeps([0] * 8, 5)
    assert (verdicts(logs, 5, holm=lambda p: p) != 0).any(1).mean() > 0.1
    assert 0.005 < (verdicts(logs, 5) != 0).any(1).mean() <= 0.05  # and not by never deciding
    p = [[0.01, 0.04, 0.03, 0.005], [np.nan, 0.01, 1, 1]]  # the first is Holm's own example (1979)
    assert report.holm(p) == pytest.approx(np.array([[0.03, 0.06, 0.06, 0.02], [1, 0.04, 1, 1]]))


def test_planted_winner_is_found_in_both_directions_by_enough_seeds():
    assert (verdicts(sweeps([-0.2, 0, 0, 0], 3), 3) == -1).all(1).mean() > 0.95
    assert (verdicts(sweeps([0.2, 0, 0, 0], 3), 3) == 1).all(1).mean() > 0.95
    assert not verdicts(sweeps([-1, 0, 0, 0], 2), 2).any()


def test_the_detectable_difference_is_found_by_four_studies_of_five():
    d = report.detectable(9, 0.05, 3)
    rng = np.random.default_rng(1)
    found = [report.paired(rng.normal(d, 0.05, 9))[3] < report.ALPHA / 3 for _ in range(2000)]
    assert 0.77 < np.mean(found) < 0.83 and np.isnan(report.detectable(2, 0.05, 3))


def test_effects_on_the_surface():
    levels = [range(2), range(5), [300, 400, 500, 700], [0.002, 0.005, 0.01, 0.02, 0.05]]
    index = pd.MultiIndex.from_product(levels, names=["arm", "seed", *report.SETTINGS])
    frame = index.to_frame(index=False).astype({"arm": "category"})
    e, w, second = report.unit(frame["pruning_epoch"]), report.unit(frame["w_v"]), frame["arm"] == 1
    rng, seen, wrong = np.random.default_rng(3), 0, 0

    def effects(logs, rows=slice(None)):
        return report.effects(frame.assign(val_rec=np.exp(logs))[rows]).set_index("a")

    for _ in range(100):
        base = 0.1 * w**2 + rng.normal(0, 0.1, 5)[frame["seed"]] + rng.normal(0, 0.05, len(frame))
        found = effects(base - 0.2 * e * w)
        seen += found["verdict"]["interaction"] == -1
        assert found["mean"]["interaction"] == pytest.approx(-0.2, abs=0.1)
        wrong += effects(base)["verdict"].any()  # a curvature in w_v, and nothing that is asked for
    assert seen >= 95 and wrong <= 5
    arms = effects(base - 0.3 * second).loc["arms"]
    assert arms["verdict"] == -1 and arms["mean"] == pytest.approx(-0.3, abs=0.05)

    truth = dict(interaction=-0.5, arms=0.7, pruning_epoch=0.1, w_v=-0.2)
    logs = -4 + 0.1 * e - 0.2 * w + 0.3 * e * e + 0.4 * w * w - 0.5 * e * w + 0.7 * second
    holes = (rng.random(len(frame)) > 0.1) & ((frame["seed"] > 0) | (e < 0))  # seed 0: too few for a surface
    for rows, seeds in ((slice(None), 5), (holes, 4)):
        found = effects(logs, rows)
        assert found["mean"].to_dict() == pytest.approx(truth) and set(found["seeds"]) == {seeds}
    one = effects(logs, ~second)  # one arm: nothing to compare it with
    assert one["seeds"].to_dict() == dict(interaction=5, arms=0, pruning_epoch=5, w_v=5) and not one["verdict"]["arms"]
    point = frame.groupby(["seed", "pruning_epoch", "w_v"]).ngroup()
    arms = effects(rng.normal(0, 0.1, point.max() + 1)[point]).loc["arms"]  # both made the same runs
    assert (arms["mean"], arms["spread"], arms["p"]) == (0, 0, 1)


def test_an_interval_counts_seeds_not_runs():
    two, one = [1.0, 4.0, 3.0, 12.0, 5.0, 5.0], [2.0, 6.0, 5.0]  # their geometric means
    assert report.interval(two, True, [1, 1, 2, 2, 3, 3]) == pytest.approx(report.interval(one, True))


def test_equal_differences_decide_nothing():
    assert np.isnan(report.paired([0.3])[3]) and report.paired(np.zeros(4))[3] == 1
    values = pd.DataFrame({"a": [5, 6, 7], "b": [3, 4, 5], "c": [1.5, 1.8, 2.1], "d": [1, 1.2, 1.4]})
    values.index = pd.MultiIndex.from_product([["p"], [1, 2, 3]], names=["problem", "seed"])
    for pair, log in ((("a", "b"), False), (("c", "d"), True)):  # the logs differ by rounding alone
        row = report.family(values, [pair], log).iloc[0]
        assert row["verdict"] == 0 and np.isnan(row["p"]) and row["p_holm"] == 1 and row["n"] == 3


def test_family_pairs_by_problem_and_seed():
    index = pd.MultiIndex.from_tuples([("p", 1), ("p", 2), ("p", 3), ("q", 1)], names=["problem", "seed"])
    values = pd.DataFrame({"a": [1.0, 2.0, 3.0, 9.0], "b": [2.0, 4.1, 6.0, np.nan]}, index)
    row = report.family(values, [("a", "b")]).iloc[0]
    assert (row["n"], row["seeds"], row["verdict"]) == (3, 3, -1)
    assert row["mean"] == pytest.approx(np.log([0.5, 2 / 4.1, 0.5]).mean())
    assert report.family(values, [("a", "nothing")])["verdict"][0] == 0
    assert report.family(values, [("b", "a")], log=False)["mean"][0] == pytest.approx((1 + 2.1 + 3) / 3)


def test_instability_of_known_curves():
    falling = report.instability(pd.Series(range(10)), np.linspace(2, 1, 10), 0)
    assert falling == dict(rise=0, epochs_above=0, collapses=0)
    curve = [9, 1.0, 1.04, 1.2, 2.5, 2.1, 1.0, 3.0, 1.0]  # before epoch 1: not counted
    assert report.instability(pd.Series(range(9)), curve, 1) == dict(rise=2.0, epochs_above=4, collapses=2)
    assert np.isnan(report.instability(pd.Series(range(3)), [1, 1, 1], 5)["rise"])


def test_an_interval_is_of_the_logs_where_asked():
    logs = np.random.default_rng(7).normal(-4, 0.3, 3)
    (mean, low, high, p), test = map(float, report.paired(logs)), scipy.stats.ttest_1samp(logs, 0)
    assert (p, low, high) == pytest.approx((test.pvalue, *test.confidence_interval()))
    assert report.interval(np.exp(logs), True) == pytest.approx(np.exp([mean, low, high]))
    assert report.interval(logs, False) == pytest.approx((mean, low, high))
    assert np.isnan(report.interval([1.0], True)[1]) and np.isnan(report.interval([], False)).all()
    assert report.interval([2.0, 2.0, 2.0], True) == pytest.approx((2, 2, 2))


def planted_search(seed=0, effect=1.0):
    rows = pd.DataFrame(planted.search(seed=seed, problems=["beams2d"], scale=effect))
    return rows[["latent_dim", "lr", "w_v", "pruning_epoch", "batch_size"]], rows["objective"]


def test_what_matters_is_found_and_noise_is_called_noise():
    ped, tests = (measure(*planted_search()) for measure in (report.importance, report.f_tests))
    assert max(ped, key=ped.get) == "w_v" and tests["w_v"][2] < 0.001 and tests["w_v"][0] > 0.5
    noise = [report.f_tests(*planted_search(seed=s, effect=0)) for s in range(200)]
    assert sum(any(t[2] < report.ALPHA for t in tests.values()) for tests in noise) <= 10
    parameters, values = planted_search()
    constant = report.f_tests(parameters.assign(lr=0.001), values)
    assert np.isnan(constant["lr"][1]) and constant["lr"][2] == 1 and constant["w_v"][2] < 0.001
