"""Do the rows of a results/NN.csv come out again? Runs a random share of them from their recorded flags, and compares.

    make verify RUNS=results/01-first.csv                    # a random tenth of the rows
    python -m tools.verify --runs results/01-first.csv --ids c6a4a0db ea3b9a67

A row is `equal` if every number of its metrics.csv is, bit for bit (metrics_sha256): expected on the type of CPU that
made it. It is `within the seeds` if log val_rec is no further off than rows of other seeds with these flags lie apart.
Where no other seed was run, any rows with these designs count that differ in the seed alone, in any results/NN*.csv
beside it. That is expected on any other CPU. Exit code 0: each is one of these; 1: some are not; 2: bad input. Nothing
is kept of the runs, and the results are not changed.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from lvae import need
from record import FREE_FLAGS, LEGACY, Parser, cores, cpu_model, guarded, read_csv, read_json
from report import BOOKKEEPING, RESULT_METRICS
from train import DEFAULTS

# Training designs in samples/ before they grew: a row of then has no n_train
FIRST_TRAINED_ON = dict(beams2d=716, heatconduction2d=716)


def finished_rows(path):
    """The rows of a results/NN.csv that are finished runs, a DataFrame of text."""
    rows = read_csv(path)
    return rows[rows["status"] == "finished"] if len(rows) else rows


def spread(row, rows):
    """How far apart log val_rec lies at most between rows that differ in the seed alone; NaN where there are none.

    Among rows with this row's flags; where it has no other seed, among any rows with its designs.
    """
    keys = [key for key in DEFAULTS if key not in (*FREE_FLAGS, "seed")]
    rows = rows[rows["data_sha256"] == row["data_sha256"]].reindex(columns=[*keys, "seed", "val_rec"])
    older = {key: str(value) for key, value in LEGACY.items()}
    rows, row = (x.replace("", np.nan).fillna(older).fillna("") for x in (rows, row.reindex(keys)))
    rows = rows.drop_duplicates([*keys, "seed"], keep="last")
    logs = np.log(rows["val_rec"].astype(float)).groupby([rows[key] for key in keys])
    apart = (logs.max() - logs.min())[logs.size() > 1]
    return apart.get(tuple(row), apart.max())


def again(row):
    """Run a row's flags in a folder of its own; returns its summary and the fingerprint of its designs."""
    with tempfile.TemporaryDirectory(prefix="verify-") as out:
        folder, flags = Path(out) / row["id"], Path(out) / "flags.json"
        known = {key: value for key, value in row.items() if value and key not in (*RESULT_METRICS, *BOOKKEEPING)}
        if "n_train" not in row and row["data"] == "sample":
            known["n_train"] = FIRST_TRAINED_ON.get(row["problem"], 0)
        flags.write_text(json.dumps({"flags": known, "git": row["git"]}))  # a flag that is no more is named
        command = [sys.executable, str(Path(__file__).parent.parent / "train.py"), f"--config={flags}", f"--out={out}"]
        command += ["--wandb=disabled", "--save_model=False"]
        command += ["--device=auto"] if row["device"] != "cpu" else []  # there may be no GPU
        env = {**os.environ, "WANDB_RUN_ID": row["id"]}
        done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        summary, config = (read_json(folder / name) or {} for name in ("summary.json", "config.json"))
        return summary or {"cause": done.stderr.strip()}, config.get("data", {})


def compare(row, rows):
    """(whether a row came out again, what to say of it)."""
    summary, designs = again(row)
    if "val_rec" not in summary:
        return False, f"did not finish ({summary['cause']})"
    if designs.get("sha256") != row["data_sha256"]:
        found = f"{designs.get('source')} {designs.get('sha256', '')[:12]}"
        return False, f"other designs ({found}, recorded {row['data_sha256'][:12]})"
    if summary["metrics_sha256"] == row["metrics_sha256"]:
        return True, f"equal, val_rec {summary['val_rec']:.6g}"
    off, apart = abs(math.log(summary["val_rec"] / float(row["val_rec"]))), spread(row, rows)
    word = "within the seeds" if off <= apart else "NOT within the seeds"
    word = "no other seed to compare with" if math.isnan(apart) else word
    values = f"val_rec {summary['val_rec']:.6g}, recorded {float(row['val_rec']):.6g}"
    made = f"made on {row.get('cpu')}, this is {cpu_model()}"
    return off <= apart, f"{word}: {values}, log apart {off:.2g}, seeds {apart:.2g} ({made})"


def run(args):
    rows = finished_rows(args.runs)
    need(len(rows), f"--runs {args.runs}: no finished rows")
    unknown = set(args.ids or ()) - {*rows["id"]}
    need(not unknown, f"--ids {' '.join(sorted(unknown))}: not finished rows of {args.runs}")
    need(0 < args.share <= 1, f"--share {args.share}: allowed: 0 < share <= 1")
    chosen = rows[rows["id"].isin(args.ids)] if args.ids else rows.sample(max(1, round(args.share * len(rows))))
    tables = {args.runs, *args.runs.parent.glob("[0-9]*.csv")}
    beside = pd.concat([finished_rows(path) for path in tables])
    chosen, good, pool = [row for _, row in chosen.iterrows()], 0, ThreadPoolExecutor(cores())
    try:
        for row, (right, said) in zip(chosen, pool.map(lambda row: compare(row, beside), chosen), strict=True):
            good += right
            print(f"{row['name']}: {said}", flush=True)
    finally:  # after Ctrl-C the runs have got it, too, and stop
        pool.shutdown(cancel_futures=True)
    print(f"{good} of {len(chosen)} rows came out again (of {len(rows)} in {args.runs})")
    return good != len(chosen)


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--runs", required=True, type=Path, help="a results/NN.csv")
    p.add_argument("--share", type=float, default=0.1, help="share of its finished rows, at least one (0.1)")
    p.add_argument("--ids", nargs="+", help="these rows instead")
    return guarded("tools.verify", run, p.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
