"""What the documents say was found is what the committed rows say; their links resolve, and they are as short as they promise."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

import report

FINDINGS = (ROOT / "docs/findings.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "sweeps/README.md",
    ROOT / "samples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


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
    table = FINDINGS.split("| problem | strategy | dims kept")[1].split("\n\n")[0].splitlines()[2:]
    assert [cells(line) for line in table] == expected and len(expected) == 12


def findings():
    """(sweep, verdict) of each `**Found** (date, NN-first.csv): verdict` of docs/findings.md."""
    return re.findall(
        r"\*\*Found\*\* \(\d{4}-\d\d-\d\d, \[results/(\w+)-first\.csv\]\(\S+\)[^)]*\): \*\*(\w+)\*\*",
        re.sub(r"\s+", " ", FINDINGS),
    )


@pytest.mark.parametrize("sweep, verdict", findings())
def test_a_verdict_is_that_of_the_rows(build, sweep, verdict):
    assert re.search(r'class="verdict (\w+)"', (build(sweep) / "index.html").read_text())[1] == verdict


def test_a_complete_sweep_has_its_finding():
    assert sorted(sweep for sweep, _ in findings()) == sorted(
        path.stem.split("-")[0] for path in Path(ROOT, "results").glob("*-first.csv")
    )


def anchors(path):
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_resolve_and_lines_are_short(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if not link.startswith("http"):
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    long = [line for line in text.splitlines() if len(line) > 120 and line[0] != "|"]  # a table's row cannot be broken
    assert not long


def test_documents_are_as_short_as_they_promise():
    assert len((ROOT / "README.md").read_text().split()) <= 1000
    assert len((ROOT / "sweeps/README.md").read_text().split()) <= 500
