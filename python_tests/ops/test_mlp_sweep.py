import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sweep_activations import FUNCTIONS, SLOPE
from torch.nn import functional as F

from fisherkernels import ops
from fisherkernels.ops._mlp_graph import graph_value, graph_vjp
from fisherkernels.ops._mlp_plain import CURVED, NOT_LAST, SWEEP_ACTIVATIONS, Constants, drawn_mask, padded

opset = torch.ops.fisherkernels
P = 0.4
DROPPED = tuple(f"{kind}, dropout" for kind in SWEEP_ACTIVATIONS)
BEHIND_OTHERS = {*NOT_LAST, *(f"{kind}, dropout" for kind in NOT_LAST)}


def split(count, tensors):
    """weights, biases, cotangents."""
    return tensors[:count], tensors[count : 2 * count], tensors[2 * count :]


def activations_of(kinds):
    """Their names, and p of the dropout behind each: "tanh", or "tanh, dropout"."""
    pairs = [kind.partition(", ") for kind in kinds]
    return [name for name, *_ in pairs], [P if behind else 0.0 for *_, behind in pairs]


def seeded():
    """Everybody draws the same masks."""
    if not torch.compiler.is_compiling():
        torch.manual_seed(5)


def oracle(x, kinds, count, *tensors):
    """The value, vector-Jacobian products with each cotangent, and what the activations gave or were given."""
    seeded()
    weights, biases, cotangents = split(count, tensors)
    x = x if x.requires_grad else x.detach().requires_grad_()
    value, hidden = x, []
    for weight, bias, kind, p in itertools.zip_longest(weights, biases, *activations_of(kinds)):
        value = F.linear(value, weight, bias)
        if kind is not None:
            given, value = value, F.dropout(FUNCTIONS[kind](value), p)
            hidden.append(given if kind in NOT_LAST else value)
    products = [torch.autograd.grad(value, x, c, create_graph=True)[0] for c in cotangents]
    return value, *products, *hidden


def called(x, kinds, count, *tensors):
    seeded()
    weights, biases, cotangents = split(count, tensors)
    names, dropout = activations_of(kinds)
    sweep = ops.mlp_sweep(x, weights, biases, names, [SLOPE] * len(kinds), dropout)
    hidden = (h.clone(memory_format=torch.contiguous_format) for h in sweep.hidden)
    return sweep.value, *map(sweep.vjp, cotangents), *hidden


def make_arguments(
    random_tensor, widths, samples, kinds, biases=True, products=1, dtype=torch.float64, device="cpu", layout=None
):
    """x, kinds, the number of layers, weights, biases, cotangents."""

    def make(*shape):
        return random_tensor(shape, dtype, device, layout)

    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    weights = [make(after, before) / before**0.5 for before, after in pairs]
    return [
        make(samples, widths[0]), kinds, len(pairs), *weights, *(make(after) if biases else None for _, after in pairs),
        *(make(samples, widths[-1]) for _ in range(products)),
    ]  # fmt: skip


def with_leaves(args):
    return [t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]


def tensors_of(args):
    return [t for t in args if isinstance(t, torch.Tensor)]


def total(outputs):
    """Another weight for every entry and output."""
    return sum(terms_of(outputs))


def terms_of(outputs):
    return [(t.sin() * torch.linspace(0.5, 1.5 + i, t.shape[1]).to(t)).sum() for i, t in enumerate(outputs)]


