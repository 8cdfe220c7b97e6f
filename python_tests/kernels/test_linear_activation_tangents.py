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

import fisherkernels as fk
from fisherkernels.kernels import linear_activation_tangents
from fisherkernels.second_order import sweep

HERE = Path(__file__).resolve()
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not interpreted, reason="needs TRITON_INTERPRET=1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def arguments(stack, samples, features, outputs, *, laplacian=True, layout="contiguous", seed=0):
    """Float64 tangents, Laplacian, weight, slope, curvature."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    tangents, weight = normal(stack, samples, features), normal(outputs, features)
    if layout == "strided":
        tangents, weight = normal(samples, features, stack).permute(2, 0, 1), normal(features, outputs).mT
    given = normal(samples, features) if laplacian else None
    return [tangents, given, weight, normal(samples, outputs), normal(samples, outputs)]


def oracle(tangents, laplacian, weight, slope, curvature):
    products = tangents @ weight.mT
    total = curvature * products.square().sum(0)
    return slope * products, total if laplacian is None else total + slope * (laplacian @ weight.mT)


def moved(args, dtype, device):
    return [t if t is None else t.to(device, dtype, memory_format=torch.preserve_format) for t in args]


def assert_near(result, truth, tolerance, what):
    assert result.shape == truth.shape, what
    if truth.numel():
        error = (result.cpu().double() - truth).square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-3)
        assert error <= tolerance, f"{what}: relative RMS error {error:.1e}"


ARGUMENTS = st.builds(
    arguments,
    stack=st.sampled_from([0, 1, 2, 7]),
    samples=st.sampled_from([0, 1, 3, 13, 65]),
    features=st.sampled_from([0, 1, 31, 40]),
    outputs=st.sampled_from([0, 1, 17, 65]),
    laplacian=st.booleans(),
    layout=st.sampled_from(["contiguous", "strided"]),
)


@given(args=ARGUMENTS, dtype=st.sampled_from([torch.float32, torch.float64]), keep=st.booleans())
def test_value_and_gradients(device, args, dtype, keep):
    """Errors are held against the sums of the terms' magnitudes, which sums that cancel need not come near: all
    coefficients are positive, so that these are the oracle's results for the inputs' magnitudes.
    """
    leaves = [t if t is None else t.requires_grad_() for t in moved(args, dtype, device)]
    doubles = [t if t is None else t.detach().requires_grad_() for t in args]
    sizes = [t if t is None else t.detach().abs().requires_grad_() for t in args]
    results = linear_activation_tangents(*leaves, keep_tangents=keep)
    assert keep or results[0] is None
    weights = [None if r is None else torch.randn(r.shape, dtype=torch.float64) for r in results]
    magnitudes = [w if w is None else w.abs() for w in weights]

    def values_and_gradients(outputs, inputs, weights):
        pairs = [(out, w) for out, w in zip(outputs, weights, strict=True) if w is not None]
        loss = sum((out.cpu().double() * w).sum() for out, w in pairs)
        grads = torch.autograd.grad(loss, [t for t in inputs if t is not None], materialize_grads=True)
        return *(out for out, _ in pairs), *grads

    found = values_and_gradients(results, leaves, weights)
    truths = values_and_gradients(oracle(*doubles), doubles, weights)
    scales = values_and_gradients(oracle(*sizes), sizes, magnitudes)
    for i, (result, truth, scale) in enumerate(zip(found, truths, scales, strict=True)):
        assert result.shape == truth.shape
        error, size = ((t * t).sum().sqrt() for t in (result.cpu().double() - truth, scale))
        assert error <= 4 * torch.finfo(dtype).eps * size, f"{i}: {error:.1e} beside {size:.1e}"


@needs_interpreter
@settings(max_examples=5)
@given(
    stack=st.sampled_from([1, 2, 5]),
    samples=st.sampled_from([1, 13, 65]),
    features=st.sampled_from([1, 31, 40]),
    outputs=st.sampled_from([1, 17, 65]),
    laplacian=st.booleans(),
    layout=st.sampled_from(["contiguous", "strided"]),
    keep=st.booleans(),
    multiprocessors=st.sampled_from([1, 2, 4]),
)
def test_triton(stack, samples, features, outputs, laplacian, layout, keep, multiprocessors):
    push(stack, samples, features, outputs, laplacian, layout, keep, multiprocessors, True, 3e-6)


@needs_interpreter
def test_three_terms_have_the_accuracy_of_float32(tensor_cores):
    push(3, 70, 70, 70, True, "contiguous", True, 1, True, 3e-6)
    with pytest.raises(AssertionError, match="relative RMS error"):
        push(3, 70, 70, 70, True, "contiguous", True, 1, False, 1e-5)
    push(3, 70, 70, 70, True, "contiguous", True, 1, False, 2e-3)


def push(stack, samples, features, outputs, laplacian, layout, keep, multiprocessors, exact, tolerance):
    """The Triton kernel against the oracle."""
    from fisherkernels.kernels.linear_activation_tangents_triton import push_in_shares

    args = arguments(stack, samples, features, outputs, laplacian=laplacian, layout=layout)
    pushed, total, products, through = push_in_shares(
        *moved(args, torch.float32, "cpu"), keep, True, multiprocessors, exact
    )
    expected, expected_total = oracle(*args)
    assert_near(total, expected_total, tolerance, "laplacian")
    assert_near(products, args[0] @ args[2].mT, tolerance, "products")
    if keep:
        assert_near(pushed, expected, tolerance, "tangents")
    if laplacian:
        assert_near(through, args[1] @ args[2].mT, tolerance, "product of the Laplacian")


@pytest.fixture
def leaves():
    def make(laplacian):
        return [t if t is None else t.requires_grad_() for t in arguments(2, 3, 4, 5, laplacian=laplacian)]

    return make


CASES = pytest.mark.parametrize("laplacian, keep", [(True, True), (False, True), (True, False)])


@CASES
def test_gradcheck(leaves, laplacian, keep):
    run = partial(linear_activation_tangents, keep_tangents=keep)
    assert torch.autograd.gradcheck(lambda *a: tuple(t for t in run(*a) if t is not None), leaves(laplacian))


@CASES
def test_opcheck(leaves, laplacian, keep):
    op = torch.ops.fisherkernels.linear_activation_tangents.default
    torch.library.opcheck(op, (*leaves(laplacian), keep, True))


@CASES
def test_compile(leaves, laplacian, keep):
    args = leaves(laplacian)
    wanted = [t for t in args if t is not None]

    def run(*args):
        outputs = linear_activation_tangents(*args, keep_tangents=keep)
        return sum(out.sin().sum() for out in outputs if out is not None)

    expected = torch.autograd.grad(run(*args), wanted)
    torch._dynamo.reset()
    result = torch.autograd.grad(torch.compile(run, fullgraph=True)(*args), wanted)
    for value, truth in zip(result, expected, strict=True):
        torch.testing.assert_close(value, truth)


def test_differentiable_once(leaves):
    args = leaves(True)
    (gradient,) = torch.autograd.grad(linear_activation_tangents(*args)[1].sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="linear_activation_tangents is differentiable once"):
        gradient.sum().backward()


def test_laplacians_use_it(monkeypatch):
    """Every activation behind a Linear layer but the first one's, whose tangents all samples share."""
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 6), torch.nn.Softplus(), torch.nn.Linear(6, 4),
        torch.nn.SiLU(), torch.nn.Linear(4, 2),
    ).double()  # fmt: skip
    x = torch.randn(4, 3, dtype=torch.float64)

    def gradients(laplacian):
        return torch.autograd.grad(laplacian.square().sum(), list(net.parameters()), materialize_grads=True)

    expected = fk.laplacian(net, x)
    calls = []

    def counted(*args, **keywords):
        calls.append(keywords)
        return linear_activation_tangents(*args, **keywords)

    monkeypatch.setattr(sweep, "has_kernel", lambda like: True)
    monkeypatch.setattr(sweep, "linear_activation_tangents", counted)
    result = fk.laplacian(net, x)
    assert len(calls) == 2
    torch.testing.assert_close(result.laplacian, expected.laplacian)
    torch.testing.assert_close(result.jacobian, expected.jacobian)
    for value, truth in zip(gradients(result.laplacian), gradients(expected.laplacian), strict=True):
        torch.testing.assert_close(value, truth)


