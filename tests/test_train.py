"""train.py, lvae.py and record.py: the mathematics, the record, stop and resume. Runs go through train.main here."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sweep_kit import wait_until
from test_fuzz import damaged

import data
import lvae
import record
import train
from pruning import STRATEGIES
from tools import figures

ROOT = Path(__file__).parent.parent
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
    monkeypatch.setattr(figures, "draw", lambda *_: None)  # seconds each; test_wandb.py draws them
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


def own_designs(n=30, value=None):
    noise = np.random.default_rng(0).random((n, 16, 16), dtype=np.float32)
    np.save("own.npy", noise if value is None else np.full_like(noise, value))
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


# One power iteration a step lags behind the weights: by up to 3 % here, on noise, at the defaults' batch and pull
@pytest.mark.parametrize("flags, tolerance", [([*OFF, "--w_v=0.01"], 0.01), ([], 0.03)], ids=["first", "today"])
def test_the_decoder_holds_its_lipschitz_bound_after_training(flags, tolerance):
    flags = ["--problem=custom", "--lipschitz=7", "--n_epochs=60", "--batch_size=32", *flags]
    t = trainer(f"--data={own_designs(200)}", *flags)
    for epoch in range(60):
        t.epoch(epoch)
    t.model.eval()
    for layer in t.model.decoder:
        if isinstance(layer, torch.nn.Linear):
            norm = torch.linalg.matrix_norm((layer.weight / layer.norm()).detach().double(), 2)
            assert norm.item() == pytest.approx(1, abs=tolerance)
    a, b = torch.randn(2, 400, 8)
    with torch.no_grad():
        before = t.model.decoder(t.model.lipschitz * a) - t.model.decoder(t.model.lipschitz * b)
        after = 4 * (t.model.decode(a) - t.model.decode(b))  # the sigmoid's slope is at most 1/4
    for image in (before, after):
        assert (image.reshape(len(a), -1).norm(dim=1) / (a - b).norm(dim=1)).max() <= 7 * (1 + tolerance)


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
    x, second = torch.randn(2, 3, 2, 3), torch.nn.ConvTranspose2d(5, 1, 4, 4)
    first = torch.nn.ConvTranspose2d(3, 5, 2, 2, bias=False)
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
    assert {value.dtype for value in (*t.model.state_dict().values(), t.pruner.std)} == {torch.float32}  # in bf16, too


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
    assert summary(best)["val_rec"] == pytest.approx(min(val_recs))
    assert summary(best)["best_epoch"] == val_recs.index(min(val_recs))
    assert summary(best)["last_val_rec"] == summary(last)["val_rec"] == pytest.approx(val_recs[-1])


def test_a_length_that_is_not_given_follows_the_designs(capsys):
    def lengths(n_train, *flags):
        args = train.parse([*flags])
        train.schedule(args, n_train)
        return args.n_epochs, args.pruning_epoch, args.polynomial_schedule_n

    # 118 steps an epoch: 6000 steps; pruning after a tenth of them, and at least 400
    assert lengths(3788) == (51, 5, 5)
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


def test_pca_error_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    fit, x = (torch.tensor(rng.random((n, 1, 4, 5)), dtype=torch.float32) for n in (30, 10))
    for n, rank in ((30, 20), (5, 4)):  # fewer designs than pixels: the other form of the covariance
        errors, known, new = train.pca_errors(fit[:n], x), *(y.flatten(1).double().numpy() for y in (fit[:n], x))
        theirs = [PCA(k, svd_solver="full").fit(known) for k in range(1, rank + 1)]
        back = [known.mean(0), *(pca.inverse_transform(pca.transform(new)) for pca in theirs)]
        assert errors.tolist() == pytest.approx([((new - y) ** 2).mean() for y in back], rel=1e-4, abs=1e-10)


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
    assert s["test_rec"] > 0 and "test_rec" not in summary(b)
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
    for row in metrics:  # the loss is rec plus weighted volume
        for keys in (("rec_loss", "vol_loss", "total_loss"), ("val_rec", "val_vol_loss", "val_total_loss")):
            rec, vol, total = (float(row[key]) for key in keys)
            assert total == pytest.approx(rec + float(row["w_v"]) * vol, rel=1e-4)


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
    assert model.encode(t.val.numpy()).numpy().shape == (len(t.val), k)  # weights need no gradient any more
    assert model.encode(t.val[:0]).shape == (0, k)
    with pytest.raises(data.InputError, match=r"encode: values up to 255; designs are in \[0, 1\]"):
        model.encode(np.full((1, 32, 32), 255, dtype=np.uint8))
    double = lvae.load(folder / "model.pt").double()  # what a density is made of goes with the weights
    torch.testing.assert_close(double.sample(3, seed=1), model.sample(3, seed=1).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("problem", ["beams2d", "heatconduction2d", "photonics2d"])
def test_every_problem_with_every_strategy(problem):
    """With --n_train and a model: its regression takes the conditions of those designs alone."""
    for strategy in STRATEGIES:
        flags = [f"--problem={problem}", f"--strategy={strategy}", "--n_epochs=2", "--pruning_epoch=0", "--n_train=200"]
        flags += ["--latent_dim=6", "--batch_size=50", f"--save_model={strategy == 'plummet'}"]  # once: it takes long
        assert summary(run(*flags, name=strategy))["status"] == "finished"


# ---- Stop and resume: bit for bit, with damaged, foreign or missing checkpoints --------------------------------------


def until(epochs, *arguments):
    """train.py with these arguments in this process, stopped once the newest run in runs/ has so many epochs."""

    def code(_):
        newest = max(Path("runs").glob("*/metrics.csv"), key=lambda p: p.stat().st_mtime)
        return 143 if len(rows(newest)) >= epochs else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "Stop", type("Stop", (), {"code": property(code)}))
        assert train.main(list(arguments)) == 143


def stopped(name, epochs=4, *flags):
    """The folder of a run stopped after so many epochs, with a checkpoint at each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", name)
        until(epochs, *FAST, "--checkpoint_every=1", *flags)
    return Path("runs", name)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def refused(said, capsys, *arguments):
    """train.py refuses these arguments in one line, which has `said` in it."""
    capsys.readouterr()
    assert train.main(list(arguments)) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on_bit_for_bit(number, code):
    command = [sys.executable, str(ROOT / "train.py"), *FAST, "--n_epochs=2000", "--checkpoint_every=2"]
    process, metrics = subprocess.Popen(command, env={**os.environ, "WANDB_RUN_ID": "b"}), Path("runs/b/metrics.csv")
    wait_until(lambda: metrics.exists() and len(rows(metrics)) > 2, 60)
    with pytest.raises(data.InputError, match="another process"):
        record.Run(Path("runs/b"))
    process.send_signal(number)
    assert process.wait(60) == code
    done = len(rows(metrics)) + 4
    until(done, "--resume=runs/b")
    stopped("whole", done, "--n_epochs=2000")
    b, whole = (rows(Path("runs", name, "metrics.csv")) for name in ("b", "whole"))
    assert [row | {"epoch_seconds": ""} for row in b] == [row | {"epoch_seconds": ""} for row in whole]
    assert len(b) == done


