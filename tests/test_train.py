"""train.py, lvae.py and record.py: the mathematics and the record. Runs go through train.main in this process."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import lvae
import record
import train
from pruning import STRATEGIES
from tools import figures

ROOT, DRAW = Path(__file__).parent.parent, figures.draw
# A few seconds of the toy problem that do prune: lognorm proposes at once, and no safeguard holds it back.
FAST = ["--problem=toy", "--n_epochs=6", "--latent_dim=8", "--batch_size=256", "--pruning_epoch=2"]
FAST += ["--polynomial_schedule_n=2", "--strategy=lognorm", "--percentile=0.4", "--safeguards=none"]
FAST += ["--wandb=disabled", "--threads=1", "--data=sample"]

# Ends all that the method has gained since its first edition: what a row, config.json or checkpoint of before lacks
OFF = [f"--{flag}={value}" for flag, value in train.LEGACY.items()]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(figures, "draw", lambda *_: None)  # seconds each; test_figures draws them
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run(*flags, name, code=0):
    """Run train.py in this process as run `name`; returns its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", name)
        assert train.main([*FAST, *flags]) == code
    return Path("runs") / name


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def trainer(*flags):
    args = train.parse([*FAST, *flags])
    return train.Trainer(args, data.load(args.problem, args.data, args.toy_dims), train.settle(args))


def own_designs(n=30, shape=(16, 16), value=None):
    designs = (
        np.random.default_rng(0).random((n, *shape), dtype=np.float32)
        if value is None
        else np.full((n, *shape), value, np.float32)
    )
    np.save("own.npy", designs)
    return "own.npy"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of one run of FAST, and what its trainer was at the end: (folder, trainer). Look, do not write."""
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        patch.setattr(figures, "draw", lambda trainer, *_: kept.update(trainer=trainer))
        return run("--save_model", "--test", name="a").resolve(), kept["trainer"]


# ---- Mathematics -----------------------------------------------------------------------------------------------------


def operator_norm(layer):
    """Largest singular value of a layer's linear map, by power iteration with autograd as the adjoint."""
    x = torch.randn(1, 3, 5, layer.in_features, dtype=torch.float64)
    weight = (layer.weight / layer.norm()).detach().double()
    for _ in range(500):
        x = (x / x.norm()).requires_grad_()
        y = F.linear(x, weight)
        (x,) = torch.autograd.grad(y, x, y.detach())
    return y.norm().item()


# One power iteration a step lags behind the weights: by up to 3 % here, on noise, at the defaults' batch and pull
@pytest.mark.parametrize("flags, tolerance", [(OFF, 0.01), ([], 0.03)], ids=["first edition", "defaults"])
def test_the_decoder_holds_its_lipschitz_bound_after_training(flags, tolerance):
    flags = [*flags, "--w_v=0.01"] if flags else flags
    t = trainer(
        "--problem=custom", f"--data={own_designs(200)}", "--lipschitz=7", "--n_epochs=60", "--batch_size=32", *flags
    )
    for epoch in range(60):
        t.epoch(epoch)
    t.model.eval()
    for layer in t.model.decoder:
        if isinstance(layer, torch.nn.Linear):
            assert operator_norm(layer) == pytest.approx(1, abs=tolerance)
    a, b = torch.randn(2, 400, 8)
    with torch.no_grad():
        before = t.model.decoder(t.model.lipschitz * a) - t.model.decoder(t.model.lipschitz * b)
        after = t.model.decode(a) - t.model.decode(b)
    assert (before.view(len(a), -1).norm(dim=1) / (a - b).norm(dim=1)).max() <= 7 * (1 + tolerance)
    assert (after.flatten(1).norm(dim=1) / (a - b).norm(dim=1)).max() <= 7 * (
        1 + tolerance
    ) / 4  # the sigmoid's slope is at most 1/4


@pytest.mark.parametrize("rows", [2, 50])  # few: the input is divided by the norm; many: the weight is
def test_the_gradient_through_the_norm(rows):
    torch.manual_seed(0)
    layer = train.BoundedLinear(5, 7).double().eval()
    x, out = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True), torch.randn(rows, 7, dtype=torch.float64)
    plain = F.linear(x / (layer.u @ (layer.weight @ layer.v)), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), plain)
    leaves = (x, layer.weight, layer.bias)
    torch.testing.assert_close(torch.autograd.grad(layer(x), leaves, out), torch.autograd.grad(plain, leaves, out))


