"""Every rule, module and functional form, against double backward: value, products, stacks, gradients, compiled."""

import copy

import pytest
import torch
from linearize_cases import ALL, EAGER_ONLY, Function
from linearize_oracle import SEED, all_close, check, close, like, parts
from torch.nn import functional as F

from fisherkernels import laplacian, linearize, ops
from fisherkernels.linearize.rules import FUNCTIONS, METHODS, MODULES, RULES

NO_SAMPLES = ["AvgPool1d overlapping", "AvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d"]
NO_SAMPLES += ["Unfold", "Fold", "ChannelShuffle", "GLU", "PReLU per channel", "Hardswish", "Softmax2d", "Softmin"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ALL)
def test_float64(name):
    make, shape = ALL[name]
    check(make(), shape)


@pytest.mark.parametrize("name", ALL)
def test_float32(name):
    make, shape = ALL[name]
    check(make(), shape, dtype=torch.float32, tolerance=1e-5)


def _one_per_rule():
    """Cases that bring a rule, or a way of using it, that no earlier one has."""
    names, covered = [], set()
    for name in (name for name in ALL if name not in EAGER_ONLY):
        make, shape = ALL[name]
        net = make()
        rules = {(rule, net.training) for rule in linearize(net, torch.randn(shape)).rules.values()}
        if not rules <= covered:
            names.append(name)
            covered |= rules
    return names


@pytest.mark.parametrize("name", _one_per_rule())
def test_compiled(name):
    """One graph, cold, equal to eager; forward and backward."""
    make, shape = ALL[name]
    net = make().double()
    twin = copy.deepcopy(net)
    x, y = (torch.linspace(-2, 2, int(torch.tensor(shape).prod()), dtype=torch.float64).reshape(shape) for _ in "xy")
    x, y = x.sin().requires_grad_(), y.sin().requires_grad_()

    def products(net, x):
        lin = linearize(net, x)
        vjp = lin.vjp(like(lin.value, [v.detach() + 1 for v in parts(lin.value)]))
        stack = lin.vjp(like(lin.value, [torch.stack([v, 2 * v]) for v in parts(lin.value)]))
        return (*parts(lin.value), vjp, *parts(lin.jvp(vjp)), stack)

    torch._dynamo.reset()
    torch.manual_seed(SEED)
    compiled = torch.compile(products, fullgraph=True, backend="aot_eager")(net, x)
    torch.manual_seed(SEED)
    eager = products(twin, y)
    for i, (a, e) in enumerate(zip(compiled, eager, strict=True)):
        close(a, e, 1e-12, f"output {i}")
    sum((o * o).sum() for o in compiled).backward()
    sum((o * o).sum() for o in eager).backward()
    grads = [[t.grad for t in (leaf, *n.parameters())] for leaf, n in ((x, net), (y, twin))]
    all_close(*grads, 1e-11, "the sum of squares")


def test_every_rule_has_a_case():
    covered = set()
    for make, shape in ALL.values():
        covered |= set(linearize(make(), torch.randn(shape)).rules.values())
    assert covered == set(RULES)


def test_tables_name_known_rules():
    named = {*FUNCTIONS.values(), *METHODS.values(), *(layer.rule for layer in MODULES.values())}
    assert named | {"slice"} == set(RULES)


def test_every_activation_and_dropout_of_torch_has_a_rule():
    listed = {*torch.nn.modules.activation.__all__, *torch.nn.modules.dropout.__all__} - {"MultiheadAttention"}
    assert {"ReLU", "Mish", "Dropout2d"} < listed
    assert sorted(name for name in listed if getattr(torch.nn, name) not in MODULES) == []