def test_a_run_that_other_code_continues_says_so(capsys, monkeypatch):
    stopped("a", 3)
    here = record.describe_machine(torch.device("cpu"))
    monkeypatch.setattr(record, "describe_machine", lambda device: here | {"git": "another"})
    run(name="a")
    said = f"commit {here['git']} -> another"
    assert f"from epoch 4 on, this run is made by others: {said}" in capsys.readouterr().err
    config = config_of(Path("runs/a"))
    assert config["git"] == here["git"] and record.made_by(config) == f"{here['git']}; from epoch 4: {said}"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_while_torch_is_imported_ends_without_a_traceback():
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *FAST], stdout=-1, stderr=-1, text=True)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1] and process.returncode in (-signal.SIGINT, 130)


DAMAGE = [("checkpoint.pt", 0.3, "cut"), ("checkpoint.pt", 0.5, "flip")]
DAMAGE += [(name, 0.99, "flip") for name in ("metrics.csv", "pruning.csv")]  # what the last checkpoint alone knows


@pytest.mark.parametrize("name, where, how", DAMAGE)
def test_a_damaged_checkpoint_or_table_is_named_and_the_one_before_used(name, where, how, whole, capsys):
    path = stopped("a") / name
    path.write_bytes(damaged(path.read_bytes(), where, how))
    assert train.main(["--resume=runs/a"]) == 0
    error = capsys.readouterr().err
    assert "checkpoint.pt cannot be used" in error and (path.suffix == ".pt" or f"{name} is damaged, or older" in error)
    assert summary(path.parent)["metrics_sha256"] == summary(whole[0])["metrics_sha256"]
    assert not list(path.parent.glob("checkpoint*"))


