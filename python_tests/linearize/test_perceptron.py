"""Stretches of Linear and activation that run as one sweep, held against their steps run one by one."""

import copy
import pickle

import pytest
import torch
from linearize_oracle import OTHER_WAYS, all_close, close, gradients, scalar_of
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fisherkernels
from fisherkernels import fisher_ae_loss, ops, reference
from fisherkernels.linearize import linearization, perceptron
from fisherkernels.linearize.plan import plan_of


def linearize(*args, **options):
    """With the same masks of dropout each time."""
    if not torch.compiler.is_compiling():
        torch.manual_seed(5)
    return fisherkernels.linearize(*args, **options)


sweeps_run = pytest.mark.skipif(not ops.backends()["cpu"].active, reason="sweeps need the native cpu library")


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(perceptron, "LEAST_WORK", 0)


class Functional(nn.Module):
    """Functional forms of everything, a bias of None, keywords, a slope; attributes are read between the layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(6, 5))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x):
        h = F.leaky_relu(F.linear(x, self.first, bias=self.bias), negative_slope=0.3)
        return torch.tanh(F.linear(h, weight=self.second))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(torch.sigmoid(self.second(h)) + h)


class Tied(nn.Module):
    """One layer at both ends of a stretch."""

    def __init__(self):
        super().__init__()
        self.ends, self.middle = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.ends(torch.tanh(self.middle(torch.relu(self.ends(x)))))


class Outputs(nn.Module):
    """A hidden value is an output as well."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(h), h


class Reshaped(nn.Module):
    """Something after the stretch looks at its value in another shape."""

    def __init__(self):
        super().__init__()
        self.layers, self.fold = perceptron_of(), Fold()

    def forward(self, x):
        return self.fold(torch.sigmoid(self.layers(x)))


class Positions(nn.Module):
    """A perceptron for each position of a sequence."""

    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Linear(1, 3), with_dropout(nn.GELU(), nn.Tanh())

    def forward(self, x):
        return self.layers(self.embed(x[..., None]).sin()).flatten(1)


class Fold(nn.Module):
    def forward(self, x):
        return x.view(-1, 12) if x.sum() > 0 else x.view(-1, 12)


def perceptron_of(*extra):
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 7), nn.LeakyReLU(0.2), nn.Linear(7, 6), *extra)


def with_reshapes():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6), nn.Sigmoid(), nn.Unflatten(1, (2, 3))
    )


def two_stretches():
    return nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    )


class Smooth(nn.Module):
    """Functional forms of what keeps its input, the last one behind the stretch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((3, 5), (5, 4), (4, 6), (6, 2)))

    def forward(self, x):
        first, second, third, last = self.layers
        x = F.softplus(second(F.elu(first(x), 1.0, inplace=True)), beta=1, threshold=20)
        return F.silu(last(torch.tanh(third(x))))


def smooth_with(activation):
    layers = nn.Linear(3, 5), activation, nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)
    return nn.Sequential(*layers)


class Dropped(nn.Module):
    """Functional forms of dropout, behind hidden layers and behind the last."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 7), nn.Linear(7, 6)

    def forward(self, x):
        h = F.dropout(F.leaky_relu(self.first(x)), 0.3, training=self.training)
        return F.dropout(torch.sigmoid(self.last(h)))


def with_dropout(*activations):
    first, second = activations
    return nn.Sequential(
        nn.Linear(3, 7), first, nn.Dropout(0.3), nn.Linear(7, 6), second, nn.Dropout(0.5), nn.Linear(6, 5)
    )