@given(
    widths=st.lists(st.sampled_from([1, 2, 5, 8, 31, 64, 100, 193]), min_size=2, max_size=4),
    samples=st.sampled_from([0, 1, 2, 9, 33]),
    kinds=st.lists(st.sampled_from(SWEEP_ACTIVATIONS + DROPPED), min_size=3, max_size=3),
    behind_last=st.booleans(),
    biases=st.booleans(),
    used=st.lists(st.sampled_from(["value", "vjp", "another vjp", "hidden"]), min_size=1, unique=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_values_and_gradients(
    device, random_tensor, check_against, widths, samples, kinds, behind_last, biases, used, dtype, layout
):
    """The loss uses the value, products and hidden values, or only some of these."""
    kinds = kinds[: len(widths) - 2 + (behind_last and kinds[len(widths) - 2] not in BEHIND_OTHERS)]
    if not kinds:
        used = ["value"] if used == ["hidden"] else used
    args = make_arguments(random_tensor, widths, samples, kinds, biases, 2, dtype, device, layout)
    keep = ["value", "vjp", "another vjp", *["hidden"] * len(kinds)]

    def kept(outputs):
        return tuple(output for name, output in zip(keep, outputs, strict=True) if name in used)

    check_against(lambda *a: kept(called(*a)), lambda *a: kept(oracle(*a)), args)


@pytest.mark.parametrize("behind_last", [False, True])
def test_several_tiles(device, random_tensor, check_against, behind_last):
    """More rows than a tile has, wider than one and two."""
    kinds = ["softplus, dropout", "leaky_relu, dropout", "sigmoid, dropout"][: 2 + behind_last]
    args = make_arguments(random_tensor, (20, 100, 256, 67), 600, kinds, dtype=torch.float32, device=device)
    check_against(called, oracle, args)


@pytest.mark.parametrize("kinds", [["tanh"], ["relu", "sigmoid"], ["silu"], ["tanh, dropout", "tanh"]])
def test_every_choice_of_what_is_trained(device, random_tensor, check_against, kinds):
    args = make_arguments(random_tensor, (3, 5, 2), 4, kinds, device=device)
    positions = [i for i, value in enumerate(args) if isinstance(value, torch.Tensor)]
    choices = [chosen for n in range(len(positions)) for chosen in itertools.combinations(positions, n + 1)]
    for chosen in choices:
        uses = slice(1, 2) if chosen == (positions[-1],) else slice(2)  # the value is no function of the cotangent
        check_against(lambda *a, uses=uses: called(*a)[uses], lambda *a, uses=uses: oracle(*a)[uses], args, chosen)


def test_no_graph_where_nothing_is_trained(device, random_tensor):
    args = make_arguments(random_tensor, (3, 5, 2), 4, ["tanh"], device=device)
    assert not any(t.requires_grad for t in called(*args))
    with torch.no_grad():
        outputs = called(*with_leaves(args))
    assert not any(t.requires_grad for t in outputs)
    for output, truth in zip(outputs, oracle(*args), strict=True):
        torch.testing.assert_close(output, truth)


class TestBackward:
    """Of part of the inputs, more than once, through several products."""

    @pytest.fixture(params=[["tanh"], ["relu", "sigmoid"], ["softplus", "tanh"], ["gelu, dropout"]])
    def args(self, request, device, random_tensor):
        return with_leaves(make_arguments(random_tensor, (3, 5, 2), 4, request.param, products=2, device=device))

    @pytest.fixture
    def truth(self, args):
        return torch.autograd.grad(total(oracle(*args)), tensors_of(args))

    def test_of_some_inputs(self, args, truth):
        leaves = tensors_of(args)  # x, two weights, two biases, two cotangents
        outputs = called(*args)
        for chosen in ([0], [1], [2], [3], [4], [5], [0, 2], [1, 4], [3, 6], [1, 2, 3, 4]):
            wanted = [leaves[i] for i in chosen]
            found = torch.autograd.grad(total(outputs), wanted, retain_graph=True)
            total(outputs).backward(inputs=wanted, retain_graph=True)
            for i, grad in zip(chosen, found, strict=True):
                torch.testing.assert_close(grad, truth[i])
                torch.testing.assert_close(leaves[i].grad, truth[i])
            for i, leaf in enumerate(leaves):
                assert i in chosen or leaf.grad is None
                leaf.grad = None

    def test_twice_adds_up(self, args, truth):
        loss = total(called(*args))
        loss.backward(retain_graph=True)
        held = [leaf.grad.clone() for leaf in tensors_of(args)]
        again = torch.autograd.grad(loss, tensors_of(args), retain_graph=True)
        loss.backward()
        for leaf, first, second, expected in zip(tensors_of(args), held, again, truth, strict=True):
            torch.testing.assert_close(first, expected)
            assert torch.equal(second, first)
            torch.testing.assert_close(leaf.grad, 2 * expected)

    def test_losses_of_one_sweep_add_up(self, args, truth):
        for term in terms_of(called(*args)):
            term.backward(retain_graph=True)
        for leaf, expected in zip(tensors_of(args), truth, strict=True):
            torch.testing.assert_close(leaf.grad, expected)

    def test_two_sweeps_of_the_same_weights(self, args, truth):
        total(called(*args)).backward()
        total(called(*args)).backward()
        for leaf, expected in zip(tensors_of(args), truth, strict=True):
            torch.testing.assert_close(leaf.grad, 2 * expected)

    def test_a_weight_changed_in_place(self, args):
        for changed in tensors_of(args)[1:3]:
            loss = total(called(*args))
            with torch.no_grad():
                changed.add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def test_a_cotangent_alone_is_differentiated(device, random_tensor):
    """Of a product of a sweep without a graph."""
    args = make_arguments(random_tensor, (3, 5, 2), 4, ["tanh"], device=device)
    args[-1].requires_grad_()
    with torch.no_grad():
        sweep = ops.mlp_sweep(args[0].requires_grad_(), args[3:5], args[5:7], args[1])
    (result,) = torch.autograd.grad(total([sweep.vjp(args[-1])]), args[-1])
    (expected,) = torch.autograd.grad(total([oracle(*args)[1]]), args[-1])
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_gradient_arrives(device, random_tensor, stopped, create_graph):
    args = with_leaves(make_arguments(random_tensor, (3, 5, 2), 4, ["tanh"], device=device))
    loss = total(map(stopped, called(*args)))
    for grad in torch.autograd.grad(loss, tensors_of(args), allow_unused=True, create_graph=create_graph):
        assert grad is None or not grad.any()


KINDS = pytest.mark.parametrize(
    "kinds",
    [["tanh"], ["sigmoid", "tanh"], ["relu", "leaky_relu"], ["silu"], ["elu", "sigmoid"], ["softplus"], ["gelu"],
     ["tanh, dropout"], ["leaky_relu, dropout"], ["silu, dropout", "sigmoid"]],
)  # fmt: skip


@KINDS
def test_gradcheck(device, random_tensor, kinds):
    x, _, count, *tensors = with_leaves(make_arguments(random_tensor, (2, 3, 2), 2, kinds, products=2, device=device))

    def run(x, *tensors):
        return called(x, kinds, count, *tensors)

    assert torch.autograd.gradcheck(run, (x, *tensors))
    assert torch.autograd.gradgradcheck(run, (x, *tensors))


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1), (2,)])
@pytest.mark.parametrize(
    "kinds", [["tanh"], ["tanh", "sigmoid"], ["silu"], ["softplus", "tanh"], ["gelu"], ["sigmoid, dropout"]]
)
def test_third_derivatives(device, random_tensor, kinds, used):
    """Each of a gradient's gradient, where that is made of one of the outputs alone as well."""
    args = with_leaves(make_arguments(random_tensor, (2, 3, 2), 3, kinds, device=device))
    wanted = tensors_of(args)

    def derivatives(outputs):
        loss, found = total([outputs[i] for i in used]), []
        for _ in range(3):
            grads = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
            loss = total([grad[None] if grad.dim() == 1 else grad for grad in grads if grad is not None])
            found.append(loss)
        return [*found, *torch.autograd.grad(loss, wanted, allow_unused=True)]

    for result, expected in zip(derivatives(called(*args)), derivatives(oracle(*args)), strict=True):
        if expected is None:
            assert result is None or not result.any()
        else:
            torch.testing.assert_close(result, expected)


