"""Put the best of several runs of a problem's final setting into models/: its record, and its model in 8 bits, small enough to commit.

    python -m tools.ship --runs results/04-models.csv results/05-models.csv results/06-models.csv      # make ship

The best is the one with the least val_rec; the test error takes no part. The run's folder must still be there, with its model.pt
(SET=save_model=True). models/<problem>/ is then a run's folder, too: for gallery.py --run, and for train.py --config.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from lvae import load
from record import read_csv, write_atomically

LOSS = 0.01  # how much of val_rec the 8 bits may cost, at most


def quantise(saved):
    """What model.pt holds, with each large weight (outputs, inputs) in 8 bits: (int8, scale (outputs, 1)). A quarter of the size.

    The largest weight of a row becomes 127, so that none is off by more than 1/254 of it. load() reads both.
    """

    def narrow(weight):
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        return (weight / scale).round().to(torch.int8), scale

    return saved | dict(
        state={key: narrow(value) if value.numel() > 2**14 else value for key, value in saved["state"].items()}
    )


def finished_rows(path):
    return [row for row in read_csv(Path(path)).to_dict("records") if row["status"] == "finished"]


def best(path):
    """The finished row of a results CSV with the least val_rec. Raises InputError."""
    rows = finished_rows(path)
    if not rows or len({row["problem"] for row in rows}) > 1:
        raise data.InputError(
            f"--runs {path}: {'rows of several problems' if rows else 'no finished rows'}; allowed: finished rows of one"
        )
    return min(rows, key=lambda row: float(row["val_rec"]))


def ship(row, runs, out):
    """Write out/<problem>/ of the run of a row; returns what to say of it. Raises InputError if its model is not that of the row."""
    source, target = runs / row["id"], out / row["problem"]
    load(source / "model.pt")  # or one clear line
    saved = quantise(torch.load(source / "model.pt", weights_only=True))
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    val = data.load(row["problem"], row["data"]).val
    model = load(io.BytesIO(buffer.getvalue()))
    with torch.no_grad():
        val_rec = F.mse_loss(model.decode(model.encode(val)), val).item()
    recorded = float(row["val_rec"])
    if abs(val_rec / recorded - 1) > LOSS:
        wrong = f"val_rec {val_rec:.4g} in 8 bits, {recorded:.4g} in its row; allowed: {LOSS:.0%} apart"
        raise data.InputError(f"{source / 'model.pt'}: {wrong}")
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "model.pt", buffer.getvalue())
    for name in ("config.json", "summary.json"):
        shutil.copyfile(source / name, target / name)
    size = f"{row['active_dims']} dims, {buffer.tell() / 1e6:.1f} MB"
    return f"{target}: {row['name']}, {size}, val_rec {val_rec:.6g} ({recorded:.6g} before the 8 bits)"


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", required=True, nargs="+", type=Path, help="results CSVs, one a problem")
    p.add_argument("--folder", default="runs", type=Path, help="where the runs' folders are (runs)")
    p.add_argument("--out", default="models", type=Path, help="where to put them (models)")
    args = p.parse_args(argv)
    try:
        for row in [best(path) for path in args.runs]:
            print(ship(row, args.folder, args.out), flush=True)
    except data.InputError as error:
        print(f"tools.ship: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tools.ship: cannot write ({error})", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