def test_patches_are_convolutions():
    x, strides = torch.randn(2, 1, 16, 24), (4, 2)
    patches = lvae.to_patches(x, strides)
    assert torch.equal(lvae.from_patches(patches, (16, 24), strides), x)
    first, second = torch.nn.Conv2d(1, 5, 4, 4), torch.nn.Conv2d(5, 3, 2, 2)
    ours = F.linear(patches.reshape(-1, 16), first.weight.flatten(1), first.bias)
    ours = F.linear(ours.reshape(-1, 20), second.weight.permute(0, 2, 3, 1).flatten(1), second.bias)
    torch.testing.assert_close(ours.view(2, 2, 3, 3).movedim(-1, 1), second(first(x)), rtol=1e-4, atol=1e-5)
    x, first, second = (
        torch.randn(2, 3, 2, 3),
        torch.nn.ConvTranspose2d(3, 5, 2, 2, bias=False),
        torch.nn.ConvTranspose2d(5, 1, 4, 4),
    )
    ours = F.linear(x.movedim(1, -1).reshape(-1, 3), first.weight.permute(2, 3, 1, 0).reshape(-1, 3))
    ours = F.linear(ours.view(-1, 5), second.weight.flatten(1).T) + second.bias
    torch.testing.assert_close(lvae.from_patches(ours, (16, 24), strides), second(first(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(50, 100), (101, 101), (120, 120), (9, 8), (33, 47)])
def test_any_shape_goes_in_and_comes_out(shape):
    model = train.LVAE(shape, 5, 30.0)
    x = torch.rand(3, 1, *shape)
    assert model.decode(model.encode(x)).shape == x.shape


def test_the_schedule_of_w_v():
    t = trainer("--w_v=0.02", "--polynomial_schedule_n=10", "--polynomial_schedule_p=2")
    assert [t.w_v(e) for e in (0, 5, 10, 99)] == pytest.approx([0, 0.005, 0.02, 0.02])
    assert trainer("--polynomial_schedule_n=0", "--w_v=0.02").w_v(0) == 0.02
    wide = ["--polynomial_schedule_n=0", "--w_v=0.02", "--latent_dim=250"]
    assert trainer(*wide).w_v(0) == pytest.approx(0.008)  # the log volume, a sum, pulls as that of 100 latents
    assert trainer(*wide, "--volume=geometric").w_v(0) == 0.02
    t.pruner.least = 0.91 * t.pruner.variance  # no better than the mean design yet
    assert t.w_v(99) == 0
    t.pruner.least = 0.89 * t.pruner.variance
    assert t.w_v(99) == 0.02


def test_adam_is_torchs():
    torch.manual_seed(0)
    starts = [torch.randn(3, 4), torch.randn(5)]
    ours, theirs = ([p.clone().requires_grad_() for p in starts] for _ in range(2))
    adam, reference = train.Adam(ours), torch.optim.Adam(theirs, fused=True)
    for lr in (0.1, 0.05, 0.01):
        reference.param_groups[0]["lr"] = lr
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        adam.step(lr)
        reference.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True)) and all(p.grad is None for p in ours)


def test_a_start_does_not_import_the_compiler():
    code = "import sys, train; assert train.main(sys.argv[1:]) == 0 and 'torch._dynamo' not in sys.modules"
    command = [sys.executable, "-c", code, "--problem=toy", "--latent_dim=2", "--n_epochs=1", "--wandb=disabled"]
    subprocess.run(
        command, check=True, env={**os.environ, "PYTHONPATH": str(Path(train.__file__).parent)}, capture_output=True
    )


def test_the_loss_is_rec_plus_weighted_volume(whole):
    for row in rows(whole[0] / "metrics.csv"):
        rec, vol, total, w_v = (float(row[key]) for key in ("rec_loss", "vol_loss", "total_loss", "w_v"))
        assert total == pytest.approx(rec + w_v * vol, rel=1e-4)
        assert float(row["val_total_loss"]) == pytest.approx(
            float(row["val_rec"]) + w_v * float(row["val_vol_loss"]), rel=1e-4
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rotation_keeps_the_model_and_finds_the_principal_axes(precision):
    t = trainer(f"--precision={precision}", "--latent_dim=6", "--rotate_every=0", "--trim_share=0")
    for epoch in range(3):
        t.epoch(epoch)
    t.pruner.active[2] = False  # a pruned latent stays as it is
    frozen = [t.pruner.std[2].item(), t.pruner.mean[2].item()]
    before, norm = t.reconstruct(t.val)[1], t.model.decoder[0].norm().item()
    _, vol = t.validate(t.train)
    t.rotate()
    z, after = t.reconstruct(t.val)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 if precision == "fp32" else 0.02)  # bf16 has 8 bits
    assert t.model.decoder[0].norm().item() == pytest.approx(norm, rel=1e-5)
    z = t.reconstruct(t.train)[0][:, t.pruner.active].double()
    cov = torch.cov(z.T, correction=0)
    assert (cov - cov.diag().diag()).abs().max() < 1e-4 * cov.max()
    assert cov.diag().tolist() == sorted(cov.diag().tolist(), reverse=True)
    torch.testing.assert_close(t.pruner.std[t.pruner.active].double(), cov.diag().sqrt(), rtol=1e-3, atol=1e-3)
    assert [t.pruner.std[2].item(), t.pruner.mean[2].item()] == frozen
    assert t.validate(t.train)[1] <= vol  # of all bases, this one has the least volume (Hadamard)