def test_inputs_made_of_each_other(device, random_tensor):
    """A layer at both ends, x and a bias from its weight, a cotangent from the value and from a hidden value."""
    weight, inner = (random_tensor((3, 3), device=device).requires_grad_() for _ in range(2))
    kinds, leaves = ["sigmoid", "tanh", "tanh"], (weight, inner)

    def derivatives(run):
        x, biases = weight.cos(), [weight[0], None, weight.sum(1)]
        loss = run(x, kinds, 3, weight, inner, weight, *biases)
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        return *grads, *torch.autograd.grad(total(grads), leaves)

    def swept(x, kinds, count, *tensors):
        sweep = ops.mlp_sweep(x, tensors[:count], tensors[count:], kinds)
        return total([sweep.value, sweep.vjp(sweep.value.sin() + sweep.hidden[0])])

    def plain(x, kinds, count, *tensors):
        value, *hidden = oracle(x, kinds, count, *tensors)
        return total([value, torch.autograd.grad(value, x, value.sin() + hidden[0], create_graph=True)[0]])

    for result, expected in zip(derivatives(swept), derivatives(plain), strict=True):
        torch.testing.assert_close(result, expected)


def constants_of(kinds):
    names, dropout = activations_of(kinds)
    codes = [SWEEP_ACTIVATIONS.index(name) for name in names]
    return Constants(codes, [SLOPE] * len(kinds), [1 / (1 - p) if p else 0.0 for p in dropout])


