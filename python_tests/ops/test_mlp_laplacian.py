import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops
from fisherkernels.ops.mlp_laplacian import ACTIVATIONS

FUNCTIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": torch.nn.functional.silu}


def derivatives(activation, x):
    """Value, a' and a'' in operations that autograd differentiates."""
    if activation == "tanh":
        value = x.tanh()
        slope = 1 - value.square()
        return value, slope, -2 * value * slope
    s = x.sigmoid()
    slope = s * (1 - s)
    if activation == "sigmoid":
        return s, slope, slope * (1 - 2 * s)
    return x * s, s + x * slope, slope * (2 + x * (1 - 2 * s))


def oracle(first, tangents, activations, *parameters):
    """Value, Laplacian, tangents [N, K, m]."""
    count = len(activations)
    value, laplacian = first, torch.zeros_like(first)
    for weight, bias, activation in zip(parameters[:count], parameters[count:], activations, strict=True):
        value, slope, curvature = derivatives(activation, value)
        laplacian = (slope * laplacian + curvature * tangents.square().sum(0)) @ weight.t()
        tangents = (slope * tangents) @ weight.t()
        value = value @ weight.t()
        if bias is not None:
            value = value + bias
    return value, laplacian, tangents.transpose(0, 1)


def called(first, tangents, activations, *parameters, **options):
    count = len(activations)
    results = ops.mlp_laplacian(first, tangents, parameters[:count], parameters[count:], activations, **options)
    return tuple(result for result in results if result is not None)


def make_arguments(
    random_tensor, widths, samples, stack, activations=None, shared=False, biases=True, dtype=torch.float64,
    device="cpu", layout=None,
):  # fmt: skip
    """first, tangents, activations, weights, biases."""
    activations = activations or ["tanh", "silu", "sigmoid"][: len(widths) - 1]

    def make(*shape):
        return random_tensor(shape, dtype, device, layout)

    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    weights = [make(after, before) / max(1, before) ** 0.5 for before, after in pairs]
    return [
        make(samples, widths[0]), make(stack, 1 if shared else samples, widths[0]), activations, *weights,
        *(make(after) if biases else None for _, after in pairs),
    ]  # fmt: skip


