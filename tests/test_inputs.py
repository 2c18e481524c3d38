"""What users bring: designs of every layout and type, files of other tools, broken hubs, and W&B that cannot start."""

import contextlib
import errno
import functools
import os
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hub_server import serve
from sweep_kit import write
from test_train import FAST, ROOT, in_an_empty_folder, run, summary  # noqa: F401  a fixture

import data
import sweep
import train
from tools.hub import ask

PATHED = {**os.environ, "PYTHONPATH": str(ROOT)}
BLOBS = data._toy(3, n=60, size=24)["designs"]  # (60, 24, 24) in [0, 1], smooth
MASK = BLOBS > 0.3


def start(path, *flags):
    """Load a file as train.py would; returns its designs."""
    return data.load("custom", str(path), *flags)


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
    np.savez(tmp_path / "own.npz", anything=saved)
    for name in ("own.npy", "own.npz"):
        designs = start(tmp_path / name)
        assert said in designs.about and name in designs.about
        found = np.concatenate([getattr(designs, split)[:, 0].numpy() for split in data.SPLITS])
        order = np.concatenate([np.flatnonzero(data._split(60, 0) == split) for split in data.SPLITS])
        np.testing.assert_allclose(found, np.float32(meant)[order], atol=1e-6)


def test_the_line_stands_at_the_start_of_a_run(tmp_path, capsys):
    np.savez(tmp_path / "own.npz", images=MASK, labels=np.arange(60))  # the one array that can be designs
    run("--problem=custom", f"--data={tmp_path / 'own.npz'}", "--n_epochs=1", name="a")
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("data: 60 designs of 24 x 24 (42 train, 9 val, 9 test) from ") and "a mask" in first


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
    np.save(tmp_path / "own.npy", REFUSED[kind][0])
    assert REFUSED[kind][1] in refusal(capsys, tmp_path / "own.npy")


def test_a_turned_file_of_a_known_problem_is_named(tmp_path, capsys):
    np.save(tmp_path / "own.npy", np.zeros((50, 100, 60)))
    assert "give numpy.moveaxis(x, -1, 0)" in refusal(capsys, tmp_path / "own.npy", "beams2d")


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