def raw_calls(args):
    """Every operator with arguments as the sweeps give them: name, arguments."""
    x, kinds, count, *tensors = args
    weights, biases, (cotangent, gradient) = split(count, tensors)
    constants = constants_of(kinds)
    masks = [padded(torch.rand(len(x), len(w)) > P) for w, p in zip(weights, constants.scales, strict=False) if p]
    behind_weights = (*constants, masks)
    net = (weights, *behind_weights)
    biases = [x.new_empty(0) if bias is None else bias for bias in biases]
    _, hidden, beside = opset.mlp_value(x, weights, biases, *behind_weights)
    _, before, behind = opset.mlp_vjp(cotangent, hidden, *net)
    by_hidden = [torch.randn_like(h) for h in hidden[: count - 1]]
    room = [torch.randn_like(weight) for weight in weights]
    yield "mlp_value", (x, weights, biases, *behind_weights)
    yield "mlp_vjp", (cotangent, hidden, *net)
    curved = [torch.zeros_like(h) for h, kind in zip(hidden, constants.kinds, strict=True) if kind in CURVED]
    for to_weights in (room, []):
        to_biases = [x.new_zeros(len(weight)) for weight in to_weights]
        yield "mlp_vjp_backward", (x, cotangent, before, behind, hidden, *net, to_weights, curved)
        yield "mlp_value_backward", (gradient, [], x, hidden, beside, *net, to_weights, to_biases, False, False)
    to_biases = [x.new_zeros(len(weight)) for weight in weights]
    yield "mlp_value_backward", (gradient, by_hidden, x, hidden, beside, *net, room, to_biases, True, True)
    for wanted in (True, False):
        yield "mlp_vjp_gradients", (x, cotangent, before, behind, hidden, *net, wanted)
        yield "mlp_value_gradients", (gradient, by_hidden, x, hidden, beside, *net, wanted, not wanted)


@pytest.mark.parametrize("kinds, biases", [(["tanh"], True), (["relu", "sigmoid"], False), (["silu, dropout"], True)])
def test_opcheck(device, random_tensor, kinds, biases):
    for name, args in raw_calls(make_arguments(random_tensor, (3, 4, 2), 3, kinds, biases, 2, device=device)):
        torch.library.opcheck(getattr(opset, name).default, args)


