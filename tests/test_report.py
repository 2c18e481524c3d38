"""Pages from synthetic studies with planted effects: the right verdict, nothing lost, nothing fatal, nothing run."""

import csv
import fcntl
import html
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import planted
import pytest

import report
import sweep
import train


def beams(flags):
    return flags["problem"] == "beams2d"


@pytest.fixture(autouse=True)
def undrawn(tmp_path, monkeypatch):
    """An empty folder; what takes the time is left out: drawing. Figures are still made, with their captions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report.Page, "_figure", lambda self, name, figure: name)


def build(name, runs="runs"):
    """(text of the page, its verdict, a function that reads its tables, the study)."""
    found = report.local_runs(runs) if isinstance(runs, str) else runs
    path, found = report.build(name, found, "report", str(runs))
    text = html.unescape(path.read_text())

    def table(which):
        with open(path.parent / "tables" / f"{which}.csv", newline="") as file:
            return list(csv.DictReader(file))

    return text, re.search(r'class="verdict (\w+)"', text)[1], table, found


def change(path, **parts):
    """Change parts of a run's config.json or summary.json: flags=dict(...) is merged."""
    found = json.loads(path.read_text())
    merged = {key: found[key] | value if isinstance(value, dict) else value for key, value in parts.items()}
    path.write_text(json.dumps(found | merged))


def rows_of(folders, number, edition="first", status="finished"):
    """Rows of results/<number>-<edition>.csv, written by the agents' own function, with every flag of train.py."""
    config = dict(method="bayes", run_cap=33, metric=dict(name="val_rec_pruned")) if number == "03" else {}
    made = dict(results=f"results/{number}-{edition}.csv", id=f"{number}-{edition}_x-abc123", config=config)
    for folder in folders:
        flags = json.loads((folder / "config.json").read_text())["flags"]
        given = [f"--{k}={v}" for k, v in flags.items() if v is not None and k != "arm"]
        change(folder / "config.json", flags=vars(train.parse(given)))
        sweep.record_result(made, folder, status if (folder / "summary.json").exists() else "stopped early")
    return made["results"]


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("best, word", [("plummet", "supported"), ("lognorm", "refuted"), (None, "undecided")])
def test_01_planted(tmp_path, best, word):
    effect = lambda f: -0.15 * (f["strategy"] == best)  # noqa: E731
    planted.plant(tmp_path / "runs", "01", effect, noise=0.01, dims=lambda f: 30 + 10 * f["seed"])
    text, verdict, table, found = build("01")
    assert verdict == word and "36 of 36 points finished" in text and len(found.frame) == 36
    advice = f"use {best}" if best else "keep the default, plummet"  # the first line, for a human
    assert f": {advice}.</strong>" in text and len(table("summary")) == 12 and "front-beams2d" in text
    assert [row["problem"] for row in table("winners")] == sorted(planted.BASE)[:3]  # never pooled
    if best:
        assert {(row["lowest val_rec"], row["fewest dims within 5 %"]) for row in table("winners")} == {(best, best)}


def test_01_winners_by_the_rule_and_a_missing_arm(tmp_path):
    cost, dims = {"plummet": 0, "pca_cdf": 0.03, "lognorm": 0.08}, {"plummet": 60, "pca_cdf": 40, "lognorm": 20}
    how = dict(noise=0.001, dims=lambda f: dims[f["strategy"]], keep=lambda f: f["strategy"] in cost)
    planted.plant(tmp_path / "runs", "01", lambda f: cost[f["strategy"]], **how)
    _, verdict, table, _ = build("01")
    won = {(row["lowest val_rec"], row["fewest dims within 5 %"], row["its dims"]) for row in table("winners")}
    assert won == {("plummet", "pca_cdf", "40.0")} and verdict == "undecided"
    tests = {row["against"]: (row["pairs"], row["verdict"]) for row in table("verdict")}
    assert tests == {"pca_cdf": ("9", "lower"), "lognorm": ("9", "lower"), "probabilistic": ("0", "undecided")}


def test_01b_levels(tmp_path):
    def effect(f):  # every step towards the aggressive end costs; but for pca_cdf, which prunes more at a smaller one
        level = float(f.get(report.LEVEL.get(f["strategy"]), 0))
        return -0.2 * math.log(1 - level) if f["strategy"] == "pca_cdf" else level

    planted.plant(tmp_path / "runs", "01b", effect, noise=0.002, dims=lambda f: 250 if f["strategy"] == "none" else 45)
    text, verdict, table, _ = build("01b")
    best = {row["strategy"]: row["best level"] for row in table("best") if row["problem"] == "beams2d"}
    assert best["plummet"] == "plummet 0.01" and best["probabilistic"] == "probabilistic 0.1"
    assert best["pca_cdf"] == "pca_cdf 0.95" and verdict == "refuted"
    assert "the best level of pca_cdf is the most aggressive tried, pca_cdf 0.95" in text
    assert {row["verdict"] for row in table("none-val_rec")} >= {"higher"}


