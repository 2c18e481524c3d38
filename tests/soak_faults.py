"""The faults of test_faults.py, each many times: `make soak`, or pytest on this file; writes results/faults.md."""

import os

os.environ.setdefault("SOAK", "1")

from test_faults import folder, test_nothing_is_lost  # noqa: F401  the soak is these, at the scale of SOAK
