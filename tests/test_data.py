"""data.py and solvers.py: the bundled samples, the sources, bad files, and designs made again."""

import concurrent.futures
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import data
from record import read_csv
from tools import designs as designs_tool
from tools import hub
from tools.solvers import Heat, fast_engibench

BUNDLED = list(data.CONDITIONS)


@functools.cache
def bundled(problem):
    with np.load(data.SAMPLES / f"{problem}.npz", allow_pickle=False) as file:
        return dict(file)


def conditions_of(problem, i):
    return {key: bundled(problem)[key][i].item() for key in data.CONDITIONS[problem]}


@pytest.mark.parametrize("problem", BUNDLED)
def test_every_bundled_design_is_in_range_at_its_volume_and_unique(problem):
    assert designs_tool.check(data.SAMPLES / f"{problem}.npz", problem) == []
    arrays = bundled(problem)
    n = len(arrays["designs"])
    assert {"designs", "split", "objective", "seed", "index", *data.CONDITIONS[problem]} == set(arrays)
    for name, values in designs_tool.conditions_of(problem, int(arrays["seed"][0]), n).items():
        np.testing.assert_array_equal(arrays[name], values)
    first = min(n, 1024)  # what was added since is training data
    assert (arrays["split"][:first] == data._split(first, 0)).all() and (arrays["split"][first:] == "train").all()
    for name, share in zip(data.SPLITS, (0.7, 0.15, 0.15), strict=True):
        assert abs((arrays["split"][:first] == name).mean() - share) < 0.01


@pytest.mark.parametrize("problem", ["beams2d", "heatconduction2d"])
def test_the_first_edition_of_a_sample_is_still_there(problem):
    """Its first 716 training designs are those that the rows of the first edition were trained on."""
    rows = read_csv(ROOT / "results/01-first.csv").query("problem == @problem")
    assert {data.load(problem, "sample", n_train=716).fingerprint["sha256"]} == set(rows["data_sha256"])


def test_check_finds_what_is_wrong(tmp_path):
    arrays = bundled("beams2d")
    designs, volfrac = arrays["designs"][:40].copy(), arrays["volfrac"][:40].copy()
    designs[7], volfrac[3] = designs[0], volfrac[3] + 0.02
    np.savez(tmp_path / "bad.npz", designs=designs, split=arrays["split"][:40], volfrac=volfrac)
    found = designs_tool.check(tmp_path / "bad.npz", "beams2d")
    assert any(line.startswith("design 3: volume off by 0.0") for line in found)
    assert "design 7: a duplicate" in found


def test_a_beam_is_made_again_to_the_byte():
    arrays = bundled("beams2d")
    i = int(np.argmin(np.abs(arrays["rmin"] - 1.6) + np.abs(arrays["volfrac"] - 0.4)))
    design = designs_tool.optimise("beams2d", conditions_of("beams2d", i))
    # Another processor may round another way, and an optimiser may amplify that; the one that made the sample does not
    assert np.abs(design.astype(int) - arrays["designs"][i]).mean() < 2
    found = designs_tool.objective("beams2d", conditions_of("beams2d", i), design / 255)
    assert found == pytest.approx(arrays["objective"][i], rel=0.01)


def test_a_heat_sink_is_made_again():
    pytest.importorskip("nlopt", reason="nlopt is not installed; `make data` and `make test` install it")
    design = designs_tool.optimise("heatconduction2d", conditions_of("heatconduction2d", 0))
    # MMA is chaotic: a rounding difference in one evaluation moves branches. The objective is what is reproduced.
    found = designs_tool.objective("heatconduction2d", conditions_of("heatconduction2d", 0), design / 255)
    assert found == pytest.approx(bundled("heatconduction2d")["objective"][0], rel=0.01)


@pytest.mark.parametrize("problem", ["beams2d", "heatconduction2d"])
def test_the_stored_objective_is_that_of_the_design(problem):
    arrays = bundled(problem)
    i = len(arrays["designs"]) - 1
    found = designs_tool.objective(problem, conditions_of(problem, i), arrays["designs"][i] / 255, version=0)
    assert found == pytest.approx(arrays["objective"][i], rel=1e-6)


