"""Pages from results/NN.csv, the rows that outlive a study's machine, and from narrowed editions."""

import csv
import json
import re

import numpy as np
import planted
import pytest

import train
import report
import sweep as engine
from reporting import collect, page, studies


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder without .sweeps records; figures are not drawn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".sweeps").mkdir()
    monkeypatch.setattr(page.Page, "_figure", lambda self, name, figure, alt, caption: f"<p>{name}: {alt}. {caption}</p>")
    return tmp_path


def record(folders, number, edition="first", status=lambda folder: "finished"):
    """Rows of results/<number>-<edition>.csv, written by the agents' own function, with every flag of train.py."""
    config = dict(method="bayes", run_cap=33, metric=dict(name="val_rec_pruned")) if number == "03" else {}
    sweep = dict(results=f"results/{number}-{edition}.csv", id=f"{number}-{edition}_x-abc123", config=config)
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        given = {k: v for k, v in config["flags"].items() if v is not None and k != "arm"}
        config["flags"] = vars(train.parse([f"--{k}={v}" for k, v in given.items()]))
        (folder / "config.json").write_text(json.dumps(config))
        engine.record_result(sweep, folder, status(folder))
    return sweep["results"]


def build(name, runs):
    """(text of the page, its verdict, the study)."""
    path, study = report.build(name, collect.local_runs(runs), "report", str(runs))
    text = path.read_text()
    return text, re.search(r'class="verdict (\w+)"', text)[1], study


