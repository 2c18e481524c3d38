"""Pages from synthetic sweeps with planted effects: the right verdict, nothing lost, nothing fatal, nothing run."""

import fcntl
import html
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import planted
import pytest
from planted import runs_of, write_rows, write_runs

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
    """(text of the page, its verdict, a function that reads its tables, the SweepRuns). runs: rows, CSV or folder."""
    runs = report.local_runs(write_rows(runs, name) if isinstance(runs, list) else runs)
    path, found = report.build(name, runs, "report", "here")
    text = html.unescape(path.read_text())

    def table(which):
        return report.read_csv(path.parent / "tables" / f"{which}.csv").to_dict("records")

    return text, re.search(r'class="verdict (\w+)"', text)[1], table, found


def change(path, **parts):
    """Change parts of a run's config.json or summary.json: flags=dict(...) is merged."""
    found = json.loads(path.read_text())
    merged = {key: found[key] | value if isinstance(value, dict) else value for key, value in parts.items()}
    path.write_text(json.dumps(found | merged))


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("best, word", [("plummet", "supported"), ("lognorm", "refuted"), (None, "undecided")])
def test_01_planted(best, word):
    effect = lambda f: -0.15 * (f["strategy"] == best)  # noqa: E731
    text, verdict, table, _ = build("01", runs_of("01", effect, noise=0.01, dims=lambda f: 30 + 10 * f["seed"]))
    assert verdict == word and "36 of 36 points finished" in text and "front-beams2d" in text
    advice = f"use {best}" if best else "keep the default, plummet"  # the first line, for a human
    assert f": {advice}.</strong>" in text and len(table("summary")) == 12
    assert [row["problem"] for row in table("winners")] == sorted(planted.BASE)  # never pooled
    if best:
        assert {(row["lowest val_rec"], row["fewest dims within 5 %"]) for row in table("winners")} == {(best, best)}


def test_01_winners_by_the_rule_and_a_missing_arm():
    cost, dims = {"plummet": 0, "pca_cdf": 0.03, "lognorm": 0.08}, {"plummet": 60, "pca_cdf": 40, "lognorm": 20}
    how = dict(noise=0.001, dims=lambda f: dims[f["strategy"]], keep=lambda f: f["strategy"] in cost)
    _, verdict, table, _ = build("01", runs_of("01", lambda f: cost[f["strategy"]], **how))
    won = {(row["lowest val_rec"], row["fewest dims within 5 %"], row["its dims"]) for row in table("winners")}
    assert won == {("plummet", "pca_cdf", "40.0")} and verdict == "undecided"
    tests = {row["against"]: (row["pairs"], row["verdict"]) for row in table("verdict")}
    assert tests == {"pca_cdf": ("9", "lower"), "lognorm": ("9", "lower"), "probabilistic": ("0", "undecided")}


def test_01b_levels():
    def effect(f):  # every step towards the aggressive end costs; but for pca_cdf, which prunes more at a smaller one
        level = float(f.get(report.LEVEL.get(f["strategy"]), 0))
        return -0.2 * math.log(1 - level) if f["strategy"] == "pca_cdf" else level

    text, verdict, table, _ = build("01b", runs_of("01b", effect, noise=0.002))
    best = {row["strategy"]: row["best level"] for row in table("best") if row["problem"] == "beams2d"}
    assert best["plummet"] == "plummet 0.01" and best["probabilistic"] == "probabilistic 0.1"
    assert best["pca_cdf"] == "pca_cdf 0.95" and verdict == "refuted"
    assert {row["arm"] for row in table("summary")} >= {"trimmed", "none"}
    assert "the best level of pca_cdf is the most aggressive tried, pca_cdf 0.95" in text
    every = lambda f: effect(f) * (-1) ** (f["strategy"] == "pca_cdf")  # noqa: E731
    assert build("01b", runs_of("01b", every, noise=0.002))[1] == "supported"


