"""verify.py: rows of results/NN.csv come out again from their flags, and those that do not are named."""

import math
from pathlib import Path

import pandas as pd
import pytest
from sweep_kit import two_seeds

from record import read_csv
from tools import verify

RUN = "--problem=toy --latent_dim=6 --batch_size=256 --n_epochs=3 --pruning_epoch=1 --polynomial_schedule_n=1"
RUN += " --min_active_dims=1 --threads=1 --wandb=disabled --save_model=False"


@pytest.fixture
def table(here, monkeypatch):
    """results/01-first.csv with two seeds of a small run."""
    return two_seeds(monkeypatch, RUN, "01-first")


def change(path, seed, **values):
    """Change cells of a seed's row; all rows, as they are then."""
    rows = read_csv(path)
    rows.loc[rows["seed"] == str(seed), list(values)] = list(values.values())
    rows.to_csv(path, index=False)
    return rows.to_dict("records")


def test_rows_come_out_again_or_are_named(table, capsys, monkeypatch):
    before = sorted(map(str, Path(".").rglob("*")))
    assert verify.main(["--runs", str(table), "--ids", "s1"]) == 0  # by a process of its own
    said = capsys.readouterr().out
    assert said.count(": equal, ") == 1 and "1 of 1 rows came out again (of 2 in " in said
    assert sorted(map(str, Path(".").rglob("*"))) == before  # nothing is left behind

    first = change(table, 1)[0]  # from here on what comes out is the first row's, unchanged
    designs = {"source": "toy", "sha256": first["data_sha256"]}
    monkeypatch.setattr(verify, "again", lambda row: (row | {"val_rec": float(row["val_rec"])}, designs))
    assert verify.main(["--runs", str(table), "--share", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count(": equal, ") == 2 and "2 of 2 rows came out again" in said
    came = {"val_rec": float(first["val_rec"]), "metrics_sha256": "of this machine"}
    monkeypatch.setattr(verify, "again", lambda row: (came, designs))
    rows = change(table, 1, metrics_sha256="another machine")
    assert verify.main(["--runs", str(table), "--ids", "s1"]) == 0
    assert "within the seeds" in capsys.readouterr().out
    change(table, 1, val_rec=str(9 * float(rows[0]["val_rec"])), metrics_sha256="another machine")
    change(table, 2, val_rec=str(8 * float(rows[0]["val_rec"])))  # the recorded seeds lie log(9/8) apart
    assert verify.main(["--runs", str(table), "--ids", "s1"]) == 1
    assert "NOT within the seeds" in capsys.readouterr().out
    # a row whose seed stands alone is held against the seeds of other settings, in any table beside it
    change(table, 1, w_v="0.5", cpu="another, AVX2")
    assert verify.main(["--runs", str(table), "--ids", "s1"]) == 1
    assert "no other seed to compare with" in capsys.readouterr().out
    for seed, factor in (("1", 1), ("2", 20)):
        row = rows[0] | {"seed": seed, "w_v": "0.7", "val_rec": factor * float(rows[0]["val_rec"])}
        pd.DataFrame([row]).to_csv(f"results/0{seed}-other.csv", index=False)
    assert verify.main(["--runs", str(table), "--ids", "s1"]) == 0
    said = capsys.readouterr().out
    assert f"seeds {math.log(20):.2g} (made on another, AVX2, this is {rows[0]['cpu']})" in said
    change(table, 2, data_sha256="f00")
    assert verify.main(["--runs", str(table), "--ids", "s2"]) == 1
    assert "other designs" in capsys.readouterr().out
    monkeypatch.setattr(verify, "again", lambda row: ({"cause": "epoch 2: rec_loss nan"}, designs))
    assert verify.main(["--runs", str(table), "--ids", "s1"]) == 1
    assert "did not finish (epoch 2: rec_loss nan)" in capsys.readouterr().out


@pytest.mark.parametrize("flags, says", [("--share 0", "--share"), ("--ids nope", "nope"), ("--jobs 0", "--jobs")])
def test_bad_input_is_one_line(tmp_path, capsys, flags, says):
    path = tmp_path / "01.csv"
    path.write_text("id,status\na,finished\n")
    assert verify.main(["--runs", str(path), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert verify.main(["--runs", str(tmp_path / "none.csv")]) == 2
