"""EngiBench's published datasets from Hugging Face's hub.

load() runs main() in a process of its own, so that it can end it when it takes too long. That writes a dataset as .npz
to stdout. Exit codes: 0; 1, the hub gave none (why: stderr); 4, the cache cannot be used.
"""

import contextlib
import http.client
import io
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from pathlib import Path

import numpy as np

SPLITS = ("train", "val", "test")
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from tools import hub; sys.exit(hub.main(*sys.argv[2:]))"


class CacheError(Exception):
    """The cache cannot be used. Without it, others who use it would train on other designs."""


class Hung(TimeoutError):
    """A call that does not return."""


def within(function, seconds):
    """function(), in a thread that is waited for so long, since no timeout of its own is to be relied on. Hung."""
    future = Future()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # the function's own
            raise
        raise Hung(f"no answer within {seconds:g} s") from None


def ask(url, seconds=5):
    """None where a server answers at url, or why not: its HTTP status, a web page, no answer. Proxies are honoured.

    A dead DNS server outlasts urlopen's timeout. A certificate that this Python does not know is an
    answer: the client may know it (REQUESTS_CA_BUNDLE), and names it otherwise.
    """
    from lvae import first_line

    try:
        with within(lambda: urllib.request.urlopen(url, timeout=seconds), seconds + 1) as found:
            return "a web page" if "html" in found.headers.get("Content-Type", "") else None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except Hung as error:
        return str(error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return None if "CERTIFICATE" in str(error) else f"no answer ({first_line(error)})"


def _endpoint():
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def load(dataset, columns):
    """{name: array} of a dataset: `optimal_design`, `split`, and those of `columns` that it has.

    From the cache, without a request, if it is there, else from the hub. Bounded in time. Raises OSError where the hub
    gives none, and CacheError.
    """
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home, "datasets")) / dataset.replace("/", "___")
    if cache.is_dir():
        with contextlib.suppress(OSError):  # left unfinished by another
            return _fetch(dataset, columns, HF_HUB_OFFLINE="1")
    url = f"{_endpoint()}/api/datasets/{dataset}"
    if (said := ask(url)) not in (None, "HTTP 401"):  # private: the client knows its token
        raise OSError(f"{said} at {url}")
    return _fetch(dataset, columns)


def _fetch(dataset, columns, **env):
    """What main() gives, in a process of its own, which is ended after HUB_SECONDS."""
    seconds = float(os.environ.get("HUB_SECONDS") or 300)
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent.parent), dataset, ",".join(columns)]
    try:
        done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise OSError(f"{dataset} was not there within {seconds:g} s; HUB_SECONDS=1000 waits longer") from None
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CacheError(said) if done.returncode == 4 else OSError(said)
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as file:
        return dict(file)


def main(dataset, columns):
    stdout = os.dup(1)
    os.dup2(2, 1)  # what the libraries print is no part of the designs
    try:
        from datasets import disable_progress_bars, load_dataset

        disable_progress_bars()
        found, parts = load_dataset(dataset), {}
        have = {column for split in SPLITS for column in found[split].column_names}
        for column in ("optimal_design", *(c for c in columns.split(",") if c in have)):
            rows = [x for split in SPLITS for x in found[split].with_format("numpy")[column]]
            parts[column] = np.stack([np.asarray(x, np.float32 if x.ndim else None) for x in rows])
        parts["split"] = np.repeat(SPLITS, [len(found[split]) for split in SPLITS])
    except Exception as error:  # datasets, huggingface_hub, pyarrow and httpx raise a dozen types between them
        from lvae import first_line  # with torch, which takes seconds to load: only where something is the matter

        innermost, status = error, None
        while error is not None:  # what it came from is innermost
            if isinstance(error, OSError) and error.errno and error.filename:
                print(f"{error.filename}: {error.strerror}", file=sys.stderr)
                return 4
            status = status or getattr(getattr(error, "response", None), "status_code", None)
            if "is not cached" not in str(error):  # what `datasets` looks for last
                innermost = error
            error = error.__cause__ or error.__context__
        page = f"{_endpoint()}/datasets/{dataset}/resolve/main/README.md"
        why = f"HTTP {status}" if status else "a web page" if ask(page) == "a web page" else first_line(innermost)
        print(why, file=sys.stderr)
        return 1
    with open(stdout, "wb") as file:
        np.savez(file, **parts)
    return 0