def test_01b_counts_01_beside_its_points_and_compares_on_common_seeds(tmp_path):
    """Seeds 2 and 3, the easier ones, must not make 01's level the best."""
    mine = planted.plant(tmp_path / "b", "01b", noise=0, keep=lambda f: f["seed"] == 1)
    dims = lambda f: 40 if f["seed"] == 1 else 20  # noqa: E731
    rows_of(planted.plant(tmp_path / "a", "01", lambda f: 0.01 if f["seed"] == 1 else -0.5, noise=0, dims=dims), "01")
    late = planted.plant(tmp_path / "c", "01b", lambda f: -0.5, noise=0, keep=lambda f: f["seed"] == 2 and beams(f))
    for folders in (mine, late[:2]):  # then seed 2 has begun: two finished runs
        text, _, table, found = build("01b", rows_of(folders, "01b"))
        assert [float(row["worst level costs"]) for row in table("best")] == pytest.approx([np.expm1(0.01)] * 12)
        of_01 = {"plummet 0.05", "pca_cdf 0.999", "lognorm 0.2", "probabilistic 0.25"}
        assert not of_01 & {row["best level"] for row in table("best")}
        assert {float(row["dims"]) for row in table("best")} == {40}
        if folders is mine:
            assert "39 of 39 points finished, 36 runs of 01 beside them" in text and len(found.frame) == 75
    seeds = {"0.01": 1, "0.02": 2, "0.1": 3}  # another seed for each level: nothing to compare
    keep = lambda f: beams(f) and f["strategy"] == "plummet" and seeds[f["plummet_threshold"]] == f["seed"]  # noqa: E731
    planted.plant(tmp_path / "d", "01b", keep=keep)
    assert build("01b", "d")[2]("best") == []


def test_02_says_the_same_from_folders_and_rows(tmp_path):
    spike = lambda f: 1.5 if f["safeguards"] == "none" else 1.0  # noqa: E731
    dims = lambda f: 30 + f["seed"] + (12 + f["seed"] % 2) * (f["safeguards"] != "none")  # noqa: E731
    effect = lambda f: -0.1 * (f["safeguards"] == "moderate")  # noqa: E731
    folders = planted.plant(tmp_path / "runs", "02", effect, seed=3, keep=beams, dims=dims, spike=spike)
    names = [f"none-{m}" for m in report.TESTED]
    text, verdict, table, _ = build("02")
    from_folders = {name: table(name) for name in names}
    assert verdict == "supported" and "On beams2d only: " in text and ": use moderate." in text
    # planted: epoch 12 against the best until then
    rise = 1.5 * (1 + 3 * np.exp(-12 / 5)) / (1 + 3 * np.exp(-11 / 5)) - 1
    assert float(from_folders["none-rise"][0]["difference"]) == pytest.approx(-rise)
    assert {row["verdict"] for row in from_folders["none-active_dims"]} == {"higher"}
    text, verdict, table, found = build("02", rows_of(folders, "02"))
    assert verdict == "supported" and {name: table(name) for name in names} == from_folders
    assert not re.search(r"\bnan\b", text.split("</style>")[1])
    assert "differ from the sweep's file in: problem, " in text
    assert {*found.frame["sum_k_consecutive"]} == {20} and {*found.frame["sum_cap"]} == {10}


@pytest.mark.parametrize("strong, word", [("w_v", "supported"), ("lr", "refuted")])
def test_03_planted(tmp_path, strong, word):
    folders = planted.plant_search(tmp_path / "runs", strong=strong)
    text, verdict, table, _ = build("03")
    assert verdict == word and "81 of 99 points finished" in text
    assert "Incomplete" not in text  # 81 completed and 18 stopped by hyperband are the whole search
    rows = [row for row in table("importance") if row["problem"] == "beams2d"]
    first = max(rows, key=lambda row: float(row["PED-ANOVA"]))
    assert first["parameter"] == strong and first["completed runs"] == "27"
    assert {row["stopped"] for row in table("runs")} == {"6"}
    if strong == "w_v":  # rows say what folders do
        text, verdict, table, found = build("03", rows_of([f for f in folders if "beams" in f.name], "03"))
        assert verdict == "supported" and "On beams2d only:" in text and table("importance") == rows
        stopped = found.table[found.table["status"] == "stopped"]
        assert {*stopped["cause"]} == {"stopped early after epoch 14"}