NETWORKS = {
    "plain": perceptron_of,
    "a last activation": lambda: perceptron_of(nn.Sigmoid()),
    "reshapes around": with_reshapes,
    "two": two_stretches,
    "ReLU": lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
    "functional": Functional,
    "smooth": lambda: smooth_with(nn.Softplus()),
    "smooth, functional": Smooth,
    "smooth and tanh": lambda: nn.Sequential(smooth_with(nn.ELU()), nn.Tanh()),
    "an activation without a kernel": lambda: nn.Sequential(perceptron_of(), nn.GELU("tanh"), nn.Linear(6, 3)),
    "tied": Tied,
    "dropout": lambda: with_dropout(nn.Tanh(), nn.SiLU()),
    "dropout, ReLU": lambda: with_dropout(nn.ReLU(), nn.ReLU()),
    "dropout, functional": Dropped,
    "dropout in eval mode": lambda: with_dropout(nn.ReLU(), nn.ReLU()).eval(),
    "for each position": Positions,
    "dropout at the end": lambda: with_dropout(nn.ELU(), nn.Sigmoid())[:6],
    "dropout behind what cannot be last": lambda: with_dropout(nn.ELU(), nn.GELU())[:6],
    "residual behind": lambda: nn.Sequential(perceptron_of(), nn.Tanh(), nn.Linear(6, 3), Residual()),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def step_by_step(monkeypatch):
    """start(): from here on no stretch is a sweep."""
    return lambda: monkeypatch.setattr(linearization, "sweep_of", lambda *args: None)


def make(name, dtype=torch.float64, samples=4):
    net = NETWORKS[name]().to(dtype)
    return net, torch.randn(samples, 3, dtype=dtype).requires_grad_()


def swept(lin):
    return len(lin._record.sweeps)


@pytest.mark.parametrize(
    "make, kinds",
    [
        (perceptron_of, ["linear tanh linear leaky_relu linear"]),
        (lambda: perceptron_of(nn.Sigmoid()), ["linear tanh linear leaky_relu linear sigmoid"]),
        (with_reshapes, ["linear relu linear sigmoid"]),
        (two_stretches, ["linear tanh linear", "linear relu linear"]),
        (lambda: perceptron_of(nn.Linear(6, 4), nn.Tanh()), ["linear tanh linear leaky_relu linear"]),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 2)), []),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()), []),
        (lambda: nn.Linear(3, 4), []),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2)), []),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(4, 2)), []),
        (lambda: with_dropout(nn.Tanh(), nn.SiLU()), ["linear tanh dropout linear silu dropout linear"]),
        (Dropped, ["linear leaky_relu dropout linear sigmoid dropout"]),
        (lambda: perceptron_of(nn.Dropout(0.5)), ["linear tanh linear leaky_relu linear"]),
        (Functional, ["linear leaky_relu linear tanh"]),
        (Smooth, ["linear elu linear softplus linear tanh linear silu"]),
        (lambda: smooth_with(nn.ELU()), ["linear elu linear silu linear gelu linear"]),
        (Tied, ["linear relu linear tanh linear"]),
        (Residual, []),
        (Outputs, []),
    ],
)
def test_stretches(make, kinds):
    plan = plan_of(make())
    assert [" ".join(plan.steps[i].rule for i in stretch.steps) for stretch in plan.perceptrons] == kinds


@sweeps_run
@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_swept_in_eager_mode(name, dtype):
    net, x = make(name, dtype)
    assert swept(linearize(net, x)) == len(plan_of(net).perceptrons) > 0
    assert swept(linearize(net, x.detach())) > 0
    assert swept(linearize(net.requires_grad_(False), x)) > 0
    assert swept(linearize(net, x.detach())) == 0  # nothing to record


class Marked(torch.Tensor):
    pass


def in_transform(net, x):
    found = []
    torch.func.vjp(lambda x: found.append(linearize(net, x)) or found[0].value, x.detach())
    return found[0]


def in_forward_mode(net, x):
    with torch.autograd.forward_ad.dual_level():
        return linearize(net, torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)))


