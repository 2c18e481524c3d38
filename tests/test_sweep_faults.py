"""What must not go wrong quietly in a sweep: what the issues on faults and on real inputs promise."""

import os
from pathlib import Path

import optuna
import pytest
import torch
from conftest import ROOT
from sweep_kit import (
    STUB,
    Forked,
    create,
    points,
    rows,
    says,
    starts,
    states,
    trials,
    two_seeds,
    wait_until,
    work,
    write,
)

import record
import sweep
import train

pytestmark = pytest.mark.usefixtures("here")


def test_a_run_on_other_designs_is_not_recorded(monkeypatch):
    """They are replaced while agents work: one run fails, which says so, and can be tried again from nothing."""
    made, sha256 = create(seed=[1, 2]), os.environ["STUB_SHA"]
    monkeypatch.setenv("STUB_SHA", "b" * 64)
    assert "its designs (bbbbbbbbbbbb) are not the sweep's" in work(code=2)
    assert states(made) == {"FAIL": 1, "WAITING": 1} and not Path("results").exists() and not os.listdir("runs")
    assert "failed: " in (said := says("status")) and "(bbbbbbbbbbbb)" in said
    monkeypatch.setenv("STUB_SHA", sha256)
    says("resume", "--failed")
    assert {row["data_sha256"] for row in rows()} == {sha256} and states(made) == {"COMPLETE": 2}


def test_what_breaks_every_run_burns_no_point():
    made = create(end=["crash"], end_epoch=[0], seed=[1, 2, 3, 4])
    assert "two points have crashed alike" in work(code=2) and states(made) == {"WAITING": 4}
    Path("mended").touch()
    assert work().count(" finished, val_rec") == 4 and max(starts().values()) == 2


def test_status_shows_what_hangs_and_the_best_and_the_time_to_go():
    create(nap=[0.02], end=["finish", "hang"], seed=[1])
    agent = Forked("agent")
    wait_until(lambda: Path("results/quick.csv").exists() and "does it hang?" in says("status"))
    (best,) = rows()
    said = says("status")
    assert f"best val_rec {float(best['val_rec']):.6g} on toy (run {best['id']})" in said and " min to go" in said
    Path("go").touch()
    agent.ends()


def test_a_cell_that_is_no_number_ends_one_runs_try():
    made = create(seed=[1, 2])
    folder = Path("runs") / trials(made)[0].user_attrs["run"]["id"]
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"status": "finished"}')
    (folder / "metrics.csv").write_text("epoch,val_rec\n0,x\n")
    assert "cannot go on: could not convert" in work(code=1) and states(made) == {"COMPLETE": 1, "FAIL": 1}


def test_a_summary_that_is_damaged_ends_one_runs_try():
    made = create(seed=[1, 2])
    folder = Path("runs") / trials(made)[0].user_attrs["run"]["id"]
    folder.mkdir(parents=True)
    (folder / "summary.json").touch()
    assert "summary.json is damaged; delete it" in work(code=1) and states(made) == {"COMPLETE": 1, "FAIL": 1}


def test_a_run_that_cannot_start_blocks_no_other():
    made = create(end=["refuse", "finish"], seed=[1, 2])
    work("--n", "3", code=2)
    assert states(made) == {"COMPLETE": 2, "WAITING": 2}


def test_an_agent_that_cannot_write_stops_and_the_others_end():
    made = create(seed=[1, 2])
    (Path(".sweeps") / made["id"] / f"{trials(made)[0].user_attrs['run']['id']}.log").mkdir()
    assert "stops, and nothing is lost: cannot write" in work("--n", "2", code=4)
    assert states(made)["COMPLETE"] == 1


def test_rows_that_were_lost_are_made_again_by_agents():
    create(end=["finish", "diverge"], seed=[1])
    work()
    Path("results/quick.csv").write_text("")
    assert "2 rows were not there" in work() and len(rows()) == 2 and "has all rows" in says("rebuild")


def test_a_grid_is_counted_first_and_its_journal_grows_linearly():
    write(**{key: [float(k) for k in range(1, 101)] for key in ("lr", "w_v", "plummet_threshold", "percentile")})
    assert "the grid has 100,000,000 points; allowed: at most 100,000" in says("create", "quick.yaml", code=2)
    sizes = []
    for n in (150, 300):
        made = create(lr=[k / 1000 for k in range(1, n + 1)])
        sizes.append(Path(f".sweeps/{made['id']}/journal.log").stat().st_size)
        assert len(points(made)) == n
    assert sizes[1] < 2.2 * sizes[0]


