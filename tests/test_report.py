"""Pages from synthetic studies with planted effects: the right verdict, nothing lost, nothing fatal, readable in a browser."""

import csv
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import planted
import pytest

import report
from reporting import collect, page, studies
from reporting.stats import ALPHA


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out what takes the time: drawing. The figures are still made, with their captions and alt texts."""
    monkeypatch.setattr(page.Page, "_figure", lambda self, name, figure, alt, caption: f"<p>{name}: {alt}. {caption}</p>")


def build(name, root, out):
    """(text of the page, its verdict, folder, study)."""
    path, study = report.build(name, collect.local_runs(root), out, str(root))
    text = path.read_text()
    return text, re.search(r'class="verdict (\w+)"', text)[1], path.parent, study


def table(folder, name):
    with open(folder / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("best, word", [("plummet", "supported"), ("lognorm", "refuted"), (None, "undecided")])
def test_01_planted(tmp_path, undrawn, best, word):
    planted.plant(tmp_path / "runs", "01", lambda f: -0.15 * (f["strategy"] == best), noise=0.01, dims=lambda f: 30 + 10 * f["seed"])
    text, verdict, folder, study = build("01", tmp_path / "runs", tmp_path / "report")
    assert verdict == word and "36 of 36 points finished" in text and len(study.done) == 36
    found = table(folder, "winners")
    assert [row["problem"] for row in found] == ["beams2d", "heatconduction2d", "photonics2d"]  # never pooled
    if best:
        assert {row["lowest val_rec"] for row in found} == {best} and {row["best on seeds"] for row in found} == {"3 of 3"}
        assert {row["fewest dims within 5 %"] for row in found} == {best}
    else:
        assert {row["against the others"] for row in found} == {"undecided"}
    assert "plummet has the lowest val_rec of the four strategies" in text and len(table(folder, "summary")) == 12


def test_01_winner_may_differ_by_problem(tmp_path, undrawn):
    own = {"beams2d": "plummet", "heatconduction2d": "pca_cdf", "photonics2d": "lognorm"}
    planted.plant(tmp_path / "runs", "01", lambda f: -0.3 * (f["strategy"] == own[f["problem"]]), noise=0.005)
    _, verdict, folder, _ = build("01", tmp_path / "runs", tmp_path / "report")
    assert verdict == "undecided" and {row["problem"]: row["lowest val_rec"] for row in table(folder, "winners")} == own
    assert {row["against the others"] for row in table(folder, "winners")} == {"decided"}


def test_01_winner_by_the_rule_takes_the_fewest_dims_within_5_percent(tmp_path, undrawn):
    cost = {"plummet": 0, "pca_cdf": 0.03, "lognorm": 0.08, "probabilistic": 0.2}
    dims = {"plummet": 60, "pca_cdf": 40, "lognorm": 20, "probabilistic": 10}
    planted.plant(tmp_path / "runs", "01", lambda f: cost[f["strategy"]], noise=0.001, dims=lambda f: dims[f["strategy"]])
    _, _, folder, _ = build("01", tmp_path / "runs", tmp_path / "report")
    assert {(row["lowest val_rec"], row["fewest dims within 5 %"], row["its dims"]) for row in table(folder, "winners")} == {
        ("plummet", "pca_cdf", "40.0")
    }


def test_01b_levels(tmp_path, undrawn):
    def effect(f):  # every step towards the aggressive end costs; pca_cdf prunes more at a smaller threshold
        return 0 if f["strategy"] == "none" else -0.2 * math.log(1 - planted.level(f)) if f["strategy"] == "pca_cdf" else planted.level(f)

    runs = tmp_path / "runs"
    planted.plant(runs, "01b", effect, noise=0.002, dims=lambda f: 250 if f["strategy"] == "none" else 45)
    text, verdict, folder, _ = build("01b", runs, tmp_path / "report")
    best = {row["strategy"]: row["best level"] for row in table(folder, "best") if row["problem"] == "beams2d"}
    assert best["plummet"] == "plummet 0.01" and best["probabilistic"] == "probabilistic 0.1"
    assert best["pca_cdf"] == "pca_cdf 0.95" and verdict == "refuted"  # planted the other way round there
    assert "the best level of pca_cdf (pca_cdf 0.95) is the most aggressive one tried" in text
    control = {row["arm"]: row for row in table(folder, "none-dims")}
    assert len(control) == 12 and float(control["plummet 0.1"]["difference"]) == -205


def test_02_planted(tmp_path, undrawn):
    planted.plant(
        tmp_path / "runs",
        "02",
        lambda f: -0.1 * (f["safeguards"] == "moderate"),
        noise=0.02,
        seed=3,
        dims=lambda f: 30 + f["seed"] + 12 * (f["safeguards"] != "none"),
        spike=lambda f: 2.5 if f["safeguards"] == "none" else 1.0,
    )
    text, verdict, folder, _ = build("02", tmp_path / "runs", tmp_path / "report")
    assert verdict == "supported"
    rise, dims = ({row["arm"]: row for row in table(folder, f"none-{m}")} for m in ("rise", "active_dims"))
    assert (
        len(rise) == 7
        and {row["verdict"] for row in rise.values()} == {"lower"}
        and {row["verdict"] for row in dims.values()} == {"higher"}
    )
    assert {row["pairs"] for row in rise.values()} == {"15"}
    held = table(folder, "held-back")
    assert len(held) == 24 and {row["k_consecutive"] for row in held} == {"20.0"} and {row["pruned"] for row in held} == {"20.0"}
    assert len(set(re.findall(r"curves-\w+-\w+", text))) == 24 and "5 runs, 10 pruning events" in text


@pytest.mark.parametrize("strong, word", [("w_v", "supported"), ("lr", "refuted")])
def test_03_planted(tmp_path, undrawn, strong, word):
    import train

    planted.plant_search(tmp_path / "runs", strong=strong, product=-0.3)
    text, verdict, folder, _ = build("03", tmp_path / "runs", tmp_path / "report")
    assert verdict == word and text.count("they interact") >= 3 and "81 of 99 points finished" in text
    first = max((r for r in table(folder, "importance") if r["problem"] == "beams2d"), key=lambda r: float(r["PED-ANOVA"]))
    assert "Incomplete" not in text  # 81 completed and 18 stopped by hyperband are the whole search
    assert first["parameter"] == strong and first["completed runs"] == "27"
    assert {row["stopped"] for row in table(folder, "hyperband")} == {"6"}
    commands = re.findall(r"<pre>(.*?)</pre>", text, re.S)
    assert len(commands) == 3
    for command in commands:
        seeds, flags = re.search(r"for seed in ([\d ]+); do\s+python train.py (.*) --seed=\$seed", command).groups()
        assert seeds == "2 3 4 5 6"  # the search used seed 1
        assert train.parse([*flags.split(), "--seed=2"]).strategy == "plummet"


def test_03_noise_is_undecided(tmp_path, undrawn):
    planted.plant_search(tmp_path / "runs", strong="w_v", product=0, seed=5)
    for path in (tmp_path / "runs").glob("*/metrics.csv"):  # the same curve for all: nothing matters
        factor = np.random.default_rng(len(path.parent.name) + int(path.parent.name[-3:])).normal(1, 0.1)
        path.write_text(re.sub(r"(?m)^(\d+(?:,[^,]*){9}),[\d.e-]+,0.5$", rf"\g<1>,{0.01 * factor},0.5", path.read_text()))
    assert build("03", tmp_path / "runs", tmp_path / "report")[1] == "undecided"


def valley(shift):
    """log val_rec with its valley along w_v = shift-th power of pruning_epoch: an interaction if shift is not 0."""

    def effect(f):
        e, w = (
            math.log(f["pruning_epoch"] / {"beams2d": 9, "heatconduction2d": 15, "photonics2d": 6}[f["problem"]]),
            math.log(f["w_v"] / 0.01),
        )
        return 0.1 * (w - shift * e) ** 2 + 0.2 * e * e

    return effect


@pytest.mark.parametrize("shift, word", [(0.8, "supported"), (0, "undecided")])
def test_04_planted_interaction(tmp_path, undrawn, shift, word):
    planted.plant(tmp_path / "runs", "04", valley(shift), noise=0.05)
    text, verdict, folder, _ = build("04", tmp_path / "runs", tmp_path / "report")
    assert verdict == word and len(table(folder, "cells")) == 40
    assert "there are none yet of 05, 06" in text  # nothing is said across problems that are not there


def test_05_and_across(tmp_path, undrawn):
    for name in ("04", "05", "06"):
        planted.plant(tmp_path / "runs" / name, name, lambda f: valley(0)(f) - 0.2 * (f["safeguards"] == "conservative"),
                      noise=0.02, keep=lambda f: f["seed"] < 4, sweep=f"{name}_x-abc")  # fmt: skip
    text, verdict, folder, study = build("05", tmp_path / "runs", tmp_path / "report")
    assert verdict == "supported" and "conservative reaches a lower val_rec than moderate" in text
    assert len(study.done) == 120 and not study.left_out  # the runs of 04 and 06 say that they are other sweeps
    assert {row["w_v"] for row in table(folder, "optima")} == {"0.01"} and "w_v: the same for all three" in text
    third = {row["third problem"]: row for row in table(folder, "prediction")}
    assert set(third) == {"beams2d", "heatconduction2d", "photonics2d"} and third["beams2d"]["predicted w_v"] == "0.01"


def test_edge_of_the_range_is_a_caveat(tmp_path, undrawn):
    planted.plant(tmp_path / "runs", "06", lambda f: 0.1 * math.log(f["w_v"]), noise=0.01)
    assert "is at the edge of w_v (0.002)" in build("06", tmp_path / "runs", tmp_path / "report")[0]


# ------------------------------------------------------------------------------------------------------ broken, missing, doubled


def test_broken_runs_are_listed_and_not_fatal(tmp_path, undrawn):
    runs = tmp_path / "runs"
    folders = planted.plant(runs, "01", lambda f: 0, keep=lambda f: f["problem"] == "beams2d")
    (folders[0] / "config.json").unlink()
    (folders[1] / "config.json").write_text('{"flags": {"problem": "bea')
    (folders[2] / "summary.json").write_text("[]")
    (folders[3] / "summary.json").unlink()
    with open(folders[3] / "metrics.csv", "a") as file:
        file.write("40,0.01,0.0")  # a line in the middle of being written
    summary = json.loads((folders[4] / "summary.json").read_text())
    (folders[4] / "summary.json").write_text(json.dumps(dict(summary, status="diverged", cause="<script>alert(1)</script>")))
    (folders[5] / "summary.json").write_text(json.dumps(dict(summary, val_rec="nan")))
    (folders[6] / "metrics.csv").write_bytes(b"\xff\x00epoch,val_rec\n\xfe")
    (folders[7] / "config.json").write_text("[1, 2]")
    (runs / "empty").mkdir()
    text, verdict, folder, study = build("01", runs, tmp_path / "report")
    assert verdict == "undecided" and len(study.done) == 4 and "4 of 36 points finished" in text
    listed = {row["run"]: row for row in table(folder, "not-used")}
    assert len(listed) == 8
    assert listed[folders[0].name]["why"] == "no config.json" and listed[folders[3].name]["why"] == "40 of 40 epochs"
    assert listed[folders[3].name]["status"] == "stopped" and listed[folders[4].name]["status"] == "diverged"
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "Diverged runs by arm: " in text and "Incomplete: 4 of the 36 points" in text


@pytest.mark.parametrize("name", ["01", "01b", "02", "03", "04", "05", "06"])
def test_a_sweep_that_has_just_begun(tmp_path, undrawn, name):
    (tmp_path / "runs").mkdir()
    text, verdict, _, _ = build(name, tmp_path / "runs", tmp_path / "report")
    assert verdict == "undecided" and "No finished run of this sweep yet" in text
    if name == "03":
        planted.plant_search(tmp_path / "runs", runs=1, problems=["beams2d"])
    else:
        for flags in list(planted.points(name))[:1]:
            planted.write_run(tmp_path / "runs" / "a", flags, 0.01)
    text, verdict, _, study = build(name, tmp_path / "runs", tmp_path / "report")
    assert verdict == "undecided" and len(study.done) == 1


def test_a_run_at_work_is_running(tmp_path):
    import fcntl

    planted.write_run(tmp_path / "a", next(planted.points("01")), 0.01, stop=5)
    with open(tmp_path / "a" / "lock", "w") as lock:
        assert collect.read_run(tmp_path / "a").status == "stopped"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert collect.read_run(tmp_path / "a").status == "running"


def test_doubles_and_other_settings_are_left_out(tmp_path):
    runs = tmp_path / "runs"
    keep = lambda f: f["problem"] == "beams2d"  # noqa: E731
    planted.plant(runs / "a", "01", lambda f: 0, keep=keep)
    planted.plant(runs / "b", "01", lambda f: 0, keep=lambda f: keep(f) and f["strategy"] == "plummet")
    planted.plant(runs / "c", "01", lambda f: 0, keep=lambda f: keep(f) and f["seed"] == 1 and f["strategy"] == "lognorm", epochs=50)
    planted.plant(
        runs / "d",
        "01",
        lambda f: 0,
        keep=lambda f: keep(f) and f["seed"] == 2 and f["strategy"] == "lognorm",
        data=dict(source="hub", sha256="other"),
    )
    found = collect.local_runs(runs)
    study = studies.study("01", found)
    why = sorted(reason for _, reason in study.left_out)
    assert len(study.done) == 12 and why == ["another run of the same point is used"] * 3 + [
        "other designs than most runs",
        "other n_epochs (50)",
    ]
    for run, sweep in zip(found, ("02_safeguard_impact-x", "01b-trial_x-x", "01-first_pruning_strategies-x"), strict=False):
        run.sweep = sweep  # the first two were made for other sweeps: not even considered
    study = studies.study("01", found)
    assert {run.sweep for run in study.runs} | {run.sweep for run, _ in study.left_out} == {"", "01-first_pruning_strategies-x"}


def test_a_narrowed_sweep_is_complete_when_its_points_are(tmp_path, undrawn, monkeypatch):
    """PROBLEM=toy SEEDS=3: sweep.py's record says what was asked, and a problem that the file does not list is no stranger."""
    monkeypatch.chdir(tmp_path)
    planted.plant(tmp_path / "runs", "01", lambda f: -0.3 * (f["strategy"] == "plummet"), noise=0.002,
                  keep=lambda f: f["problem"] == "beams2d", sweep="01_pruning_strategies-abc")  # fmt: skip
    for path in (tmp_path / "runs").rglob("config.json"):
        path.write_text(path.read_text().replace("beams2d", "toy"))
    spec, _ = studies.header(next(studies.SWEEPS.glob("01_*.yaml")))
    text, verdict, _, _ = build("01", tmp_path / "runs", tmp_path / "report")
    assert verdict == "supported" and "Preliminary, 12 of 36 points" in text
    spec["parameters"]["problem"] = {"value": "toy"}
    (tmp_path / ".sweeps/01_pruning_strategies-abc").mkdir(parents=True)
    (tmp_path / ".sweeps/01_pruning_strategies-abc/sweep.json").write_text(json.dumps({"config": spec}))
    text, verdict, _, study = build("01", tmp_path / "runs", tmp_path / "report")
    assert verdict == "supported" and "Preliminary" not in text and study.points == 12 and study.problems == ["toy"]