def under(context):
    def run(net, x):
        with context():
            return linearize(net, x)

    return run


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(under(lambda: torch.autocast("cpu", torch.bfloat16)), id="autocast"),
        pytest.param(under(torch.no_grad), id="no_grad"),
        pytest.param(under(torch.inference_mode), id="inference_mode"),
        pytest.param(in_transform, id="torch.func"),
        pytest.param(in_forward_mode, id="forward AD"),
        pytest.param(lambda net, x: linearize(net.half(), x.half()), id="float16"),
        pytest.param(lambda net, x: linearize(net.bfloat16(), x.bfloat16()), id="bfloat16"),
        pytest.param(lambda net, x: linearize(net, x[0]), id="1-D input"),
        pytest.param(lambda net, x: linearize(net, x.as_subclass(Marked)), id="subclass"),
        pytest.param(
            lambda net, x: linearize(net, x, parameters={"0.weight": torch.randn(5, 3).as_subclass(Marked)}),
            id="subclass as a parameter",
        ),
    ],
)
def test_step_by_step_otherwise(run):
    net, x = perceptron_of(), torch.randn(4, 3, requires_grad=True)
    lin = run(net, x)
    assert swept(lin) == 0 and lin.value.shape[-1] == 6


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 2, 2, 3), (0, 4, 3), (2, 0, 3)])
def test_leading_dimensions(shape):
    """Stacks of them as well; positions that lie apart in memory."""
    net, x = perceptron_of(nn.Tanh()).double(), torch.randn(*shape[:-2], *shape[:-3:-1], dtype=torch.float64).mT
    x.requires_grad_()
    lin = linearize(net, x)
    assert swept(lin) == ops.backends()["cpu"].active and lin.value.shape == (*shape[:-1], 6)
    value = net(x)
    cotangent = torch.randn_like(value)
    product = torch.autograd.grad(value, x, cotangent, create_graph=True)[0]
    close(lin.value, value, 1e-13, "value")
    close(lin.vjp(cotangent), product, 1e-13, "product")
    close(lin.vjp(torch.stack([cotangent, cotangent]))[1], product, 1e-13, "stack")
    results = [gradients(scalar_of([part]), net, x) for part in (lin.vjp(cotangent), product)]
    all_close(*results, 1e-12, "gradient")


@sweeps_run
@pytest.mark.parametrize("other", [nn.ELU(0.5), nn.Softplus(2.0), nn.Softplus(1.0, 5.0), nn.GELU("tanh")])
def test_other_constants_than_the_kernels(other):
    """Sweeps end and begin around them."""
    x = torch.randn(4, 3, requires_grad=True)
    assert swept(linearize(smooth_with(other), x)) == 1
    assert swept(linearize(nn.Sequential(*smooth_with(other)[:3]), x)) == 0
    assert swept(linearize(nn.Sequential(*smooth_with(type(other)())[:3]), x)) == 1


@pytest.mark.parametrize(
    "without, expected",
    [
        ([], [(0, 7)]),
        ([0], [(2, 7)]),
        ([1], [(2, 7)]),
        ([2], [(4, 7)]),
        ([3], [(0, 3), (4, 7)]),
        ([4], [(0, 4)]),
        ([5], [(0, 5)]),
        ([6], [(0, 5)]),
        ([3, 6], [(0, 3)]),
        ([2, 3], [(4, 7)]),
        ([1, 5], [(2, 5)]),
        ([3, 4], [(0, 3)]),
    ],
)
@sweeps_run
def test_pieces(monkeypatch, without, expected):
    """Of Linear, Tanh, Linear, ReLU, Linear, SiLU, Linear: positions without a kernel, or with a large weight."""
    rules = ["linear", "tanh", "linear", "relu", "linear", "silu", "linear"]
    weights = [torch.empty(3, 3), torch.empty(perceptron._LARGEST + 1)]
    calls = [((weights[i in without],), {}) if i % 2 == 0 else ((), {}) for i in range(7)]
    for i in without:
        if i % 2:
            rules[i], calls[i] = "elu", ((0.5,), {})
    rules = tuple(rules)
    parts = perceptron.parts_of(calls, rules)
    x = torch.empty(perceptron._MANY + 1, 3, requires_grad=True)
    monkeypatch.setattr(perceptron, "sweeps_outrun_torch", lambda: False)
    assert perceptron.pieces_of(parts, rules, x) == expected
    without_last = [(begin, min(end, 5)) for begin, end in expected if min(end, 5) - begin > 2]
    assert perceptron.pieces_of(parts[:6], rules[:6], x) == without_last
    assert perceptron.pieces_of(parts, rules, x.detach()) == []
    monkeypatch.setattr(perceptron, "sweeps_outrun_torch", lambda: True)
    if all(i % 2 == 0 for i in without):
        assert perceptron.pieces_of(parts, rules, x) == [(0, 7)]