def test_01b_counts_01_beside_its_points_and_compares_on_common_seeds():
    """Seeds 2 and 3, the easier ones, must not make 01's level the best."""
    mine = runs_of("01b", noise=0, keep=lambda f: f["seed"] == 1, sweep="01b-x_y")
    late = runs_of("01b", lambda f: -0.5, noise=0, keep=lambda f: f["seed"] == 2 and beams(f), sweep="01b-x_y")
    dims = lambda f: 40 if f["seed"] == 1 else 20  # noqa: E731
    write_rows(runs_of("01", lambda f: 0.01 if f["seed"] == 1 else -0.5, noise=0, dims=dims), "01")
    for rows in (mine, mine + late[:2]):  # then seed 2 has begun: two finished runs
        text, _, table, found = build("01b", rows)
        assert [float(row["worst level costs"]) for row in table("best")] == pytest.approx([np.expm1(0.01)] * 12)
        of_01 = {"plummet 0.05", "pca_cdf 0.999", "lognorm 0.2", "probabilistic 0.25"}
        assert not of_01 & {row["best level"] for row in table("best")}
        assert {float(row["dims"]) for row in table("best")} == {40} and len(found.frame) == 36 + len(rows)
        assert len(rows) > 42 or "42 of 42 points finished, 36 runs of 01 beside them" in text
    Path("results/01.csv").unlink()
    seeds = {"0.01": 1, "0.02": 2, "0.1": 3}  # another seed for each level: nothing to compare
    mine = [row for row in runs_of("01b", keep=beams) if seeds.get(row.get("plummet_threshold")) == row["seed"]]
    assert build("01b", [row for row in mine if row["strategy"] == "plummet"])[2]("best") == []


def test_02_says_the_same_from_folders_and_rows():
    dims = lambda f: 30 + f["seed"] + (12 + f["seed"] % 2) * (f["safeguards"] != "none")  # noqa: E731
    effect = lambda f: -0.1 * (f["safeguards"] == "moderate")  # noqa: E731
    rows = runs_of("02", effect, noise=0.005, keep=beams, dims=dims)
    folders = write_runs(rows, spike=lambda f: 1.5 if f["safeguards"] == "none" else 1.0)
    names = [f"none-{m}" for m in report.TESTED]
    text, verdict, table, _ = build("02")
    from_folders = {name: table(name) for name in names}
    assert verdict == "supported" and "On beams2d only: " in text and ": use moderate." in text
    # planted: epoch 12 against the best until then
    rise = 1.5 * (1 + 3 * np.exp(-12 / 5)) / (1 + 3 * np.exp(-11 / 5)) - 1
    assert float(from_folders["none-rise"][0]["difference"]) == pytest.approx(-rise)
    assert {row["verdict"] for row in from_folders["none-active_dims"]} == {"higher"}
    for folder in folders:  # as the agents' own function writes rows, with every flag of train.py
        flags = report.read_json(folder / "config.json")["flags"]
        given = [f"--{k}={v}" for k, v in flags.items() if v is not None and k != "arm"]
        change(folder / "config.json", flags=vars(train.parse(given)))
        sweep.add_row(dict(results="results/02-first.csv", id="02-first_x-abc123"), folder, "finished")
    text, verdict, table, found = build("02", "results/02-first.csv")
    assert verdict == "supported" and {name: table(name) for name in names} == from_folders
    assert not re.search(r"\bnan\b", text.split("</style>")[1])
    assert "differ from the sweep's file in: problem" in text
    assert {*found.frame["sum_k_consecutive"]} == {20} and {*found.frame["sum_max_prune_per_epoch"]} == {10}


@pytest.mark.parametrize("how, word", [({}, "supported"), (dict(strong="lr"), "refuted"), (dict(scale=0), "undecided")])
def test_03_planted(how, word):
    text, verdict, table, found = build("03", planted.search(**how))
    assert verdict == word and "81 of 99 points finished" in text
    assert "Preliminary" not in text  # 81 completed and 18 stopped by hyperband are the whole search
    rows = [row for row in table("importance") if row["problem"] == "beams2d"]
    if word != "undecided":
        first = max(rows, key=lambda row: float(row["PED-ANOVA"]))
        assert first["parameter"] == how.get("strong", "w_v") and first["completed runs"] == "27"
    assert {row["stopped"] for row in table("runs")} == {"6"}
    assert {*found.table["cause"][found.table["status"] == "stopped"]} == {"stopped early after epoch 14"}


def valley(shift):
    """log val_rec with its valley along w_v = shift-th power of pruning_epoch: an interaction if shift is not 0."""

    def effect(f):
        e = math.log(f["pruning_epoch"] / {"beams2d": 6, "heatconduction2d": 6, "photonics2d": 14}[f["problem"]])
        return 0.1 * (math.log(f["w_v"] / 1e-5) - shift * e) ** 2 + 0.2 * e * e

    return effect


