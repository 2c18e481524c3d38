"""What users bring: designs and flags of every kind, broken hubs, full disks: one line, and no half a file."""

import builtins
import contextlib
import errno
import functools
import importlib
import io
import math
import os
import re
import resource
import shutil
import ssl
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hub_server import serve
from sweep_kit import write
from test_train import FAST, ROOT, in_an_empty_folder, own_designs, refused, rows, run, summary  # noqa: F401  a fixture

import data
import record
import sweep
import train
from pruning import PROFILES
from tools.hub import ask

BLOBS = data._toy(3, n=60, size=24)["designs"]  # (60, 24, 24) in [0, 1], smooth
MASK = BLOBS > 0.3


MADE = {  # what is saved: (what the line says of it, the designs that it means)
    "uint8 mask": (MASK.astype(np.uint8), "a mask, taken as 0 and 1", MASK),
    "bool": (MASK, "a mask, taken as 0 and 1", MASK),
    "int64 mask": (MASK.astype(np.int64), "a mask, taken as 0 and 1", MASK),
    "mask of 0 and 255": (MASK.astype(np.uint8) * 255, "grey levels 0 to 255, divided by 255", MASK),
    "grey floats": (np.rint(BLOBS * 255), "grey levels 0 to 191, divided by 255", np.rint(BLOBS * 255) / 255),
    "grey int32": (np.rint(BLOBS * 255).astype(">i4"), "divided by 255", np.rint(BLOBS * 255) / 255),
    "float64": (BLOBS.astype(float), "values from 2.721e-20 to 0.7498", BLOBS),
    "float16": (BLOBS.astype(np.float16), "values from 0 to 0.75", BLOBS.astype(np.float16)),
    "rounding": (BLOBS * 1.0005 - 0.0004, "clipped to [0, 1]", (BLOBS * 1.0005 - 0.0004).clip(0, 1)),
    "channels last": (BLOBS[..., None], "60 designs of 24 x 24 (42 train, 9 val, 9 test)", BLOBS),
    "channels first": (BLOBS[:, None], "60 designs of 24 x 24", BLOBS),
    "Fortran order": (np.asfortranarray(BLOBS[:, :20]), "60 designs of 20 x 24", BLOBS[:, :20]),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_made_of_the_values_is_said(kind, tmp_path):
    saved, said, meant = MADE[kind]
    np.save(tmp_path / "own.npy", saved)
    np.savez(tmp_path / "own.npz", anything=saved, labels=np.arange(60))  # the one array that can be designs
    for name in ("own.npy", "own.npz"):
        designs = data.load("custom", str(tmp_path / name))
        assert said in designs.about and name in designs.about
        found = np.concatenate([getattr(designs, split)[:, 0].numpy() for split in data.SPLITS])
        order = np.concatenate([np.flatnonzero(data._split(60, 0) == split) for split in data.SPLITS])
        np.testing.assert_allclose(found, np.float32(meant)[order], atol=1e-6)


REFUSED = {  # what is saved: what the one line says
    "MATLAB, square": (np.moveaxis(BLOBS, 0, -1), "would be 24 designs of 24 x 60, but looks like (H, W, N)"),
    "MATLAB, smooth": (np.moveaxis(BLOBS[:, :20], 0, -1), "would be 20 designs of 24 x 60, but looks like (H, W, N)"),
    "MATLAB, small": (np.moveaxis(BLOBS[:, :20], 0, -1)[..., :6], "it looks like (H, W, N), as MATLAB has it"),
    "five": (BLOBS[:5], "split, of 5; at least 2 are needed, and 17 in all where no `split` is given"),
    "none": (BLOBS[:0], "0 designs in the train split, of 0"),
    "one": (BLOBS[0], "has shape (24, 24); custom needs (N, H, W)"),
    "flat": (BLOBS.reshape(60, -1), "if each row is a design: x.reshape(-1, HEIGHT, WIDTH)"),
    "colours": (np.stack([BLOBS] * 3, -1), "make colours grey: x.mean(3)"),
    "colours first": (np.stack([BLOBS] * 3, 1), "make colours grey: x.mean(1)"),
    "labels": ((BLOBS * 4.2).astype(np.uint8), "has values from 0 to 3; allowed: [0, 1], or whole grey levels"),
    "from -1": (BLOBS * 2 - 1, "rescale: (x - x.min()) / (x.max() - x.min())"),
    "grey, not whole": (BLOBS * 255, "divide by 255"),
    "uint16": ((BLOBS * 65535).astype(np.uint16), "has values from 0 to"),
    "complex": (BLOBS + 0j, "is of type complex64"),
    "objects": (np.array([{"a": 1}, None]), "numpy.save('designs.npy', numpy.stack(DESIGNS))"),
    "NaN": (np.where(BLOBS > 0.5, np.nan, BLOBS), "has NaN or infinite values; allowed: [0, 1]"),
    "two arrays": (dict(images=BLOBS, masks=MASK), "no array named `designs`"),
    "a split without val": (dict(designs=BLOBS, split=["train"] * 60), "0 designs in the val split, of 60"),
    "a split of others": (dict(designs=BLOBS, split=["other"] * 60), "`split` must name train, val or test"),
}


def refusal(capsys, path, problem="custom"):
    """What train.py says to a file that it refuses: one line, and nothing is written."""
    assert train.main([*FAST, f"--problem={problem}", f"--data={path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"train.py: --data {path}: ") and said.count("\n") == 1 and not Path("runs").exists()
    assert "allow_pickle" not in said and "Traceback" not in said
    return said


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_what_to_do(kind, tmp_path, capsys):
    (saved, said), path = REFUSED[kind], tmp_path / "own.npz"
    np.savez(path, **saved if isinstance(saved, dict) else dict(designs=saved))
    assert said in refusal(capsys, path)


def test_other_formats_are_refused_with_code_that_converts_them(capsys):
    import torch
    from PIL import Image
    from scipy.io import savemat

    small = np.rint(BLOBS * 255).astype(np.uint8)
    savemat("own.mat", {"NAME": np.moveaxis(small, 0, -1)})
    np.savetxt("own.csv", small.reshape(60, -1), delimiter=",")
    torch.save(torch.from_numpy(small), "own.pt")
    Path("own").mkdir()
    for i, image in enumerate(small):
        Image.fromarray(image).save(f"own/{i:03d}.png")
    for name in ("own.mat", "own.csv", "own.pt", "own"):
        code = refusal(capsys, name).split('python -c "')[1].removesuffix('"\n')
        exec(code.replace("HEIGHT", "24").replace("WIDTH", "24"), {})
        np.testing.assert_array_equal(np.load("designs.npy"), small)
        os.remove("designs.npy")
    for name in ("own.h5", "own.pkl", "own.tiff"):
        Path(name).write_bytes(b"\x80\x04")
        assert "convert it: python -c" in refusal(capsys, name)
    os.mkfifo("own.npy")
    assert "it is no file" in refusal(capsys, "own.npy")


def test_an_array_that_does_not_fit_is_refused_before_it_is_read(tmp_path, capsys, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", designs=np.zeros((64, 1024, 1024), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1e6
    monkeypatch.setattr(data, "free_memory", lambda: 800e6)
    said = "(64, 1024, 1024) of uint8, needs 0.872 GB of memory, and 0.8 GB are free; give fewer designs"
    assert said in refusal(capsys, tmp_path / "bomb.npz")


def test_an_array_that_is_not_needed_is_not_read(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", other=np.zeros((64, 2**20), np.uint8), designs=BLOBS)
    tracemalloc.start()
    assert "60 designs of 24 x 24" in data.load("custom", str(tmp_path / "bomb.npz")).about
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_the_memory_that_is_free_is_at_most_what_there_is(monkeypatch):
    assert 0 < data.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(resource, "getrlimit", lambda what: (12345, -1))
    assert data.free_memory() == 12345


# ---- the hub ---------------------------------------------------------------------------------------------------------

HEAT = "IDEALLab/heat_conduction_2d_v0"


def published(n, high=1.0, volume="volume"):
    rng = np.random.default_rng(n)
    columns = {volume: rng.random(n), "length": rng.random(n), "structural_compliance": rng.random(n)}
    return {"optimal_design": (high * rng.random((n, 101, 101))).tolist()} | columns


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Serves a dataset, or a fault, to the real `datasets` client, with a cache of its own."""
    with contextlib.ExitStack() as stack:

        def start(fault=None, name=HEAT, **how):
            splits = {split: published(n, **how) for split, n in zip(data.SPLITS, (6, 3, 2), strict=True)}
            server = stack.enter_context(serve(name, splits, fault))
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            return server

        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield start


def test_the_hub_is_asked_once_and_then_the_cache(hub):
    server = hub()
    designs = data.load("heatconduction2d", "hub")
    assert (len(designs.train), len(designs.val), len(designs.test)) == (6, 3, 2)
    np.testing.assert_array_equal(designs.val[:, 0], np.float32(published(3)["optimal_design"]))
    np.testing.assert_allclose(designs.conditions["test"]["length"], published(2)["length"])
    assert "11 designs of 101 x 101 (6 train, 3 val, 2 test) from hub; values from" in designs.about
    server.asked.clear()
    assert data.load("heatconduction2d", "auto").fingerprint == designs.fingerprint and not server.asked


def test_a_later_version_of_a_dataset_may_name_its_columns_otherwise(hub):
    hub(name="IDEALLab/heat_conduction_2d_v1", volume="volfrac")
    designs = data.load("heatconduction2d", "hub:v1")
    np.testing.assert_allclose(designs.conditions["val"]["volume"], published(3, volume="volfrac")["volfrac"])
    assert designs.fingerprint["source"] == "hub:v1"
    with pytest.raises(data.InputError, match=r"--data hub: cannot load heatconduction2d \(HTTP 404 at"):
        data.load("heatconduction2d", "hub")


def test_published_designs_beyond_0_and_1_are_refused(hub):
    hub(high=1.2)
    with pytest.raises(data.InputError, match=r"--data auto: `optimal_design` has values from .* to 1\.19999; allowed"):
        data.load("heatconduction2d", "auto")


PAGE = b"<html>log in</html>"
FAULTS = {  # what the hub does with a path: what is said
    "403": (lambda path: (403, "text/html", PAGE), "HTTP 403 at http"),
    "a web page": (lambda path: (200, "text/html", PAGE), "a web page at http"),
    "files refused": (lambda path: (403, "text/html", PAGE) if "resolve" in path else None, "HTTP 403"),
    "a login page": (lambda path: (200, "text/html", PAGE) if "resolve" in path else None, "a web page"),
    "parquet refused": (lambda path: (403, "text/html", PAGE) if "parquet" in path else None, "HTTP 403"),
    "the API hangs": (lambda path: 60 if "api" in path else None, "no answer (timed out) at http"),
    "files hang": (lambda path: 60 if "parquet" in path else None, "was not there within 6 s; HUB_SECONDS=1000"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_fails_is_named_and_costs_no_run(fault, hub, monkeypatch, capsys):
    does, said = FAULTS[fault]
    hub(does)
    monkeypatch.setenv("HUB_SECONDS", "6" if "6 s" in said else "60")  # only one has to wait until it is over
    monkeypatch.setattr("tools.hub.ask", functools.partial(ask, seconds=0.5))
    assert data.load("heatconduction2d", "auto").fingerprint["source"] == "sample"
    line = capsys.readouterr().out
    assert line.startswith("data: the bundled sample, since EngiBench's hub gave no heatconduction2d designs")
    assert said in line and line.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_refused(hub, monkeypatch, tmp_path, capsys):
    hub()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    assert "cannot be used" in refusal(capsys, "auto", "heatconduction2d")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_certificate_that_nobody_knows_is_left_to_the_client(tmp_path):
    pem, cert = tmp_path / "server.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*made, "-keyout", pem, "-out", cert], check=True, capture_output=True)
    pem.write_text(pem.read_text() + cert.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with serve(HEAT, {}) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        assert ask(url) is None  # the client may know it


# ---- what the end of a run says --------------------------------------------------------------------------------------


def test_the_help_has_no_none():
    assert "None" not in train.parser().format_help()


def test_what_was_proposed_and_held_back_is_said_with_what_to_do(capsys):
    run("--cooldown_epochs=9", "--max_prune_per_epoch=1", "--trim_share=0", name="a")
    out = capsys.readouterr().out
    assert re.search(
        r"\n\d more were proposed in the last epoch and held back \(cooldown_epochs \d\); more --n_epochs", out
    )


def test_a_result_worse_than_pca_names_the_likely_cause(capsys):
    run("--n_epochs=1", name="a")
    out = capsys.readouterr().out
    assert "worse than PCA; the likely cause: 7 steps are few: try --n_epochs 858, which makes 6,000" in out
    assert "epoch     0 (1/1)" in out and "--data sample plays no part" in out  # epochs count as in metrics.csv


def test_a_ratio_to_no_error_is_none(capsys, tmp_path):
    np.save(tmp_path / "own.npy", np.repeat(np.rint(BLOBS[:1] * 255) / 255, 60, axis=0))
    folder = run("--problem=custom", f"--data={tmp_path / 'own.npy'}", "--n_epochs=1", name="a")
    said = capsys.readouterr()
    assert said.out.startswith(f"data: 60 designs of 24 x 24 (42 train, 9 val, 9 test) from {tmp_path}/own.npy; values")
    assert "(ratio n/a: PCA's error is 0 to rounding)" in said.out and summary(folder)["pca_ratio"] is None
    assert "--batch_size 256 is above the 42 training designs: each step takes all of them" in said.err


# ---- machines --------------------------------------------------------------------------------------------------------


CREATE = ["create", "quick.yaml", "--backend", "local"]


@pytest.mark.parametrize("main, argv, file", [(train.main, FAST, "/lock'"), (sweep.main, CREATE, "journal.lock'")])
def test_a_disk_without_locks_cannot_be_written_and_the_file_is_named(main, argv, file, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    write(seed=[1])
    monkeypatch.setattr(record.fcntl, "flock", no_locks)
    assert main(argv) == 4
    said = capsys.readouterr().err
    assert "no locks on this file system" in said and file in said and said.count("\n") == 1


@pytest.mark.parametrize("quota, n", [("100000 100000", 1), ("250000 100000", 2), ("max 100000", 8), ("", 8)])
def test_cores_are_those_of_the_quota(quota, n, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(record.Path, "read_text", lambda _: quota)
    assert record.cores() == n


def test_threads_are_those_of_the_quota(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(train.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(train.record, "cores", lambda: 1)
    told = []
    monkeypatch.setattr(train.torch, "set_num_threads", told.append)
    train.settle(train.parse([]))
    train.settle(train.parse(["--threads=3"]))
    assert told == [1, 3]


# ---- pip install -----------------------------------------------------------------------------------------------------


def test_pip_installs_lvae_alone(tmp_path):
    """From a copy, for setuptools leaves build/ behind."""
    pytest.importorskip("setuptools")
    (tmp_path / "copy").mkdir()
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path / "copy")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", tmp_path / "site", tmp_path / "copy"], check=True, capture_output=True)
    assert {p.name for p in (tmp_path / "site").iterdir()} <= {"lvae.py", "lvae-0.1.0.dist-info", "__pycache__"}
    code = f"from lvae import load; print(load({str(ROOT / 'models/beams2d/model.pt')!r}).sample(2).shape)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 1, 50, 100])\n", done.stderr


# ---- flags, full disks, odd designs ----------------------------------------------------------------------------------


def test_divergence_is_recorded(capsys):
    folder = run("--volume=geometric", "--w_v=1e308", "--polynomial_schedule_n=4", name="a", code=3)
    assert summary(folder)["status"] == "diverged" and "epoch 1" in summary(folder)["cause"]
    assert "diverged: epoch 1" in capsys.readouterr().err and len(rows(folder / "metrics.csv")) == 1


def test_a_full_disk_exits_with_4_and_leaves_no_part(capsys, monkeypatch):
    def full(number, fsync=os.fsync):
        if list(Path("runs").glob("*/checkpoint*.tmp")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    folder = run("--checkpoint_every=1", name="a", code=4)
    said = "cannot write (runs/a: [Errno 28] No space left on device; what was written is kept)"
    assert said in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"lock", "config.json", "metrics.csv", "pruning.csv"}
    Path("file").write_text("")
    assert train.main([*FAST, "--out=file/runs"]) == 4


BAD = [
    (["--problem=beam"], "--problem: 'beam' is unknown; did you mean 'beams2d'?; allowed: beams2d"),
    (["--lr=nan"], "--lr: nan is out of range; allowed: 0 < value < inf"),
    (["--latent_dim=0"], "--latent_dim: 0 is out of range; allowed: 1 <= value"),
    (["--latent_dim=2.5"], "--latent_dim: '2.5' is not an integer"),
    (["--toy_dims=7"], "--toy_dims: 7 is out of range; allowed: 1 <= value <= 6"),
    (["--save_model=perhaps"], "--save_model: 'perhaps' is not a boolean"),
    (["--min_active_dims=300", "--latent_dim=250"], "--min_active_dims 300: must not exceed --latent_dim 250"),
    (["--arm=colour=3"], "--arm colour=3: 'colour' is not flag=value"),
    (["--arm=lr=0.1", "--lr=0.1"], "--lr: given as a flag and in --arm"),
    (["--device=tpu"], "--device tpu: not usable here; allowed: auto, cpu"),
    (["--nosuchflag=1"], "unrecognized arguments: --nosuchflag=1"),
    (["--latentdim=1"], "unrecognized arguments: --latentdim=1; did you mean --latent_dim?"),
    (["--data=nosuch.npz", "--problem=beams2d"], "--data nosuch.npz: cannot be read"),
    (["--resume=nosuch"], "--resume nosuch"),
    (["--config=nosuch"], "--config nosuch"),
    (["--problem=custom"], "--problem custom: needs your own designs"),
    (["--problem=toy", "--data=own.npz"], "--data own.npz: toy designs are made, not read"),
    (["--batch_size=1"], "--batch_size: 1 is out of range; allowed: 2 <= value"),  # one design has no std
    (["--resume=a", "--config=b"], "--config b: not together with --resume a"),
]


def test_bad_input_gets_one_line_and_nothing_is_written(capsys):
    for flags, message in BAD:
        assert train.main([*flags, "--wandb=disabled"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"train.py: {message}") and error.count("\n") == 1
        assert list(Path().iterdir()) == []


def test_a_record_is_a_file_and_a_run_id_is_a_plain_name(capsys, monkeypatch):
    os.mkfifo("pipe")
    Path("deep").write_text("[" * 100_000)
    for path in ("pipe", "/dev/zero", "deep"):  # the first two never end
        refused(f"--config {path}: not the config.json of a run", capsys, f"--config={path}", "--wandb=disabled")
    np.savez("own.npz", designs=np.zeros((9, 16, 24), np.uint8), split=["train"] * 6 + ["val"] * 3)
    refused("--test: 0 designs in the test split", capsys, *FAST, "--problem=custom", "--data=own.npz", "--test")
    monkeypatch.setenv("WANDB_RUN_ID", "../elsewhere")
    refused("WANDB_RUN_ID ../elsewhere: allowed: letters, digits", capsys, *FAST)
    assert not Path("runs").exists() and not Path("../elsewhere").exists()


def test_the_command_line_shows_what_the_terminal_cannot():
    """A path may hold letters that the terminal's encoding lacks."""
    command, env = [sys.executable, str(ROOT / "train.py")], {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, *FAST, "--n_epochs=1", "--out=é"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert "run      \\xe9/" in done.stdout


def test_precedence_flag_over_arm_over_profile_over_default():
    argv = ["--safeguards=conservative", "--arm=cooldown_epochs=7,k_consecutive=2", "--recon_tol=inf", "--lr=None"]
    args = train.parse(argv)
    expected = {**PROFILES["conservative"], "cooldown_epochs": 7, "k_consecutive": 2, "recon_tol": math.inf}
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.lr == train.DEFAULTS["lr"]
    assert {key: getattr(train.parse([]), key) for key in expected} == PROFILES["moderate"]
    assert [*PROFILES["moderate"].values()] == [3, 0.10, 10, 20, 5]
    assert [*PROFILES["conservative"].values()] == [5, 0.05, 20, 10, 10]
    assert train.parse(["--arm=safeguards=conservative"]).min_active_dims == 10
    assert train.parse(["--save_model=True"]).save_model and not train.parse(["--save_model=False"]).save_model


def test_parse_reads_nothing_but_its_arguments():
    def refuse(*_):
        raise AssertionError("it is read")

    train.parse([])  # argparse looks for its translations, once
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((builtins, "open"), (io, "open"), (os, "stat"), (type(os.environ), "__getitem__")):
            patch.setattr(owner, name, refuse)
        assert train.parse(["--arm=strategy=none,lr=0.1"]).lr == 0.1


def test_a_fault_of_ours_is_not_taken_for_bad_input(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: [].index(1))
    with pytest.raises(ValueError, match="is not in list"):
        train.main([])


def test_a_schedule_that_cannot_work_is_a_warning(capsys):
    for flag, said in (("pruning_epoch=6", "never prunes"), ("polynomial_schedule_n=5", "before w_v is reached")):
        train.schedule(train.parse([*FAST, f"--{flag}"]), 1792)
        assert said in capsys.readouterr().err


CORNERS = {  # the value of each pixel, and flags
    "two designs a batch": (None, ["--batch_size=2"]),
    "constant designs": (0.3, []),
    "latent_dim 1": (None, ["--latent_dim=1"]),
    "all pruned but one": (None, ["--strategy=probabilistic", "--midpoint=0.999999", "--temperature=1e-9"]),
    "batch larger than the data": (None, ["--batch_size=100000"]),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_corners_stay_finite(corner):
    value, flags = CORNERS[corner]
    folder = run("--problem=custom", f"--data={own_designs(value=value)}", *flags, name="a")
    assert all(math.isfinite(float(row[key])) for row in rows(folder / "metrics.csv") for key in record.COLUMNS[:8])
    assert all(math.isfinite(value) for value in summary(folder).values() if isinstance(value, float))
    assert not list(folder.glob("*.tmp"))
    active = summary(folder)["active_dims"]
    assert active == int(rows(folder / "metrics.csv")[-1]["active_dims"]) >= 1
    assert active == 1 or corner != "all pruned but one"
    if value is not None:  # all latents alike: their std is 0, to rounding
        dims, vol = (float(rows(folder / "metrics.csv")[-1][key]) for key in ("active_dims", "val_vol_loss"))
        assert vol == pytest.approx(dims * math.log(1e-4), rel=0.02)


@pytest.mark.parametrize("name", ["report", "sweep", "tools.bench", "tools.design", "tools.gallery", "tools.verify"])
def test_a_wrong_flag_of_a_tool_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--no_such_flag"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
