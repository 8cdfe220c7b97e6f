"""Backends, random arguments and the comparison with a float64 oracle that the operator tests share."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from fisherkernels import ops

sys.path.insert(0, str(Path(__file__).parent))  # the helper module beside the tests

# Root mean square of the error over that of the expected values, the latter at least SCALE times the root of the number
# of terms in a sum: cancellation to almost nothing leaves the rounding of the terms, which in bfloat16 includes that of
# stored residuals.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-2}
_SCALE = {torch.float64: 0.1, torch.float32: 0.1, torch.bfloat16: 1.0}


class _TorchRandom:
    """torch's generator as hypothesis wants one: it then starts every example from the same state."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_TORCH_RANDOM = _TorchRandom()
hypothesis.register_random(_TORCH_RANDOM)


@pytest.fixture(
    params=[
        "torch-cpu",
        "native-cpu",
        pytest.param("torch-cuda", marks=pytest.mark.gpu),
        pytest.param("native-cuda", marks=pytest.mark.gpu),
    ]
)
def device(request):
    """A device, with the PyTorch twins or the native kernels running on it.

    A missing native library skips the test, or fails it where FISHERKERNELS_REQUIRE_NATIVE=1.
    """
    backend, name = request.param.split("-")
    if backend == "torch":
        with ops.use_twins():
            yield torch.device(name)
        return
    status = ops.backends()[name]
    if not status.active:
        reason = f"no native {name} library at {status.path}: {status.reason}"
        if os.environ.get("FISHERKERNELS_REQUIRE_NATIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    yield torch.device(name)


@pytest.fixture
def random_tensor():
    """make(shape, dtype, device, layout): standard normal; layout "contiguous", "strided" or "transposed"."""

    def make(shape, dtype=torch.float64, device="cpu", layout="contiguous"):
        if layout == "strided" and shape:
            wide = torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64)
            return wide.to(device, dtype)[..., ::2]
        if layout == "transposed" and len(shape) == 2:
            return torch.randn(shape[1], shape[0], dtype=torch.float64).to(device, dtype).t()
        return torch.randn(shape, dtype=torch.float64).to(device, dtype)

    return make


def _leaves(args, differentiable):
    """The arguments as fresh leaves in the memory layout they came with."""
    leaves = []
    for position, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            value = value.detach().requires_grad_(position in differentiable)
        leaves.append(value)
    return leaves


def _outputs_and_gradients(function, args, differentiable, weights):
    outputs = function(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if weights is None:
        weights = [torch.randn(t.shape, dtype=torch.float64) for t in outputs]
    loss = sum((t.double() * w.to(t.device)).sum() for t, w in zip(outputs, weights, strict=True))
    wanted = [args[position] for position in differentiable]
    return outputs, torch.autograd.grad(loss, wanted, allow_unused=True), weights


def _relative_error(result, expected, scale):
    if expected.numel() == 0:
        return 0.0
    difference = (result.double().cpu() - expected.cpu()).square().mean().sqrt()
    return (difference / expected.square().mean().sqrt().clamp_min(scale).cpu()).item()


@pytest.fixture
def check_against():
    """check(op, oracle, args): every output and every gradient against autograd of the oracle in float64."""

    def check(op, oracle, args, differentiable=None):
        if differentiable is None:
            differentiable = [i for i, value in enumerate(args) if isinstance(value, torch.Tensor)]
        dtype = next(value.dtype for value in args if isinstance(value, torch.Tensor))
        leaves = _leaves(args, differentiable)
        doubles = [v.double().contiguous() if isinstance(v, torch.Tensor) else v for v in args]
        expected, expected_grads, weights = _outputs_and_gradients(
            oracle, _leaves(doubles, differentiable), differentiable, None
        )
        outputs, grads, _ = _outputs_and_gradients(op, leaves, differentiable, weights)
        largest = max(value.numel() for value in doubles if isinstance(value, torch.Tensor))
        names = [f"output {i}" for i in range(len(outputs))] + [f"gradient {i}" for i in differentiable]
        results = zip(names, (*outputs, *grads), (*expected, *expected_grads), strict=True)
        for name, result, truth in results:
            if truth is None or result is None:  # no gradient is as good as one of zeros
                assert all(t is None or not t.any() for t in (result, truth)), f"{name}: one of the two has no gradient"
                continue
            assert result.shape == truth.shape, name
            assert result.is_contiguous() or name.startswith("gradient"), name
            error = _relative_error(result, truth, _SCALE[dtype] * (max(1, largest) / max(1, truth.numel())) ** 0.5)
            assert error <= _TOLERANCE[dtype], f"{name}: relative RMS error {error:.2e}"
        for position, grad in zip(differentiable, grads, strict=True):
            assert grad is None or grad.dtype == args[position].dtype

    return check