@pytest.mark.parametrize("shift, word", [(0.8, "supported"), (0, "undecided")])
def test_04_planted_interaction(shift, word):
    rows = runs_of("04", valley(shift), noise=0.05, keep=lambda f: f["seed"] < 4)
    _, verdict, table, _ = build("04", rows)
    assert verdict == word and len(table("cells")) == 40


def test_05_planted_and_a_narrowed_edition_of_06():
    effect = lambda f: valley(0)(f) + math.log(0.8) * (f["safeguards"] == "conservative")  # noqa: E731
    rows = runs_of("05", effect, keep=lambda f: f["seed"] < 4)
    effect = lambda f: valley(0)(f) + math.log(f["w_v"])  # noqa: E731
    other = runs_of("06", effect, keep=lambda f: f["seed"] == 1, sweep="06-x_y")
    text, verdict, table, found = build("05", rows + other)
    assert verdict == "supported" and "conservative reaches a lower val_rec than moderate" in text
    assert len(found.frame) == 120 and found.left_out.empty  # the runs of 06 say that they are another sweep's
    assert float(table("effects")[1]["change"]) == pytest.approx(-0.2, abs=0.01)
    Path("results/05.csv").rename("results/05-trial.csv")  # of another edition: not read
    text, _, table, found = build("06", other[:-1])
    assert len(found.frame) == len(other) - 1 and found.points == len(other)
    assert "differ from the sweep's file in: seed, " in text and "the best w_v (2e−6) is at the edge of 2e−6" in text


# -------------------------------------------------------------------------------------- broken, missing, doubled, alien


