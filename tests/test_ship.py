"""ship.py: the best run goes into models/, in 8 bits; and the models that are there are those of the committed rows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from sweep_kit import two_seeds

import data
import lvae
from tools import ship

TOY = "--problem=toy --data=sample --latent_dim=8 --n_epochs=6 --pruning_epoch=2 --polynomial_schedule_n=2"
TOY += " --batch_size=256 --threads=1 --wandb=disabled"
PROBLEMS, ROWS = ("beams2d", "heatconduction2d", "photonics2d"), ROOT / "models/rows.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two seeds of a small run that kept its model, and results/04-models.csv."""
    folder = tmp_path_factory.mktemp("ship")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        two_seeds(patch, TOY, "04-models")
    return folder


@pytest.fixture
def table(made, here):
    shutil.copytree(made, here, dirs_exist_ok=True)
    return Path("results/04-models.csv")


def test_the_run_with_the_least_val_rec_is_shipped(table, capsys):
    best = ship.best(table)[0]
    assert ship.main(["--runs", str(table)]) == 0
    assert f"models/toy: {best['name']}" in capsys.readouterr().out
    target, source = Path("models/toy"), Path("runs") / best["id"]
    assert {path.name for path in target.iterdir()} == {"model.pt", "config.json", "summary.json"}
    assert (target / "config.json").read_text() == (source / "config.json").read_text()
    assert (target / "model.pt").stat().st_size < 0.4 * (source / "model.pt").stat().st_size
    whole, small = lvae.load(source / "model.pt"), lvae.load(target / "model.pt")
    for name, value in whole.state_dict().items():
        off = (small.state_dict()[name] - value).abs()
        assert (off == 0).all() if value.numel() <= 2**14 else (off <= value.abs().amax(1, keepdim=True) / 253.9).all()


def test_what_cannot_be_shipped_is_one_line(table, capsys):
    text = table.read_text()
    row = ship.best(table)[0]
    wrong = text.replace(row["val_rec"], str(float(row["val_rec"]) / 2))
    cases = {"no finished rows": text.splitlines()[0] + "\n", "in its row; allowed: 1% apart": wrong}
    for said, changed in cases.items():
        table.write_text(changed)
        assert ship.main(["--runs", str(table)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    table.write_text(text)
    (Path("runs") / row["id"] / "model.pt").unlink()
    assert ship.main(["--runs", str(table)]) == 2 and "not a model.pt" in capsys.readouterr().err
    assert not Path("models").exists()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_models_in_models_are_those_of_the_rows(problem):
    folder, rows = ROOT / "models" / problem, {row["problem"]: row for row in ship.best(ROWS, "strategy=plummet")}
    best = rows[problem]
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    assert config["id"] == best["id"] and summary["metrics_sha256"] == best["metrics_sha256"]
    model, designs = lvae.load(folder / "model.pt"), data.load(problem, "sample")
    assert len(model.dims) == int(best["active_dims"]) and model.known["names"] == list(designs.conditions["train"])
    for x, expected in ((designs.val, float(best["val_rec"])), (designs.test, summary["test_rec"])):
        with torch.no_grad():
            error = F.mse_loss(model(x), x).item()
        assert error == pytest.approx(expected, rel=ship.LOSS)
    assert (folder / "model.pt").stat().st_size < 5e6