@given(
    widths=st.lists(st.sampled_from([1, 2, 5, 8, 31, 64, 100]), min_size=2, max_size=4),
    samples=st.sampled_from([0, 1, 2, 9, 33]),
    stack=st.sampled_from([0, 1, 2, 7]),
    activation=st.sampled_from(["tanh", "sigmoid", "silu"]),
    shared=st.booleans(),
    biases=st.booleans(),
    keep_tangents=st.booleans(),
    keep_hidden=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_value_and_gradients(
    device, random_tensor, check_against, widths, samples, stack, activation, shared, biases, keep_tangents,
    keep_hidden, dtype, layout,
):  # fmt: skip
    kinds = [activation] * (len(widths) - 1)
    args = make_arguments(random_tensor, widths, samples, stack, kinds, shared, biases, dtype, device, layout)
    check_against(
        lambda *a: called(*a, keep_tangents=keep_tangents, keep_hidden=keep_hidden),
        lambda *a: oracle(*a)[: 3 if keep_tangents else 2],
        args,
    )


@pytest.mark.parametrize("keep_hidden", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_several_blocks_and_chunks(device, random_tensor, check_against, shared, keep_hidden):
    """More rows than one block or one sum has, more inner columns than go at once, strides that are lengthened."""
    args = make_arguments(random_tensor, (64, 300, 40, 1), 230, 9, None, shared, dtype=torch.float32, device=device)
    check_against(lambda *a: called(*a, keep_hidden=keep_hidden), lambda *a: oracle(*a)[:2], args)


@pytest.mark.parametrize("output", range(3))
def test_gradient_of_one_output(device, random_tensor, check_against, output):
    args = make_arguments(random_tensor, (5, 7, 2), 3, 4, device=device)
    check_against(lambda *a: called(*a, keep_tangents=True)[output], lambda *a: oracle(*a)[output], args)


@pytest.mark.parametrize("position", [0, 1, 3, 4, 5])
def test_gradient_of_one_argument(device, random_tensor, check_against, position):
    args = make_arguments(random_tensor, (5, 7, 2), 3, 4, device=device)
    check_against(lambda *a: called(*a), lambda *a: oracle(*a)[:2], args, differentiable=[position])


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_against_second_derivatives_of_functorch(device, random_tensor, activation):
    first, _, _, second, bias = make_arguments(random_tensor, (6, 3), 4, 2, [activation], device=device)
    weight, x = random_tensor((6, 5), device=device), random_tensor((4, 5), device=device)

    def network(x):
        return second @ FUNCTIONS[activation](weight @ x) + bias

    value, laplacian, tangents = ops.mlp_laplacian(
        x @ weight.t(), weight.t()[:, None], [second], [bias], [activation], keep_tangents=True
    )
    jacobian, hessian = (torch.func.vmap(f(network))(x) for f in (torch.func.jacrev, torch.func.hessian))
    torch.testing.assert_close(value, torch.func.vmap(network)(x))
    torch.testing.assert_close(tangents.mT, jacobian)
    torch.testing.assert_close(laplacian, hessian.diagonal(dim1=2, dim2=3).sum(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_far_from_zero(device, activation, dtype):
    """Saturated units: no NaN, and the limits of value, slope and curvature."""
    first = torch.tensor([[-3e4, -90.0, -30.0, 0.0, 30.0, 90.0, 3e4]], dtype=dtype, device=device)
    tangents, weight = torch.ones_like(first)[None], torch.eye(7, dtype=dtype, device=device)
    results = ops.mlp_laplacian(first, tangents, [weight], [None], [activation], keep_tangents=True)
    for result, expected in zip(results, oracle(first, tangents, [activation], weight, None), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("position", [0, 1])
def test_nan_stays_in_its_sample(device, random_tensor, position):
    args = make_arguments(random_tensor, (9, 8, 2), 4, 3, dtype=torch.float32, device=device)
    clean = called(*args, keep_tangents=True)
    args[position][..., 1, 2] = float("nan")
    for i, (value, before) in enumerate(zip(called(*args, keep_tangents=True), clean, strict=True)):
        assert value[1].isnan().any() == (position == 0 or i > 0)
        keep = torch.arange(4, device=device) != 1
        assert torch.equal(value[keep], before[keep])


def test_same_bits_every_time(device, random_tensor):
    args = make_arguments(random_tensor, (20, 33, 1), 300, 8, None, True, dtype=torch.float32, device=device)

    def run():
        leaves = [t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
        outputs = called(*leaves)
        wanted = [t for t in leaves if isinstance(t, torch.Tensor)]
        return *outputs, *torch.autograd.grad(sum(t.sin().sum() for t in outputs), wanted)

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


CASES = pytest.mark.parametrize("shared, keep_tangents, keep_hidden", [(False, True, True), (True, False, False)])


@pytest.fixture
def leaves(device, random_tensor):
    def make(shared):
        args = make_arguments(random_tensor, (3, 4, 2), 3, 2, None, shared, device=device)
        return [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]

    return make


@CASES
def test_gradcheck(leaves, shared, keep_tangents, keep_hidden):
    first, tangents, kinds, *parameters = leaves(shared)

    def run(first, tangents, *parameters):
        return called(first, tangents, kinds, *parameters, keep_tangents=keep_tangents, keep_hidden=keep_hidden)

    assert torch.autograd.gradcheck(run, (first, tangents, *parameters))


@CASES
def test_opcheck(leaves, shared, keep_tangents, keep_hidden):
    first, tangents, kinds, *parameters = leaves(shared)
    codes = [ACTIVATIONS.index(kind) for kind in kinds]
    args = (first, tangents, parameters[:2], parameters[2:], codes, keep_tangents, keep_hidden)
    torch.library.opcheck(torch.ops.fisherkernels.mlp_laplacian.default, args)


def test_differentiable_once(leaves):
    first, *rest = leaves(False)
    (gradient,) = torch.autograd.grad(called(first, *rest)[1].sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match="mlp_laplacian is differentiable once"):
        gradient.sum().backward()


@CASES
def test_compile(leaves, shared, keep_tangents, keep_hidden):
    first, tangents, kinds, *parameters = leaves(shared)
    wanted = [first, tangents, *parameters]

    def run(first, tangents, *parameters):
        outputs = called(first, tangents, kinds, *parameters, keep_tangents=keep_tangents, keep_hidden=keep_hidden)
        return sum(output.sin().sum() for output in outputs)

    expected = torch.autograd.grad(run(*wanted), wanted)
    torch._dynamo.reset()
    result = torch.autograd.grad(torch.compile(run, fullgraph=True)(*wanted), wanted)
    for value, truth in zip(result, expected, strict=True):
        torch.testing.assert_close(value, truth)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"first": lambda t: t.half()}, TypeError, "first must be float32 or float64"),
        ({"first": lambda t: t[0]}, ValueError, "first must have two dimensions"),
        ({"tangents": lambda t: t[:, :2]}, ValueError, r"tangents must have shape \[K, 3, 5\] or \[K, 1, 5\]"),
        ({"tangents": lambda t: t.float()}, TypeError, "tangents must have dtype"),
        ({"weights": lambda w: w[:1]}, ValueError, "as many weights, biases and activations"),
        ({"weights": lambda w: [w[0], w[0]]}, ValueError, r"weights\[1\] must have shape \[any, 7\]"),
        ({"biases": lambda b: [b[0], b[0]]}, ValueError, r"biases\[1\] must have shape \[2\]"),
        ({"activations": lambda a: ["tanh", "relu"]}, ValueError, r"activations\[1\] must be one of tanh"),
    ],
)
def test_bad_input(random_tensor, change, error, message):
    first, tangents, kinds, *parameters = make_arguments(random_tensor, (5, 7, 2), 3, 4)
    args = {
        "first": first, "tangents": tangents, "weights": parameters[:2], "biases": parameters[2:], "activations": kinds,
    }  # fmt: skip
    for name, changed in change.items():
        args[name] = changed(args[name])
    with pytest.raises(error, match=message):
        ops.mlp_laplacian(**args)