def test_03_noise_is_undecided(tmp_path):
    planted.plant_search(tmp_path / "runs", scale=0, seed=5)
    assert build("03")[1] == "undecided"


def valley(shift):
    """log val_rec with its valley along w_v = shift-th power of pruning_epoch: an interaction if shift is not 0."""

    def effect(f):
        e = math.log(f["pruning_epoch"] / {"beams2d": 9, "heatconduction2d": 15, "photonics2d": 6}[f["problem"]])
        return 0.1 * (math.log(f["w_v"] / 0.01) - shift * e) ** 2 + 0.2 * e * e

    return effect


@pytest.mark.parametrize("shift, word", [(0.8, "supported"), (0, "undecided")])
def test_04_planted_interaction(tmp_path, shift, word):
    planted.plant(tmp_path / "runs", "04", valley(shift), noise=0.05, keep=lambda f: f["seed"] < 4)
    _, verdict, table, _ = build("04")
    assert verdict == word and len(table("cells")) == 40


def test_05_planted_and_a_narrowed_edition_from_rows(tmp_path):
    effect = lambda f: valley(0)(f) + math.log(0.8) * (f["safeguards"] == "conservative")  # noqa: E731
    planted.plant(tmp_path / "runs", "05", effect, keep=lambda f: f["seed"] < 4)
    effect = lambda f: valley(0)(f) + math.log(f["w_v"])  # noqa: E731
    other = planted.plant(tmp_path / "runs" / "other", "06", effect, keep=lambda f: f["seed"] == 1)
    text, verdict, table, found = build("05")
    assert verdict == "supported" and "conservative reaches a lower val_rec than moderate" in text
    assert len(found.frame) == 120 and found.left_out.empty  # the runs of 06 say that they are another sweep's
    assert float(table("effects")[1]["change"]) == pytest.approx(-0.2, abs=0.01)
    rows_of(other[-1:], "06", "trial")  # of another edition: not read
    text, _, table, found = build("06", rows_of(other[:-1], "06"))
    assert len(found.frame) == len(other) - 1 and found.points == len(other)
    assert "differ from the sweep's file in: seed, " in text and "the best w_v (0.002) is at the edge of 0.002" in text


# -------------------------------------------------------------------------------------- broken, missing, doubled, alien


def test_broken_runs_are_listed_and_not_fatal(tmp_path):
    folders = planted.plant(tmp_path / "runs", "01", keep=beams)
    (folders[1] / "config.json").write_text('{"flags": {"problem": "bea')
    (folders[2] / "summary.json").write_text("[]")
    (folders[3] / "summary.json").unlink()
    with open(folders[3] / "metrics.csv", "a") as file:
        file.write("40,0.01,0.0")  # a line in the middle of being written
    change(folders[4] / "summary.json", status="diverged", cause="<script>alert(1)</script>")
    change(folders[5] / "summary.json", val_rec="nan", seconds=math.inf)
    (folders[6] / "metrics.csv").write_bytes(b"\xff\x00epoch,val_rec\n\xfe")
    (folders[7] / "config.json").write_text("[1, 2]")
    text, verdict, table, found = build("01")
    assert verdict == "undecided" and len(found.frame) == 5 and "Preliminary, 5 of 36 points" in text
    listed = {row["id"]: row for row in table("not-used")}
    assert len(listed) == 7 and listed[folders[1].name]["why"].startswith("no config.json")
    assert listed[folders[3].name]["why"] == "40 of 40 epochs" and "no CSV in UTF-8" in listed[folders[6].name]["why"]
    assert listed[folders[3].name]["status"] == "stopped" and listed[folders[4].name]["status"] == "diverged"
    assert "Some runs diverged or broke" in text
    assert "<script>alert" not in (tmp_path / "report/01/index.html").read_text()
    with open(folders[3] / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert report.read_run(folders[3])["status"] == "running"


DAMAGE = [dict(seed="x"), dict(strategy=None), dict(problem=["beams2d"]), dict(w_v={}), dict(pruning_epoch=[1]),
          dict(w_v="inf"), dict(latent_dim="wide"), dict(n_epochs="many")]  # fmt: skip


def test_damaged_flags_and_rows_are_listed(tmp_path):
    folders = planted.plant(tmp_path / "runs", "04", keep=lambda f: f["seed"] == 1)
    path = tmp_path / rows_of(folders[8:], "04")
    for folder, damage in zip(folders, DAMAGE, strict=False):
        change(folder / "config.json", flags=damage)
    text, verdict, _, found = build("04")
    assert verdict == "undecided" and "seed must be a number" in text
    assert list(found.broken["id"]) == [folders[0].name]
    assert {"unknown strategy None", "unknown problem ['beams2d']"} <= {*found.left_out["why"]}
    path.write_text(path.read_text().replace(",finished,", ",failed,", 1))
    text, _, _, found = build("04", str(path))
    assert "its status is 'failed'" in text and len(found.broken) == 1


def test_names_from_outside_neither_end_the_page_nor_run(tmp_path):
    folders = planted.plant(tmp_path / "runs", "01", keep=lambda f: f["seed"] == 1)
    names = ["a/b", "n" * 300, r"a\1b\g<9>", 'x"><img src=x onerror=alert(1)>', "../../up", "$\\frac$"]
    for folder, name in zip(folders, names, strict=False):
        change(folder / "config.json", flags=dict(problem=name), id="=cmd()")
    change(folders[7] / "config.json", flags=dict(safeguards="<b>"), git="<b>", machine=dict(cpu="<i>"))
    text, _, table, found = build("01")
    assert len(found.frame) == 5 and {f"unknown problem {name[:60]}" for name in names} <= {*found.left_out["why"]}
    assert "7 left out (1: unknown problem a/b, " in text and len(table("not-used")) == 7
    raw = (tmp_path / "report/01/index.html").read_text()
    assert "<img src" not in raw and "<b>" not in raw and "<i>" not in raw
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]