def test_the_first_edition_comes_out_bit_for_bit():
    """A record of before the newer flags existed comes out again: what it lacks takes the old values."""
    first = run(*OFF, "--w_v=0.01", "--batch_size=64", "--latent_dim=8", name="a")
    config = json.loads((first / "config.json").read_text())
    for flag in train.LEGACY:
        del config["flags"][flag]
    Path("old.json").write_text(json.dumps(config))
    assert train.main(["--config=old.json", "--out=again", "--wandb=disabled"]) == 0
    (again,) = Path("again").iterdir()
    assert summary(first)["metrics_sha256"] == summary(again)["metrics_sha256"]


def test_the_best_weights_are_kept():
    """A run that errs more at its end than before gives up its last epochs, and reports both errors."""
    flags = ["--strategy=none", "--lr=0.05", "--n_epochs=8"]
    last, best = run(*flags, "--keep=last", name="last"), run(*flags, name="best")
    val_recs = [float(row["val_rec"]) for row in rows(best / "metrics.csv")]
    assert summary(last)["metrics_sha256"] == summary(best)["metrics_sha256"]
    assert summary(best)["val_rec"] == pytest.approx(min(val_recs)) and summary(best)["best_epoch"] == val_recs.index(
        min(val_recs)
    )
    assert summary(best)["last_val_rec"] == summary(last)["val_rec"] == pytest.approx(val_recs[-1])


def test_a_length_that_is_not_given_follows_the_designs(capsys):
    def lengths(n_train, *flags):
        args = train.parse([*flags])
        train.schedule(args, n_train)
        return args.n_epochs, args.pruning_epoch, args.polynomial_schedule_n

    assert lengths(3788) == (
        51,
        5,
        5,
    )  # 118 steps an epoch: 6000 steps; pruning after a tenth of them, and at least 400
    assert lengths(358) == (100, 37, 37)  # 11 steps an epoch: 100 epochs; 400 steps are 37
    assert lengths(358, "--n_epochs=7", "--pruning_epoch=2", "--polynomial_schedule_n=1") == (7, 2, 1)
    assert capsys.readouterr().err == ""


def test_validation_changes_nothing():
    t = trainer()
    t.epoch(0)
    before = [value.clone() for value in (*t.model.state_dict().values(), t.pruner.std, t.pruner.mean)]
    t.validate(t.val)
    t.reconstruct(t.train)
    after = [*t.model.state_dict().values(), t.pruner.std, t.pruner.mean]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_pca_error_is_that_of_the_projection():
    rng = np.random.default_rng(0)
    fit, x = (torch.tensor(rng.random((n, 1, 4, 5)), dtype=torch.float32) for n in (30, 10))
    centred = fit.flatten(1).numpy() - fit.flatten(1).numpy().mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    basis = vectors[:, np.argsort(-values)[:3]]
    y = x.flatten(1).numpy() - fit.flatten(1).numpy().mean(0)
    errors = train.pca_errors(fit, x)
    assert errors[0].item() == pytest.approx((y**2).mean(), rel=1e-5)
    assert errors[3].item() == pytest.approx(((y - y @ basis @ basis.T) ** 2).mean(), rel=1e-5)
    assert errors[20].item() == pytest.approx(0, abs=1e-10)
    few = train.pca_errors(fit[:5], x)  # fewer designs than pixels: the other form of the covariance, and rank 4
    vectors = np.linalg.svd(fit[:5].flatten(1).numpy() - fit[:5].flatten(1).numpy().mean(0), full_matrices=False)[2]
    y = x.flatten(1).numpy() - fit[:5].flatten(1).numpy().mean(0)
    assert len(few) == 5
    assert few[2].item() == pytest.approx(((y - y @ vectors[:2].T @ vectors[:2]) ** 2).mean(), rel=1e-4)


def test_bf16_trains_and_keeps_the_bound_in_fp32():
    t = trainer("--precision=bf16")
    row, _ = t.epoch(0)
    assert math.isfinite(row["val_rec"])
    assert all(value.dtype == torch.float32 for value in t.model.state_dict().values())
    assert t.pruner.std.dtype == torch.float32


