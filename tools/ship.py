"""Put the best run of each problem into models/: its files, and its model in 8 bits, small enough to commit.

    python -m tools.ship --runs results/baselines.csv --arm strategy=plummet      # make ship

The best is the one with the least val_rec. The test error takes no part: it is measured once, on what is shipped. The
run's folder must still be there, with its model.pt. models/<problem>/ is then a run's folder, too: for tools.gallery
--run, and for train.py --config. models/rows.csv has the rows.
"""

import io
import sys
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

import data
from lvae import load, need
from record import Parser, guarded, read_json, to_json, write_atomically
from tools.verify import finished_rows

LOSS = 0.01  # how much of val_rec the 8 bits may cost, at most


def quantise(saved):
    """What model.pt holds, with each large weight (outputs, inputs) in 8 bits: (int8, scale (outputs, 1)).

    That is a quarter of the size. The largest weight of a row becomes 127, so that none is off by more than 1/254 of
    it. load() reads both.
    """
    state = dict(saved["state"])
    for key, weight in state.items():
        if weight.numel() > 2**14:
            scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            state[key] = (weight / scale).round().to(torch.int8), scale
    return saved | dict(state=state)


def best(path, arm=None):
    """The finished row with the least val_rec of each problem in a results CSV, of one arm if given: a DataFrame."""
    rows = finished_rows(path)
    rows = rows[rows["arm"] == arm] if arm and len(rows) else rows
    need(len(rows), f"--runs {path}: no finished rows" + (f" of --arm {arm}" if arm else ""))
    return rows.loc[rows["val_rec"].astype(float).groupby(rows["problem"]).idxmin()]


def ship(row, runs, out):
    """Write out/<problem>/ of the run of a row; returns what to say of it. InputError if its model is another."""
    source, target = runs / row["id"], out / row["problem"]
    load(source / "model.pt")  # or one clear line
    designs, saved = data.load(row["problem"], row["data"]), torch.load(source / "model.pt", weights_only=True)
    buffer = io.BytesIO()
    torch.save(quantise(saved), buffer)
    model = load(io.BytesIO(buffer.getvalue()))
    with torch.no_grad():
        val_rec, test_rec = (F.mse_loss(model(x), x).item() for x in (designs.val, designs.test))
    recorded = float(row["val_rec"])
    wrong = f"val_rec {val_rec:.4g} in 8 bits, {recorded:.4g} in its row; allowed: {LOSS:.0%} apart"
    need(abs(val_rec / recorded - 1) <= LOSS, f"{source / 'model.pt'}: {wrong}")
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "model.pt", buffer.getvalue())
    write_atomically(target / "config.json", (source / "config.json").read_bytes())
    summary = (read_json(source / "summary.json") or {}) | dict(shipped_val_rec=val_rec, test_rec=test_rec)
    write_atomically(target / "summary.json", to_json(summary))
    size = f"{row['active_dims']} dims, {buffer.tell() / 1e6:.1f} MB"
    return f"{target}: {row['name']}, {size}, val_rec {val_rec:.6g} ({recorded:.6g} before the 8 bits)"


def run(args):
    rows = pd.concat([best(path, args.arm) for path in args.runs])
    for _, row in rows.iterrows():
        print(ship(row, args.folder, args.out), flush=True)
    write_atomically(args.out / "rows.csv", rows.to_csv(index=False, lineterminator="\n"))


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("--runs", required=True, nargs="+", type=Path, help="results CSVs, one a problem")
    p.add_argument("--arm", help="rows of this arm alone")
    p.add_argument("--folder", default="runs", type=Path, help="where the runs' folders are (runs)")
    p.add_argument("--out", default="models", type=Path, help="where to put them (models)")
    return guarded("tools.ship", run, p.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
