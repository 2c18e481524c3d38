"""data.py and solvers.py: the bundled samples, the sources, bad files, and designs made again."""

import concurrent.futures
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import data
from record import read_csv
from tools import designs as designs_tool
from tools.solvers import Heat, fast_engibench


@functools.cache
def bundled(problem):
    with np.load(data.SAMPLES / f"{problem}.npz", allow_pickle=False) as file:
        return dict(file)


def conditions_of(problem, i):
    return {key: bundled(problem)[key][i].item() for key in data.CONDITIONS[problem]}


@pytest.mark.parametrize("problem", data.CONDITIONS)
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


@pytest.mark.parametrize("problem", ["beams2d", "heatconduction2d"])
def test_a_design_is_made_again_and_the_stored_objective_is_its_own(problem):
    if problem == "heatconduction2d":
        pytest.importorskip("nlopt", reason="nlopt is not installed; `make data` and `make test` install it")
    arrays = bundled(problem)
    i = int(np.argmin(np.abs(arrays["rmin"] - 1.6) + np.abs(arrays["volfrac"] - 0.4))) if "rmin" in arrays else 0
    conditions, stored = conditions_of(problem, i), arrays["designs"][i]
    design = designs_tool.optimise(problem, conditions)
    # Another processor may round another way, and an optimiser may amplify that: MMA does. The objective stays
    assert problem != "beams2d" or np.abs(design.astype(int) - stored).mean() < 2
    for x, off in ((design, 0.01), (stored, 1e-6)):
        found = designs_tool.objective(problem, conditions, x / 255, version=0)
        assert found == pytest.approx(arrays["objective"][i], rel=off)


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


def test_splits_do_not_move_when_designs_are_added():
    assert (data._split(100, 3) == data._split(1000, 3)[:100]).all()
    first, more = designs_tool.conditions_of("photonics2d", 0, 10), designs_tool.conditions_of("photonics2d", 0, 99)
    assert all((first[key] == more[key][:10]).all() for key in first)


def test_files_of_another_problem_and_broken_archives_are_refused(tmp_path):
    whole = (data.SAMPLES / "beams2d.npz").read_bytes()
    middle = len(whole) // 3
    (tmp_path / "flipped.npz").write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    np.savez(tmp_path / "bytes.npz", designs=np.zeros((9, 50, 100)), split=np.array([b"\xe9"] * 9))
    np.save(tmp_path / "small.npy", np.zeros((40, 16, 24)))
    np.save(tmp_path / "turned.npy", np.zeros((50, 100, 60)))
    said = {"small.npy": r"beams2d needs \(N, 50, 100\)", "bytes.npz": "must name train, val or test"}
    said |= {"flipped.npz": "cannot be read", "turned.npy": r"give numpy.moveaxis\(x, -1, 0\)"}
    for name, message in said.items():
        with pytest.raises(data.InputError, match=message):
            data.load("beams2d", str(tmp_path / name))


def test_making_designs_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = []

    def optimise(problem, conditions):
        made.append(conditions)
        return np.full((50, 100), 60, np.uint8)

    monkeypatch.setattr(designs_tool, "optimise", optimise)
    monkeypatch.setattr(designs_tool, "objective", lambda problem, conditions, design, version: 1.0)
    threads = lambda *_, **__: concurrent.futures.ThreadPoolExecutor(1)  # noqa: E731  processes see no stand-ins
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", threads)

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
