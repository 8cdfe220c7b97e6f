"""What every test runs under.

`torch.empty` and its kin give NaN (torch's own switch, so that memory asked for by C++ kernels is filled too):
an output that a kernel forgets to write then fails its comparison. Each pytest-xdist worker computes on one
thread. This file stands alone: a copy of it beside a copy of the tests works outside the source tree.
"""

import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when the libraries load, so set before torch is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MKL_NUM_THREADS"] = "1"
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import HealthCheck, settings

_UNCHECKED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
_QUIET = dict(deadline=None, suppress_health_check=_UNCHECKED)
settings.register_profile("default", max_examples=20, **_QUIET)
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, **_QUIET)
settings.register_profile("few", max_examples=3, derandomize=True, database=None, **_QUIET)  # under slow tools
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def fill_empty_with_nan():
    """Set for every test anew: a Lightning trainer made by the test before it may have reset the switch."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def compile_cold():
    """No test meets graphs, or the recompilation count, of the test before it."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class _Stopped(torch.autograd.Function):
    """Identity that gives no gradient, not even zeros."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


@pytest.fixture
def stopped():
    """stopped(t): t, from which no gradient comes back."""
    return _Stopped.apply
