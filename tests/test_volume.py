"""The volume, the statistics of the latents, and the draws of `probabilistic`."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_pruning import ETA, FLAT, make_flags, play, pytestmark, quick, spectra  # noqa: F401  a warning fails

from pruning import Pruner
from train import volume

ALL = torch.ones(3, dtype=torch.bool)


def test_volume_by_hand():
    # geometric mean of 1, .1 and .01 (eta included) is .1
    assert float(volume(torch.tensor([0.99, 0.09, 0.0], dtype=torch.float64), ALL, "geometric", 0.01)) == pytest.approx(
        0.1
    )
    # log 1 + log .1, the last one pruned: it is not in it, and feels no pull
    std = torch.tensor([0.99, 0.09, 0.0], dtype=torch.float64).requires_grad_()
    log = volume(std, torch.tensor([True, True, False]), "log", 0.01)
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
        (to_sigma,) = torch.autograd.grad(
            volume(torch.where(pruner.active, sigma, pruner.std), pruner.active, "geometric", ETA), sigma
        )
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
    pruner.update(
        torch.tensor([[-1.0, 4.0], [1.0, 6.0]], requires_grad=True)
    )  # std 1, 1 (correction 0), mean 0, 5: the start
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


# ---- The draws of `probabilistic` ------------------------------------------------------------------------------------


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
    for cell in torch.cartesian_prod(
        *[torch.arange(2)] * 3
    ).tolist():  # independent: one draw for all would fill 4 cells of 8
        expected[tuple(cell)] = seeds * torch.where(torch.tensor(cell) == 1, p, 1 - p).prod()
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
