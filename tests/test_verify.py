"""verify.py: rows of results/NN.csv come out again. ship.py: the best run goes into models/, whose rows are there."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from sweep_kit import two_seeds

import data
import lvae
from record import read_csv, read_json
from tools import ship, verify

RUN = "--problem=toy --latent_dim=6 --batch_size=256 --n_epochs=3 --pruning_epoch=1 --polynomial_schedule_n=1"
RUN += " --min_active_dims=1 --threads=1 --wandb=disabled --save_model=False"


def change(path, seed, **values):
    """Change cells of a seed's row; all rows, as they are then."""
    rows = read_csv(path)
    rows.loc[rows["seed"] == str(seed), list(values)] = list(values.values())
    rows.to_csv(path, index=False)
    return rows.to_dict("records")


def test_rows_come_out_again_or_are_named(here, capsys, monkeypatch):
    table = two_seeds(monkeypatch, RUN, "01-first")  # two seeds of a small run
    before = sorted(map(str, Path(".").rglob("*")))

    def says(word, *flags, code=0):
        assert verify.main(["--runs", str(table), *flags]) == code
        said = capsys.readouterr().out
        assert word in said
        return said

    capsys.readouterr()
    assert "1 of 1 rows came out again (of 2 in " in says(": equal, ", "--ids", "s1")  # by a process of its own
    assert sorted(map(str, Path(".").rglob("*"))) == before  # nothing is left behind
    said = f"flags that are no more: gone; its commit, {change(table, 1, gone='7')[0]['git']}"
    assert said in says("did not finish", "--ids", "s1", code=1)
    change(table, 1, gone="")

    first = change(table, 1)[0]  # from here on what comes out is the first row's, unchanged
    right, came = float(first["val_rec"]), {"val_rec": float(first["val_rec"]), "metrics_sha256": "of this machine"}
    designs = {"source": "toy", "sha256": first["data_sha256"]}
    monkeypatch.setattr(verify, "again", lambda row: ({**row, "val_rec": float(row["val_rec"])}, designs))
    assert says("2 of 2 rows came out again", "--share", "1").count(": equal, ") == 2
    monkeypatch.setattr(verify, "again", lambda row: (came, designs))
    says(": within the seeds", "--ids", "s1")
    change(table, 1, val_rec=str(9 * right))
    change(table, 2, val_rec=str(8 * right))  # the recorded seeds lie log(9/8) apart
    says("NOT within the seeds", "--ids", "s1", code=1)
    # a row whose seed stands alone is held against the seeds of other settings, in any table beside it
    change(table, 1, w_v="0.5", cpu="another, AVX2")
    says("no other seed to compare with", "--ids", "s1", code=1)
    for seed, factor in (("1", 1), ("2", 20)):
        row = first | {"seed": seed, "w_v": "0.7", "val_rec": factor * right}
        pd.DataFrame([row]).to_csv(f"results/0{seed}-other.csv", index=False)
    says(f"seeds {math.log(20):.2g} (made on another, AVX2, this is {first['cpu']})", "--ids", "s1")
    change(table, 2, data_sha256="f00")
    says("other designs", "--ids", "s2", code=1)
    monkeypatch.setattr(verify, "again", lambda row: ({"cause": "epoch 2: rec_loss nan"}, designs))
    says("did not finish (epoch 2: rec_loss nan)", "--ids", "s1", code=1)


@pytest.mark.parametrize("flags, says", [("--share 0", "--share"), ("--ids nope", "nope"), ("", "no finished rows")])
def test_bad_input_is_one_line(tmp_path, capsys, flags, says):
    path = tmp_path / "01.csv"
    if flags:  # else there is no such file
        path.write_text("id,status\na,finished\n")
    assert verify.main(["--runs", str(path), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


# ---- ship.py -------------------------------------------------------------------------------------------------------

TOY = "--problem=toy --data=sample --latent_dim=8 --n_epochs=6 --pruning_epoch=2 --polynomial_schedule_n=2"
TOY += " --batch_size=256 --threads=1 --wandb=disabled"


def test_the_run_with_the_least_val_rec_is_shipped(here, monkeypatch, capsys):
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
        config, summary = (read_json(folder / name) for name in ("config.json", "summary.json"))
        assert config["id"] == best["id"] and summary["metrics_sha256"] == best["metrics_sha256"]
        model, designs = lvae.load(folder / "model.pt"), data.load(problem, "sample")
        assert len(model.dims) == int(best["active_dims"])
        assert model.known["names"] == list(designs.conditions["train"])
        for x, expected in ((designs.val, float(best["val_rec"])), (designs.test, summary["test_rec"])):
            with torch.no_grad():
                error = F.mse_loss(model(x), x).item()
            assert error == pytest.approx(expected, rel=ship.LOSS)
        assert (folder / "model.pt").stat().st_size < 5e6