def table(name, which):
    with open(f"report/{name}/tables/{which}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_results_csv_stands_in_for_lost_runs(tmp_path):
    planted.plant(
        tmp_path / "runs", "01", lambda f: -0.15 * (f["strategy"] == "plummet"), noise=0.01, keep=lambda f: f["problem"] != "beams2d"
    )
    rows = [run.flags | run.summary | {"recorded": run.started, "data_sha256": "x"} for run in collect.local_runs(tmp_path / "runs")]
    with open(tmp_path / "01.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _, verdict, study = build("01", tmp_path / "01.csv")
    assert verdict == "supported" and len(study.done) == 24


def test_03_retrains_by_flags_alone(tmp_path):
    folders = planted.plant_search(tmp_path / "runs", problems=["beams2d"])
    path = record(folders, "03", status=lambda folder: "finished" if (folder / "summary.json").exists() else "stopped early")
    text, verdict, study = build("03", path)
    assert verdict == "supported" and "On beams2d only:" in text
    command = re.search(r"python train.py (.*) --seed=\$seed", text)[1].split()
    assert vars(train.parse(command))["problem"] == "beams2d" and "None" not in " ".join(command)
    runs = {run.cause for run in study.runs if run.status == "stopped"}
    assert runs == {"stopped early after epoch 14"}
    lowest = min(run.metrics["val_rec_pruned"][-1] for run in map(collect.read_run, folders) if run.status == "finished")
    assert float(table("03", "best")[0]["val_rec_pruned"]) == pytest.approx(lowest, rel=1e-3)


def test_03_band_of_a_row():
    from reporting.hyperparameters import _logged

    run = collect.Run("a", "a", "stopped", flags=dict(pruning_epoch="300", n_epochs="2500"), summary=dict(epoch="759"))
    assert _logged(run) == 210  # epochs 550 to 759


def test_02_says_the_same_from_rows_as_from_folders_but_for_the_curves(tmp_path):
    folders = planted.plant(
        tmp_path / "runs",
        "02",
        lambda f: -0.1 * (f["safeguards"] == "moderate"),
        keep=lambda f: f["problem"] == "beams2d",
        spike=lambda f: 1.5 if f["safeguards"] == "none" else 1.0,
    )
    names = ("none-rise", "none-epochs_above", "none-collapses", "held-back", "none-val_rec")
    build("02", "runs")
    from_folders = [table("02", name) for name in names]
    text, verdict, _ = build("02", record(folders, "02"))
    assert verdict == "supported" and "nan" not in re.sub(r"<style>.*?</style>", "", text).lower().split("<script>")[0]
    assert [table("02", name) for name in names] == from_folders
    spike = 1.5 * (1 + 3 * np.exp(-12 / 5)) / (1 + 3 * np.exp(-11 / 5)) - 1  # planted.write_run: epoch 12 against 11, the best until then
    assert float(from_folders[0][0]["difference"]) == pytest.approx(-spike) and from_folders[0][0]["verdict"] == "lower"
    assert {row["cap"] for row in from_folders[3]} == {"10.0"}  # two proposals a run, 5 dimensions each held back by the cap
    assert "Training curves" not in text and "none are drawn" in text
    assert "problem heatconduction2d, photonics2d" in text and "On beams2d only:" in text


def test_deep_dives_find_each_other_and_count_their_own_points(tmp_path):
    for number in ("04", "05", "06"):
        folders = planted.plant(tmp_path / number, number, lambda f: 0.1 * np.log(f["w_v"] / 0.01) ** 2, noise=0.005,
                                keep=lambda f: f["seed"] < 4 and f["w_v"] != 0.05 and f.get("safeguards") != "conservative")  # fmt: skip
        path = record(folders, number)
    record(folders[:1], "06", "trial")  # of another edition: not read
    text, _, study = build("06", path)
    assert [row["sweep"] for row in table("06", "optima")] == ["04", "05", "06"] and len(table("06", "prediction")) == 3
    assert study.points == 96 and "Preliminary" not in text and "points are counted from the values that its runs have" in text
    assert {row["best arm"].partition(", ")[2] for row in table("06", "optima")} == {"moderate"}
    assert "seed 4, 5; w_v 0.05" in text and "n_epochs 40 (file: 3000)" in text


def test_effects_are_in_the_unit_that_their_table_shows(tmp_path):
    planted.plant(tmp_path / "runs", "05", lambda f: np.log(0.5) * (f["safeguards"] == "conservative"), noise=0.001)
    build("05", "runs")
    assert float(table("05", "effects")[1]["change of val_rec"]) == pytest.approx(-0.5, abs=0.01)


def test_01b_counts_the_runs_of_01_beside_its_own_points(tmp_path):
    """And compares levels on the seeds that all of them have: seeds 2 and 3, the easier ones, must not make 01's level the best."""

    def effect(flags):
        return 0.01 if flags["seed"] == 1 else -0.5

    folders = planted.plant(tmp_path / "b", "01b", lambda f: 0, noise=0, keep=lambda f: f["seed"] == 1)
    record(planted.plant(tmp_path / "a", "01", effect, noise=0, dims=lambda f: 40 if f["seed"] == 1 else 20), "01")
    text, _, study = build("01b", record(folders, "01b"))
    assert "39 of 39 points finished, 36 runs of 01 beside them" in text and len(study.done) == 75
    assert "seed 2, 3" in text

    def compared():
        best, won = table("01b", "best"), table("01b", "winners")
        assert [float(row["worst level costs"]) for row in best] == pytest.approx([np.expm1(0.01)] * 12)
        assert not {"plummet 0.05", "pca_cdf 0.999", "lognorm 0.2", "probabilistic 0.25"} & {row["best level"] for row in best}
        assert {float(row["dims"]) for row in best} == {float(row["its dims"]) for row in won} == {40}

    compared()
    text, _, study = build("01b", ".")  # run folders that name no sweep: 01's are told by their arms
    assert len(study.borrowed) == 36 and "39 of 117 points finished" in text
    late = planted.plant(tmp_path / "late", "01b", lambda f: -0.5, noise=0, keep=lambda f: f["seed"] == 2 and f["problem"] == "beams2d")
    for folder in late[2:4]:
        record([folder], "01b", status=lambda folder: "diverged")
    build("01b", record(late[:2], "01b"))  # seed 2 has begun: two finished runs
    compared()


def test_01b_compares_no_levels_that_share_no_seed(tmp_path):
    """The last level's seed is easier. Nor is `none` drawn beside means of other seeds."""
    seeds = {"0.01": [1], "0.02": [2], "0.1": [3], None: [1]}

    def keep(flags):
        asked = seeds.get(flags.get("plummet_threshold"), []) if flags["strategy"] in ("plummet", "none") else []
        return flags["problem"] == "beams2d" and flags["seed"] in asked

    planted.plant(tmp_path / "runs", "01b", lambda f: -0.5 if f["seed"] == 3 else 0, keep=keep)
    text, _, _ = build("01b", "runs")
    assert table("01b", "best") == [] and "most aggressive one tried" not in text
    assert "no seed has a run of every level of plummet so far" in text and "bar: mean of seed 1, 2, 3. " in text
    seeds["0.02"] = seeds["0.1"] = [1]
    planted.plant(tmp_path / "more", "01b", lambda f: 0, keep=keep)
    text, _, _ = build("01b", "more")
    assert [row["seeds"] for row in table("01b", "best")] == ["1"] and "bar: mean of seed 1; dashed: no pruning. " in text


def test_01b_where_an_arm_has_no_finished_run(tmp_path):
    folders = planted.plant(tmp_path / "runs", "01b", lambda f: 0, keep=lambda f: f["problem"] == "beams2d" and f["strategy"] == "plummet")
    for folder in folders:
        if json.loads((folder / "config.json").read_text())["flags"]["plummet_threshold"] == "0.02":
            (folder / "summary.json").unlink()
    assert "level-beams2d-plummet" in build("01b", "runs")[0]


DAMAGE = [dict(seed="x"), dict(strategy=None), dict(problem=["beams2d"]), dict(w_v={}), dict(pruning_epoch=[1]), dict(w_v=float("inf")),
          dict(latent_dim="wide")]  # fmt: skip


@pytest.mark.parametrize("name", ["02", "04"])
def test_damaged_flags_are_not_fatal(tmp_path, name):
    folders = planted.plant(tmp_path / "runs", name, lambda f: 0, keep=lambda f: f["problem"] == "beams2d" and f["seed"] == 1)
    for folder, damage in zip(folders, DAMAGE, strict=False):
        config = json.loads((folder / "config.json").read_text())
        config["flags"] |= damage
        (folder / "config.json").write_text(json.dumps(config))
    summary = json.loads((folders[-1] / "summary.json").read_text())
    (folders[-1] / "summary.json").write_text(json.dumps(summary | dict(seconds=float("inf"))))
    text, verdict, study = build(name, "runs")
    assert verdict == "undecided" and sum(run.status == "broken" for run in study.runs) == 3
    assert "problem and strategy must be text, seed a number" in text


def test_damaged_rows_are_listed(tmp_path):
    path = record(planted.plant(tmp_path / "runs", "04", lambda f: 0, keep=lambda f: f["seed"] == 1), "04")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row, (key, value) in zip(
        rows, [("status", "failed"), ("val_rec", "inf"), ("seed", ""), ("w_v", "inf"), ("problem", "")], strict=False
    ):
        row[key] = value
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text, _, study = build("04", path)
    assert sum(run.status == "broken" for run in study.runs) == 4 and "its row says status &#x27;failed&#x27;" in text


def test_sweeps_created_one_a_problem_are_read_as_one(tmp_path):
    spec, _ = studies.header(next(studies.SWEEPS.glob("01_*.yaml")))
    for problem in ("beams2d", "photonics2d"):
        sweep = f"01-x_pruning_strategies-{problem}"
        parameters = spec["parameters"] | dict(problem={"value": problem}, n_epochs={"value": planted.EPOCHS})
        (tmp_path / ".sweeps" / sweep).mkdir()
        (tmp_path / ".sweeps" / sweep / "sweep.json").write_text(json.dumps({"config": spec | {"name": sweep, "parameters": parameters}}))
        planted.plant(tmp_path / "runs" / problem, "01", lambda f: 0, keep=lambda f, p=problem: f["problem"] == p, sweep=sweep)
    study = build("01", "runs")[2]
    assert study.points == 24 and study.problems == ["beams2d", "photonics2d"]