def test_photonic_designs_are_scored_as_they_are():
    """A blur of radius 0 and a projection of what is 0 or 1 change nothing: then both rules agree, and else not."""
    arrays = bundled("photonics2d")

    def score(i, **how):
        conditions = conditions_of("photonics2d", i) | how.pop("conditions", {})
        return designs_tool.objective("photonics2d", conditions, arrays["designs"][i] / 255, **how)

    stored, sharp, blurred = arrays["objective"], *(int(f(arrays["blur_radius"])) for f in (np.argmin, np.argmax))
    assert arrays["blur_radius"][sharp] == 0
    assert score(sharp, conditions={"blur_radius": 4}) == pytest.approx(stored[sharp], rel=1e-6)  # whatever the radius
    assert score(blurred) != pytest.approx(stored[blurred], rel=1e-6)
    assert score(blurred, version=0) == pytest.approx(stored[blurred], rel=1e-6)


def test_fast_beams_are_engibench_beams():
    from engibench.problems.beams2d import Beams2D

    conditions = dict(volfrac=0.3, rmin=1.6, forcedist=0.25)
    plain, history = Beams2D(config=conditions).optimize(config=dict(max_iter=3))
    with fast_engibench():
        fast, fast_history = Beams2D(config=conditions).optimize(config=dict(max_iter=3))
    np.testing.assert_allclose(fast, plain, atol=1e-9)
    assert fast_history[-1].obj_values == pytest.approx(history[-1].obj_values, rel=1e-9)


def test_the_load_of_every_beam_is_downward_on_the_top_edge():
    forcedist = designs_tool.conditions_of("beams2d", 5, 2000)["forcedist"]
    loaded = np.array([int(1 + (2 * f * 100) * 51) for f in forcedist])  # as EngiBench computes it
    assert (loaded % 102 == 1).all()
    assert len(set(loaded)) == 101


def test_heat_gradient_and_a_known_solution():
    heat = Heat(volume=0.4, length=0.3, resolution=21)
    rng = np.random.default_rng(0)
    a, direction = rng.uniform(0.2, 0.8, 441), rng.standard_normal(441)
    slope = (heat.objective(a + 1e-5 * direction) - heat.objective(a - 1e-5 * direction)) / 2e-5
    assert heat.gradient(a) @ direction == pytest.approx(slope, rel=1e-5)
    # length 0: all four edges cold. -laplace(T) = f (a = 1, so k = 1): integral(f T) = f**2 * 0.035144 (torsion / 4)
    for n in (51, 101):
        heat = Heat(length=0.0, resolution=n, alpha=0.0)
        assert heat.objective(np.ones(n**2)) == pytest.approx(1e-4 * 0.035144, rel=0.01)


def test_toy_has_exactly_its_factors():
    for k in (1, 3, 6):
        designs = data.load("toy", toy_dims=k)
        assert designs.train.shape[1:] == (1, 32, 32)
    one, again, two = (data.load("toy", toy_dims=k).fingerprint["sha256"] for k in (1, 1, 2))
    assert one == again != two


def test_splits_do_not_move_when_designs_are_added():
    assert (data._split(100, 3) == data._split(1000, 3)[:100]).all()
    first, more = designs_tool.conditions_of("photonics2d", 0, 10), designs_tool.conditions_of("photonics2d", 0, 99)
    assert all((first[key] == more[key][:10]).all() for key in first)


def test_auto_falls_back_to_the_sample_and_says_so(monkeypatch, capsys):
    def unreachable(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "load", unreachable)
    assert data.load("beams2d", "auto").fingerprint["source"] == "sample"
    assert "the bundled sample" in capsys.readouterr().out
    with pytest.raises(data.InputError, match="--data hub: cannot load beams2d"):
        data.load("beams2d", "hub")


def test_an_unreachable_server_is_noticed_fast():
    assert hub.ask("http://127.0.0.1:9", 1).startswith("no answer")
    assert hub.ask("not a url", 1).startswith("no answer")


GOOD = np.random.default_rng(0).random((40, 16, 24), dtype=np.float32)


def test_own_files(tmp_path):
    np.save(tmp_path / "a.npy", GOOD)
    np.savez(tmp_path / "a.npz", designs=GOOD[:, None], split=np.repeat(["train", "val", "test"], [30, 6, 4]))
    np.savez(tmp_path / "b.npz", designs=(GOOD * 255).astype(np.uint8))
    assert data.load("custom", str(tmp_path / "a.npy")).train.shape == (28, 1, 16, 24)
    assert data.load("custom", str(tmp_path / "a.npz")).test.shape == (4, 1, 16, 24)
    assert data.load("custom", str(tmp_path / "b.npz")).val.max() <= 1


