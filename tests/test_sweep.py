"""The sweeps' YAML and what `sweep.py create` does with it. The queue is tested by test_sweep_queue.py, W&B by test_sweep_wandb.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from sweep_kit import BASE, CACHED, create, current, points, rows, work

import data
import sweep
import sweeping.create
import sweeping.done
import train

FILES = {path.stem.split("_")[0]: path for path in sorted((ROOT / "sweeps").glob("*.yaml"))}
RUNS = {"01": 36, "01b": 117, "02": 120, "04": 200, "05": 200, "06": 200}


# ------------------------------------------------------------------------------------------------------------------ the YAML


def load(name):
    return yaml.safe_load(FILES[name].read_text())


def test_the_seven_sweeps_are_there():
    assert sorted(FILES) == ["01", "01b", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("name", RUNS)
def test_grid_has_the_runs_its_header_says_and_each_parses(name):
    points = sweeping.create.expand(load(name))
    assert f"# Runs: {len(points)} " in FILES[name].read_text() and len(points) == RUNS[name]
    assert len({tuple(map(str, p.values())) for p in points}) == len(points)
    for point in points:
        args = train.parse(sweeping.create.agents.command_line(point))
        assert args.pruning_epoch + args.n_epochs // 10 < args.n_epochs and args.polynomial_schedule_n <= args.pruning_epoch


@pytest.mark.parametrize("name", FILES)
def test_yaml_states_what_it_asks_and_every_scientific_flag(name):
    text, config = FILES[name].read_text(), load(name)
    for heading in ("Question", "Hypothesis", "Runs", "Roles", "Rule"):
        assert text.count(f"\n# {heading}: ") == 1
    assert all(role in text for role in ("scientific:", "nuisance:", "fixed:"))
    assert config["command"] == ["${env}", "${interpreter}", "${program}", "${args}"] and config["program"] == "train.py"
    flags = set(vars(train.parse([])))
    arms = [arm for arm in config["parameters"].get("arm", {}).get("values", []) if arm != "strategy=none"]
    stated = set(config["parameters"]) | {pair.partition("=")[0] for arm in arms for pair in arm.split(",")}
    assert set(config["parameters"]) <= flags
    safeguards = {"k_consecutive", "recon_tol", "cooldown_epochs", "max_prune_per_epoch", "min_active_dims"}  # the profile's
    levels = {"plummet_threshold", "cdf_threshold", "percentile", "temperature"}
    optional = {"arm", "toy_dims"} | safeguards | (levels if arms else set())
    assert flags - stated - optional <= set(sweeping.done.FREE)
    for key, p in config["parameters"].items():  # YAML 1.1 reads 1e-4 as a string
        for value in (*p.get("values", []), *(p[k] for k in ("value", "min", "max") if k in p)):
            assert not isinstance(value, str) or not value.replace(".", "").replace("e-", "").isdigit(), f"{key}: {value!r} is a string"


def test_bayes_sweep_is_33_runs_a_problem_with_strict_hyperband():
    config = load("03")
    assert config["run_cap"] == 33 and "# Runs: 33 a problem" in FILES["03"].read_text()
    assert config["metric"] == {"name": "val_rec_pruned", "goal": "minimize"}
    assert config["early_terminate"] == {"type": "hyperband", "min_iter": 200, "eta": 2, "strict": True}
    for point in sweeping.create.corners(config):
        train.parse(sweeping.create.agents.command_line(point))


def test_levels_are_the_defaults_in_01_and_the_others_in_01b():
    levels = {"plummet_threshold": {0.01, 0.02, 0.05, 0.1}, "cdf_threshold": {0.95, 0.99, 0.999, 0.9999}}
    levels |= {"percentile": {0.1, 0.2, 0.3, 0.4}, "temperature": {0.1, 0.25, 0.5, 1.0}}
    defaults, first, arms = train.parse([]), load("01")["parameters"], load("01b")["parameters"]["arm"]["values"]
    for flag, values in levels.items():
        assert first[flag]["value"] == getattr(defaults, flag)
        others = {float(arm.partition(f"{flag}=")[2]) for arm in arms if f"{flag}=" in arm}
        assert others | {first[flag]["value"]} == values and len(others) == 3
    assert "strategy=none" in arms
    for flag, value in sweeping.create.AGGRESSIVE.values():
        assert value == (min if flag == "cdf_threshold" else max)(levels[flag])


@pytest.mark.parametrize("name", FILES)
def test_first_command_of_each_sweep_runs(name, tmp_path, monkeypatch):
    """On a handful of random designs and for 2 epochs, with everything else as the sweep says."""
    config = load(name)
    point = sweeping.create.expand(config)[0] if config["method"] == "grid" else sweeping.create.corners(config)[0]
    designs = np.random.default_rng(0).integers(0, 256, (20, *data.PROBLEMS[point["problem"]]["shape"]), dtype=np.uint8)
    np.savez(tmp_path / "designs.npz", designs=designs)
    point |= {"data": tmp_path / "designs.npz", "n_epochs": 2, "wandb": "disabled", "out": tmp_path / "runs", "device": "cpu"}
    monkeypatch.setenv("WANDB_RUN_ID", "first")
    assert train.main([*sweeping.create.agents.command_line(point), "--resume=auto"]) == 0
    flags = json.loads((tmp_path / "runs/first/config.json").read_text())["flags"]
    assert all(flags[key] == value for key, value in point.items() if key not in ("data", "out", "precision"))


# ------------------------------------------------------------------------------------------------------------------ creating


def refusal(capsys, *arguments, **parameters):
    """The one line on stderr with which `create` refuses; nothing must have been written."""
    with pytest.raises(SystemExit) as exit_:
        create(*arguments, **parameters)
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(lines) == 1 and not Path(".sweeps").exists() and not Path("runs").exists()
    return lines[0]


def test_create_refuses_in_one_line(here, capsys, monkeypatch):
    assert "no such flag" in refusal(capsys, learning_rate=[0.1], seed=[1])
    assert "--lr -1" in refusal(capsys, lr=[0.1, -1.0])
    assert "SEEDS 3: allowed: 1 to 2" in refusal(capsys, "--seeds", "3", seed=[1, 2])
    assert "SEEDS 1: this sweep does not vary" in refusal(capsys, "--seeds", "1", lr=[0.1])
    for text in ("lr", "lr=", "lr=0.1,,0.2"):
        assert f"SET {text}: must be name=value" in refusal(capsys, "--set", text, seed=[1])
    assert "--lr" in refusal(capsys, "--set", "lr=[0.1", seed=[1])
    assert "EDITION a/b: allowed" in refusal(capsys, "--edition", "a/b", seed=[1])
    assert "STRATEGY best: unknown" in refusal(capsys, "--strategy", "best", seed=[1])
    assert "about toy only" in refusal(capsys, "--problem", "beams2d", seed=[1])
    assert "SQLite" in refusal(capsys, "--storage", "sqlite:///x.db", seed=[1])
    assert "STORAGE: " in refusal(capsys, "--storage", "postgresql+psycopg://sweep@/x?host=/nowhere", seed=[1])
    search = dict(method="bayes", lr={"min": 0.1, "max": 1.0})
    assert "run_cap" in refusal(capsys, **search)
    assert "say PROBLEM=toy" in refusal(capsys, "--set", "problem=toy", **search, run_cap=3)
    assert "early_terminate needs min_iter" in refusal(capsys, **search, run_cap=3, early_terminate={"type": "hyperband", "max_iter": 9})
    assert "a metric with a name" in refusal(capsys, metric={"goal": "minimize"}, seed=[1])
    assert "EPOCHS 9: needs a file with one value of n_epochs" in refusal(capsys, "--epochs", "9", n_epochs=[10, 20], pruning_epoch=[2])
    monkeypatch.delitem(BASE, "problem")
    assert "needs a parameter problem" in refusal(capsys, seed=[1])


def test_epochs_scales_two_flags_and_is_refused_where_it_cannot_work(here, capsys):
    sizes = dict(n_epochs={"value": 200}, pruning_epoch={"values": [40, 80]}, polynomial_schedule_n={"value": 20}, seed=[1])
    assert "before the schedule of w_v ends at 20" in refusal(capsys, "--epochs", "90", **sizes)
    slow = dict(max_prune_per_epoch={"value": 1}, cooldown_epochs={"value": 6}, latent_dim={"value": 20}, min_active_dims={"value": 5})
    # 15 prunings, 7 epochs apart: the last at 40 + 14 * 7 = 138 with n_epochs 100, at 80 + 98 = 178 with 200
    assert "until epoch 138" in refusal(capsys, "--epochs", "100", **{**sizes, "pruning_epoch": {"values": [80]}}, **slow)
    found = points(create("--epochs", "100", **sizes))
    assert [(p["n_epochs"], p["pruning_epoch"], p["polynomial_schedule_n"]) for p in found] == [(100, 20, 20), (100, 40, 20)]
    assert len(points(create("--epochs", "200", **{**sizes, "pruning_epoch": {"values": [80]}}, **slow))) == 1


def test_narrowing(here):
    arms = ["strategy=plummet,plummet_threshold=0.05", "strategy=plummet,plummet_threshold=0.1"]
    record = create("--seeds", "2", "--set", "n_epochs=5 w_v=1e-3", "--project", "mine", seed=[1, 2, 3], lr=[0.1, 0.2])
    found = points(record)
    assert [(p["seed"], p["lr"]) for p in found] == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert {(p["n_epochs"], p["w_v"], p["wandb_project"], p["data"]) for p in found} == {(5, 0.001, "mine", "sample")}
    found = points(create("--set", "lr=1e-1,0.2,0.2 arm=percentile=0.3,w_v=0.5", seed=[1], arm=["w_v=0.1"]))
    assert [(p["lr"], p["arm"]) for p in found] == [(0.1, "percentile=0.3,w_v=0.5"), (0.2, "percentile=0.3,w_v=0.5")]
    assert [p["strategy"] for p in points(create("--strategy", "lognorm", strategy=["plummet", "lognorm"]))] == ["lognorm"]
    swapped = points(create("--strategy", "lognorm", arm=arms, percentile={"value": 0.3}))
    assert [(p["arm"], "percentile" in p) for p in swapped] == [(f"strategy=lognorm,percentile={x}", False) for x in (0.2, 0.4)]
    kept = points(create("--strategy", "plummet", arm=[*arms, "strategy=none"]))
    assert [p["arm"] for p in kept] == arms


def test_bayes_without_a_problem_makes_one_sweep_for_each(here, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: CACHED("toy"))  # the study's designs are not needed here
    create(method="bayes", run_cap=3, lr={"min": 0.01, "max": 0.1})
    names = Path(".sweeps/current").read_text().split()
    records = [sweep.load_record(name) for name in names]
    assert [r["config"]["parameters"]["problem"]["value"] for r in records] == list(sweeping.create.STUDY)
    create("--problem", "toy", method="bayes", run_cap=3, lr={"min": 0.01, "max": 0.1})
    assert current()["name"] == "quick-toy"
    sweep.main(["status", "--sweep", f"{names[1]} quick-toy"])  # in this order; the beginning of an id will do
    assert [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == [names[1], current()["id"]]
    with pytest.raises(SystemExit):
        sweep.main(["status", "--sweep", "quick-"])
    assert "begins several sweeps" in capsys.readouterr().err
    sweep.main(["list"])
    marks = [line[0] for line in capsys.readouterr().out.splitlines() if "quick-" in line and "created" not in line]
    assert sorted(marks) == [" ", " ", " ", "*"]


def test_points_in_the_results_are_not_run_again(here, capsys):
    create(seed=[1, 2], lr=[0.1, 0.2])
    work()
    assert len(rows()) == 4
    create(seed=[1, 2, 3], lr=[0.1, 0.2])
    assert "4 points are in results/quick.csv already" in capsys.readouterr().out
    assert [(p["seed"], p["lr"]) for p in points(current())] == [(3, 0.1), (3, 0.2)]
    before = Path(".sweeps/current").read_text()
    create(seed=[2], lr=[0.1])
    assert "nothing is left" in capsys.readouterr().out and Path(".sweeps/current").read_text() == before
    for flag in ("n_epochs=7", "precision=bf16", "w_v=0.02"):  # each makes another point
        Path("results/quick-x.csv").write_text(Path("results/quick.csv").read_text())
        create("--edition", "x", "--set", flag, seed=[2], lr=[0.1])
        assert len(points(current())) == 1 and "already" not in capsys.readouterr().out
    create("--edition", "x", "--set", "threads=7 wandb=offline", seed=[2], lr=[0.1])  # these do not
    assert "nothing is left" in capsys.readouterr().out


def test_what_leaves_the_file_is_an_edition_with_results_of_its_own(here, capsys):
    """A trial run must not end up among the study's rows, nor 500 epochs among 2500."""
    sizes = dict(n_epochs={"value": 40}, pruning_epoch={"value": 8}, seed=[1, 2])
    for flags, edition in (
        ([], ""),
        (["--seeds", "1", "--epochs", "40", "--set", "seed=2 threads=1 wandb=disabled"], ""),
        (["--epochs", "20"], "-trial"),
        (["--set", "seed=2,3"], "-trial"),
        (["--set", "latent_dim=10"], "-trial"),
        (["--epochs", "20", "--edition", "short"], "-short"),
    ):
        record = create(*flags, **sizes)
        assert record["results"] == f"results/quick{edition}.csv" and record["id"].startswith(f"quick{edition}-")
        assert f"results go to {record['results']}" in capsys.readouterr().out
    work()
    assert [(row["n_epochs"], row["pruning_epoch"], row["epoch"]) for row in rows("quick-short")] == [("20", "4", "19")] * 2
    assert not Path("results/quick.csv").exists()


