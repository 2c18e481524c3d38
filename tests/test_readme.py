"""What README.md and sweeps/README.md say was found is what the committed rows say."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

import report
from record import read_csv

READMES = (ROOT / "README.md").read_text(), (ROOT / "sweeps/README.md").read_text()


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds the page of a sweep from results/NN-first.csv, without figures; returns its folder."""
    monkeypatch.setattr(report.Page, "_figure", lambda self, name, figure, alt: "")

    def run(name):
        path, _ = report.build(name, report.local_runs(ROOT / f"results/{name}-first.csv"), tmp_path, name)
        return path.parent

    return run


def test_the_first_table_is_that_of_the_rows(build):
    header, _, *found = map(cells, (build("01") / "tables/summary.md").read_text().splitlines()[2:])
    shown = ["problem", "arm", "active_dims", "val_rec", "pca_ratio", "best_val_rec"]
    expected = [[row[header.index(key)] for key in shown] for row in found]
    table = READMES[0].split("| problem | strategy | dims kept")[1].split("\n\n")[0].splitlines()[2:]
    assert [cells(line) for line in table] == expected and len(expected) == 12


def test_the_models_table_is_that_of_the_rows():
    table = READMES[0].split("| problem | epochs, w_v | dims kept")[1].split("\n\n")[0].splitlines()[2:]
    for line, sweep in zip(table, ("04", "05", "06"), strict=True):
        rows = read_csv(ROOT / f"results/{sweep}-models.csv").to_dict("records")
        shown = [rows[0]["problem"], f"{rows[0]['n_epochs']}, {rows[0]['w_v']}"]
        for key in ("active_dims", "val_rec", "pca_ratio", "test_rec"):
            values = [float(row[key]) for row in rows]
            shown.append(f"{sum(values) / len(values):.4g} ({min(values):.4g} to {max(values):.4g})")
        assert cells(line) == shown


def findings():
    """(sweep, verdict) of each `**Found** (date, NN-first.csv): verdict` of sweeps/README.md."""
    return re.findall(
        r"\*\*Found\*\* \(\d{4}-\d\d-\d\d, \[results/(\w+)-first\.csv\]\(\S+\)[^)]*\): \*\*(\w+)\*\*", READMES[1]
    )


@pytest.mark.parametrize("sweep, verdict", findings())
def test_a_verdict_is_that_of_the_rows(build, sweep, verdict):
    assert re.search(r'class="verdict (\w+)"', (build(sweep) / "index.html").read_text())[1] == verdict


def test_a_complete_sweep_has_its_finding():
    assert sorted(sweep for sweep, _ in findings()) == sorted(
        path.stem.split("-")[0] for path in Path(ROOT, "results").glob("*-first.csv")
    )