def test_no_usable_checkpoint_is_an_error_that_changes_nothing(capsys):
    folder, other = stopped("a"), stopped("b", 4, "--lr=0.01")
    before, no_use = (folder / "metrics.csv").read_bytes(), "no usable checkpoint"
    (folder / "metrics.csv").write_bytes(before[:30] + b"\xff" + before[31:])
    refused(no_use, capsys, "--resume=runs/a")
    (folder / "metrics.csv").write_bytes(before)
    for path in other.glob("checkpoint*.pt"):  # of other flags
        (folder / path.name).write_bytes(path.read_bytes())
    refused(no_use, capsys, "--resume=runs/a")
    for path in folder.glob("checkpoint*.pt"):
        path.write_bytes(b"")
    refused(no_use, capsys, "--resume=runs/a")
    assert (folder / "metrics.csv").read_bytes() == before


def test_an_arm_survives_a_resume_by_hand():
    stopped("a", 4, "--arm=plummet_threshold=0.1")
    until(5, "--resume=runs/a")
    flags = config_of(Path("runs/a"))["flags"]
    assert (flags["arm"], flags["plummet_threshold"], flags["out"]) == ("plummet_threshold=0.1", 0.1, "runs")
    run("--checkpoint_every=1", "--arm=plummet_threshold=0.1", name="a")  # as its agent goes on


def test_a_run_killed_before_its_first_checkpoint_starts_over():
    folder = stopped("a", 2)
    for path in folder.glob("checkpoint*.pt"):
        path.unlink()
    run("--n_epochs=8", name="a")
    assert [int(row["epoch"]) for row in rows(folder / "metrics.csv")] == list(range(8))
    assert not config_of(folder).get("extended")  # all of it ran at the new length


def test_resume_auto_finds_the_run_of_these_flags_and_makes_none_longer():
    folder = stopped("a")
    stopped("b", 4, "--trim_rec=0.002")  # the newest: of another flag, whose default is to be open
    for other in ("--seed=5", "--n_epochs=5"):
        assert train.main([*FAST, "--resume=auto", other]) == 0  # a fresh run
        assert not (folder / "summary.json").exists()
    assert train.main([*FAST, "--resume=auto"]) == 0
    assert summary(folder)["status"] == "finished" and len(list(Path("runs").iterdir())) == 4


def test_other_flags_or_designs_are_refused(capsys, monkeypatch):
    folder = stopped("a")
    refused("was started with other flags; allowed: --lr 0.002", capsys, "--resume=runs/a", "--lr=0.5")
    refused("was started with other flags", capsys, "--resume=runs/a", "--n_epochs=3")
    monkeypatch.setattr(data, "_toy", lambda k, toy=data._toy: toy(k + 1))
    refused("other designs", capsys, "--resume=runs/a")
    refused("other designs", capsys, "--config", str(folder / "config.json"))


def test_a_finished_run_is_not_run_again_and_keeps_no_checkpoint(capsys):
    folder = stopped("a")
    (folder / "checkpoint.new.pt.tmp").write_bytes(b"half a checkpoint")
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    run(name="a")
    before = (folder / "metrics.csv").read_bytes()
    (folder / "checkpoint.pt").write_bytes(checkpoint)  # as if it had been killed right after its summary
    run(name="a")
    assert "finished already" in capsys.readouterr().out and (folder / "metrics.csv").read_bytes() == before
    assert not list(folder.glob("checkpoint*"))


