"""What is made of a model: designs for new conditions, the demo, and the gallery of a run."""

import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

import data
import lvae
import train
from tools import demo, design, design_bench, gallery
from tools.designs import objective, optimise


def own_designs(path, n=60):
    """Designs (n, 16, 24) that two conditions decide: where a bar lies, and how dark it is; a third says nothing."""
    rng = np.random.default_rng(0)
    at, dark, idle = rng.uniform(4, 20, n), rng.uniform(0.3, 1.0, n), np.ones(n)
    x = np.arange(24)[None, None, :]
    designs = dark[:, None, None] * np.exp(-0.1 * (x - at[:, None, None]) ** 2) * np.ones((1, 16, 1))
    np.savez(path, designs=designs.astype(np.float32), at=at, dark=dark, idle=idle)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run on designs with conditions of their own names."""
    folder = tmp_path_factory.mktemp("design")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_RUN_ID", "own")
        patch.setattr(train, "draw", lambda *args: None)
        flags = ["--problem=custom", f"--data={own_designs(folder / 'own.npz')}", "--latent_dim=4", "--n_epochs=60"]
        flags += ["--min_active_dims=1", "--threads=1", "--wandb=disabled", "--batch_size=8", "--pruning_epoch=59"]
        assert train.main(flags) == 0
    return folder / "runs" / "own"


def test_a_gaussian_process_is_that_of_scikit_learn():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern, WhiteKernel

    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 3, (80, 2))
    y = np.stack([np.sin(x[:, 0]), x[:, 0] * x[:, 1]], 1)
    known = design.regression({"a": x[:, 0], "b": x[:, 1], "constant": np.ones(80)}, y)
    assert known["names"] == ["a", "b"] and known["nu"] in design.SMOOTH
    new = rng.uniform(-1, 2, (9, 2))
    mine = lvae.matern(known, torch.tensor(new, dtype=torch.float32))
    assert np.abs(mine.numpy() - np.stack([np.sin(new[:, 0]), new[:, 0] * new[:, 1]], 1)).max() < 0.1
    low, high = x.min(0), x.max(0)
    for nu in design.SMOOTH:
        kernel = Matern([0.5, 2.0], nu=nu) + WhiteKernel(0.01)
        theirs = GaussianProcessRegressor(kernel, optimizer=None).fit((x - low) / (high - low), y)
        numbers = dict(low=low, high=high, length=[0.5, 2.0], offset=[0, 0])
        numbers |= dict(points=theirs.X_train_, weights=theirs.alpha_)
        given = {k: torch.tensor(np.array(v), dtype=torch.float64) for k, v in numbers.items()} | dict(nu=nu)
        assert np.allclose(lvae.matern(given, torch.tensor(new)), theirs.predict((new - low) / (high - low)), atol=1e-9)
    assert design.regression({"constant": np.ones(80)}, y) is None and design.regression({}, y) is None


def test_a_run_designs_for_its_own_conditions(run):
    model = lvae.load(run)
    assert model.known["names"] == ["at", "dark"]
    designs = data.load("custom", model.flags["data"])
    wanted = {name: designs.conditions["val"][name][0].item() for name in ("at", "dark")}
    error = (model.design(wanted) - designs.val[:1]).square().mean()
    assert error < 0.5 * (designs.val[:1] - designs.train.mean(0)).square().mean()
    for conditions, said in (
        ({"at": 5}, "conditions are at; needed: at, dark"),
        ({"at": 99, "dark": 0.5}, "design: at 99 is outside of the training designs' 4"),
    ):
        with pytest.raises(lvae.InputError, match=said):
            model.design(conditions)
    assert model.design({"at": 99, "dark": 0.5}, force=True).shape == (1, 1, 16, 24)
    model.known = None
    with pytest.raises(lvae.InputError, match="knows no conditions"):
        model.design(wanted)


def test_the_command_writes_a_design(run, tmp_path, capsys):
    at = ["--model", str(run), "--out", str(tmp_path / "out")]
    assert design.main([*at, "--conditions", "at=10 dark=0.5"]) == 0
    said = capsys.readouterr().out
    assert "from the latents:" in said and "nearest training design:" in said and "objective" not in said
    errors = re.search(r"error on (\d+) validation .*: (\S+) from the latents, .*, (\S+) the mean", said)
    assert int(errors[1]) == 9 and float(errors[2]) < 0.5 * float(errors[3])
    assert np.load(tmp_path / "out/design.npy").shape == (16, 24) and (tmp_path / "out/design.png").stat().st_size > 999
    for conditions, *more, said in (
        ("at=10", "needed: at, dark"),
        ("at=ten dark=1", 'CONDITIONS "at=ten dark=1": must be name=number'),
        ("at=99 dark=0.5", "FORCE=1"),
        ("at=10 dark=0.5", "--polish=2", "POLISH 2: custom has no optimiser here"),
    ):
        assert design.main([*at[:2], "--out", str(tmp_path / "none"), "--conditions", conditions, *more]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "none").exists()


def test_volume_and_load():
    x = np.random.default_rng(0).random((50, 100))
    assert design.shift(x, 0.3).mean() == pytest.approx(0.3, abs=1e-6)
    conditions, said = design.settled("beams2d", dict(volfrac=0.3, rmin=2.0, forcedist=0.404))
    assert "moved to 0.4" in said and conditions["forcedist"] == pytest.approx(0.4)
    assert int(conditions["forcedist"] * 10200) % 102 == 0  # a vertical degree of freedom on the edge
    assert design.settled("beams2d", dict(forcedist=0.4))[1] == design.settled("custom", dict(forcedist=0.404))[1] == ""


@pytest.mark.parametrize("problem", ["beams2d", "heatconduction2d"])
def test_polishing_starts_from_the_design_and_makes_it_better(problem):
    designs = data.load(problem, "sample")
    conditions = {k: v[0].item() for k, v in designs.conditions["val"].items()}
    start = design.fitted(problem, conditions, design.nearest(designs, conditions))
    before = objective(problem, conditions, start)
    after = [objective(problem, conditions, optimise(problem, conditions, start, n) / 255) for n in (1, 3)]
    assert after[1] < 1.001 * before


def test_the_page_of_design_bench(tmp_path, monkeypatch):
    """From planted rows, with an optimum of 2: each iteration halves a start's gap."""
    monkeypatch.setattr(design_bench, "RESULTS", tmp_path)
    gaps, rows, known = dict(latents=0.04, PCA=0.08, pixels=0.3, nearest=0.03, cold=100.0), [], []
    for problem, i in itertools.product(("beams2d", "heatconduction2d"), range(2)):
        known.append(dict.fromkeys(design_bench.KNOWN, i + 1.0) | dict(problem=problem, condition=i, objective=i + 1.0))
        for (start, gap), n in itertools.product(gaps.items(), design_bench.STEPS[problem]):
            row = dict(problem=problem, condition=i, start=start, iterations=n, optimum=2.0)
            rows.append(row | dict(objective=2 * (1 + (gap + 0.01 * i) / 2**n)))
    known[1]["latents"] = 1.0
    for name, table in (("design", rows), ("surrogates", known)):
        pd.DataFrame(table).to_csv(tmp_path / f"{name}.csv", index=False)
    assert design_bench.main(["--n=2"]) == 0
    lines = (tmp_path / "design.md").read_text().splitlines()
    assert "| beams2d | 0 | latents | 2 | 4.5% | 4.9% | 50.0% | 5.0% |  |" in lines
    assert "| beams2d | 0 | nearest | 2 | 3.5% | 3.9% | 100.0% | 4.0% | -1.0% [-1.0%, -0.9%] |" in lines
    assert "| beams2d | PCA | 1 |" in lines and "| beams2d | cold | more than 10 |" in lines
    assert "| beams2d | 2 | 1.0000 | -1.0000 | 1.0000 | 1.0000 | 1.0000 |" in lines