@pytest.mark.parametrize(
    "position, change, error, message",
    [
        (0, lambda t: t[:, :2], ValueError, r"tangents must have shape \[K, 3, 4\]"),
        (1, lambda t: t[:2], ValueError, r"laplacian must have shape \[3, 4\]"),
        (2, lambda t: t[:2], ValueError, r"weight must have shape \[5, any\]"),
        (3, lambda t: t.half(), TypeError, "slope must be float32 or float64"),
        (4, lambda t: t[:2], ValueError, "curvature must have the shape of slope"),
    ],
)
def test_bad_input(position, change, error, message):
    args = arguments(2, 3, 4, 5)
    args[position] = change(args[position])
    with pytest.raises(error, match=message):
        linear_activation_tangents(*args)


@needs_triton
@pytest.mark.skipif(interpreted, reason="this is the interpreted run")
def test_triton_kernel_in_the_interpreter():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CI": "1"}
    tests = "test_triton or three_terms"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE), "-k", tests]
    result = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert re.search(r"[1-9]\d* passed", result.stdout)


@needs_triton
@pytest.mark.skipif(interpreted, reason="compiles for a GPU")
@pytest.mark.parametrize("exact", [False, True])
def test_triton_kernel_compiles_to_tensor_core_instructions(monkeypatch, tmp_path, exact):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fisherkernels.kernels.linear_activation_tangents_triton import _push_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = dict(stride_th=1, stride_wh=1, stride_lh=1, SAMPLES=64, OUTPUTS=64, FEATURES=32, EXACT=exact)
    constants |= dict.fromkeys(["LAPLACIAN", "KEEP_TANGENTS", "KEEP_PRODUCTS"], True)
    names = _push_kernel.arg_names
    pointers = names[: names.index("stack")]
    signature = {name: "*fp32" if name in pointers else "i32" for name in names} | dict.fromkeys(constants, "constexpr")
    aligned = [*pointers, "features", "outputs", "stride_tk", "stride_tn", "stride_ln", "stride_wm"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options = {"num_warps": 4 if exact else 8, "num_stages": 3, "enable_fp_fusion": True}
    source = ASTSource(_push_kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in kernel.asm["ptx"] and "tf32" in kernel.asm["ptx"]
    assert not re.search(r"\b(ld|st)\.local|__local_depot", kernel.asm["ptx"])
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([cuobjdump, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    assert " STACK:0 " in usage.stdout, usage.stdout
