"""tools/comparison.py: its tables, from rows that are planted; and a sweep over toy designs of several dimensions."""

import pandas as pd
import pytest
import sweep_kit

import sweep
import train
from tools import comparison, rivals


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
    assert lines[-2:] == ["| beams2d | 7 | 100 | 0.00100 | 0.500 |", "| beams2d | 8 | 50 | 0.00300 | 0.500 |"]


def test_the_table_of_baselines(tmp_path):
    common = {"problem": "beams2d", "toy_dims": 3, "latent_dim": 100, "seed": 1, "val_rec": 0.001}
    arms = ["strategy=plummet", "strategy=none,latent_dim=16", "trim_share=0"]
    plant(tmp_path / "b.csv", **common, strategy=["plummet", "none", "plummet"], arm=arms, active_dims=[6, 16, 30])
    lines = comparison.table("baselines", tmp_path / "b.csv").splitlines()[2:]
    assert [line.split(" | ")[1:4] for line in lines] == [
        ["least volume, the defaults", "1", "6.0"],
        ["least volume, trim_share=0", "1", "30.0"],
        ["plain autoencoder of 16", "1", "16.0"],
    ]


def test_the_tables_of_rivals():
    rows = {"problem": "beams2d", "seed": "1", "method": ["PCA", "PCA", "nested dropout", "nested dropout", "TwoNN"]}
    rows = pd.DataFrame(rows | {"dims": ["4", "16"] * 2 + ["3.9"], "val_rec": ["0.02", "0.01", "0.002", "0.001", ""]})
    lines = comparison.rivals(rows).splitlines()
    assert lines[0] == "| problem | method | 4 axes | 16 axes |" and lines[-1] == "| beams2d | 3.9 |"
    assert lines[2:4] == ["| beams2d | PCA | 0.02000 | 0.01000 |", "| beams2d | nested dropout | 0.00200 | 0.00100 |"]


@pytest.mark.parametrize("method", rivals.METHODS)
def test_a_rival_learns_and_its_front_falls(method, monkeypatch):
    monkeypatch.setattr(rivals, "FIXED", rivals.FIXED | {"latent_dim": 8, "n_epochs": 12, "batch_size": 128})
    monkeypatch.setattr(rivals, "FRONT", (1, 2, 8))
    error = [row["val_rec"] for row in rivals.rows_of("toy", method, 1001)]
    assert error[0] > error[1] > error[2]


def test_rivals_make_what_their_table_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rivals.data, "CONDITIONS", ["toy"])
    monkeypatch.setattr(rivals, "FREE", ("PCA",))
    monkeypatch.setattr(rivals, "METHODS", {})
    (tmp_path / "results").mkdir()
    for _ in range(2):
        assert rivals.main([]) == 0
    assert len(rivals.read_csv("results/rivals.csv")) == len(rivals.FRONT)


def test_the_table_of_known_dimensions(tmp_path, capsys, monkeypatch):
    common = {"problem": "toy", "toy_dims": 2, "latent_dim": 20, "seed": [1, 2, 3, 4]}
    plant(tmp_path / "g.csv", **common, active_dims=[2, 5, 6, 2], val_rec=[1e-5, 1e-5, 1e-5, 6e-4])
    lines = comparison.table("ground-truth", tmp_path / "g.csv").splitlines()
    assert lines[2] == "| 2 | 20 | 2, 5, 6, 2 | 1.0e-05, 1.0e-05, 1.0e-05, 6.0e-04 | 2 of 4 | 2 of 4 |"
    assert lines[3] == "| all |  |  |  | 2 of 4 | 2 of 4 |"
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    assert comparison.main(["width"]) == 2
    assert capsys.readouterr().err.endswith("has no finished run; make width makes them\n")
    (tmp_path / "g.csv").rename(tmp_path / "results/ground-truth.csv")
    assert comparison.main(["ground-truth"]) == 0
    assert "\n".join(lines) in (tmp_path / "results/ground-truth.md").read_text()


def test_toy_designs_of_several_dimensions_are_told_apart(here):
    here.joinpath("train.py").symlink_to(comparison.ROOT / "train.py")
    file = comparison.ROOT / "comparisons/ground-truth.yaml"
    assert sweep.main(["create", str(file), "--backend", "local"]) == 0
    made = sweep_kit.current()
    assert len(sweep_kit.points(made)) == 45 and made["results"] == "results/ground-truth.csv"
    assert {(problem, factors) for problem, _, factors, *_ in made["data"]} == {("toy", k) for k in range(1, 6)}
    assert len({sha256 for *_, sha256 in made["data"]}) == 5
    sweep.check_data(made)
    for name, runs in (("width", 27), ("baselines", 126)):
        points = sweep.expand(sweep.read_yaml(str(comparison.ROOT / f"comparisons/{name}.yaml"))[1])
        assert len(sweep.resolve(points, train)) == runs


def test_a_point_whose_schedule_follows_its_designs_is_not_run_again(here, monkeypatch, capsys):
    """comparisons/width.yaml gives no n_epochs: a row has what train.py made of it."""
    here.joinpath("train.py").symlink_to(comparison.ROOT / "train.py")
    monkeypatch.setattr(train, "EPOCHS", 1)
    monkeypatch.setattr(sweep, "load_program", lambda _: train)  # with this number, too
    flags = "--problem=toy --latent_dim=4 --strategy=plummet --wandb=disabled --test"
    sweep_kit.two_seeds(monkeypatch, flags, "width-trial")
    asked = ["--backend", "local", "--set", "problem=toy latent_dim=4 seed=1,2,3"]
    capsys.readouterr()
    assert sweep.main(["create", str(comparison.ROOT / "comparisons/width.yaml"), *asked]) == 0
    said = capsys.readouterr()
    assert "2 points are in results/width-trial.csv already" in said.out and ": 1 runs" in said.out and not said.err
