"""ship.py: the best run goes into models/, in 8 bits; and the models that are there are those of the committed rows."""

import json
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


@pytest.mark.usefixtures("here")
def test_the_run_with_the_least_val_rec_is_shipped(monkeypatch, capsys):
    table = two_seeds(monkeypatch, TOY, "04-models")
    text, row = table.read_text(), ship.best(table).iloc[0]
    wrong = text.replace(row["val_rec"], str(float(row["val_rec"]) / 2))
    capsys.readouterr()
    cases = {"no finished rows": text.splitlines()[0] + "\n", "in its row; allowed: 1% apart": wrong}
    for said, changed in cases.items():
        table.write_text(changed)
        assert ship.main(["--runs", str(table)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not Path("models").exists()
    table.write_text(text)
    assert ship.main(["--runs", str(table)]) == 0
    assert f"models/toy: {row['name']}" in capsys.readouterr().out
    target, source = Path("models/toy"), Path("runs") / row["id"]
    assert {path.name for path in target.iterdir()} == {"model.pt", "config.json", "summary.json"}
    assert (target / "config.json").read_text() == (source / "config.json").read_text()
    assert (target / "model.pt").stat().st_size < 0.4 * (source / "model.pt").stat().st_size
    whole, small = lvae.load(source / "model.pt"), lvae.load(target / "model.pt")
    for name, value in whole.state_dict().items():
        off = (small.state_dict()[name] - value).abs()
        assert (off == 0).all() if value.numel() <= 2**14 else (off <= value.abs().amax(1, keepdim=True) / 253.9).all()
    (source / "model.pt").unlink()
    assert ship.main(["--runs", str(table)]) == 2 and "not a model.pt" in capsys.readouterr().err


def test_the_models_in_models_are_those_of_the_rows():
    rows = ship.best(ROOT / "models/rows.csv", "strategy=plummet").set_index("problem")
    assert sorted(rows.index) == ["beams2d", "heatconduction2d", "photonics2d"]
    for problem, best in rows.iterrows():
        folder = ROOT / "models" / problem
        config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
        assert config["id"] == best["id"] and summary["metrics_sha256"] == best["metrics_sha256"]
        model, designs = lvae.load(folder / "model.pt"), data.load(problem, "sample")
        assert len(model.dims) == int(best["active_dims"])
        assert model.known["names"] == list(designs.conditions["train"])
        for x, expected in ((designs.val, float(best["val_rec"])), (designs.test, summary["test_rec"])):
            with torch.no_grad():
                error = F.mse_loss(model(x), x).item()
            assert error == pytest.approx(expected, rel=ship.LOSS)
        assert (folder / "model.pt").stat().st_size < 5e6
