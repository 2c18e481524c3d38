"""The sweeps' YAML and what `sweep.py create` does with it. Queue: test_sweep_queue.py, W&B: test_sweep_wandb.py."""

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from sweep_kit import CACHED, STUB, create, current, points, rows, work

import data
import record
import sweep
import train
from pruning import SAFEGUARDS, STRATEGIES

RUNS = {"01": 36, "01b": 126, "02": 120, "04": 200, "05": 200, "06": 200}

# ------------------------------------------------------------------------------------------------------------ the YAML


@pytest.mark.parametrize("name", RUNS)
def test_grid_has_the_runs_its_header_says_and_each_parses(name):
    path, config = sweep.read_yaml(name)
    found = sweep.expand(config)
    assert f"# Runs: {len(found)} " in path.read_text() and len(found) == RUNS[name]
    assert len({tuple(map(str, p.values())) for p in found}) == len(found)
    for args in (train.parse(sweep.command_line(point)) for point in found):
        train.schedule(args, 358)
        assert args.pruning_epoch + args.n_epochs // 10 < args.n_epochs
        assert args.polynomial_schedule_n <= args.pruning_epoch


@pytest.mark.parametrize("path", sorted(sweep.FILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_states_what_it_asks_and_every_scientific_flag(path):
    text, config = path.read_text(), sweep.read_yaml(str(path))[1]
    assert all(text.count(f"\n# {word}: ") == 1 for word in ("Question", "Hypothesis", "Runs", "Roles", "Rule"))
    assert all(role in text for role in ("scientific:", "nuisance:", "fixed:")) and config["program"] == "train.py"
    assert config["command"] == ["${env}", "${interpreter}", "${program}", "${args}"]
    flags = set(vars(train.parse([])))
    arms = [arm for arm in config["parameters"].get("arm", {}).get("values", []) if arm != "strategy=none"]
    stated = set(config["parameters"]) | {pair.partition("=")[0] for arm in arms for pair in arm.split(",")}
    assert set(config["parameters"]) <= flags
    chosen = {own[0] for _, *own in STRATEGIES.values() if own} if arms else set()
    off = {"arm", "toy_dims", "trim_rec", "n_train"}
    assert flags - stated - {*SAFEGUARDS} - chosen - off <= sweep.NOT_COMPARED
    values = [v for p in config["parameters"].values() for v in sweep.levels(p) if isinstance(v, str)]
    assert not [v for v in values if v.replace(".", "").replace("e-", "").isdigit()]  # YAML 1.1 takes 1e-4 for text


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/*-first.csv")), ids=lambda path: path.stem)
def test_a_flag_that_came_later_is_in_legacy(path):
    """Else a row that lacks it would be of no point any more, and be run again."""
    assert {*train.DEFAULTS} - {*sweep.read_csv(path).columns} <= {*record.LEGACY} | sweep.NOT_COMPARED


def test_bayes_sweep_is_33_runs_a_problem_with_strict_hyperband():
    path, config = sweep.read_yaml("03")
    assert config["run_cap"] == 33 and "# Runs: 33 a problem" in path.read_text()
    assert config["metric"] == {"name": "dims_within", "goal": "minimize"}
    assert config["early_terminate"] == {"type": "hyperband", "min_iter": 10, "eta": 2, "strict": True}
    for point in sweep.corners(config):
        train.parse(sweep.command_line(point))


def test_levels_are_the_defaults_in_01_and_the_others_in_01b():
    levels = {"plummet_threshold": {0.01, 0.02, 0.05, 0.1}, "cdf_threshold": {0.95, 0.99, 0.999, 0.9999}}
    levels |= {"percentile": {0.1, 0.2, 0.3, 0.4}, "temperature": {0.1, 0.25, 0.5, 1.0}}
    first, second = (sweep.read_yaml(name)[1]["parameters"] for name in ("01", "01b"))
    defaults, arms = train.parse([]), second["arm"]["values"]
    for flag, values in levels.items():
        assert first[flag]["value"] == getattr(defaults, flag)
        others = {float(arm.partition(f"{flag}=")[2].split(",")[0]) for arm in arms if f"{flag}=" in arm}
        assert others | {first[flag]["value"]} == values and len(others) == 3
    assert "strategy=none,trim_share=0.0" in arms and "strategy=plummet,trim_share=0.01" in arms
    for flag, value in zip(levels, sweep.AGGRESSIVE.values(), strict=True):
        assert value == (min if flag == "cdf_threshold" else max)(levels[flag])


# ------------------------------------------------------------------------------------------------------------ creating


SEARCH = dict(method="bayes", run_cap=3, lr={"min": 0.1, "max": 1.0})
PRUNED = dict(n_epochs={"value": 100}, pruning_epoch={"value": 20}, polynomial_schedule_n={"value": 10}, seed=[1])
NORMAL = {"min": 1, "max": 2, "distribution": "normal"}
REFUSED = [  # flags of create, parameters of the file, and what is said
    ("", dict(learning_rate=[0.1], seed=[1]), "learning_rate"),
    ("", dict(lr=[0.1, -1.0]), "--lr -1"),
    ("--seeds 3", dict(seed=[1, 2]), "SEEDS 3: allowed: 1 to 2"),
    ("--set lr=0.1,,0.2", dict(seed=[1]), "lr"),
    ("--edition a/b", dict(seed=[1]), "EDITION a/b: allowed"),
    ("--strategy best", dict(seed=[1]), "STRATEGY best: unknown"),
    ("--problem beams2d", dict(seed=[1]), "about toy only"),
    ("--storage sqlite:///x.db", dict(seed=[1]), "STORAGE sqlite"),
    ("--storage postgresql+psycopg://sweep@/x?host=/nowhere", dict(seed=[1]), "STORAGE: "),
    ("", dict(method="bayes", lr={"min": 0.1, "max": 1.0}), "run_cap"),
    ("", dict(run_cap=0, seed=[1]), "run_cap 0"),
    ("--set problem=toy", SEARCH, "say PROBLEM=toy"),
    ("--problem toy", {**SEARCH, "lr": NORMAL}, "distribution normal is unknown"),
    ("", {**SEARCH, "early_terminate": {"max_iter": 9}}, "min_iter"),
    ("", {**SEARCH, "early_terminate": {"min_iter": 2, "eta": 1}}, "eta >= 1.1"),
    ("", dict(metric={"goal": "minimize"}, seed=[1]), "a metric with a name"),
    ("", dict(metric={"name": "dims_within"}, seed=[1]), "PROBLEM toy: has no bound"),
    ("--epochs 9", dict(n_epochs=[10, 20], pruning_epoch=[2]), "EPOCHS 9: needs a file with one value of n_epochs"),
    ("", dict(problem={}, seed=[1]), "problem needs value"),
    ("", dict(lr={"min": 0.1, "max": 1.0}), "lr needs value"),
    ("", dict(lr=[0.1, 0.2, 0.1], seed=[1]), "lr needs value or values, each once"),
    ("", {**SEARCH, "lr": {"min": "1e-4", "max": 1.0}}, "a search also min and max (1.0e-4, not 1e-4)"),
    ("--set n_epochs=4", PRUNED, "SET n_epochs=4: pruning would start at epoch 20"),
    ("--epochs 40", PRUNED, "before the schedule of w_v ends"),
]


def test_create_refuses_in_one_line(here, capsys):
    for flags, parameters, said in REFUSED:
        create(*flags.split(), code=2, **parameters)
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
        assert not Path(".sweeps").exists() and not Path("runs").exists()
    whole, more = Path("quick.yaml").read_text(), {"name: ../up": "name '../up'", "name: two words": "name 'two words'"}
    more |= {"a: &a [1]\nb: *a": "aliases (*name)", "lr: " + "[" * 2000: "quick.yaml: ", "method: grid": "given twice"}
    for line, said in more.items():
        Path("quick.yaml").write_text(f"{whole}\n{line}\n")
        assert sweep.main(["create", "quick.yaml"]) == 2
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_epochs_scales_two_flags(here):
    sizes = dict(n_epochs={"value": 200}, pruning_epoch={"values": [40, 80]}, polynomial_schedule_n={"value": 20})
    keys = ("n_epochs", "pruning_epoch", "polynomial_schedule_n")
    found = points(create("--epochs", "100", **sizes, seed=[1]))
    assert [tuple(p[k] for k in keys) for p in found] == [(100, 20, 20), (100, 40, 20)]
    half = dict(n_epochs={"value": 200}, pruning_epoch={"values": [None, 40]})
    assert [p["pruning_epoch"] for p in points(create("--epochs", "100", **half, seed=[1]))] == [None, 20]
    free = dict(n_epochs={"value": None}, pruning_epoch={"value": None})  # they follow the designs, or n_epochs
    (point,) = points(create("--epochs", "7", **free, seed=[1]))
    assert (point["n_epochs"], point["pruning_epoch"]) == (7, None)


def test_narrowing(here):
    arms = ["strategy=plummet,plummet_threshold=0.05", "strategy=plummet,plummet_threshold=0.1"]
    settings = "n_epochs=5 w_v=1e-3"
    found = points(create("--seeds", "2", "--set", settings, "--project", "mine", seed=[1, 2, 3], lr=[0.1, 0.2]))
    assert [(p["seed"], p["lr"]) for p in found] == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert {(p["n_epochs"], p["w_v"], p["wandb_project"], p["data"]) for p in found} == {(5, 0.001, "mine", "sample")}
    found = points(create("--set", "lr=1e-1,0.2,0.2 arm=percentile=0.3,w_v=0.5", seed=[1], arm=["w_v=0.1"]))
    assert [(p["lr"], p["arm"]) for p in found] == [(0.1, "percentile=0.3,w_v=0.5"), (0.2, "percentile=0.3,w_v=0.5")]
    found = points(create("--strategy", "lognorm", strategy=["plummet", "lognorm"]))
    assert [p["strategy"] for p in found] == ["lognorm"]
    swapped = [(f"strategy=lognorm,percentile={x}", False) for x in (0.2, 0.4)]
    found = points(create("--strategy", "lognorm", arm=arms, percentile={"value": 0.3}))
    assert [(p["arm"], "percentile" in p) for p in found] == swapped
    kept = points(create("--strategy", "plummet", arm=[*arms, "strategy=none"]))
    assert [p["arm"] for p in kept] == arms


def test_bayes_without_a_problem_makes_one_sweep_for_each(here, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_: CACHED("toy"))  # their designs are not needed here
    search = dict(method="bayes", run_cap=3, lr={"min": 0.01, "max": 0.1})
    assert create(name="own", **search)["id"] == Path(".sweeps/current").read_text().strip()  # it keeps its problem
    monkeypatch.setattr(sweep, "FILES", here)  # one of our searches
    create(**search)
    names = Path(".sweeps/current").read_text().split()
    made = [sweep.load_sweep(name) for name in names]
    assert [s["config"]["parameters"]["problem"]["value"] for s in made] == list(data.CONDITIONS)
    assert create("--problem", "toy", **search)["name"] == "quick-toy"
    sweep.main(["status", "--sweep", f"{names[1]} quick-toy"])  # in this order; the beginning of an id will do
    said = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(" (")[0] for line in said] == [names[1], current()["id"]]
    assert sweep.main(["status", "--sweep", "quick-"]) == 2 and "begins several sweeps" in capsys.readouterr().err
    sweep.main(["list"])
    marks = [line[0] for line in capsys.readouterr().out.splitlines() if "quick-" in line]
    assert sorted(marks) == [" ", " ", " ", "*"]


def test_points_in_the_results_are_not_run_again(here, capsys):
    create(seed=[1, 2], lr=[0.1, 0.2])
    work()
    assert len(rows()) == 4
    found = points(create(seed=[1, 2, 3], lr=[0.1, 0.2]))
    assert "4 points are in results/quick.csv already" in capsys.readouterr().out
    assert [(p["seed"], p["lr"]) for p in found] == [(3, 0.1), (3, 0.2)]
    before = Path(".sweeps/current").read_text()
    create(seed=[2], lr=[0.1])
    assert "nothing is left" in capsys.readouterr().out and Path(".sweeps/current").read_text() == before
    for flag in ("n_epochs=7", "precision=bf16", "w_v=0.02"):  # each makes another point
        Path("results/quick-x.csv").write_text(Path("results/quick.csv").read_text())
        assert len(points(create("--edition", "x", "--set", flag, seed=[2], lr=[0.1]))) == 1
        assert "already" not in capsys.readouterr().out
    create("--edition", "x", "--set", "threads=7 wandb=offline", seed=[2], lr=[0.1])  # these do not
    assert "nothing is left" in capsys.readouterr().out
    # a row from before a flag existed has the value that means the behaviour of that time
    old = Path("results/quick.csv").read_text().replace("percentile", "forgotten")
    for legacy, left in (("0.2", 0), ("0.3", 1)):
        Path("results/quick-y.csv").write_text(old)
        Path(f"legacy{left}.py").write_text(f"{STUB.read_text()}\nLEGACY = {{'percentile': {legacy}}}\n")
        made = create("--edition", "y", seed=[2], lr=[0.1], program=f"legacy{left}.py")
        assert (len(points(made)) if made["name"] == "quick-y" else 0) == left


def test_what_leaves_the_file_is_an_edition_with_results_of_its_own(here, capsys):
    """A trial run must not end up among the sweep's rows, nor 500 epochs among 2500."""
    sizes = dict(n_epochs={"value": 40}, pruning_epoch={"value": 8}, seed=[1, 2])
    free = "seed=2 threads=1 wandb=disabled"
    cases = [([], ""), (["--seeds", "1", "--epochs", "40", "--set", free], ""), (["--epochs", "20"], "-trial")]
    cases += [(["--set", "seed=2,3"], "-trial"), (["--set", "latent_dim=10"], "-trial")]
    for flags, edition in [*cases, (["--epochs", "20", "--edition", "short"], "-short")]:
        made = create(*flags, **sizes)
        assert made["results"] == f"results/quick{edition}.csv" and made["id"].startswith(f"quick{edition}-")
        assert f"results go to {made['results']}" in capsys.readouterr().out
    work()
    found = [(row["n_epochs"], row["pruning_epoch"], row["epoch"]) for row in rows("quick-short")]
    assert found == [("20", "4", "19")] * 2 and not Path("results/quick.csv").exists()


def test_agents_refuse_other_designs(here):
    file = here / "mine.npz"
    np.savez(file, designs=np.zeros((20, 32, 32), np.uint8))
    made = create(seed=[1])
    sha256 = data.load("custom", str(file)).fingerprint["sha256"]
    made["data"] = [["custom", str(file), 3, 0, sha256]]
    sweep.check_data(made)
    sweep.save(made)
    np.savez(file, designs=np.full((20, 32, 32), 255, np.uint8))
    data.load.cache_clear()
    assert "get the same designs" in work(code=2) and not Path("starts.log").exists()


def test_the_first_so_many_designs_have_a_fingerprint_of_their_own(here):
    Path("train.py").symlink_to(ROOT / "train.py")
    short = "n_epochs=1 pruning_epoch=0 polynomial_schedule_n=0 latent_dim=4 strategy=none wandb=disabled seed=1"
    short += " batch_size=512"
    frozen = [["toy", "sample", 3, n] for n in (100, 200)]
    create_it = ["create", "01", "--backend", "local", "--problem", "toy", "--set", f"{short} n_train=100,200"]
    assert sweep.main(create_it) == 0 and [d[:4] for d in current()["data"]] == frozen
    assert current()["config"]["parameters"]["precision"]["value"] in ("fp32", "bf16")  # settled, for all machines
    assert "2/2 over (2 finished" in work()
    assert len({row["data_sha256"] for row in rows("01-trial")}) == 2
    assert sweep.main(create_it) == 0 and current()["runs"] == 2  # nothing is left: the old one is the current one
