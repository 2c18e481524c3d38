"""Whatever is typed or read: an InputError of one line, or a run. FUZZ=5000: so many cases each."""

import argparse
import io
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import data
import lvae
import record
import sweep as create
import train
from pruning import PROFILES, STRATEGIES
from tools import figures

FUZZ = int(os.environ.get("FUZZ", 200))
MANY = settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
WORDS = "None inf -inf nan True False 0 -1 1 0.5 1e-400 1e400 ٣ 0x10 plummet toy moderate cpu cuda:99 cpu:1 meta"
WORDS = [*WORDS.split(), "", " ", "9" * 400, "lr=0.1", "lr=0.1,lr=0.2", "a=b=c", "=", ",", "problem=toy,"]
VALUES = st.one_of(st.sampled_from(WORDS), st.integers().map(str), st.floats().map(str), st.text(max_size=12))
FLAG = st.one_of(st.sampled_from(sorted(train.DEFAULTS)), st.text(alphabet="abcdefg_-=", max_size=8))


def one_line(error):
    assert str(error).strip()
    assert "\n" not in str(error).replace("\\n", ""), str(error)


@MANY
@given(st.lists(st.tuples(FLAG, VALUES), max_size=6))
@example([("", "\n")])  # an unknown flag with two lines
def test_any_command_line(pairs):
    argv = [f"--{flag}={value}" for flag, value in pairs if flag not in ("h", "he", "hel", "help")]
    try:
        args = train.parse(argv)
    except data.InputError as error:
        one_line(error)
        return
    assert set(vars(args)) == set(train.DEFAULTS)
    assert args.min_active_dims <= args.latent_dim


PATHS = "problem data out resume config arm device wandb wandb_project wandb_entity latent_dim toy_dims"
EXTREMES = "0 1 2 1e-320 1e-30 1e-9 0.5 0.999999 1e30 1e308 inf 1000000 2147483648"
EXTREMES = [*EXTREMES.split(), "9" * 400, *PROFILES, *STRATEGIES, "bf16"]
CHOSEN = st.sampled_from(sorted(train.DEFAULTS.keys() - set(PATHS.split())))


@MANY
@given(st.dictionaries(CHOSEN, st.sampled_from(EXTREMES), max_size=3), st.sampled_from([1, 4]))
def test_any_flags_that_are_taken_train(tmp_path_factory, chosen, latent_dim):
    """Two epochs of a tiny run: finished, stopped or diverged; a refusal leaves nothing behind."""
    folder = tmp_path_factory.mktemp("fuzz")
    np.save(folder / "own.npy", DESIGNS)
    argv = [f"--data={folder}/own.npy", f"--out={folder}/runs", f"--latent_dim={latent_dim}", "--n_epochs=2"]
    argv += ["--pruning_epoch=0", "--problem=custom", "--wandb=disabled", "--threads=1"]
    epochs = iter([None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *_: None)
        patch.setattr(train, "Stop", lambda: type("Stop", (), {"code": property(lambda self: next(epochs, 143))})())
        code = train.main(argv + [f"--{flag}={value}" for flag, value in chosen.items()])
    assert code in (0, 2, 3, 143)
    assert (folder / "runs").exists() == (code != 2)


def damaged(whole, where, how):
    """whole with a bit flipped, cut off, or with rubbish in the middle."""
    at = int(where * (len(whole) - 1))
    if how == "cut":
        return whole[:at]
    return whole[:at] + (bytes([whole[at] ^ 8]) + whole[at + 1 :] if how == "flip" else b"\xff\x00junk" + whole[at:])


DAMAGE = (st.floats(0, 1), st.sampled_from(["cut", "flip", "junk"]))
DESIGNS = np.random.default_rng(0).random((24, 9, 9), dtype=np.float32)


def saved(save, *args, **kwargs):
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


def check_damaged(files, *reads):
    """However files {path: bytes} are damaged, a read gives an InputError of one line, or what it itself finds good."""

    @MANY
    @given(*DAMAGE)
    def check(where, how):
        for path, whole in files.items():
            path.write_bytes(damaged(whole, where, how))
        for read in reads:
            try:
                read()
            except data.InputError as error:
                one_line(error)

    check()


@pytest.mark.parametrize("name", ["own.npz", "own.npy"])
def test_any_damaged_design_file(name, tmp_path):
    split = dict(designs=DESIGNS, split=data._split(24, 0))
    whole = saved(np.savez_compressed, **split) if name.endswith("z") else saved(np.save, DESIGNS)

    def read():
        designs = data.load("custom", str(tmp_path / name))
        assert torch.isfinite(designs.train).all() and designs.train.min() >= 0 and designs.train.max() <= 1

    check_damaged({tmp_path / name: whole}, read)


def test_any_damaged_model(tmp_path):
    model = train.LVAE((9, 9), 3, 10.0).eval()

    class Pruner:
        active, mean = torch.tensor([True, False, True]), torch.zeros(3)

    compact = train.compact(model, Pruner(), torch.randn(20, 3), torch.randn(5, 3), {"lipschitz": 10.0})
    whole = saved(lambda file: torch.save(compact, file))
    check_damaged({tmp_path / "model.pt": whole}, lambda: lvae.load(tmp_path / "model.pt"))


def test_any_damaged_checkpoint_or_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    run = record.Run(tmp_path / "a")
    fingerprint, n_epochs, device = {"sha256": "0", "source": "x"}, "--n_epochs=9", torch.device("cpu")
    flags = json.loads(record.to_json(vars(train.parse([n_epochs]))))
    run.config = dict(id="a", name="n", flags=flags, data=fingerprint)
    run.start(run.config)
    run.checkpoint({"epoch": 1, "weights": torch.randn(100)})
    files = {path: path.read_bytes() for path in (tmp_path / "a/checkpoint.pt", tmp_path / "a/config.json")}
    assert run.restore(device)["epoch"] == 1  # undamaged
    check_damaged(
        files,
        lambda: run.restore(device),
        lambda: record.locate(train.parse(["--resume=a", n_epochs]), fingerprint),
        lambda: record.locate(train.parse(["--config=a/config.json", n_epochs]), fingerprint),
        lambda: record.locate(train.parse(["--resume=auto", "--out=.", n_epochs]), fingerprint),
    )


@pytest.mark.parametrize("number", ["02", "03"])
def test_any_damaged_sweep_file(number, tmp_path, monkeypatch):
    (path,) = create.FILES.glob(f"{number}_*.yaml")
    whole = b"\n".join(line for line in path.read_bytes().splitlines() if not line.startswith(b"#"))
    asked = dict(problem="beams2d", seeds=1, epochs=None, strategy=None, set="n_epochs=9")
    asked = argparse.Namespace(**asked, edition=None, project=None, entity=None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(create, "freeze_data", lambda parameters: [[name, "", 3, 0, "0"] for name in data.PROBLEMS])

    def read():
        path, config = create.read_yaml("own.yaml")
        planned, points, _ = create.plan(path, config, asked, train, "local")
        assert not points or len(points) == planned["runs"] > 0

    check_damaged({tmp_path / "own.yaml": whole}, read)


NUMBERS = st.one_of(st.floats(), st.integers(), st.lists(st.floats(), max_size=3), st.none())


@MANY
@given(st.dictionaries(st.text(max_size=5), NUMBERS, max_size=5))
def test_a_record_is_json_whatever_its_numbers(value):
    json.loads(record.to_json(value), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