BAD_FILES = {
    "NaN or infinite": dict(designs=np.where(GOOD > 0.99, np.nan, GOOD)),
    "values from": dict(designs=GOOD * 1.5),
    "has shape": dict(designs=GOOD[:, 0]),
    "no array named": dict(images=GOOD, masks=GOOD),
    "is of type": dict(designs=GOOD.astype(str)),
    "0 designs in the val split, of 3; at least 2 are needed, and 17 in all": dict(designs=GOOD[:3]),
    "designs in the val": dict(designs=GOOD, split=np.repeat("train", 40)),
    "`split` must name": dict(designs=GOOD, split=np.repeat("other", 40)),
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_a_bad_file_is_named(message, tmp_path):
    np.savez(tmp_path / "bad.npz", **BAD_FILES[message])
    with pytest.raises(data.InputError, match=message) as error:
        data.load("custom", str(tmp_path / "bad.npz"))
    assert "bad.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_of_another_problem_pickles_and_broken_archives_are_refused(tmp_path):
    np.save(tmp_path / "small.npy", GOOD)
    with pytest.raises(data.InputError, match=r"beams2d needs \(N, 50, 100\)"):
        data.load("beams2d", str(tmp_path / "small.npy"))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object))
    whole = (data.SAMPLES / "beams2d.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 3
    (tmp_path / "flipped.npz").write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    np.savez(tmp_path / "bytes.npz", designs=np.zeros((9, 50, 100)), split=np.array([b"\xe9"] * 9))
    with pytest.raises(data.InputError, match="must name train, val or test"):
        data.load("beams2d", str(tmp_path / "bytes.npz"))
    for name in ("pickle.npy", "cut.npz", "flipped.npz", "missing.npz"):
        with pytest.raises(data.InputError, match="cannot be read"):
            data.load("beams2d", str(tmp_path / name))


def test_making_designs_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = []

    def optimise(problem, conditions):
        made.append(conditions)
        return np.full((50, 100), 60, np.uint8)

    class InProcess:  # the pool's workers would not see the stand-ins
        def __init__(self, *args, **kwargs): ...

        def submit(self, function, job):
            future = concurrent.futures.Future()
            future.set_result(function(job))
            return future

    monkeypatch.setattr(designs_tool, "optimise", optimise)
    monkeypatch.setattr(designs_tool, "objective", lambda problem, conditions, design, version: 1.0)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", InProcess)

    def make(n, *flags):
        return designs_tool.main([f"--n={n}", "--problem=beams2d", *flags])

    assert make(5, "--seed=7") == 0
    (tmp_path / "data/beams2d-s7/000003.npz").unlink()
    (tmp_path / "data/beams2d-s7.npz").unlink()
    assert make(5, "--seed=7") == 0  # goes on where it was: one design is missing
    assert len(made) == 6
    shutil.rmtree(tmp_path / "data/beams2d-s7")
    assert make(7, "--seed=7") == 0  # the packed file holds the first five
    assert len(made) == 8
    with np.load(tmp_path / "data/beams2d-s7.npz") as file:
        assert file["designs"].shape == (7, 50, 100)
        assert set(file["seed"]) == {7}
        assert file["split"].tolist() == [*data._split(5, 7), "train", "train"]  # what is added is training data
    shutil.copy("data/beams2d-s7.npz", "other.npz")
    np.savez("foreign.npz", designs=np.zeros((2, 50, 100)))
    cases = {
        "holds 7 designs of seed 7": [(6, "--seed=7", "--out=other.npz"), (8, "--out=other.npz")],
        "not of this program": [(8, "--seed=7", "--out=foreign.npz")],
        "tools.designs: --n 0: must be at least 1\n": [(0,)],
    }
    for said, refused in cases.items():
        for flags in refused:
            capsys.readouterr()  # the progress bars
            assert make(*flags) == 2 and said in capsys.readouterr().err
    assert not Path("data/beams2d-s0").exists()  # what was refused left nothing


def test_fingerprints_are_json():
    json.dumps(data.load("toy").fingerprint)