def test_broken_runs_are_listed_and_not_fatal():
    folders = write_runs(runs_of("01", keep=beams))
    (folders[1] / "config.json").write_text('{"flags": {"problem": "bea')
    (folders[2] / "summary.json").write_text("[]")
    (folders[3] / "summary.json").unlink()
    with open(folders[3] / "metrics.csv", "a") as file:
        file.write("40,0.01,0.0")  # a line in the middle of being written
    change(folders[4] / "summary.json", status="diverged", cause="<script>alert(1)</script>")
    change(folders[5] / "summary.json", val_rec="nan", seconds=math.inf)
    (folders[6] / "metrics.csv").write_bytes(b"\xff\x00epoch,val_rec\n\xfe")
    (folders[7] / "config.json").write_text("[1, 2]")
    (folders[8] / "summary.json").unlink()  # stopped before its first epoch
    (folders[8] / "metrics.csv").write_text((folders[8] / "metrics.csv").read_text().splitlines()[0] + "\n")
    text, verdict, table, found = build("01")
    assert verdict == "undecided" and len(found.frame) == 4 and "Preliminary, 4 of 36 points" in text
    listed = {row["id"]: row for row in table("not-used")}
    assert len(listed) == 8 and listed[folders[1].name]["why"].startswith("cannot be read: ")
    assert listed[folders[8].name]["why"] == "0 of 40 epochs"
    assert listed[folders[3].name]["why"] == "40 of 40 epochs" and "no CSV in UTF-8" in listed[folders[6].name]["why"]
    assert listed[folders[3].name]["status"] == "stopped" and listed[folders[4].name]["status"] == "diverged"
    assert "Some runs diverged or broke" in text and "<script>alert" not in Path("report/01/index.html").read_text()
    with open(folders[3] / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert report.read_run(folders[3])["status"] == "running"


DAMAGE = [dict(seed="x"), dict(strategy=None), dict(problem=["beams2d"]), dict(w_v={}), dict(pruning_epoch=[1]),
          dict(w_v="inf"), dict(latent_dim="wide"), dict(n_epochs="many")]  # fmt: skip
NAMES = ["a/b", "n" * 300, r"a\1b\g<9>", 'x"><img src=x onerror=alert(1)>', "../../up", "$\\frac$"]


def test_damaged_flags_and_names_from_outside_neither_end_the_page_nor_run():
    folders = write_runs(runs_of("04", keep=lambda f: f["seed"] == 1))
    for folder, damage in zip(folders, [*DAMAGE, *(dict(problem=name) for name in NAMES)], strict=False):
        change(folder / "config.json", flags=damage, git="<b>", machine=dict(cpu="<i>"))
    change(folders[20] / "summary.json", status="failed")
    text, verdict, _, found = build("04")
    assert verdict == "undecided" and "seed must be a number" in text and "its status is 'failed'" in text
    assert list(found.broken["id"]) == [folders[0].name, folders[20].name]
    reasons = {f"unknown problem {name[:60]}" for name in NAMES}
    assert reasons | {"unknown strategy None", "unknown problem ['beams2d']"} <= {*found.left_out["why"]}
    raw = Path("report/04/index.html").read_text()
    assert "<img src=x" not in raw and "<b>" not in raw and "<i>" not in raw
    assert sorted(path.name for path in Path(".").iterdir()) == ["report", "runs"]


@pytest.mark.parametrize("name", report.SWEEPS)
def test_a_sweep_that_has_just_begun(name):
    Path("runs").mkdir()
    text, verdict, _, found = build(name)
    assert verdict == "undecided" and "No finished run of this sweep yet" in text
    assert found.question.endswith("?") and len(found.hypothesis) > 20 and "upported if" in found.rule
    assert f"{100 * report.ALPHA:g} %" in found.rule
    one = planted.search(runs=1, problems=["beams2d"]) if name == "03" else runs_of(name)[:1]
    _, verdict, _, found = build(name, one)
    assert verdict == "undecided" and len(found.frame) == 1


def test_doubles_other_settings_and_strangers_are_left_out(monkeypatch):
    rows = runs_of("01", keep=beams, recorded="2026-11-24")
    mine = {row["seed"]: row for row in rows if row["strategy"] == "lognorm"}
    again = [row | dict(recorded="2026-11-23") for row in rows if row["strategy"] == "plummet"]
    other = [mine[1] | dict(n_epochs=50), mine[2] | dict(data_sha256="f"), mine[3] | dict(sweep="")]
    found = build("01", rows + again + other)[3]
    assert len(found.frame) == 12 and {*found.frame["recorded"]} == {"2026-11-24"}
    reasons = ["made for no sweep", "other designs than most runs", "other n_epochs than 40"]
    assert sorted(found.left_out["why"]) == ["another run of the same point is used"] * 3 + reasons
    longer = [row | dict(n_epochs=60) for row in runs_of("01", keep=lambda f: f["problem"] == "photonics2d")]
    assert len(build("01", rows + longer)[3].frame) == 24  # what follows the designs differs between problems
    follows = [row | dict(polynomial_schedule_n=row["pruning_epoch"]) for row in runs_of("04")]
    assert build("04", follows)[3].left_out.empty  # and what follows a varied flag differs with it
    found = build("01", rows + [mine[1] | dict(sweep="02_x"), mine[2] | dict(sweep="01b_x")])[3]
    assert len(found.frame) == 12 and found.left_out.empty  # made for other sweeps: not even considered
    # A flag that came later: old rows lack it, and mean its old value
    monkeypatch.setattr(report, "LEGACY", dict(rotate_every=0))
    old = [{key: value for key, value in row.items() if key != "rotate_every"} for row in rows]
    found = build("01", rows + old)[3]
    assert len(found.frame) == 12 and {*found.left_out["why"]} == {"other rotate_every than 5"}


def test_a_narrowed_sweep_is_complete_when_its_points_are():
    """PROBLEM=toy: sweep.json says what was asked; sweeps made one a problem are read as one."""
    spec, rows = report.SweepRuns("01", []).file, []
    for problem in ("toy", "photonics2d"):
        made = f"01-x_pruning_strategies-{problem}"
        effect = lambda f: -0.3 * (f["strategy"] == "plummet")  # noqa: E731
        rows += [row | dict(problem=problem) for row in runs_of("01", effect, noise=0.002, keep=beams, sweep=made)]
        parameters = spec["parameters"] | dict(problem={"value": problem}, n_epochs={"value": planted.EPOCHS})
        parameters |= dict(wandb_project={"value": "mine"})  # what changes no result may differ
        Path(".sweeps", made).mkdir(parents=True)
        config = dict(config=spec | dict(name=made, parameters=parameters))
        Path(".sweeps", made, "sweep.json").write_text(json.dumps(config))
    rows = [row | dict(wandb_project=["mine", "ours"][i % 2]) for i, row in enumerate(rows)]
    text, verdict, _, found = build("01", rows)
    assert verdict == "supported" and "Preliminary" not in text and found.problems == ["photonics2d", "toy"]
    assert found.points == 24 and "Preliminary, 23 of 24 points" in build("01", rows[1:])[0]


def test_a_flag_varied_besides_is_paired_with_itself():
    """SET="lr=0.001,0.002": each arm has two runs a seed."""
    made, lrs = "01-x_pruning_strategies", [0.001, 0.002]
    rows = runs_of("01", keep=beams, sweep=made)
    rows = [row | dict(lr=lr, val_rec=row["val_rec"] * lr) for lr in lrs for row in rows]
    spec = report.SweepRuns("01", []).file
    Path(".sweeps", made).mkdir(parents=True)
    config = dict(config=spec | dict(parameters=spec["parameters"] | dict(lr={"values": lrs})))
    Path(".sweeps", made, "sweep.json").write_text(json.dumps(config))
    _, _, table, found = build("01", rows)
    assert len(found.frame) == 24 and {(row["pairs"], row["seeds"]) for row in table("verdict")} == {("3", "3")}
    rows = planted.search(problems=["beams2d"])
    found = report.SweepRuns("03", [])
    given = {"strategy": {"values": ["plummet", "lognorm"]}, "rotate_every": {"values": [0, 5]}}
    Path(".sweeps", rows[0]["sweep"]).mkdir()
    config = dict(config=found.file | dict(parameters=found.file["parameters"] | given))
    Path(".sweeps", rows[0]["sweep"], "sweep.json").write_text(json.dumps(config))
    some = [dict(strategy=name, rotate_every=every) for name in ("plummet", "lognorm") for every in (0, 5)]
    rows = [row | some[i % 4] for i, row in enumerate(rows)]
    text, verdict, _, _ = build("03", rows)
    assert "Not ranked, as not all their values are positive numbers: rotate_every, strategy." in text
    assert verdict == "supported"


def test_without_a_sweep_one_page_leads_to_all():
    path = write_rows(runs_of("01", lambda f: -0.15 * (f["strategy"] == "plummet"), noise=0.01), "01")
    assert report.main(["--runs", path]) == 0
    folder = Path("report/results-01.csv")
    text = html.unescape((folder / "index.html").read_text())
    links = re.findall(r'<a href="([^"]+)">', text)
    assert links == [f"{name}/index.html" for name in report.SWEEPS] and len(links) == 7
    assert all((folder / link).exists() for link in links)
    assert ": use plummet.</strong>" in text and text.count("No finished run of this sweep") == 5  # 01b reads 01


def test_wandb_runs(monkeypatch):
    """A fake of the public API, as wandb 0.31 shows runs; tests/test_sweep_wandb.py asks the real client."""
    (folder,) = write_runs(runs_of("01", keep=beams)[:1])
    local, config = report.read_run(folder), report.read_json(folder / "config.json")
    rows = report.read_csv(folder / "metrics.csv").to_dict("records")
    history = [{k: float(v) for k, v in row.items() if v} for row in rows]
    told = dict(config=config["flags"] | {"_data": config["data"]}, created_at="2026", path=["me", "p", "r"])
    told |= dict(scan_history=lambda: [{"x": {}}, *history])
    states = {"finished": report.read_json(folder / "summary.json"), "crashed": {}}
    runs = [SimpleNamespace(id=state, state=state, summary=summary, **told) for state, summary in states.items()]
    api = SimpleNamespace(sweep=lambda path: SimpleNamespace(runs=runs, config=dict(name="01_pruning_strategies")))
    monkeypatch.setattr("wandb.Api", lambda: api)
    found = report.SweepRuns("01", report.wandb_runs("me/p/s"))
    assert [*found.frame["id"], *found.broken["id"]] == [*states]
    assert all(found.frame[key].iloc[0] == local[key] for key in ("data_sha256", "lowest", "val_rec", "rise"))


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


def test_a_page_drawn_in_full_is_self_contained_and_described(monkeypatch, tmp_path):
    monkeypatch.undo()  # draws
    monkeypatch.chdir(tmp_path)
    rows = runs_of("01", keep=beams, dims=lambda f: 40 + f["seed"])
    page = report.build("01", [report.Run(row, "here") for row in rows], "report", "here")[0]
    text = page.read_text()
    links = re.findall(r'\b(?:src|href|action)\s*=\s*"?([^">\s]+)', text)
    assert links and all(link.startswith(("#", "data:")) for link in links) and "default-src 'none'" in text
    assert "@import" not in text and "url(http" not in text and "<script" not in text
    drawings = re.findall(r'<img alt="[^"]{20,}" src="data:image/png[^"]+">', text)
    assert len(drawings) == text.count("<figure>") == text.count("<figcaption>") == 1
    assert [path.name for path in (page.parent / "figures").iterdir()] == ["front-beams2d.png"]
    assert (page.parent / "tables" / "winners.md").read_text().count("| beams2d |") == 1