@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.LeakyReLU(0.2), torch.nn.Sigmoid(), torch.nn.Tanh()])
def test_activations_keep_their_value_and_not_their_input(activation):
    """The next layer keeps the value anyway, so that they cost no memory."""
    x = torch.randn(4, 3, requires_grad=True) * 2
    kept = set()

    def keep(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lin = linearize(activation, x)
        product = lin.vjp(torch.ones(4, 3, requires_grad=True))
    assert lin.value.untyped_storage().data_ptr() in kept
    assert x.untyped_storage().data_ptr() not in kept
    product.sum().backward()


@pytest.mark.parametrize(
    "net, shape, message",
    [
        (torch.nn.GLU(1), (4, 3), "Halving dimension must be even"),
        (torch.nn.ChannelShuffle(2), (4, 3, 2), "Number of channels must be divisible by groups"),
        (torch.nn.PReLU(2), (4, 3), "Mismatch of parameter numbers and input channel size"),
        (torch.nn.Fold((3, 3), 2), (1, 4, 5), "expected size of input's dimension 2 to match"),
    ],
)
def test_sizes_that_torch_refuses(net, shape, message):
    for call in (net, lambda x: linearize(net, x)):
        with pytest.raises(RuntimeError, match=message):
            call(torch.randn(shape))


@pytest.mark.parametrize("name", NO_SAMPLES)
def test_no_samples(name):
    make, (_, *shape) = ALL[name]
    net, x = make(), torch.randn(0, *shape)
    lin = linearize(net, x)
    assert lin.value.shape == net(x).shape
    assert lin.vjp(lin.value).shape == x.shape and lin.jvp(x).shape == lin.value.shape
    assert lin.vjp(lin.value[None]).shape == (1, *x.shape) and lin.jvp(x[None]).shape == (1, *lin.value.shape)


@pytest.mark.parametrize("boolean", [True, False])
def test_a_query_without_keys_has_neither_value_nor_derivative(boolean):
    """As one that sees some keys, with its value times 0: torch's own second derivatives there are NaN."""
    alive = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    mask = alive.bool() & torch.tensor([True, False, True])

    def network(mask, factor):
        def attention(m, x):
            seen = m.mask > 0 if boolean else torch.log(m.mask)
            return F.scaled_dot_product_attention(x, x.sin(), x, attn_mask=seen) * m.factor

        net = Function(attention, mask=(3, 3), factor=(3, 1)).double().requires_grad_(False)
        net.mask.data, net.factor.data = mask.double(), factor
        return net

    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for net in (network(mask, torch.ones_like(alive)), network(mask | ~alive.bool(), alive)):
        lin = linearize(net, x)
        t = x.detach().cos()
        products = lin.value, lin.vjp(t), lin.jvp(t), laplacian(net, x).laplacian
        found.append([*products, *(torch.autograd.grad(p.square().sum(), x, retain_graph=True)[0] for p in products)])
    for one, other in zip(*found, strict=True):
        close(one, other, 1e-12, "without keys")


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_one_sample_of_a_convolution_is_refused_by_name(dims):
    net, x = getattr(torch.nn, f"Conv{dims}d")(2, 3, 2), torch.randn(2, *[4] * dims)
    with pytest.raises(ValueError, match=rf"Conv{dims}d: expected a batch .* got one sample \[2, 4"):
        linearize(net, x)


def nodes_of(t):
    """The names of the nodes of its graph."""
    found, waiting = set(), [t.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [other for other, _ in node.next_functions]
    return {node.name() for node in found}


@pytest.mark.skipif(not ops.backends()["cpu"].active, reason="kernels need the native cpu library")
@pytest.mark.parametrize(
    "net, node",
    [
        (torch.nn.LayerNorm(4), "LayerNormPullBackward"),
        (torch.nn.LayerNorm((3, 4), elementwise_affine=False), "LayerNormPullBackward"),
        (Function(lambda m, x: F.scaled_dot_product_attention(x, 2 * x, x)), "AttentionPullBackward"),
        (
            Function(lambda m, x: F.scaled_dot_product_attention(x, x, m.w, is_causal=True), w=(2, 3, 4)),
            "AttentionPullBackward",
        ),
    ],
)
def test_products_by_kernels(net, node):
    """In eager mode, where a graph is recorded; elsewhere in primitive operations."""
    x = torch.randn(2, 3, 4, requires_grad=True)
    c = torch.randn(2, 3, 4)
    assert node in nodes_of(linearize(net, x).vjp(c))
    assert node not in nodes_of(linearize(net, x).vjp(c[None]))
    with torch.no_grad():
        expected = linearize(net, x).vjp(c)
    close(linearize(net, x).vjp(c), expected, 1e-6, "product")
    (tangent,) = torch.func.vjp(lambda x: linearize(net, x).vjp(c), x)[1](c)
    assert node not in nodes_of(torch.func.vjp(lambda x: linearize(net, x).vjp(c), x)[0])
    close(torch.autograd.grad(linearize(net, x).vjp(c), x, c)[0], tangent, 1e-5, "its derivative")


@pytest.mark.skipif(not ops.backends()["cpu"].active, reason="kernels need the native cpu library")
def test_attention_with_dropout_by_the_kernel():
    net = Function(lambda m, x: F.scaled_dot_product_attention(x, 2 * x, x.sin(), dropout_p=0.4))
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(SEED)
    lin = linearize(net, x)
    torch.manual_seed(SEED)
    value = net(x)
    expected = torch.autograd.grad(value, x, value.cos(), create_graph=True)[0]
    product = lin.vjp(value.cos())
    assert "AttentionPullBackward" in nodes_of(product)
    close(product, expected, 1e-12, "product")
    results = (torch.autograd.grad(t.sin().sum(), x, retain_graph=True)[0] for t in (product, expected))
    close(*results, 1e-12, "gradient")