def without_padding(results, weights):
    """Lists are of tensors by layer."""
    results = results if isinstance(results, tuple) else (results,)
    parts = [result if isinstance(result, list) else [result] for result in results]
    return [
        t[..., : len(w)] if len(group) > 1 else t
        for group in parts
        for t, w in zip(group, weights, strict=False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kinds",
    [["sigmoid", "tanh", "tanh"], ["relu", "leaky_relu"], ["silu", "elu"], ["softplus", "gelu", "tanh"],
     ["tanh, dropout", "silu, dropout"], ["leaky_relu, dropout", "relu, dropout", "tanh, dropout"]],
)  # fmt: skip
def test_kernels_agree_with_twins(random_tensor, kinds):
    """From residuals of the kernels, with tied weights, also in what is written in place."""
    if not ops.backends()["cpu"].active:
        pytest.skip("no native cpu library")
    arguments = make_arguments(random_tensor, (30, 64, 30, 64), 5, kinds, products=2)
    arguments[5] = arguments[3]
    for name, args in raw_calls(arguments):
        copied = copy.deepcopy(args)
        results = getattr(opset, name)(*args)
        with ops.use_twins():
            expected = getattr(opset, name)(*copied)
        weights = arguments[3:6]
        torch.testing.assert_close(without_padding(results, weights), without_padding(expected, weights))
        torch.testing.assert_close(args, copied, equal_nan=True)  # of padding


def test_operators_that_write_in_place_are_not_differentiable(device, random_tensor):
    for name, args in raw_calls(make_arguments(random_tensor, (3, 4, 2), 3, ["tanh"], products=2, device=device)):
        if name.endswith("_backward"):
            first = args[0].detach().requires_grad_()
            with pytest.raises(RuntimeError, match=f"{name} has no derivative of its own: mlp_sweep builds its graph"):
                getattr(opset, name)(first, *args[1:])


def through_operators(x, kinds, count, *tensors):
    """As in graphs of torch.compile."""
    seeded()
    weights, biases, cotangents = split(count, tensors)
    constants, (_, dropout) = constants_of(kinds), activations_of(kinds)
    masks = [drawn_mask(x, len(w), p) for w, p in zip(weights, dropout, strict=False) if p]
    results = graph_value(constants, count, x, *weights, *biases, *masks)
    shared = (*results[: len(kinds)], *weights, *masks)
    rows = [h[:, : len(w)] for h, w in zip(results, weights, strict=False)]
    return rows[-1], *(graph_vjp(constants, c, *shared) for c in cotangents), *rows[: len(kinds)]


@KINDS
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("trained", ["all", "x", "weights", "biases", "cotangents"])
def test_operators_are_differentiable(device, random_tensor, kinds, biases, trained):
    args = make_arguments(random_tensor, (3, 70, 2), 4, kinds, biases, products=2, device=device)
    groups = {"x": [0], "weights": [3, 4], "biases": [5, 6] * biases, "cotangents": [7, 8]}
    for i in groups.get(trained, sum(groups.values(), [])):
        args[i] = args[i].detach().requires_grad_()
    leaves = [t for t in (args[0], *args[3:]) if t is not None and t.requires_grad]
    if not leaves:
        return
    results = []
    for run in (through_operators, oracle):
        results.append(torch.autograd.grad(total(run(*args)), leaves, allow_unused=True))
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


def test_their_second_derivative(device, random_tensor):
    args = with_leaves(make_arguments(random_tensor, (3, 8, 5, 2), 4, ["tanh, dropout", "silu"], device=device))
    found = []
    for run in (through_operators, oracle):
        grads = torch.autograd.grad(total(run(*args)), tensors_of(args), create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), tensors_of(args)))
    for result, expected in zip(*found, strict=True):
        torch.testing.assert_close(result, expected)