@pytest.mark.parametrize("name", report.SWEEPS)
def test_a_sweep_that_has_just_begun(tmp_path, name):
    (tmp_path / "runs").mkdir()
    text, verdict, _, study = build(name)
    assert verdict == "undecided" and "No finished run of this sweep yet" in text
    assert study.question.endswith("?") and len(study.hypothesis) > 20 and "upported if" in study.rule
    assert f"{100 * report.ALPHA:g} %" in study.rule
    if name == "03":
        planted.plant_search(tmp_path / "runs", runs=1, problems=["beams2d"])
    else:
        planted.write_run(tmp_path / "runs" / "a", next(planted.points(name)), 0.01, sweep=f"{name}_x-y")
    _, verdict, _, found = build(name)
    assert verdict == "undecided" and len(found.frame) == 1


def test_doubles_other_settings_and_strangers_are_left_out(tmp_path, monkeypatch):
    def lognorm(seed):
        return lambda f: beams(f) and f["strategy"] == "lognorm" and f["seed"] == seed

    runs = tmp_path / "runs"
    planted.plant(runs / "a", "01", keep=beams)
    planted.plant(runs / "b", "01", keep=lambda f: beams(f) and f["strategy"] == "plummet")
    planted.plant(runs / "c", "01", keep=lognorm(1), epochs=50)
    planted.plant(runs / "d", "01", keep=lognorm(2), sha256="other")
    planted.plant(runs / "e", "01", keep=lognorm(3), sweep=None)  # a user's
    found = build("01")[3]
    assert len(found.frame) == 12 and sorted(found.left_out["why"]) == [
        *["another run of the same point is used"] * 3,
        *("made for no sweep", "other designs than most runs", "other n_epochs than 40"),
    ]
    made = report.local_runs("runs")
    made[0]["owner"], made[1]["owner"] = "02", "01b"  # made for other sweeps: not even considered
    assert {*report.Study("01", made).left_out["owner"]} == {"", "01"}
    # A flag that came later: old rows lack it, and mean its old value
    monkeypatch.setattr(report, "LEGACY", dict(rotate_every=0))
    for folder in planted.plant(tmp_path / "new", "01", keep=beams):
        change(folder / "config.json", flags=dict(rotate_every=5))
    old = build("01", report.local_runs("runs/a") + report.local_runs("new"))[3]
    assert len(old.frame) == 12 and {*old.left_out["why"]} == {"other rotate_every than 0"}


