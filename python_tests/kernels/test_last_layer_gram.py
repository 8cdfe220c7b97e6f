import importlib.util
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisherkernels.kernels import last_layer_gram
from fisherkernels.kernels.last_layer_gram import _scale

HERE = Path(__file__).resolve()
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not interpreted, reason="needs TRITON_INTERPRET=1")
pytestmark = [pytest.mark.usefixtures("tensor_cores")] if interpreted else []


def triton_gram(tangents, weight, precision, slope=None, multiprocessors=1, tile=64):
    from fisherkernels.kernels.last_layer_gram_triton import gram_in_shares

    return gram_in_shares(tangents, weight, _scale(precision, slope), multiprocessors, tile)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture(
    params=["cpu", pytest.param("triton", marks=needs_interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def route(request):
    """The function to test, and the device that its arguments live on."""
    if request.param == "triton":
        return triton_gram, "cpu"
    return last_layer_gram, request.param


def arguments(size, samples, features, outputs, *, rows="1", columns="1", slope=False, layout="contiguous", seed=0):
    """Float64 arguments; rows and columns of the precision are "1" or "all"."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    if layout == "contiguous":
        tangents, weight = normal(size, samples, features), normal(outputs, features)
    elif layout == "strided":
        tangents, weight = normal(samples, features, size).permute(2, 0, 1), normal(features, outputs).mT
    else:  # expanded
        tangents, weight = normal(size, 1, features).expand(size, samples, features), normal(outputs, 2 * features)
        weight = weight[:, ::2]
    shape = (samples if rows == "all" else 1, outputs if columns == "all" else 1)
    return tangents, weight, normal(*shape).exp(), normal(samples, outputs) if slope else None


def moved(args, dtype, device):
    return [t if t is None else t.to(device, dtype, memory_format=torch.preserve_format) for t in args]


def dense(tangents, weight, precision, slope):
    jacobian = torch.einsum("oh,inh->noi", weight, tangents)  # [N, D, d]
    if slope is not None:
        jacobian = slope[:, :, None] * jacobian
    return torch.einsum("noi,no,noj->nij", jacobian, precision.expand(len(jacobian), len(weight)), jacobian)


def check(function, device, args, dtype, tolerance):
    result = function(*moved(args, dtype, device))
    truth = dense(*args)
    assert result.shape == truth.shape and result.dtype is dtype and result.is_contiguous()
    if truth.numel():
        error = (result.cpu().double() - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-3)
        assert error <= tolerance, f"relative RMS error {error:.1e}"
    return result


ARGUMENTS = st.builds(
    arguments,
    size=st.sampled_from([1, 2, 7, 20, 33, 63, 70]),
    samples=st.sampled_from([1, 3, 8, 13]),
    features=st.sampled_from([1, 31, 40]),
    outputs=st.sampled_from([1, 17, 65, 150]),
    rows=st.sampled_from(["1", "all"]),
    columns=st.sampled_from(["1", "all"]),
    slope=st.booleans(),
    layout=st.sampled_from(["contiguous", "strided", "expanded"]),
)


@given(args=ARGUMENTS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_gram(device, args, dtype):
    check(last_layer_gram, device, args, dtype, 2e-6 if dtype is torch.float32 else 1e-13)


@needs_interpreter
@settings(max_examples=6)
@given(args=ARGUMENTS)
def test_gram_by_triton(args):
    check(triton_gram, "cpu", args, torch.float32, 2e-6)


@needs_interpreter
@pytest.mark.parametrize("size, samples", [(20, 7), (100, 2), (128, 1)])
def test_outputs_shared_by_triton_blocks(size, samples):
    for slope in (False, True):
        args = arguments(size, samples, 40, 150, slope=slope)
        check(partial(triton_gram, multiprocessors=6, tile=32), "cpu", args, torch.float32, 2e-6)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("size, samples, features, outputs", [(20, 60, 64, 700), (100, 7, 96, 900), (128, 3, 33, 4100)])
def test_many_tiles(device, size, samples, features, outputs, slope):
    """More samples than go at once, outputs in several tiles or shares, Gram matrices in several blocks."""
    args = arguments(size, samples, features, outputs, slope=slope)
    result = check(last_layer_gram, device, args, torch.float32, 2e-6)
    torch.testing.assert_close(result, result.mT, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("size", [129, 200])
def test_size_beyond_the_triton_kernel(size):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = check(last_layer_gram, device, arguments(size, 3, 20, 30, slope=True), torch.float32, 2e-6)
    assert torch.equal(result, result.mT)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("empty", range(4))
def test_empty(empty, slope):
    shape = [3, 4, 5, 6]
    shape[empty] = 0
    args = arguments(*shape, slope=slope)
    assert torch.equal(last_layer_gram(*args), torch.zeros(shape[1], shape[0], shape[0], dtype=torch.float64))


@pytest.mark.parametrize("where", ["tangents", "slope", "precision"])
def test_nan_stays_in_its_sample(route, where):
    function, device = route
    args = moved(arguments(9, 8, 12, 70, rows="all", columns="all", slope=True), torch.float32, device)
    clean = function(*args)
    {"tangents": args[0][-1, 3], "slope": args[3][3], "precision": args[2][3]}[where][-1] = torch.nan
    result = function(*args)
    others = [n for n in range(8) if n != 3]
    assert result[3].isnan().any() and torch.equal(result[others], clean[others])


def test_both_ways_agree_with_a_condition_number_of_500(route):
    """float32 is accurate enough for the smallest eigenvalue of Gram + 1 where the largest is 500."""
    function, device = route
    tangents, weight, _, _ = arguments(20, 4, 32, 300)
    tangents *= torch.logspace(0, -2, 20, dtype=torch.float64)[:, None, None]
    largest = torch.linalg.eigvalsh(dense(tangents, weight, torch.ones(1, 1, dtype=torch.float64), None))[:, -1:]
    args = tangents, weight, 500 / largest, None
    truth = torch.linalg.eigvalsh(dense(*args) + torch.eye(20))
    gram = function(*moved(args, torch.float32, device)).cpu().double()
    torch.testing.assert_close(torch.linalg.eigvalsh(gram + torch.eye(20)), truth, rtol=1e-4, atol=0.0)


def test_jacobian_is_never_in_memory():
    """All that a call allocates is below an eighth of J, [N, D, d]."""
    args = moved(arguments(40, 64, 16, 4096, slope=True), torch.float32, "cpu")
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        last_layer_gram(*args)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert 0 < allocated < 64 * 4096 * 40 * 4 / 8


def test_opcheck_and_compile():
    args = arguments(5, 3, 4, 9, slope=True)
    torch.library.opcheck(torch.ops.fisherkernels.last_layer_gram.default, args)
    compiled = torch.compile(lambda *args: last_layer_gram(*args) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), 2 * dense(*args))


def test_autograd_does_not_record_it():
    tangents, weight, precision, _ = arguments(2, 3, 4, 5)
    weight.requires_grad_()
    with pytest.raises(RuntimeError, match="last_layer_gram has no derivative of its own"):
        last_layer_gram(tangents, weight, precision)
    with torch.no_grad():
        assert not last_layer_gram(tangents, weight, precision).requires_grad


def test_bad_input():
    tangents, weight, precision, slope = arguments(2, 3, 4, 5, slope=True)
    cases = [
        (ValueError, r"tangents must have three dimensions \[d, N, h\], got shape \[3, 4\]",
         (tangents[0], weight, precision)),
        (ValueError, r"weight must have shape \[D, 4\] beside tangents, got \[4, 5\]",
         (tangents, weight.mT, precision)),
        (ValueError, r"precision must have shape \[1 or 3, 1 or 5\] beside tangents and weight, got \[5\]",
         (tangents, weight, precision.new_ones(5))),
        (ValueError, r"slope must have shape \[3, 5\] beside tangents and weight, got \[5, 3\]",
         (tangents, weight, precision, slope.mT)),
        (TypeError, "weight must have dtype torch.float64 like the other arguments, got torch.float32",
         (tangents, weight.float(), precision)),
        (TypeError, "tangents must be float32 or float64, got torch.float16", (tangents.half(), weight, precision)),
        (ValueError, "slope must be on cpu like the other arguments, got meta",
         (tangents, weight, precision, slope.to("meta"))),
    ]  # fmt: skip
    for error, message, args in cases:
        with pytest.raises(error, match=f"last_layer_gram: {message}"):
            last_layer_gram(*args)


@needs_triton
@pytest.mark.skipif(interpreted, reason="this is the interpreted run")
def test_triton_kernel_in_the_interpreter():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE), "-k", "triton"]
    result = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert re.search(r"[1-9]\d* passed", result.stdout)


@needs_triton
@pytest.mark.skipif(interpreted, reason="compiles for a GPU")
def test_triton_kernel_compiles_to_tensor_core_instructions(monkeypatch, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fisherkernels.kernels.last_layer_gram_triton import _gram_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = dict(stride_th=1, stride_wh=1, stride_sd=1, ROWS=64, OUTPUTS=64, FEATURES=32)
    pointers = ["tangents", "weight", "scale", "gram"]
    signature = {name: "*fp32" if name in pointers else "i32" for name in _gram_kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [*pointers, "features", "stride_td", "stride_tn", "stride_wd"]
    attributes = {(_gram_kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    source = ASTSource(_gram_kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in kernel.asm["ptx"] and "tf32" in kernel.asm["ptx"]
    assert not re.search(r"\b(ld|st)\.local|__local_depot", kernel.asm["ptx"])
    spills = tmp_path / "kernel.cubin"
    spills.write_bytes(kernel.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([cuobjdump, "--dump-resource-usage", spills], capture_output=True, text=True, check=True)
    assert " STACK:0 " in usage.stdout, usage.stdout
