"""tools/comparison.py: its tables, from rows that are planted; and a sweep over toy designs of several dimensions."""

import os

import pandas as pd
import pytest
import sweep_kit

import sweep
from tools import comparison


def plant(path, **columns):
    pd.DataFrame(columns).assign(status="finished", pca_ratio=0.5).to_csv(path, index=False)


def test_the_table_of_widths(tmp_path):
    common = {"problem": "beams2d", "toy_dims": 3, "val_rec": [0.001, 0.003]}
    plant(tmp_path / "w.csv", **common, latent_dim=50, seed=[1, 2], active_dims=[6, 8])
    arms = ["strategy=plummet", "trim_share=0"]
    plant(tmp_path / "baselines.csv", **common, latent_dim=100, seed=1, active_dims=[7, 40], arm=arms)
    lines = comparison.table("width", tmp_path / "w.csv").splitlines()
    assert lines[2] == "| beams2d | 50 | 2 | 7.0 ± 1.0 | 0.00200 ± 0.00100 | 0.500 ± 0.000 |"
    assert lines[3] == "| beams2d | 100 | 1 | 7.0 | 0.00100 | 0.500 |"


def test_the_table_of_baselines(tmp_path):
    common = {"problem": "beams2d", "toy_dims": 3, "latent_dim": 100, "seed": 1, "val_rec": 0.001}
    common |= {"strategy": ["plummet", "none", "plummet", "plummet"], "trim_share": [0.1, 0.1, 0, 0]}
    plant(tmp_path / "b.csv", **common, rotate_every=[5, 0, 5, 0], active_dims=[6, 16, 30, 40])
    lines = comparison.table("baselines", tmp_path / "b.csv").splitlines()[2:]
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["least volume, pruned", "1", "30.0"],
        ["least volume, pruned and trimmed", "1", "6.0"],
        ["least volume, pruned, not rotated", "1", "40.0"],
        ["plain autoencoder of 16", "1", "16.0"],
    ]


def test_the_table_of_known_dimensions(tmp_path, capsys, monkeypatch):
    common = {"problem": "toy", "toy_dims": 2, "latent_dim": 20, "seed": [1, 2, 3, 4]}
    plant(tmp_path / "g.csv", **common, active_dims=[2, 5, 6, 2], val_rec=[1e-5, 1e-5, 1e-5, 6e-4])
    lines = comparison.table("ground-truth", tmp_path / "g.csv").splitlines()
    assert lines[2] == "| 2 | 20 | 2, 5, 6, 2 | 1.0e-05, 1.0e-05, 1.0e-05, 6.0e-04 | 2 of 4 | 2 of 4 |"
    assert lines[3] == "| all |  |  |  | 2 of 4 | 2 of 4 |"
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    assert comparison.main(["width"]) == 2
    assert capsys.readouterr().err.endswith("has no finished run; make width makes them\n")


@pytest.mark.usefixtures("here")
def test_toy_designs_of_several_dimensions_are_told_apart():
    os.symlink(comparison.ROOT / "train.py", "train.py")
    file = comparison.ROOT / "comparisons/ground-truth.yaml"
    assert sweep.main(["create", str(file), "--backend", "local"]) == 0
    made = sweep_kit.current()
    assert len(sweep_kit.points(made)) == 45 and made["results"] == "results/ground-truth.csv"
    assert {(problem, factors) for problem, _, factors, *_ in made["data"]} == {("toy", k) for k in range(1, 6)}
    assert len({sha256 for *_, sha256 in made["data"]}) == 5
    sweep.check_data(made)
    assert len(sweep.expand(sweep.read_yaml(str(comparison.ROOT / "comparisons/width.yaml"))[1])) == 27