@pytest.mark.parametrize(
    "behind, p, expected",
    [
        ("tanh", 0.5, (0, 6)),
        ("tanh", 0.0, (0, 6)),
        ("tanh", 1.0, (0, 5)),
        ("silu", 0.5, (0, 4)),
        ("silu", 0.0, (0, 4)),
    ],
)
@sweeps_run
def test_pieces_with_dropout(behind, p, expected):
    """Of Linear, ReLU, Dropout, Linear, an activation, Dropout."""
    rules = ("linear", "relu", "dropout", "linear", behind, "dropout")
    calls = [((torch.empty(3, 3),), {}) if rule == "linear" else ((), {}) for rule in rules]
    calls[2], calls[5] = ((0.5, True), {}), ((), {"p": p})
    x = torch.empty(2, 3, requires_grad=True)
    assert perceptron.pieces_of(perceptron.parts_of(calls, rules), rules, x) == [expected]
    calls[2] = ((1.0, True), {})
    assert perceptron.pieces_of(perceptron.parts_of(calls, rules), rules, x) == []
    calls[2] = ((1.0, False), {})
    assert perceptron.pieces_of(perceptron.parts_of(calls, rules), rules, x) == [expected]


def test_a_probability_of_one():
    net, x = with_dropout(nn.Tanh(), nn.SiLU()), torch.randn(4, 3).requires_grad_()
    net[2].p = 1.0
    lin = linearize(net, x)
    torch.manual_seed(5)
    close(lin.value, net(x), 1e-6, "value")
    assert not lin.vjp(torch.ones_like(lin.value)).any()


@sweeps_run
def test_up_to_a_size(monkeypatch):
    net, x = make("plain")
    assert swept(linearize(net, x)) == 1
    monkeypatch.setattr(perceptron, "_LARGEST", 41)  # the last weight has 42
    assert swept(linearize(net, x)) == 1
    monkeypatch.setattr(perceptron, "_MANY", len(x) - 1)
    monkeypatch.setattr(perceptron, "sweeps_outrun_torch", lambda: True)
    assert swept(linearize(net, x)) == 1
    monkeypatch.setattr(perceptron, "sweeps_outrun_torch", lambda: False)
    lin = linearize(net, x)
    assert [(first, last) for last, (first, _) in lin._record.sweeps.items()] == [(0, 3)]  # up to the activation before
    monkeypatch.setattr(perceptron, "_LARGEST", 34)  # the second one has 35
    assert swept(linearize(net, x)) == 0


@sweeps_run
def test_little_work_is_left_to_single_steps(monkeypatch):
    net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))  # 2^14 multiplications a sample
    monkeypatch.undo()
    sizes = (1, 127), (128,), (2, 64), (2, 32)
    assert [swept(linearize(net, torch.randn(*size, 64))) for size in sizes] == [0, 1, 1, 0]


def products_of(lin, cotangent, stack, tangent):
    last, chain = lin.last_linear(), lin.relu_chain()
    single = not isinstance(lin.value, tuple)
    yield "value", [lin.value]
    yield "vjp", [lin.vjp(cotangent)]
    yield "vjp of a stack", [lin.vjp(stack)]
    yield "jvp", [lin.jvp(tangent)]
    yield "jacobian", [lin.jacobian()] if single else []
    yield "value and vjp", [lin.value, lin.vjp(cotangent), lin.vjp(cotangent.sin())]
    yield "vjp at the value", [lin.vjp(lin.value.tanh())]
    if last is not None:
        hidden = last.push(tangent)
        yield "last linear", [last.weight, hidden, last.pull(hidden), last.tangents()]
    if chain is not None:
        yield "ReLUs", [chain.first, *chain.weights, *chain.values]


