"""A published dataset from Hugging Face's hub, as .npz on stdout: a program of its own, so that data.py can end it.

python tools/hub.py IDEALLab/beams_2d_50_100_v0 volfrac,rmin,forcedist > x.npz      # HF_HUB_OFFLINE=1: from the cache alone

It needs neither torch nor EngiBench. Exit codes: 0; 1, the hub gave none (why: stderr); 4, the cache cannot be used.
"""

import io
import os
import sys

import numpy as np

SPLITS = ("train", "val", "test")


def reasons(error):
    """An exception and what it came from, innermost last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def asked_again(dataset):
    """What the hub answers, where the client's exception does not say: a status, a foreign page or a cause, or None."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    for path in (f"api/datasets/{dataset}", f"datasets/{dataset}/resolve/main/README.md"):
        try:
            answer = get_session().get(f"{constants.ENDPOINT}/{path}", timeout=5)
        except Exception as error:
            return first_line(error)
        if answer.status_code >= 400:
            return f"HTTP {answer.status_code} for {path}"
        if "html" in answer.headers.get("content-type", ""):
            return f"a web page instead of {path}"
    return None


def main(dataset, columns):
    stdout = os.dup(1)
    os.dup2(2, 1)  # what the libraries print is no part of the designs
    try:
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        found, parts = load_dataset(dataset), {}
        have = {column for split in SPLITS for column in found[split].column_names}
        for column in ("optimal_design", *(c for c in columns.split(",") if c in have)):
            rows = [found[split].with_format("numpy")[column] for split in SPLITS]
            parts[column] = np.concatenate(
                [np.stack([np.asarray(x, np.float32 if x.ndim else None) for x in part]) for part in rows]
            )
        parts["split"] = np.repeat(SPLITS, [len(found[split]) for split in SPLITS])
    except Exception as error:  # datasets, huggingface_hub, pyarrow and httpx raise a dozen types between them
        chain = list(reasons(error))
        status = next((e.response.status_code for e in chain if getattr(e, "response", None) is not None), None)
        local = next((e for e in chain if isinstance(e, OSError) and e.errno and e.filename), None)
        if local:
            print(f"{local.filename}: {local.strerror}", file=sys.stderr)
            return 4
        print(asked_again(dataset) or first_line(error) if status is None else f"HTTP {status}", file=sys.stderr)
        return 1
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    with open(stdout, "wb") as file:
        file.write(buffer.getbuffer())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
