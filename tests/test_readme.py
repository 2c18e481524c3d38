"""The documents say what the committed rows say; their links resolve, and they are as short as they promise."""

import re
import shlex
import subprocess

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import report
import sweep
import train

README, FINDINGS = (ROOT / "README.md").read_text(), (ROOT / "docs/findings.md").read_text()
DOCUMENTS = [*(ROOT / name / "README.md" for name in (".", "sweeps", "samples")), *sorted((ROOT / "docs").glob("*.md"))]
# The comment above a table of docs/findings.md says of which page, which table, columns and rows it is
TABLES = re.findall(r"<!-- (\S+) ([\w-]+): (.*?)(?: where (\w+)=(.*?))? -->\n\n((?:\|.*\n)+)", FINDINGS)
ANSWERS = re.findall(r"^(##+) (\d\d\w?) .*?\*\*Answer: (\w+)", FINDINGS, re.M | re.S)  # its first bold word
VERDICTS = {f"{n}-{'first' if level == '##' else 'second'}": word for level, n, word in ANSWERS}


def rows_of(text):
    """The cells of a Markdown table, row by row, its header first."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [lines[0], *lines[2:]]


@pytest.mark.parametrize("sweep", VERDICTS)
def test_a_finding_is_that_of_the_rows(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(report.Page, "_figure", lambda self, name, figure: "")
    rows = report.local_runs(ROOT / f"results/{sweep}.csv")
    path, _ = report.build(sweep.partition("-")[0], rows, tmp_path, sweep)
    assert re.search(r'class="verdict (\w+)"', path.read_text())[1] == VERDICTS[sweep]
    tables = [table[1:] for table in TABLES if table[0] == sweep.removesuffix("-first")]
    assert tables
    for name, columns, key, only, text in tables:
        header, *rows = rows_of((path.parent / f"tables/{name}.md").read_text())
        rows = [row for row in rows if not key or row[header.index(key)] in only.split("/")]
        columns = columns.split(", ")
        assert rows_of(text) == [columns, *([row[header.index(c)] for c in columns] for row in rows)], name


def test_a_complete_sweep_has_its_finding():
    assert sorted(VERDICTS) == sorted(p.stem for e in ("first", "second") for p in ROOT.glob(f"results/*-{e}.csv"))


def anchors(path):
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_resolve_and_documents_are_short():
    for path in DOCUMENTS:
        for link in re.findall(r"\]\((?!http)([^)\s]+)\)", path.read_text()):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists() and (not anchor or anchor in anchors(target)), (path, link)
        long = [line for line in path.read_text().splitlines() if len(line) > 120 and line[0] not in "|<"]
        assert not long, path  # but a table's row, which cannot be broken
    assert len(README.split()) <= 1000 and len((ROOT / "sweeps/README.md").read_text().split()) <= 500


def test_the_readme_says_how_good_designs_for_new_conditions_are():
    header, *rows = rows_of((ROOT / "results/design.md").read_text())
    shown, *told = rows_of("| problem | start" + README.split("| problem | start")[1])
    found = [[row[header.index(key)] for key in shown] for row in rows if row[1:2] == ["0"]]
    assert len(told) >= 4 and all(row in found for row in told[:4])


def test_the_readme_says_how_good_the_models_are():
    models = pd.read_csv(ROOT / "models/rows.csv").set_index("problem")
    plain = pd.read_csv(ROOT / "results/baselines.csv")
    plain = plain[(plain["strategy"] == "none") & (plain["status"] == "finished")]
    table = rows_of(README[README.index("| problem | numbers") :].split("\n\n")[0])[1:]
    assert sorted(models.index) == [row[0] for row in table]
    for problem, *told in table:
        model = models.loc[problem]
        same = plain[(plain["problem"] == problem) & (plain["latent_dim"] == model["active_dims"])]["val_rec"].mean()
        test = report.read_json(ROOT / "models" / problem / "summary.json")["test_rec"]
        errors = [f"{error:.3g}" for error in (model["val_rec"], model["pca_rec"], same, test)]
        assert told == [str(model["active_dims"]), *errors, f"{model['seconds'] / 60:.1f}"]


INDENTED = [re.split(r"\s#|; ", line)[0] for d in DOCUMENTS for line in re.findall(r"^    (.*)$", d.read_text(), re.M)]
INLINE = [code for d in DOCUMENTS for code in re.findall(r"`([^`\n]+)`", d.read_text())]
COMMANDS = sorted({c.split(" && ")[0].strip() for c in INDENTED + INLINE if re.match(r"(make|python) ", c)})
MAKE = [c for c in COMMANDS if c.startswith("make") and not re.search(r"\$|NN", c)]


def made(command):
    """What make would run for it, the set-up left out."""
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_each_command_of_the_documents(command):
    assert re.search("python|pytest|Nothing to be done", made(command))


@pytest.mark.parametrize("command", [c for c in MAKE if c.startswith("make sweep-")])
def test_each_sweep_of_the_documents_is_created(here, monkeypatch, command):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = re.search(r"sweep.py create (.*)", made(command))[1]
    here.joinpath("train.py").symlink_to(ROOT / "train.py")
    here.joinpath("sweeps").symlink_to(ROOT / "sweeps")
    assert sweep.main(["create", *shlex.split(name), "--backend", "local"]) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py --problem")])
def test_each_training_of_the_documents_runs(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    np.savez("designs.npz", designs=np.random.default_rng(0).random((40, 16, 16)))
    short = ["--n_epochs=2", "--latent_dim=8", "--wandb=disabled"]
    assert train.main([*shlex.split(command)[2:], *short]) == 0


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", "".join(d.read_text() for d in DOCUMENTS), re.S))
def test_each_piece_of_python_of_the_documents_runs(monkeypatch, code):
    monkeypatch.chdir(ROOT)
    exec(code, {})