def bomb(path, shape, name="designs", **others):
    """A small .npz whose array `name` unpacks to zeros of this shape; it is written in pieces."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, dict(descr="|u1", fortran_order=False, shape=shape))
            for _ in range(int(np.prod(shape)) // 2**20):
                file.write(bytes(2**20))
        for key, array in others.items():
            with archive.open(f"{key}.npy", "w") as file:
                np.save(file, array)


def test_an_array_that_does_not_fit_is_refused_before_it_is_read(tmp_path, capsys, monkeypatch):
    bomb(tmp_path / "bomb.npz", (64, 1024, 1024))
    assert (tmp_path / "bomb.npz").stat().st_size < 1e6
    monkeypatch.setattr(data, "free_memory", lambda: 800e6)
    said = "(64, 1024, 1024) of uint8, needs 0.872 GB of memory, and 0.8 GB are free; give fewer designs"
    assert said in refusal(capsys, tmp_path / "bomb.npz")


def test_an_array_that_is_not_needed_is_not_read(tmp_path):
    bomb(tmp_path / "bomb.npz", (64, 2**20), name="other", designs=BLOBS)
    tracemalloc.start()
    assert "60 designs of 24 x 24" in start(tmp_path / "bomb.npz").about
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_the_memory_that_is_free_is_at_most_what_there_is(monkeypatch):
    assert 0 < data.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(resource, "getrlimit", lambda what: (12345, -1))
    assert data.free_memory() == 12345


# ---- the hub ---------------------------------------------------------------------------------------------------------

HEAT = "IDEALLab/heat_conduction_2d_v0"


def published(n, low=0.0, high=1.0, volume="volume"):
    rng = np.random.default_rng(n)
    columns = {volume: rng.random(n), "length": rng.random(n), "structural_compliance": rng.random(n)}
    return {"optimal_design": (low + (high - low) * rng.random((n, 101, 101))).tolist()} | columns


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
def test_a_certificate_that_nobody_knows_is_named(monkeypatch, tmp_path):
    from huggingface_hub import constants

    from tools import hub

    pem, cert = tmp_path / "server.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*made, "-keyout", pem, "-out", cert], check=True, capture_output=True)
    pem.write_text(pem.read_text() + cert.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with serve(HEAT, {}) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        assert hub.ask(url) is None  # the client may know it
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert "CERTIFICATE_VERIFY_FAILED" in hub.asked_again(HEAT)


# ---- W&B that cannot start -------------------------------------------------------------------------------------------

TINY = ["--problem=toy", "--n_epochs=1", "--latent_dim=4", "--batch_size=512", "--threads=1"]
START = "import record, sys, time, train, tools.figures; tools.figures.draw = lambda *_: None; "
HANG = START + "record.Wandb = lambda *_: (print('hangs', flush=True), time.sleep(99)); "
MAIN = f"record.leave(train.main({TINY}))"


def process(code, **env):
    """Code as a process, not logged in: (exit code, stdout, stderr)."""
    clean = {k: v for k, v in PATHED.items() if not k.startswith("WANDB_")} | {"NETRC": os.devnull}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_a_wandb_service_that_cannot_start_costs_no_run(monkeypatch, capsys):
    code, out, error = process(START + MAIN, WANDB_X_SERVICE_WAIT="0.001")
    assert (code, error.count("\n")) == (0, 1) and "going on without it" in error and "run      runs/" in out
    write(seed=[1])
    monkeypatch.setenv("WANDB_X_SERVICE_WAIT", "0.001")
    monkeypatch.setenv("NETRC", os.devnull)
    assert sweep.main(["create", "quick.yaml"]) == 0
    assert "backend: local" in capsys.readouterr().out


def test_a_wandb_that_hangs_is_left_behind():
    short = "record.bounded.__defaults__ = (1,); old = record.bounded; record.bounded = lambda f, s=1: old(f, 1); "
    code, _, error = process(HANG + short + MAIN)
    assert code == 0 and "W&B: cannot start (no answer within 1 s); going on without it" in error
    assert len(list(Path("runs").glob("*/summary.json"))) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_the_first_epoch_ends_at_once(number):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child = subprocess.Popen([sys.executable, "-c", HANG + MAIN], **pipes, env=PATHED)
    assert "hangs" in [child.stdout.readline().strip() for _ in range(2)]
    start = time.monotonic()
    child.send_signal(number)
    assert child.wait(30) == 128 + number and time.monotonic() - start < 3
    assert child.stderr.read() == "stopped before the first epoch\n"
    (folder,) = Path("runs").iterdir()
    assert train.main([f"--resume={folder}", "--wandb=disabled"]) == 0


def test_a_run_that_is_logged_offline_says_where():
    code, out, error = process(START + MAIN)
    (folder,) = Path("runs").iterdir()
    assert (code, error) == (0, "") and f"W&B: logged offline, in {folder}/wandb; " in out


# ---- what the end of a run says --------------------------------------------------------------------------------------


def test_the_help_has_no_none():
    assert "None" not in train.parser().format_help()


def test_what_was_proposed_and_held_back_is_said_with_what_to_do(capsys):
    run("--cooldown_epochs=9", "--max_prune_per_epoch=1", "--trim_share=0", name="a")
    out = capsys.readouterr().out
    assert re.search(r"\n\d more were proposed in the last epoch and held back \(cooldown \d\); more --n_epochs", out)


def test_a_result_worse_than_pca_names_the_likely_cause(capsys):
    run("--n_epochs=1", name="a")
    out = capsys.readouterr().out
    assert "worse than PCA; the likely cause: 7 steps are few (a default run takes 6,000 or 100 epochs)" in out
    assert "epoch     0 (1/1)" in out and "--data sample plays no part" in out  # epochs count as in metrics.csv


def test_a_ratio_to_no_error_is_none(capsys, tmp_path):
    np.save(tmp_path / "own.npy", np.repeat(np.rint(BLOBS[:1] * 255) / 255, 60, axis=0))
    folder = run("--problem=custom", f"--data={tmp_path / 'own.npy'}", "--n_epochs=1", name="a")
    said = capsys.readouterr()
    assert "(ratio n/a: PCA's error is 0 to rounding)" in said.out and summary(folder)["pca_ratio"] is None
    assert "--batch_size 256 is above the 42 training designs: each step takes all of them" in said.err


# ---- machines --------------------------------------------------------------------------------------------------------


def test_a_queue_without_locks_names_the_file(monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    write(seed=[1])
    monkeypatch.setattr(sweep.record.fcntl, "flock", no_locks)
    assert sweep.main(["create", "quick.yaml", "--backend", "local"]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "journal.lock" in said and "no locks on this file system" in said


def test_threads_are_those_of_the_quota(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(train.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(train.record, "cores", lambda: 1)
    told = []
    monkeypatch.setattr(train.torch, "set_num_threads", told.append)
    train.settle(train.parse([]))
    train.settle(train.parse(["--threads=3"]))
    assert told == [1, 3]


# ---- pip install, and sweeps -----------------------------------------------------------------------------------------


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


def created(capsys, *flags, code=0):
    assert sweep.main(["create", "quick.yaml", "--backend", "local", *flags]) == code
    return "".join(capsys.readouterr())


def test_create_prints_its_plan_and_holds_run_cap(capsys):
    write(seed=[1, 2], lr=[0.1, 0.2, 0.3], program=str(ROOT / "train.py"))
    assert ": 6 runs = 2 seed x 3 lr; toy from sample" in created(capsys)
    write("quick", run_cap=4, seed=[3, 4], lr=[0.1, 0.2, 0.3], program=str(ROOT / "train.py"))
    assert ": 4 runs; toy from sample" in created(capsys)
    write("quick", run_cap=0, seed=[3])
    assert "run_cap 0: must be a number of runs, at least 1" in created(capsys, code=2)


def test_a_search_of_ones_own_keeps_its_problem(capsys):
    write(method="random", run_cap=3, lr={"min": 1e-4, "max": 1e-2}, program=str(ROOT / "train.py"))
    said = created(capsys)
    assert said.count("created quick-") == 1 and ": 3 runs; toy from sample" in said
    Path("quick.yaml").write_text(Path("quick.yaml").read_text().replace("min: 0.0001", "min: 1e-4"))
    assert "parameter lr needs" in (said := created(capsys, code=2)) and "not 1e-4" in said