def test_a_narrowed_sweep_is_complete_when_its_points_are(tmp_path):
    """PROBLEM=toy: sweep.py's record says what was asked; sweeps made one a problem are read as one."""
    spec = report.header("01")[1]
    for problem in ("toy", "photonics2d"):
        made = f"01-x_pruning_strategies-{problem}"
        keep = lambda f, p=problem: f["problem"] == ("beams2d" if p == "toy" else p)  # noqa: E731
        effect = lambda f: -0.3 * (f["strategy"] == "plummet")  # noqa: E731
        for folder in planted.plant(tmp_path / "runs" / problem, "01", effect, noise=0.002, keep=keep, sweep=made):
            change(folder / "config.json", flags=dict(problem=problem))
        (tmp_path / ".sweeps" / made).mkdir(parents=True)
        parameters = spec["parameters"] | dict(problem={"value": problem}, n_epochs={"value": planted.EPOCHS})
        config = dict(config=spec | dict(name=made, parameters=parameters))
        (tmp_path / ".sweeps" / made / "sweep.json").write_text(json.dumps(config))
    text, verdict, _, found = build("01")
    assert verdict == "supported" and "Preliminary" not in text and found.problems == ["photonics2d", "toy"]
    assert found.points == 24
    (tmp_path / "runs/toy/r0000/summary.json").unlink()
    assert "Preliminary, 23 of 24 points" in build("01")[0]


def test_without_a_sweep_one_page_leads_to_all_and_wandb_says_the_same(tmp_path):
    planted.plant(tmp_path / "runs", "01", lambda f: -0.15 * (f["strategy"] == "plummet"), noise=0.01)
    assert report.main([]) == 0
    text = html.unescape((tmp_path / "report/index.html").read_text())
    links = re.findall(r'<a href="([^"]+)">', text)
    assert links == [f"{name}/index.html" for name in report.SWEEPS] and len(links) == 7
    assert all((tmp_path / "report" / link).exists() for link in links)
    assert ": use plummet.</strong>" in text and text.count("No finished run of this sweep") == 5  # 01b reads 01
    # A fake of the public API, as wandb 0.31 shows runs; tests/test_sweep_wandb.py asks the real client
    local = report.local_runs("runs")

    def fake(run, state="finished"):
        with open(f"{run['where']}/metrics.csv", newline="") as file:
            history = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        config = report.read_json(f"{run['where']}/config.json")
        summary = {k: run[k] for k in ("status", "val_rec", "epoch") if state == "finished"}
        told = dict(
            config={**config["flags"], "_data": config["data"]}, summary=summary, created_at="2026", state=state
        )
        return SimpleNamespace(
            id=run["id"], path=["me", "p", run["id"]], scan_history=lambda: [{"x": {}}, *history], **told
        )

    runs = [fake(local[0], "crashed"), *map(fake, local[1:])]
    found = SimpleNamespace(runs=runs, config=dict(name="01_pruning_strategies"))
    study = report.Study("01", report.wandb_runs("me/p/s", SimpleNamespace(sweep=lambda path: found)))
    assert list(study.frame["id"]) == [run["id"] for run in local[1:]]
    for key in ("data_sha256", "lowest", "val_rec", "rise"):
        assert study.frame[key].iloc[0] == pytest.approx(local[1][key])
    assert list(study.broken["id"]) == [local[0]["id"]]


@pytest.mark.parametrize("argv, said", [
    (["--sweep", "07"], "--sweep: invalid choice: '07'"),
    (["--sweep", "01", "--runs", "no-such-folder"], "--runs no-such-folder: no such folder"),
    (["--sweep", "01", "--wandb", "x"], "--wandb x: allowed: entity/project/sweep id"),
])  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, argv, said):
    try:
        code = report.main(argv)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ the page itself


def test_a_page_drawn_in_full_is_self_contained_and_described(tmp_path, monkeypatch):
    monkeypatch.undo()  # draws
    folders = planted.plant(tmp_path / "runs", "01", keep=beams, dims=lambda f: 40 + f["seed"])
    (folders[-1] / "config.json").write_text("{")
    page = report.build("01", report.local_runs(tmp_path / "runs"), tmp_path / "report", "runs")[0]
    text = page.read_text()
    links = re.findall(r'\b(?:src|href|action)\s*=\s*"?([^">\s]+)', text)
    assert links and all(link.startswith(("#", "data:")) for link in links) and "default-src 'none'" in text
    assert "@import" not in text and "url(http" not in text and "<script" not in text
    drawings = re.findall(r'<img alt="[^"]{20,}" src="data:image/png[^"]+">', text)
    assert len(drawings) == text.count("<figure>") == text.count("<figcaption>") == 1
    assert [path.name for path in (page.parent / "figures").iterdir()] == ["front-beams2d.png"]
    assert (page.parent / "tables" / "winners.md").read_text().count("| beams2d |") == 1