def test_their_gradients_in_stacks(device, random_tensor):
    args = with_leaves(make_arguments(random_tensor, (3, 8, 5, 2), 4, ["tanh, dropout", "silu"], device=device))
    found = []
    for run in (through_operators, oracle):
        value, product, *_ = run(*args)
        stacks = [torch.eye(t.numel()).to(t).view(-1, *t.shape)[:8] for t in (value, product)]
        found.append(torch.autograd.grad((value, product), tensors_of(args), stacks, is_grads_batched=True))
    for result, expected in zip(*found, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_value_and_an_eager_product(random_tensor, backend):
    args = with_leaves(make_arguments(random_tensor, (3, 8, 2), 4, ["tanh"]))
    x, kinds, count, *tensors = args
    weights, biases, (cotangent,) = split(count, tensors)
    compiled = torch.compile(lambda x, *w: ops.mlp_sweep(x, w, biases, kinds), backend=backend, fullgraph=True)
    sweep = compiled(x, *weights)
    found = torch.autograd.grad(total([sweep.vjp(cotangent)]), [x, *weights])
    expected = torch.autograd.grad(total([oracle(*args)[1]]), [x, *weights])
    for result, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(result, wanted)


def test_gradients_of_hidden_values_in_any_layout(random_tensor):
    """Those of 8 units: rows need no padding, and are read as they come."""
    x, weight = random_tensor((6, 5)), random_tensor((8, 5)).requires_grad_()

    def loss(x, weight):
        sweep = ops.mlp_sweep(x, [weight, weight.t()], [None, None], ["tanh"])
        return sweep.hidden[0].sum() + sweep.value.sum()  # a stride of 0

    hidden = torch.tanh(x @ weight.t())
    (expected,) = torch.autograd.grad(hidden.sum() + (hidden @ weight).sum(), weight)
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(torch.autograd.grad(run(x, weight), weight)[0], expected)


def test_same_bits_every_time(device, random_tensor):
    args = make_arguments(
        random_tensor, (20, 100, 33), 300, ["gelu, dropout", "relu"], dtype=torch.float32, device=device
    )

    def run():
        leaves = with_leaves(args)
        outputs = called(*leaves)
        return *outputs, *torch.autograd.grad(total(outputs), tensors_of(leaves))

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("widths, samples", [((2100, 64, 5), 3), ((5, 2100, 64), 2), ((64, 7, 30), 2100), ((7, 64), 0)])
def test_sums_longer_than_a_tile_and_empty_ones(device, random_tensor, widths, samples):
    args = with_leaves(make_arguments(random_tensor, widths, samples, ["tanh"] * (len(widths) - 1), device=device))
    found = []
    for run in (called, oracle):
        outputs = run(*args)
        found.append([*outputs, *torch.autograd.grad(total(outputs), tensors_of(args))])
    for result, expected in zip(*found, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("widths", [(20, 200, 33), (300, 100, 8), (4, 500, 500)])
@pytest.mark.parametrize("active", [True, False])
def test_results_do_not_depend_on_the_number_of_threads(random_tensor, widths, active):
    if not ops.backends()["cpu"].active:
        pytest.skip("no native CPU library")
    kinds = ["tanh", "relu"] if active else ["silu, dropout"]
    args = make_arguments(random_tensor, widths, 600, kinds, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaves = with_leaves(args)
            outputs = called(*leaves)
            results.append([*outputs, *torch.autograd.grad(total(outputs), tensors_of(leaves))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", SWEEP_ACTIVATIONS)
def test_nan_stays_in_its_sample(device, random_tensor, kind):
    kinds = [kind] if kind in NOT_LAST else [kind, kind]
    args = make_arguments(random_tensor, (5, 9, 6), 4, kinds, dtype=torch.float32, device=device)
    clean, others = called(*args), torch.arange(4, device=device) != 1
    for position in (0, -1):
        poisoned = list(args)
        poisoned[position] = args[position].clone()
        poisoned[position][1] = torch.nan
        outputs = called(*poisoned)
        for output, expected in zip(outputs, clean, strict=True):
            assert torch.equal(output[others], expected[others])
        if position == 0:
            assert outputs[0][1].isnan().all()
        if position == -1 or "relu" not in kind:
            assert outputs[1][1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SWEEP_ACTIVATIONS)
def test_activations_everywhere(device, kind, dtype):
    """a, a' and a'' of numbers from zero to those whose exponentials overflow."""
    exponents = torch.linspace(-12, 15, 120, dtype=dtype, device=device)
    x = torch.cat([torch.zeros(1, dtype=dtype, device=device), 10**exponents, -(10**exponents)])[:, None]
    one, function = torch.ones(1, 1, dtype=dtype, device=device), FUNCTIONS[kind]

    def derivatives(run):
        """a(x), a'(x), and where there is a graph for it a''(x)."""
        given = x.clone().requires_grad_()
        value, slope = run(given)
        curvature = torch.autograd.grad(slope.sum(), given, allow_unused=True)[0] if slope.requires_grad else None
        return value, slope, torch.zeros_like(x) if curvature is None else curvature

    def swept(x):
        sweep = ops.mlp_sweep(x, [one, one], [None, None], [kind], [SLOPE])
        return sweep.value, sweep.vjp(torch.ones_like(x))

    def plain(x):
        x = x.double()
        value = function(x)
        return value, torch.autograd.grad(value.sum(), x, create_graph=True)[0]

    for result, expected in zip(derivatives(swept), derivatives(plain), strict=True):
        tolerance = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(result, expected.to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_is_that_of_torch(dtype):
    """The same draw, and the generator where that leaves it."""
    x, weight = torch.ones(50, 1, dtype=dtype), torch.ones(37, 1, dtype=dtype)
    torch.manual_seed(1)
    hidden = F.dropout(x @ weight.t(), 0.3)
    expected, drawn = F.dropout(torch.sigmoid(hidden @ weight), 0.8), torch.rand(3)
    torch.manual_seed(1)
    sweep = ops.mlp_sweep(x, [weight, weight.t(), weight[:1]], [None] * 3, ["relu", "sigmoid"], dropout=[0.3, 0.8])
    assert torch.equal(sweep.masks[0], hidden != 0) and torch.equal(sweep.masks[1], expected != 0)
    torch.testing.assert_close(sweep.value, expected)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("p", [0.001, 0.999])
@pytest.mark.parametrize("kind", SWEEP_ACTIVATIONS)
def test_dropout_with_extreme_probabilities(device, random_tensor, check_against, kind, p, monkeypatch):
    monkeypatch.setitem(globals(), "P", p)
    args = make_arguments(
        random_tensor, (3, 40, 30, 2), 20, [f"{kind}, dropout"] * 2, dtype=torch.float32, device=device
    )
    check_against(called, oracle, args)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_dropout_compiles(random_tensor, backend):
    """Whatever is drawn, value, product and gradients are of the same mask."""
    args = with_leaves(make_arguments(random_tensor, (3, 50, 2), 4, ["tanh"], dtype=torch.float64))
    x, _, count, *tensors = args
    weights, biases, (cotangent,) = split(count, tensors)

    def loss(x, weights, biases, cotangent):
        sweep = ops.mlp_sweep(x, weights, biases, ["tanh"], dropout=[P])
        return total([sweep.value, sweep.vjp(cotangent)]), sweep.masks[0]

    result, mask = torch.compile(loss, fullgraph=True, backend=backend)(x, weights, biases, cotangent)
    assert 0.3 < mask.double().mean() < 0.9
    hidden = torch.tanh(F.linear(x, weights[0], biases[0])) * mask / (1 - P)
    value = F.linear(hidden, weights[1], biases[1])
    expected = total([value, torch.autograd.grad(value, x, cotangent, create_graph=True)[0]])
    torch.testing.assert_close(result, expected)
    found = [torch.autograd.grad(part, tensors_of(args)) for part in (result, expected)]
    torch.testing.assert_close(*found)


@KINDS
def test_compiles_and_transforms(random_tensor, kinds):
    """The operations that torch.compile, and torch.func's transforms, see through."""
    args = with_leaves(make_arguments(random_tensor, (3, 5, 2), 4, kinds))

    def loss(x, *tensors):
        return total(called(x, kinds, 2, *tensors))

    flat = [args[0], *args[3:]]
    expected = torch.autograd.grad(total(oracle(*args)), flat)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    seeded()
    results = [torch.autograd.grad(compiled(*flat), flat), torch.func.grad(loss, tuple(range(len(flat))))(*flat)]
    for result in results:
        torch.testing.assert_close(result, expected)


X, W, V, B, C = torch.zeros(3, 5), torch.zeros(7, 5), torch.zeros(2, 7), torch.zeros(7), torch.zeros(2)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((None, [W, V], [B, C], ["tanh"]), TypeError, "x must be a Tensor, got NoneType"),
        ((X.half(), [W, V], [B, C], ["tanh"]), TypeError, "x must be float32 or float64, got torch.float16"),
        ((X[0], [W, V], [B, C], ["tanh"]), ValueError, r"x must have two dimensions .* got shape \[5\]"),
        ((X, [], [], []), ValueError, "as many weights, biases and activations .* got 0, 0, 0, 0 and 0"),
        ((X, [W, V], [B], ["tanh"]), ValueError, "got 2, 1, 1, 1 and 1"),
        ((X, [W, V], [B, C], []), ValueError, "got 2, 2, 0, 0 and 0"),
        ((X, [W, V], [B, C], ["tanh"], [0.1, 0.1]), ValueError, "got 2, 2, 1, 2 and 1"),
        ((X, [W, "V"], [B, C], ["tanh"]), TypeError, r"weights\[1\] must be a Tensor, got str"),
        ((X, [W, V.double()], [B, C], ["tanh"]), TypeError, r"weights\[1\] must have dtype torch.float32"),
        ((X, [W.t(), V], [B, C], ["tanh"]), ValueError, r"weights\[0\] must have shape \[any, 5\], got \[5, 7\]"),
        ((X, [W, V[0]], [B, C], ["tanh"]), ValueError, r"weights\[1\] must have shape \[any, 7\], got \[7\]"),
        ((X, [W, V.to("meta")], [B, C], ["tanh"]), ValueError, r"weights\[1\] must be on cpu .* got meta"),
        ((X, [W, V], [B, C.double()], ["tanh"]), TypeError, r"biases\[1\] must have dtype torch.float32"),
        ((X, [W, V], [B, B], ["tanh"]), ValueError, r"biases\[1\] must have shape \[2\], got \[7\]"),
        ((X, [W, V], [B, C], ["exp"]), ValueError, r"activations\[0\] must be one of tanh, .*, got 'exp'"),
        ((X, [W, V], [B, C], ["relu", "silu"]), ValueError, r"behind the last weight .*leaky_relu, got 'silu'"),
        ((X, [W, V], [B, C], ["leaky_relu"], [-0.1]), ValueError, r"negative_slopes\[0\] must be 0 or more, got -0.1"),
        ((X, [W, V], [B, C], ["leaky_relu"], [float("nan")]), ValueError, r"negative_slopes\[0\] .* got nan"),
        ((X, [W, V], [B, C], ["tanh"], None, [0.1, 0.1]), ValueError, "got 2, 2, 1, 1 and 2"),
        ((X, [W, V], [B, C], ["tanh"], None, [1.0]), ValueError, r"dropout\[0\] must be .* less than 1, got 1.0"),
        ((X, [W, V], [B, C], ["tanh"], None, [-0.1]), ValueError, r"dropout\[0\] must be at least 0 .* got -0.1"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=f"mlp_sweep: .*{message}"):
        ops.mlp_sweep(*args)


@pytest.mark.parametrize(
    "cotangent, error, message",
    [
        ([0.0], TypeError, "must be a Tensor, got list"),
        (torch.zeros(3, 2).double(), TypeError, "must have dtype torch.float32"),
        (torch.zeros(3, 2, device="meta"), ValueError, "must be on cpu"),
        (torch.zeros(4, 2), ValueError, r"must have the shape of the value, \[3, 2\], got \[4, 2\]"),
    ],
)
def test_bad_cotangent(cotangent, error, message):
    with pytest.raises(error, match=f"mlp_sweep: cotangent {message}"):
        ops.mlp_sweep(X, [W, V], [B, C], ["tanh"]).vjp(cotangent)