ARM = "arm=strategy=plummet,plummet_threshold=0.05"
FIRST = [  # the study's first edition (issue 7): 500 epochs from 100 dimensions
    ("01", 36, "latent_dim=100"),
    ("01b", 39, "latent_dim=100", "--seeds", "1"),
    ("02", 40, "latent_dim=100", "--problem", "beams2d"),
    ("03", 33, "polynomial_schedule_n=40", "--problem", "beams2d"),
    ("04", 36, f"latent_dim=100 pruning_epoch=100,150,200 w_v=0.005,0.01,0.02 {ARM}", "--seeds", "4"),
    ("05", 36, "latent_dim=100 pruning_epoch=100,150,200 w_v=0.005,0.01,0.02 safeguards=moderate", "--seeds", "4"),
    ("06", 36, f"latent_dim=100 pruning_epoch=100,150,200 w_v=0.005,0.01,0.02 {ARM}", "--seeds", "4"),
]


@pytest.mark.parametrize("name, runs, settings, more", [(name, runs, settings, more) for name, runs, settings, *more in FIRST])
def test_first_edition_can_be_created(here, monkeypatch, name, runs, settings, more):
    monkeypatch.setattr(data, "load", lambda *_: CACHED("toy"))
    Path("train.py").symlink_to(ROOT / "train.py")
    sweep.main(["create", name, "--backend", "local", "--epochs", "500", "--set", settings, "--edition", "first", *more])
    record = current()
    assert record["runs"] == runs and record["results"] == f"results/{name}-first.csv"
    assert record["config"]["parameters"]["precision"]["value"] in ("fp32", "bf16")  # auto is settled, for all machines


def test_a_run_does_not_continue_that_of_another_sweep(here, monkeypatch):
    """A sweep that was interrupted and then created anew: the same flags, but other runs, which other agents may be working on."""
    for name in ("old", "new"):
        monkeypatch.setenv("WANDB_RUN_ID", name)
        flags = ["--problem=toy", "--n_epochs=2", "--latent_dim=4", "--strategy=none", "--wandb=disabled", "--resume=auto", "--device=cpu"]
        assert train.main(flags) == 0 and Path(f"runs/{name}/summary.json").exists()
        Path(f"runs/{name}/summary.json").unlink()


def test_agents_refuse_other_designs(here, capsys):
    file = here / "mine.npz"
    np.savez(file, designs=np.zeros((20, 32, 32), np.uint8))
    record = create(seed=[1])
    record["data"] = {"custom": {"source": str(file), "toy_dims": 3, "sha256": data.load("custom", str(file)).fingerprint["sha256"]}}
    sweeping.create.check_data(record)
    np.savez(file, designs=np.full((20, 32, 32), 255, np.uint8))
    data.load.cache_clear()
    with pytest.raises(sweeping.create.SweepError, match="must not mix two data sets"):
        sweeping.create.check_data(record)