def test_a_damaged_config_or_summary_is_named(capsys):
    folder = stopped("a")
    before = (folder / "metrics.csv").read_bytes()
    for text in ("null", "{}", '{"status": "finishe', '{"status": "x"}'):
        (folder / "summary.json").write_text(text)
        refused(f"--resume {folder}: its summary.json is damaged; delete it", capsys, "--resume=runs/a")
    assert train.main([*FAST, "--resume=auto"]) == 0  # another run
    (folder / "config.json").write_text(json.dumps({"flags": config_of(folder)["flags"]}))
    refused(f"--resume {folder}: its config.json is damaged", capsys, "--resume=runs/a")
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_run_that_another_process_ends_or_starts_meanwhile_is_left_alone(monkeypatch, capsys):
    """Between train.py's look at a run folder and its lock."""
    folder, original = stopped("a"), train.Stop
    before = (folder / "metrics.csv").read_bytes()

    def meanwhile(act):
        monkeypatch.setattr(train, "Stop", lambda: (act(), original())[1])

    meanwhile(lambda: (folder / "summary.json").write_text('{"status": "finished"}'))
    refused("another process has just ended this run", capsys, "--resume=runs/a")
    shutil.move("runs", "elsewhere")
    meanwhile(lambda: shutil.move("elsewhere", "runs"))
    run(name="a", code=2)
    assert "another process has just started the run a" in capsys.readouterr().err
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_run_made_longer_says_so_and_is_not_run_again_as_if_it_had_not(whole, capsys):
    folder, extended = stopped("a"), [{"epoch": 4, "n_epochs": 6}]
    stopped("a", 6, "--n_epochs=8")
    (folder / "checkpoint.pt").write_bytes(b"")  # back to the one before: the extension is known from it, too
    run("--n_epochs=8", name="a")
    assert len(rows(folder / "metrics.csv")) == 8 and config_of(folder)["extended"] == extended
    config = str(folder / "config.json")
    refused(f"--config {config}: was made longer while it ran, and cannot be run again", capsys, "--config", config)
    assert train.main(["--config", config, "--n_epochs=6", "--out=again"]) == 0
    (again,) = Path("again").iterdir()
    assert summary(again)["metrics_sha256"] == summary(whole[0])["metrics_sha256"]
    refused(f"--n_epochs 9: {folder} is finished and cannot be made longer", capsys, "--resume=runs/a", "--n_epochs=9")


def test_a_run_of_before_a_flag_existed_goes_on():
    """Its config.json and checkpoint lack the flag: they mean what was done then."""
    folder, whole = stopped("a", 3, *OFF), run(*OFF, name="whole")
    path = folder / "checkpoint.pt"
    config, state = config_of(folder), torch.load(path, weights_only=True)
    for flag in train.LEGACY:
        del config["flags"][flag], state["flags"][flag]
    state["best"] = (state["best"]["val_rec"], state["best"]["epoch"])
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, path)
    assert train.main([f"--resume={folder}"]) == 0
    assert summary(folder)["metrics_sha256"] == summary(whole)["metrics_sha256"]


def test_a_run_that_older_code_began_keeps_its_columns():
    opened = record.Run(Path("runs/a"))
    opened.start({})
    Path("runs/a/metrics.csv").write_text("epoch,val_rec,epoch_seconds\n")
    opened.append("metrics.csv", dict.fromkeys(record.COLUMNS, 0.5))
    assert rows("runs/a/metrics.csv") == [dict.fromkeys(("epoch", "val_rec", "epoch_seconds"), "0.5")]
    Path("runs/a/pruning.csv").write_text("epoch,cap,floor\n")
    opened.append("pruning.csv", dict(epoch=1, max_prune_per_epoch=2, min_active_dims=3))
    assert rows("runs/a/pruning.csv") == [dict(epoch="1", cap="2", floor="3")]
    new = dict(epoch=["1"], max_prune_per_epoch=["2"], min_active_dims=["3"])
    assert record.read_csv("runs/a/pruning.csv").to_dict("list") == new
    Path("both.csv").write_text("epoch,max_prune_per_epoch,cap\n1,2,\n2,,3\n")
    assert record.read_csv("both.csv").to_dict("list") == dict(epoch=["1", "2"], max_prune_per_epoch=["2", "3"])


def test_a_start_does_not_import_the_compiler():
    """It would take a second: the reason for train.Adam."""
    code = "import sys, train; assert train.main(sys.argv[1:]) == 0 and 'torch._dynamo' not in sys.modules"
    command = [sys.executable, "-c", code, *FAST, "--n_epochs=1"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
