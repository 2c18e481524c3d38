"""Finished runs -> the answer to a sweep's question: one self-contained HTML page, its figures (PNG, SVG) and tables (CSV, Markdown).

    python report.py --sweep 01 --runs runs                        # make report SWEEP=01 RUNS=runs
    python report.py --sweep 01 --runs results/01.csv              # from the rows that the agents keep: no curves, no proposals
    python report.py --sweep 02 --wandb entity/project/sweepid     # the same from W&B

Expect report/<sweep>/index.html within seconds to a minute, also while the sweep is running: the page says how complete it is. A run that
is broken, stopped or diverged is listed on the page and does not end the report.
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

from reporting import collect, compare, deepdive, hyperparameters, safeguards, stats, studies
from reporting.collect import RESULT_METRICS, InputError, read_run  # noqa: F401  sweep.py asks here
from reporting.page import Page, num

ANSWERS = {
    "01": compare.strategies,
    "01b": compare.levels,
    "02": safeguards.safeguards,
    "03": hyperparameters.hyperparameters,
    "04": deepdive.deepdive,
    "05": deepdive.deepdive,
    "06": deepdive.deepdive,
}
STATES = ("finished", "running", "stopped", "diverged", "broken")


def build(name, runs, out, where):
    """The page of sweep `name` from `runs`, in the folder out/<name>. Returns (path of index.html, the study)."""
    study = studies.study(name, runs)
    page = Page(Path(out) / name, f"Sweep {name}: {study.title}")
    # What hyperband stopped is over, too: a search has reached its cap by the number of its runs
    over = [run for run in study.own if run.status == "finished" or (study.name == "03" and run.status in ("stopped", "diverged"))]
    finished = sum(run.status == "finished" for run in study.own)
    if study.done and len(over) < study.points:
        page.opening.append(f"Preliminary, {finished} of {study.points} points are finished.")
    found = sorted({run.flags["problem"] for run in study.done})
    if found and name not in deepdive.SWEEPS and not set(studies.STUDY) <= set(found):
        page.opening.append(f"On {' and '.join(found)} only:")
    if study.done:
        ANSWERS[name](study, page, *([runs] if ANSWERS[name] is deepdive.deepdive else []))
    else:
        page.verdict("undecided", study.hypothesis, f"No finished run of this sweep yet in {where}.", [])
    facts(study, page, where)
    run_tables(study, page)
    caveats(study, page)
    return page.write(), study


def facts(study, page, where):
    """Question, hypothesis and rule from the YAML, how complete the sweep is, the data and the versions."""
    states = Counter(run.status for run in study.own)
    told = [f"{states['finished']} of {study.points} points finished", *(f"{states[s]} {s}" for s in STATES[1:] if states[s])]
    told += [f"{len(study.borrowed)} runs of 01 beside them"] if study.borrowed else []
    told += [f"{len(study.left_out)} left out"] if study.left_out else []
    digests = {}
    for run in study.done:
        data = run.data
        size = f"{data.get('train')}/{data.get('val')}/{data.get('test')} designs of {data.get('height')}x{data.get('width')}, "
        digests.setdefault(run.flags["problem"], set()).add(
            f"{data.get('source', 'unknown')}, {size if 'train' in data else ''}sha256 {str(data.get('sha256', ''))[:12]}"
        )
    versions = Counter(", ".join(f"{k} {v}" for k, v in run.versions.items()) or "not recorded" for run in study.done)
    commits = Counter(str(run.git)[:12] for run in study.done)
    machines = Counter(
        ", ".join(str(run.machine[k]) for k in ("cpu", "device") if run.machine.get(k)) or "not recorded" for run in study.done
    )
    epochs = sorted({str(run.flags.get("n_epochs")) for run in study.done})
    hours = sum(run.value("seconds") for run in study.done if run.value("seconds") > 0) / 3600
    page.facts(
        [
            ("Question", study.question),
            ("Rule", study.rule),
            ("How it is tested", _method(study)),
            ("Runs", f"{', '.join(told)}. From {where}."),
            ("Length", f"{' and '.join(epochs) or 'no'} epochs a run, {num(hours)} hours in all"),
            ("Data", "; ".join(f"{problem}: {' and '.join(sorted(s))}" for problem, s in sorted(digests.items())) or "no finished run"),
            ("Versions", "; ".join(f"{v} ({n} runs)" for v, n in versions.items()) or "no finished run"),
            ("Code", "; ".join(f"{c} ({n} runs)" for c, n in commits.items()) or "no finished run"),
            ("Machines", "; ".join(f"{m} ({n} runs)" for m, n in machines.items()) or "no finished run"),
        ]
    )


def _method(study):
    """The tests of this page in words, with their thresholds."""
    if study.name == "03":
        return (
            f"PED-ANOVA (Optuna) and partial F-tests (scipy) with Holm's correction; a claim needs p below {study.alpha:g} and at least "
            f"{stats.MIN_COMPLETED} completed runs on every problem."
        )
    kind = "one-sample and paired t-tests over the seeds" if study.name in deepdive.SWEEPS else "paired t-test over problem-seed pairs"
    return (
        f"Two-sided {kind} (scipy) with Holm's correction; a claim needs p below {study.alpha:g} after it, an interval clear of the margin "
        f"({num(100 * math.expm1(study.margin))} %), and at least {stats.MIN_SEEDS} seeds. Bootstrap intervals are for the eye only."
    )


def run_tables(study, page):
    """Runs by arm and status; every run that is not in the numbers, and why."""
    page.section("Runs")
    arms = sorted({(run.flags.get("problem", "?"), study.arm.get(run.where, "?")) for run in study.runs})
    rows = []
    for problem, arm in arms:
        mine = [r for r in study.runs if (r.flags.get("problem", "?"), study.arm.get(r.where, "?")) == (problem, arm)]
        done = [r for r in mine if r.status == "finished"]
        seeds = sorted({r.flags["seed"] for r in done}, key=collect.number)
        counts = [sum(r.status == s for r in mine) for s in STATES]
        rows.append([problem, arm, *counts, " ".join(map(str, seeds)) or "–"])
    page.table("runs", ["problem", "arm", *STATES, "seeds finished"], rows, "Runs by problem, arm and status.", closed=len(rows) > 40)
    odd = [
        [
            run.id,
            run.status,
            run.flags.get("problem", "–"),
            study.arm.get(run.where, "–"),
            str(run.flags.get("seed", "–")),
            run.cause or "–",
            run.where,
        ]
        for run in study.runs
        if run.status != "finished"
    ]
    odd += [
        [run.id, run.status, run.flags.get("problem", "–"), "–", str(run.flags.get("seed", "–")), f"left out: {why}", run.where]
        for run, why in study.left_out
    ]
    if odd:
        page.table(
            "not-used",
            ["run", "status", "problem", "arm", "seed", "why", "where"],
            odd,
            "Runs that are not in the numbers.",
            closed=len(odd) > 20,
        )


def caveats(study, page):
    """What a reader should doubt, computed from the runs."""
    if any(line.startswith("Preliminary") for line in page.opening) or not study.done:
        finished = sum(run.status == "finished" for run in study.own)
        page.caveat(f"Incomplete: {finished} of the {study.points} points of the sweep are finished.")
    for note in study.notes:
        page.caveat(note)
    seeds = {}
    for run in study.done:
        seeds.setdefault((run.flags["problem"], study.arm[run.where]), set()).add(run.flags["seed"])
    few = [f"{arm} on {problem} ({len(s)})" for (problem, arm), s in sorted(seeds.items()) if len(s) < stats.MIN_SEEDS]
    if few and study.name != "03":
        page.caveat(f"Fewer than {stats.MIN_SEEDS} seeds: {_some(few)}.")
    for state in ("diverged", "broken", "stopped"):
        count = Counter(study.arm.get(run.where, "unknown arm") for run in study.runs if run.status == state)
        if count and not (study.name == "03" and state == "stopped"):
            told = ", ".join(f"{arm} {n}" for arm, n in sorted(count.items()))
            page.caveat(
                f"{state.capitalize()} runs by arm: {told}. They are in no mean and no test; an arm that loses its worst runs "
                "looks better than it is."
            )
    idle = Counter()
    for run in study.done:
        if run.flags["strategy"] != "none" and run.value("prune_events") == 0:
            idle[study.arm[run.where], run.flags["problem"]] += 1
    if idle:
        page.caveat(
            f"Pruning never happened in: {_some([f'{arm} on {problem} ({n} runs)' for (arm, problem), n in sorted(idle.items())])}."
        )
    sources = {run.data.get("source") for run in study.done}
    if len(sources) > 1:
        page.caveat(f"The problems' designs come from different sources: {', '.join(sorted(map(str, sources)))}.")
    commits = {run.git for run in study.done}
    if len(commits) > 1:
        page.caveat(f"The runs come from {len(commits)} versions of the code.")
    if any(str(c).endswith("+changes") for c in commits):
        page.caveat("Some runs come from code with uncommitted changes.")
    if len({str(sorted(run.versions.items())) for run in study.done}) > 1:
        page.caveat("The runs come from different versions of the libraries.")
    if not page.caveats:
        page.caveat("None found: no missing seeds, no failed runs, no best value at the edge of a range.")


def _some(items, most=8):
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", required=True, help="01, 01b, 02, 03, 04, 05 or 06")
    parser.add_argument("--runs", default="runs", help="folder with run folders anywhere below it, or a results/NN.csv (runs)")
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT/ID", action="append", help="read this W&B sweep instead of --runs; may be repeated"
    )
    parser.add_argument("--out", default="report", help="folder for the pages (report)")
    args = parser.parse_args(argv)
    try:
        if args.sweep not in ANSWERS:
            raise InputError(f"--sweep {args.sweep}: no such sweep; allowed: {', '.join(ANSWERS)}")
        runs = [run for path in args.wandb for run in collect.wandb_runs(path)] if args.wandb else collect.local_runs(args.runs)
        path, study = build(args.sweep, runs, args.out, f"W&B: {', '.join(args.wandb)}" if args.wandb else args.runs)
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report.py: --out {args.out}: cannot write ({error.strerror or error})", file=sys.stderr)
        return 4
    print(
        f"{path}: {sum(run.status == 'finished' for run in study.own)} of {study.points} points finished, "
        f"{len(study.runs) - len(study.done)} other runs, {len(study.left_out)} left out"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