def test_a_file_that_says_something_twice_or_names_no_file_is_refused():
    text = (
        "program: {}\nmethod: grid\nmetric: {{name: val_rec}}\nname: {}\nparameters: {{problem: {{value: toy}}, {}}}\n"
    )
    cases = [("a", "lr: {values: [1, 2, 1]}", "lr needs value or values, each once")]
    cases += [("a", "lr: {value: 1}, lr: {value: 2}", "a key is given twice"), ("two words", "", "name 'two words'")]
    for name, parameters, said in cases:
        Path("bad.yaml").write_text(text.format(STUB, name, parameters))
        assert said in (line := says("create", "bad.yaml", code=2)) and line.count("\n") == 1


def test_create_prints_its_plan_and_the_hours_and_knows_the_same_sweep():
    Path("results").mkdir()
    known = ["toy,finished,10,3600", "toy,finished,10,7200", "toy,failed,10,9", "toy,finished,10,10800"]
    Path("results/a.csv").write_text("\n".join(["problem,status,n_epochs,seconds", *known, ""]))
    Path("results/b.csv").write_text("measure,problem\nother,toy\n")
    write(seed=[1, 2], lr=[0.1, 0.2, 0.3], n_epochs=[20])
    said = says("create", "quick.yaml", "--backend", "local")
    assert ": 6 runs = 2 seed x 3 lr, about 24.0 h for one agent by the rows in results/; toy from" in said
    assert "is the same sweep" not in said and "is the same sweep" in says("create", "quick.yaml", "--backend", "local")


def test_settings_with_which_no_run_can_prune_are_refused():
    sizes = dict(seed=[1], n_epochs={"value": 100}, pruning_epoch={"value": 20}, polynomial_schedule_n={"value": 10})
    write(**sizes)
    for flags, said in (("--set n_epochs=4", "SET n_epochs=4: "), ("--epochs 40", "before the schedule of w_v ends")):
        assert said in (line := says("create", "quick.yaml", *flags.split(), code=2)) and line.count("\n") == 1
    create("--epochs", "60", **sizes)


def test_a_database_that_is_away_is_waited_for_and_nothing_is_lost(monkeypatch):
    """For some tries at each place where agents ask it; then for good."""
    made, away = create(seed=[1, 2]), {"claim": 2, "report": 1, "end": 2, "is_busy": 1}

    def flaky(name, method):
        def asked(*args, **how):
            away[name] -= 1
            if away[name] >= 0:
                raise optuna.exceptions.StorageInternalError("gone: postgresql://me:secret@host/db")
            return method(*args, **how)

        return asked

    for name in away:
        monkeypatch.setattr(sweep.Queue, name, flaky(name, getattr(sweep.Queue, name)))
    said = work("--n", "2")
    assert said.count("no answer from its queue, asking again in ") == 6 and "secret" not in said
    assert states(made) == {"COMPLETE": 2} and set(starts().values()) == {1}
    made, away["end"] = create(seed=[3]), 10**6
    monkeypatch.setattr(sweep, "LONGEST", 2)
    assert "nothing is lost" in work(code=4)
    away["end"] = 0
    work()
    assert states(made) == {"COMPLETE": 1} and set(starts().values()) == {1} and len(rows()) == 3


def test_a_signal_is_named(monkeypatch):
    """And which job of a cluster a run was."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert record.describe_machine(torch.device("cpu"))["machine"]["slurm_job_id"] == "77"
    assert sweep.ending(-9) == "killed (signal 9; out of memory?)" and sweep.ending(1) == "exit code 1"


def test_a_point_whose_schedule_follows_its_designs_is_not_run_again(monkeypatch, capsys):
    """comparisons/width.yaml gives no n_epochs: a row has what train.py made of it."""
    Path("train.py").symlink_to(ROOT / "train.py")
    monkeypatch.setattr(train, "EPOCHS", 1)
    two_seeds(monkeypatch, "--problem=toy --latent_dim=4 --strategy=plummet --wandb=disabled --test", "width-trial")
    capsys.readouterr()
    asked = ["--backend", "local", "--set", "problem=toy latent_dim=4 seed=1,2,3"]
    assert sweep.main(["create", str(ROOT / "comparisons/width.yaml"), *asked]) == 0
    said = capsys.readouterr()
    assert "2 points are in results/width-trial.csv already" in said.out and ": 1 runs" in said.out and not said.err