# ---- Record ----------------------------------------------------------------------------------------------------------


def test_the_record_is_whole_and_the_same_seed_gives_it_again(whole):
    a, b, c = whole[0], run(name="b"), run("--seed=2", name="c")
    files = {"config.json", "lock", "metrics.csv", "pruning.csv", "summary.json", "model.pt"}
    assert {p.name for p in a.iterdir()} == files
    metrics = rows(a / "metrics.csv")
    assert list(metrics[0]) == record.COLUMNS
    assert [int(row["epoch"]) for row in metrics] == list(range(6))
    assert [bool(row["val_rec_pruned"]) for row in metrics] == [e >= 2 + 6 // 10 for e in range(6)]
    assert not any(row["dims_within"] for row in metrics)  # toys have no bound
    events = rows(a / "pruning.csv")
    assert list(events[0]) == record.PRUNING_COLUMNS
    assert int(events[0]["epoch"]) == 2
    changes = {int(row["epoch"]): [int(row[key]) for key in ("pruned", "trimmed", "restored")] for row in events}
    assert len(events[0]["dims"].split()) == sum(changes[2][:2]) == len(events[0]["std"].split())
    s = summary(a)
    assert s["status"] == "finished"
    assert s["active_dims"] == 8 - sum(p + t - r for p, t, r in changes.values()) == int(metrics[-1]["active_dims"])
    assert s["pca_ratio"] == pytest.approx(s["val_rec"] / s["pca_rec"])
    assert "test_rec" in s and "test_rec" not in summary(b)
    assert s["val_total_loss"] == pytest.approx(s["val_rec"] + float(metrics[-1]["w_v"]) * s["val_vol_loss"])
    last = max(epoch for epoch, counts in changes.items() if any(counts))
    assert s["best_val_rec"] == pytest.approx(min(float(r["val_rec"]) for r in metrics if int(r["epoch"]) > last))
    config = json.loads((a / "config.json").read_text())
    assert config["name"] == "toy-lognorm-s1-a"
    assert config["flags"]["percentile"] == 0.4
    assert config["flags"]["recon_tol"] == "inf"
    assert config["data"]["sha256"] == data.load("toy").fingerprint["sha256"]
    assert set(config["versions"]) >= {"python", "torch", "numpy", "engibench", "wandb"}
    assert s["metrics_sha256"] == summary(b)["metrics_sha256"] != summary(c)["metrics_sha256"]


def test_a_record_is_run_again_from_its_config(whole):
    a, _ = whole
    assert train.main(["--config", str(a / "config.json"), "--out=again", "--wandb=disabled"]) == 0
    (b,) = Path("again").iterdir()
    assert summary(a)["metrics_sha256"] == summary(b)["metrics_sha256"]


def test_the_compact_model_gives_what_the_masked_one_gives(whole):
    folder, t = whole
    model = lvae.load(folder / "model.pt")
    k = summary(folder)["active_dims"]
    assert 0 < k == len(model.dims) < 8
    z, images = t.reconstruct(t.val)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(t.val), z[:, model.dims], rtol=1e-5, atol=1e-5)  # latents are some tens
        torch.testing.assert_close(model.decode(model.encode(t.val)), images, rtol=0, atol=1e-5)
    assert model.sample(3, seed=1).shape == (3, 1, 32, 32)
    assert torch.equal(model.sample(3, seed=1), model.sample(3, seed=1))
    assert not torch.equal(model.sample(3, seed=1), model.sample(3, seed=2))
    assert summary(folder)["test_rec"] > 0


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"nonsense")
    with pytest.raises(lvae.InputError, match=r"not a model\.pt"):
        lvae.load(tmp_path / "model.pt")


def test_figures(monkeypatch):
    monkeypatch.setattr(figures, "draw", DRAW)
    folder = run("--n_epochs=3", "--n_train=256", "--out=runs", name="a")
    names = {"spectrum", "reconstructions", "interpolation", "samples", "curves"}
    assert {p.stem for p in (folder / "figures").iterdir()} == names
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (folder / "figures").iterdir())


@pytest.mark.parametrize("problem", ["beams2d", "heatconduction2d", "photonics2d"])
def test_every_problem_with_every_strategy(problem):
    """With --n_train and a model: its regression takes the conditions of those designs alone."""
    for strategy in STRATEGIES:
        flags = [f"--problem={problem}", f"--strategy={strategy}", "--n_epochs=2", "--pruning_epoch=0", "--n_train=200"]
        flags += [
            "--latent_dim=6",
            "--batch_size=50",
            f"--save_model={strategy == 'plummet'}",
        ]  # once: it takes seconds
        assert summary(run(*flags, name=strategy))["status"] == "finished"
