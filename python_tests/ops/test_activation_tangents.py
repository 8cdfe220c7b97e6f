import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops


def oracle(tangents, laplacian, slope, curvature):
    updated = curvature * tangents.square().sum(0)
    return slope * tangents, updated if laplacian is None else updated + slope * laplacian


def make_arguments(random_tensor, stack, rows, columns, shared=False, dtype=torch.float64, device="cpu", layout=None):
    """Tangents, Laplacian, slope, curvature; with `shared`, the same tangents for every row."""
    tangents = random_tensor((stack, 1 if shared else rows, columns), dtype, device, layout)
    return [tangents, *(random_tensor((rows, columns), dtype, device, layout) for _ in range(3))]


@given(
    stack=st.sampled_from([0, 1, 2, 5, 63]),
    rows=st.sampled_from([0, 1, 2, 9]),
    columns=st.sampled_from([0, 1, 7, 64, 300, 1000]),
    shared=st.booleans(),
    with_laplacian=st.booleans(),
    keep_tangents=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_value_and_gradients(
    device, random_tensor, check_against, stack, rows, columns, shared, with_laplacian, keep_tangents, dtype, layout
):
    args = make_arguments(random_tensor, stack, rows, columns, shared, dtype, device, layout)
    if not with_laplacian:
        args[1] = None
    kept = slice(0 if keep_tangents else 1, 2)
    check_against(
        lambda *a: ops.activation_tangents(*a, keep_tangents=keep_tangents)[kept], lambda *a: oracle(*a)[kept], args
    )


@pytest.mark.parametrize(
    "stack, rows, columns, shared",
    [(50, 64, 100, False), (3, 9, 2100, False), (3, 150, 520, True), (3, 200, 100, True), (2, 2500, 3, True)],
)
def test_larger_than_a_block(device, random_tensor, check_against, stack, rows, columns, shared):
    args = make_arguments(random_tensor, stack, rows, columns, shared, torch.float32, device)
    check_against(ops.activation_tangents, oracle, args)


def test_outputs_that_bypass_the_caches(device, random_tensor, check_against):
    """Of more than eight MiB; every fourth of the tangents starts on a 16-byte boundary."""
    args = make_arguments(random_tensor, 34, 63, 1001, False, torch.float32, device)
    check_against(ops.activation_tangents, oracle, args)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("shared", [False, True])
def test_gradient_of_one_output(device, random_tensor, check_against, shared, output):
    args = make_arguments(random_tensor, 3, 5, 9, shared, device=device)
    check_against(lambda *a: ops.activation_tangents(*a)[output], lambda *a: oracle(*a)[output], args)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("shared", [False, True])
def test_gradient_of_one_argument(device, random_tensor, check_against, shared, position):
    args = make_arguments(random_tensor, 3, 5, 9, shared, device=device)
    check_against(ops.activation_tangents, oracle, args, differentiable=[position])


def test_shared_tangents_equal_expanded_ones(device, random_tensor):
    args = make_arguments(random_tensor, 4, 6, 33, True, torch.float32, device)
    shared = ops.activation_tangents(*args)
    expanded = ops.activation_tangents(args[0].expand(4, 6, 33), *args[1:])
    for value, expected in zip(shared, expanded, strict=True):
        torch.testing.assert_close(value, expected)


def test_without_tangents_none_are_returned(device, random_tensor):
    args = make_arguments(random_tensor, 4, 6, 33, False, torch.float32, device)
    tangents, laplacian = ops.activation_tangents(*args, keep_tangents=False)
    assert tangents is None
    assert torch.equal(laplacian, ops.activation_tangents(*args)[1])


def test_laplacian_and_jacobian_of_a_network(device, random_tensor):
    """Two layers, second derivatives against torch.func's."""
    first, second = random_tensor((5, 7), device=device), random_tensor((3, 5), device=device)
    x = random_tensor((4, 7), device=device)

    def network(x):
        return second @ (first @ x).tanh()

    hidden = (x @ first.T).tanh()  # [N, 5]
    slope = 1 - hidden.square()
    tangents, laplacian = ops.activation_tangents(first.T[:, None, :], None, slope, -2 * hidden * slope)
    jacobian, hessian = (torch.func.vmap(f(network))(x) for f in (torch.func.jacrev, torch.func.hessian))
    torch.testing.assert_close(tangents @ second.T, jacobian.movedim(2, 0))
    torch.testing.assert_close(laplacian @ second.T, hessian.diagonal(dim1=2, dim2=3).sum(2))


@pytest.mark.parametrize("position", range(4))
def test_nan_stays_in_its_element(device, random_tensor, position):
    args = make_arguments(random_tensor, 3, 4, 9, False, torch.float32, device)
    clean = ops.activation_tangents(*args)
    args[position][..., 1, 2] = float("nan")
    for value, before, seen in zip(ops.activation_tangents(*args), clean, (position in (0, 2), True), strict=True):
        bad = torch.zeros_like(value, dtype=torch.bool)
        bad[..., 1, 2] = seen
        assert torch.equal(value.isnan(), bad)
        assert torch.equal(value[~bad], before[~bad])


@pytest.mark.parametrize("shared", [False, True])
def test_same_bits_every_time(device, random_tensor, shared):
    args = make_arguments(random_tensor, 3, 20, 1100, shared, torch.float32, device)

    def run():
        leaves = [t.detach().requires_grad_() for t in args]
        outputs = ops.activation_tangents(*leaves)
        return *outputs, *torch.autograd.grad(sum(t.sin().sum() for t in outputs), leaves)

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


CASES = pytest.mark.parametrize(
    "shared, with_laplacian, keep_tangents", [(False, True, True), (True, False, True), (True, True, False)]
)


@pytest.fixture
def leaves(device, random_tensor):
    def make(shared, with_laplacian):
        args = [t.requires_grad_() for t in make_arguments(random_tensor, 3, 4, 5, shared, device=device)]
        return [args[0], args[1] if with_laplacian else None, *args[2:]]

    return make


@CASES
def test_gradcheck(leaves, shared, with_laplacian, keep_tangents):
    kept = slice(0 if keep_tangents else 1, 2)
    args = leaves(shared, with_laplacian)
    assert torch.autograd.gradcheck(lambda *a: ops.activation_tangents(*a, keep_tangents=keep_tangents)[kept], args)


@CASES
def test_opcheck(leaves, shared, with_laplacian, keep_tangents):
    args = (*leaves(shared, with_laplacian), keep_tangents)
    torch.library.opcheck(torch.ops.fisherkernels.activation_tangents.default, args)


@CASES
def test_compiles_full_graph(leaves, shared, with_laplacian, keep_tangents):
    args = leaves(shared, with_laplacian)
    wanted = [t for t in args if t is not None]

    def loss(*a):
        return sum(t.sin().sum() for t in ops.activation_tangents(*a, keep_tangents=keep_tangents) if t is not None)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    expected = torch.autograd.grad(loss(*args), wanted)
    for grad, truth in zip(torch.autograd.grad(compiled(*args), wanted), expected, strict=True):
        torch.testing.assert_close(grad, truth)


def test_compiles_with_inductor(random_tensor):
    args = [t.requires_grad_() for t in make_arguments(random_tensor, 3, 4, 5)]

    def loss(x, *a):
        tangents, laplacian = ops.activation_tangents(x.exp(), *a)
        return tangents.sin().sum() + laplacian.square().sum()

    expected = torch.autograd.grad(loss(*args), args)
    compiled = torch.compile(loss, fullgraph=True)
    for grad, truth in zip(torch.autograd.grad(compiled(*args), args), expected, strict=True):
        torch.testing.assert_close(grad, truth)


def test_a_second_backward_says_so(leaves):
    args = leaves(False, True)
    outputs = ops.activation_tangents(*args)
    grads = torch.autograd.grad(sum(t.sin().sum() for t in outputs), args, create_graph=True)
    with pytest.raises(RuntimeError, match="fisherkernels::activation_tangents is differentiable once"):
        torch.autograd.grad(sum(grad.square().sum() for grad in grads), args)


def test_no_graph_without_gradients(leaves):
    with torch.no_grad():
        assert not any(t.requires_grad for t in ops.activation_tangents(*leaves(False, True)))


T, S = torch.zeros(2, 3, 4), torch.zeros(3, 4)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((T.half(), S.half(), S.half(), S.half()), TypeError, "slope must be float32 or float64, got torch.float16"),
        ((T, S, S.bfloat16(), S), TypeError, "slope must be .*, got torch.bfloat16; half precision does not hold sums"),
        ((T, S, [1.0], S), TypeError, "slope must be a Tensor, got list"),
        ((None, S, S, S), TypeError, "tangents must be a Tensor, got NoneType"),
        ((T, S, S, None), TypeError, "curvature must be a Tensor, got NoneType"),
        ((T.double(), S, S, S), TypeError, "tangents must have dtype torch.float32"),
        ((T, S.double(), S, S), TypeError, "laplacian must have dtype torch.float32"),
        ((T, S, S, S.to("meta")), ValueError, "curvature must be on cpu"),
        ((T, S, S[0], S), ValueError, r"slope must have two dimensions \[rows, columns\], got shape \[4\]"),
        ((T, S, S, S[:2]), ValueError, r"curvature must have the shape of slope, \[3, 4\], got \[2, 4\]"),
        ((T, S[:1], S, S), ValueError, r"laplacian must have the shape of slope, \[3, 4\], got \[1, 4\]"),
        ((T[0], S, S, S), ValueError, r"tangents must have shape \[K, 3, 4\] or \[K, 1, 4\] .*, got \[3, 4\]"),
        ((T[:, :2], S, S, S), ValueError, r"tangents must have shape .* beside slope, got \[2, 2, 4\]"),
        ((T[..., :1], S, S, S), ValueError, r"tangents must have shape .* beside slope, got \[2, 3, 1\]"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.activation_tangents(*args)