@every_network
def test_same_as_step_by_step(name, step_by_step):
    net, x = make(name)
    swept_lin = linearize(net, x)
    cotangent, tangent = torch.randn_like(swept_lin.value), torch.randn_like(x)
    stack = torch.randn(3, *cotangent.shape, dtype=x.dtype)
    given = cotangent, stack, tangent
    results = {what: (parts, gradients(scalar_of(parts), net, x)) for what, parts in products_of(swept_lin, *given)}
    step_by_step()
    lin = linearize(net, x)
    assert swept(lin) == 0
    assert swept_lin.rules == lin.rules and swept_lin.work() == lin.work() and swept_lin.coupled == lin.coupled
    expected = dict(products_of(lin, *given))
    assert results.keys() == expected.keys()
    for what, parts in expected.items():
        for result, part in zip(results[what][0], parts, strict=True):
            close(result, part, 1e-13, what)
        all_close(results[what][1], gradients(scalar_of(parts), net, x), 1e-12, what)


@every_network
def test_second_derivatives(name, step_by_step):
    net, x = make(name)

    def twice():
        lin = linearize(net, x)
        loss = scalar_of([lin.value, lin.vjp(lin.value.sin())])
        grads = torch.autograd.grad(loss, [*net.parameters(), x], create_graph=True)
        return gradients(scalar_of(grads), net, x)

    results = twice()
    step_by_step()
    all_close(results, twice(), 1e-11, "gradient")


@every_network
def test_kernels_and_twins(name):
    net, x = make(name, torch.float32, 9)

    def run():
        lin = linearize(net, x)
        parts = [lin.value, lin.vjp(lin.value.sin())]
        return parts, gradients(scalar_of(parts), net, x)

    parts, grads = run()
    with ops.use_twins():
        expected_parts, expected_grads = run()
    for result, expected in zip(parts, expected_parts, strict=True):
        close(result, expected, 1e-5, "value or vjp")
    all_close(grads, expected_grads, 1e-4, "both")


def test_an_empty_batch():
    net, x = make("a last activation", samples=0)
    lin = linearize(net, x)
    assert lin.value.shape == (0, 6) and lin.vjp(lin.value).shape == (0, 3)
    for grad in gradients(lin.vjp(lin.value).sum() + lin.value.sum(), net, x):
        assert not grad.any()


@pytest.mark.filterwarnings("ignore:.*no rule for")
def test_the_value_is_contiguous():
    """As a network's: 6 columns are kept in rows of 8."""
    net, x = Reshaped(), torch.randn(4, 3)
    close(linearize(net, x).value, net(x), 1e-6, "value")
    assert linearize(perceptron_of(nn.Sigmoid()), x).value.is_contiguous()


def test_given_parameters(step_by_step):
    """Some in place of the net's own, views and parts of a graph among them."""
    net, x = make("plain")
    flat = torch.randn(5 * 7 + 3 * 5 + 7, dtype=x.dtype, requires_grad=True)
    given = {"0.weight": flat[35:50].view(3, 5).t(), "2.weight": flat[:35].view(7, 5).tanh(), "2.bias": flat[50:]}
    results = []
    for _ in range(2):
        lin = linearize(net, x, parameters=given)
        loss = scalar_of([lin.value, lin.vjp(lin.value.sin())])
        results.append(torch.autograd.grad(loss, [flat, net[0].bias, net[4].weight], retain_graph=True))
        step_by_step()
    all_close(*results, 1e-12, "both")


@pytest.mark.parametrize(
    "parameter, other, error",
    [
        ("bias", torch.ones(1), None),
        ("bias", torch.ones(()), None),
        ("bias", torch.ones(5).double(), RuntimeError),
        ("bias", torch.ones(4), RuntimeError),
        ("second", torch.ones(6, 9), RuntimeError),
        ("second", torch.ones(5), None),
        ("second", torch.ones(6, 5).double(), RuntimeError),
        ("first", torch.ones(5, 7), RuntimeError),
    ],
)
def test_what_does_not_fit_is_left_to_torch(parameter, other, error):
    """Its errors, and its broadcasting."""
    net, x = Functional(), torch.randn(4, 3, requires_grad=True)
    setattr(net, parameter, nn.Parameter(other))
    if error is None:
        close(linearize(net, x).value, net(x), 1e-6, "value")
        return
    for run in (net, lambda x: linearize(net, x).value):
        with pytest.raises(error):
            run(x)


