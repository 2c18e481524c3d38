"""The faults of test_faults.py, each many times, and those of a sweep: `make soak`; writes results/faults.md."""

import inspect
import os

os.environ.setdefault("SOAK", "1")

import pytest
import test_sweep_faults
from test_faults import folder, test_nothing_is_lost, write_row  # noqa: F401  the soak is these, at the scale of SOAK

SWEEP_FAULTS = {name: test for name, test in vars(test_sweep_faults).items() if name.startswith("test_")}


@pytest.mark.parametrize("name", SWEEP_FAULTS)
def test_a_sweep(name, request, here):
    test = SWEEP_FAULTS[name]
    test(**{fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(test).parameters})
    write_row(*test.__doc__.split(" | ")[:1], 1, test.__doc__.split(" | ")[1], "nothing")