def test_one_condition_of_design_bench(monkeypatch):
    monkeypatch.setattr(design_bench, "optimise", lambda *args: np.full((101, 101), 100, np.uint8))
    start, conditions = np.full((101, 101), 0.4), dict(volume=0.4, length=0.5)
    best, said, rows = design_bench.measure(("heatconduction2d", 7, conditions, {"latents": start}))
    assert said == conditions and best.mean() == pytest.approx(100 / 255) and len(rows) == 5
    assert rows[0]["objective"] > rows[1]["objective"] * 0.9 and {row["condition"] for row in rows} == {7}
    assert {row["optimum"] for row in rows} == {design.objective("heatconduction2d", conditions, best)}


def test_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.webbrowser, "open", lambda address: opened.append(address))
    opened = []
    assert demo.main(["--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert opened == [(tmp_path / "index.html").as_uri()]
    (found,), shipped = pd.read_csv(tmp_path / "tables/row.csv").to_dict("records"), lvae.load("models/beams2d")
    assert found["numbers kept of 100"] == len(shipped.dims) and found["ratio"] < 0.2
    assert page.count("<figure>") == 3 and demo.CONDITIONS in page


def test_samples_are_drawn_like_the_latents():
    """Draws have the mean and the covariance of the latents, at any bandwidth; on a curve they stay near the curve."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(1000, 1, generator=generator) * 2 * math.pi
    circle, ball = torch.cat([angle.cos(), angle.sin()], 1), torch.randn(1000, 3, generator=generator)
    for z, h in ((circle, 0.1), (circle, 1.0), (ball + 5, 0.5)):
        drawn = lvae.draw(z, h, 100_000, generator)
        torch.testing.assert_close(drawn.mean(0), z.double().mean(0), rtol=0, atol=0.02)
        torch.testing.assert_close(drawn.T.cov(), z.double().T.cov(), rtol=0, atol=0.02)
    assert (lvae.draw(circle, 0.1, 1000, generator).norm(dim=1) - 1).abs().max() < 0.4  # a Gaussian's reach the centre
    assert design.bandwidth(circle[:800], circle[800:]) <= 0.1
    assert design.bandwidth(ball[:800], ball[800:]) >= 0.5


def test_gallery_of_a_run_and_what_cannot_be_drawn(tmp_path, capsys, monkeypatch):
    """A run as it was shipped: models/heatconduction2d is a run's folder, too."""
    folder, drawn, pictures = ROOT / "models/heatconduction2d", [], gallery.images
    model, designs = lvae.load(folder), data.load("heatconduction2d", "sample")
    config, k = json.loads((folder / "config.json").read_text()), len(model.dims)
    monkeypatch.setattr(gallery, "images", lambda *args: (drawn.append(args), pictures(*args))[1])
    assert gallery.main(["--run", str(folder), "--out", str(tmp_path), "--designs", "3", "--physics", "1"]) == 0
    page = tmp_path / f"gallery-{config['id']}"
    assert str(page / "index.html") in capsys.readouterr().out
    text = (page / "index.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["Reconstructions, best to worst", "Physics", "Latent traversals"]
    assert f"Each of the {k} kept dimensions" in text and f"{k} of 100 dims kept" in text
    assert text.count("<figcaption>") == 3 + math.ceil(k / 8) and 'alt=""' not in text
    assert f"Dimensions 1 to 8 of {k}" in text and f"Dimensions {(k - 1) // 8 * 8 + 1} to {k} of {k}" in text
    # each reconstruction carries its error, the smallest first
    found = [float(title.removeprefix("error ")) for title in drawn[0][2][1]]
    error = (model(designs.val) - designs.val).square().mean((1, 2, 3)).detach()
    assert found == sorted(found) and found[0] == pytest.approx(error.min().item(), rel=0.05)
    grows = [float(label.split("\n")[1].replace("−", "-")) for rows in drawn[1:] for label in rows[1]]
    assert len(grows) == k and grows == sorted(grows, reverse=True)
    rows = pd.read_csv(page / "tables" / "physics.csv").to_dict("records")
    assert [row["what"] for row in rows] == ["reconstruction", "sample"]
    for row in rows:  # the original's objective is that of its own conditions
        i = row["validation design"]
        conditions = {name: values[i].item() for name, values in designs.conditions["val"].items()}
        expected = objective("heatconduction2d", conditions, designs.val[i, 0].numpy().astype(float))
        assert row["objective of the original"] == pytest.approx(expected, rel=1e-9)
        assert row["volume of the original"] == pytest.approx(float(designs.val[i].mean()))

    for name in ("bare", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        config["data"]["sha256"] = "0"
    (tmp_path / "other/model.pt").touch()
    cases = {"no model.pt; train with --save_model=True": ["--run", str(tmp_path / "bare")]}
    cases |= {"it was trained on other designs": ["--run", str(tmp_path / "other")]}
    cases |= {"--run nowhere: its config.json": ["--run", "nowhere"]}
    cases |= {"at least 2, and at least 0": ["--run", str(folder), "--designs", "1"]}
    for said, argv in cases.items():
        assert gallery.main([*argv, "--out", str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()