def test_a_weight_on_another_device():
    net = Functional()
    net.second = nn.Parameter(net.second.to("meta"))
    assert swept(linearize(net, torch.randn(4, 3))) == 0


def test_an_input_of_another_width_or_dtype():
    net = perceptron_of()
    for x in (torch.randn(4, 2), torch.randn(4, 4), torch.randn(4, 3, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            linearize(net, x)


def test_a_cotangent_of_another_dtype():
    lin = linearize(perceptron_of(), torch.randn(4, 3))
    for dtype in (torch.float64, torch.float16):
        with pytest.raises((TypeError, RuntimeError), match="dtype"):
            lin.vjp(torch.randn(4, 6).to(dtype))


@every_network
def test_compiled(name):
    net, x = make(name)

    def loss(net, x):
        lin = linearize(net, x)
        return scalar_of([lin.value, lin.vjp(lin.value.sin())])

    expected = gradients(loss(net, x), net, x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    all_close(gradients(compiled(net, x), net, x), expected, 1e-12, "both")


@pytest.mark.parametrize("name", ["dropout", "dropout, ReLU", "dropout, functional", "dropout at the end"])
def test_dropout_is_the_networks(name):
    """The mask that the network draws from the same state of the generator."""
    net, x = make(name)
    lin = linearize(net, x)
    torch.manual_seed(5)
    value = net(x)
    cotangent = torch.randn_like(value)
    close(lin.value, value, 1e-13, "value")
    expected = torch.autograd.grad(value, x, cotangent, create_graph=True)[0]
    close(lin.vjp(cotangent), expected, 1e-13, "vjp")
    results = [gradients(scalar_of(parts), net, x) for parts in ([lin.vjp(cotangent), lin.value], [expected, value])]
    all_close(*results, 1e-12, "both")


class DropConnect(nn.Module):
    """Dropout of a weight behind that of what it multiplies."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((3, 9), (9, 8), (8, 6)))

    def forward(self, x):
        first, second, last = self.layers
        h = F.dropout(torch.tanh(first(x)), 0.5)
        return last(torch.tanh(F.linear(h, F.dropout(second.weight, 0.5), second.bias)))


def test_draws_of_parameters_keep_their_turn():
    net, x = DropConnect(), torch.randn(4, 3)
    lin = linearize(net, x)
    torch.manual_seed(5)
    close(lin.value, net(x), 1e-6, "value")


@sweeps_run
def test_parameters_that_are_computed_without_draws():
    """They cut no sweep."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 7)

        def forward(self, x):
            h = F.dropout(torch.tanh(self.first(x)), 0.5)
            return F.linear(h, self.first.weight.t() * 2)

    assert swept(linearize(Tied(), torch.randn(4, 3))) == 1


def sweeps_in_graph(function, *args, **how):
    """The results of the compiled function, and how many value sweeps its graphs have."""
    found = []

    def backend(graph, inputs):
        found.extend(node for node in graph.graph.nodes if "mlp_value" in str(node.target))
        return graph

    return torch.compile(function, fullgraph=True, backend=backend, **how)(*args), len(found)


@sweeps_run
def test_sweeps_in_graphs():
    net, x = make("plain")

    def products(net, x):
        lin = linearize(net, x)
        return lin.value, lin.vjp(lin.value.sin())

    (value, product), count = sweeps_in_graph(products, net, x)
    exported = torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager")(torch.zeros(()))
    assert count == 1 - exported  # torch 2.10 says so of every graph
    close(value, net(x), 1e-12, "value")
    close(product, linearize(net, x).vjp(value.sin()), 1e-12, "product")
    with torch.no_grad():
        assert sweeps_in_graph(products, net, x)[1] == 0
    with torch.autocast("cpu"):
        assert sweeps_in_graph(products, net.float(), x.float())[1] == 0


@sweeps_run
@pytest.mark.parametrize("width, outrun", [(5, False), (730, False), (730, True)])  # 730 x 730 elements are many
def test_one_graph_for_all_batch_sizes(monkeypatch, width, outrun):
    monkeypatch.setattr(perceptron, "sweeps_outrun_torch", lambda: outrun)
    net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
    net.double()
    graphs = []

    def loss(x):
        lin = linearize(net, x)
        return lin.value.sin().sum() + lin.vjp(lin.value.cos()).square().sum()

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_autograd(fw_compiler=lambda graph, _: graph)(graph, inputs)

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for samples in (3, 5, 8, 260):
        x = torch.randn(samples, 3, dtype=torch.float64, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        leaves = (x, *net.parameters())
        results = [torch.autograd.grad(run(x), leaves) for run in (compiled, loss)]
        torch.testing.assert_close(*results)
    assert len(graphs) == 1


def test_an_exported_network_needs_no_operators_of_ours():
    class Value(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = perceptron_of()

        def forward(self, x):
            return linearize(self.net, x).value

    for strict in (True, False):
        x = torch.randn(4, 3, requires_grad=True)
        program = torch.export.export(Value(), (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=strict)
        assert "fisherkernels" not in str(program.graph)


def test_the_network_stays_as_it_was():
    net, x = make("plain")
    before = copy.deepcopy(net.state_dict())
    lin = linearize(net, x)
    lin.vjp(lin.value).sum().backward()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.state_dict().keys() == before.keys()
        close(linearize(other, x).value, lin.value, 0.0, "value")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("weights", ["leaves", "made inside"])
def test_activation_checkpointing(weights):
    net, x = make("a last activation")

    def part(x):
        names = dict(net.named_parameters()) if weights == "made inside" else {}
        lin = linearize(net, x, parameters={name: p.sin() for name, p in names.items()})
        return scalar_of([lin.value, lin.vjp(lin.value.sin())])

    result = gradients(checkpoint(part, x, use_reentrant=False), net, x)
    all_close(result, gradients(part(x), net, x), 1e-14, "both")


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("product", [False, True])
def test_a_weight_changed_before_backward(position, product):
    net, x = make("plain")
    lin = linearize(net, x)
    loss = (lin.vjp(torch.ones_like(lin.value).requires_grad_()) if product else lin.value).sum()
    with torch.no_grad():
        list(net.parameters())[2 * position].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("trained", ["both", "encoder", "decoder"])
def test_fisher_auto_encoder(trained):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
    decoder = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 6), nn.Sigmoid(), nn.Unflatten(1, (2, 3)))
    nets = nn.ModuleList([encoder, decoder]).double()
    for name, net in (("encoder", encoder), ("decoder", decoder)):
        net.requires_grad_(trained in ("both", name))
    x, noise = torch.rand(5, 2, 3, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    wanted = [p for p in nets.parameters() if p.requires_grad]
    found = []
    for loss in (fisher_ae_loss, reference.fisher_ae_loss):
        output = loss(encoder, decoder, x, num_samples=2, noise=noise)
        found.append((output.loss, *torch.autograd.grad(output.loss, wanted)))
    all_close(*found, 1e-12, "the loss")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_a_gradient(way, step_by_step):
    net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 6), nn.Sigmoid()).double()
    x = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    wanted = [x, *net.parameters()]
    lin = linearize(net, x)
    assert swept(lin) == 1
    results = way(lin, wanted)
    step_by_step()
    all_close(results, way(linearize(net, x), wanted), 1e-12, "gradient")


def test_products_alone():
    """The last bias, which no product depends on, gets no gradient, and a hook on the value is not called."""
    net, x = make("plain")
    lin = linearize(net, x)
    lin.value.register_hook(pytest.fail)
    lin.vjp(torch.ones_like(lin.value)).sum().backward()
    assert net[-1].bias.grad is None and net[-1].weight.grad is not None


def test_a_cotangent_alone():
    net, x = make("plain")
    net.requires_grad_(False)
    cotangent = torch.randn(4, 6, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(linearize(net, x.detach()).vjp(cotangent).square().sum(), cotangent)
    product = torch.autograd.grad(net(x), x, cotangent.detach())[0]
    close(grad, 2 * torch.func.jvp(net, (x.detach(),), (product,))[1], 1e-12, "gradient")