def test_a_missing_strategy_leaves_01_undecided(tmp_path, undrawn):
    planted.plant(
        tmp_path / "runs", "01", lambda f: -0.3 * (f["strategy"] == "plummet"), keep=lambda f: f["strategy"] in ("plummet", "pca_cdf")
    )
    text, verdict, _, _ = build("01", tmp_path / "runs", tmp_path / "report")
    assert verdict == "undecided" and "against lognorm: not computable from 0 pairs" in text


def test_wandb_runs(tmp_path):
    """A fake of the public API, as wandb 0.31 shows runs: the real one needs an account, which is not tested."""
    planted.plant(tmp_path / "runs", "01", lambda f: -0.15 * (f["strategy"] == "plummet"), noise=0.01)

    def fake(run, state="finished"):
        history = [dict(zip(run.metrics, map(float, row), strict=True)) for row in zip(*run.metrics.values(), strict=True)]
        return SimpleNamespace(
            id=run.id,
            path=["me", "p", run.id],
            state=state,
            created_at=run.started,
            config={**run.flags, "_data": run.data},
            summary={**run.summary, "_step": 3},
            scan_history=lambda: iter([{"spectrum": {}}, *history]),
        )

    local = collect.local_runs(tmp_path / "runs")
    local[0].summary = {}
    found = [fake(local[0], "crashed"), *map(fake, local[1:])]
    runs = collect.wandb_runs("me/p/s", SimpleNamespace(sweep=lambda path: SimpleNamespace(runs=found)))
    study = studies.study("01", runs)
    assert len(study.done) == 35 and study.done[0].data == local[1].data and study.done[0].metrics.keys() == local[1].metrics.keys()
    assert [run.status for run in study.runs if run.id == local[0].id] == ["broken"]
    with pytest.raises(collect.InputError, match="entity/project/sweep id"):
        collect.wandb_runs("only-an-id")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--sweep", "07"], "--sweep 07: no such sweep; allowed: 01, 01b, 02, 03, 04, 05, 06"),
        (["--sweep", "01", "--runs", "no-such-folder"], "--runs no-such-folder: no such folder"),
        (["--sweep", "01", "--wandb", "x"], "--wandb x: allowed: entity/project/sweep id"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    assert report.main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_headers_of_all_sweeps_are_read():
    for path in studies.SWEEPS.glob("*.yaml"):
        study = studies.study(path.name.split("_")[0], [])
        assert study.question.endswith("?") and len(study.hypothesis) > 20 and "upported if" in study.rule, path
        assert study.alpha == ALPHA, path
