"""Whole networks: what users write around the layers, and what linearize promises about them."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linearize_cases import Function, hooked
from linearize_oracle import SEED, all_close, check, close, gradients, scalar_of
from torch import nn
from torch.nn import functional as F

from fisherkernels import linearize

ACTIVATIONS = [nn.Tanh, nn.SiLU, nn.Softplus, nn.ELU, nn.Sigmoid]


class Residual(nn.Module):
    """Branches, shared weights, a gate, two outputs, BatchNorm between them."""

    def __init__(self, width, half):
        super().__init__()
        self.shared = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.gate = nn.Parameter(torch.randn(width))
        self.mean, self.log_std = nn.Linear(2 * width, half), nn.Linear(2 * width, half)
        self.scale = 2.0

    def forward(self, x):
        h = self.norm(x + torch.tanh(self.shared(x)))
        h = torch.cat([F.silu(self.shared(h)) * self.gate, h], dim=1)
        return self.mean(h) * self.scale, self.log_std(h)


class Branching(nn.Module):
    """Control flow that depends on the data: torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else torch.tanh(self.layer(x))


class Noisy(nn.Module):
    """Draws a tensor of its own in forward, which a trace would freeze."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x)) * torch.randn(3, dtype=torch.float64)


class Counting(nn.Module):
    """Changes a buffer and an attribute of its own in forward."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0
        self.register_buffer("average", torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        self.calls += 1
        y = self.layer(x)
        self.average.mul_(0.5).add_(y.detach().mean(0))
        return torch.tanh(y)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(1, 7),
    activation=st.sampled_from(ACTIVATIONS),
    dropout=st.booleans(),
)
def test_mlp(sizes, batch, activation, dropout):
    layers = []
    for a, b in zip([3, *sizes], sizes, strict=False):
        layers += [nn.Linear(a, b), activation()] + ([nn.Dropout(0.3)] if dropout else [])
    check(nn.Sequential(*layers), (batch, 3))


@given(width=st.integers(1, 6), half=st.integers(1, 4), batch=st.integers(3, 8), train=st.booleans())
def test_residual_network_with_two_outputs(width, half, batch, train):
    check(Residual(width, half).train(train), (batch, width), tolerance=1e-11)


@pytest.mark.parametrize("train", [True, False])
def test_convolutional_network(train):
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 4),
        nn.Unflatten(1, (4, 1, 1)),
        nn.ConvTranspose2d(4, 3, 5, 1, 1),
        nn.BatchNorm2d(3),
        nn.ELU(),
        nn.ConvTranspose2d(3, 1, 4, 2, 0),
        nn.Sigmoid(),
    )
    check(net.train(train), (5, 1, 8, 8), tolerance=1e-10)


def test_strided_input_and_cotangent():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
    x = torch.randn(6, 4, dtype=torch.float64).t()[:3].t()
    cotangent = torch.randn(5, 6, dtype=torch.float64).t()
    lin = linearize(net, x)
    close(lin.vjp(cotangent), linearize(net, x.contiguous()).vjp(cotangent.contiguous()), 1e-15, "vjp")
    close(lin.jvp(x), linearize(net, x.contiguous()).jvp(x.contiguous()), 1e-15, "jvp")


@pytest.mark.parametrize("net", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))])
def test_empty_batch(net):
    lin = linearize(net, torch.empty(0, 3))
    assert lin.value.shape == (0, 2)
    assert lin.vjp(torch.empty(0, 2)).shape == (0, 3)
    assert lin.jvp(torch.empty(2, 0, 3)).shape == (2, 0, 2)


def test_nan_stays_in_its_sample():
    net = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    x[1, 0] = torch.nan
    lin = linearize(net, x)
    assert lin.value.isnan().any(1).tolist() == [False, True, False, False]
    assert not lin.vjp(torch.ones(4, 2))[[0, 2, 3]].isnan().any()


def test_running_statistics_are_updated_once():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
    lin = linearize(net, torch.randn(8, 3))
    lin.vjp(torch.randn(2, 8, 4))
    lin.jvp(torch.randn(8, 3))
    assert net[1].num_batches_tracked == 1


def test_frozen_statistics_are_constants_of_the_map():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()).double()
    x, c = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    twin = copy.deepcopy(net)
    lin = linearize(net, x, batch_statistics="frozen")
    h = twin[0](x).detach()
    close(lin.value, twin(x), 1e-14, "value")
    still = copy.deepcopy(twin)
    still[1].running_mean, still[1].running_var = h.mean(0), h.var(0, correction=0)
    other = linearize(still.eval(), x)
    close(lin.vjp(c), other.vjp(c), 1e-13, "vjp")
    close(lin.jvp(x), other.jvp(x), 1e-13, "jvp")
    zero = x.new_zeros((), requires_grad=True)
    all_close(
        gradients(scalar_of([lin.value]), net, zero),
        gradients(scalar_of([twin(x)]), twin, zero),
        1e-12,
        "the value: the statistics' own gradient stays",
    )


def test_parameters_stand_in_for_the_modules_own():
    net = Residual(4, 2).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    other = {name: torch.randn_like(p).requires_grad_() for name, p in net.named_parameters()}
    twin = copy.deepcopy(net)
    twin.load_state_dict({**twin.state_dict(), **other})
    lin, expected = linearize(net, x, parameters=other), linearize(twin, x)
    c = (torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64))
    close(lin.vjp(c), expected.vjp(c), 1e-14, "vjp")
    lin.vjp(c).sum().backward()
    assert other["shared.weight"].grad is not None and net.shared.weight.grad is None
    part = linearize(net, x, parameters={"gate": other["gate"].detach()})
    close(part.value[0], linearize(net, x, parameters={"gate": other["gate"]}).value[0], 0.0, "one parameter")


def test_parameters_of_tied_weights_and_of_fallbacks():
    first = nn.Linear(3, 3).double()
    tied = nn.Sequential(first, hooked(nn.Mish()), first, hooked(nn.Softmin(-1))).double()
    other = {name: torch.randn_like(p) for name, p in tied.named_parameters()}
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="no rule for 1, 3 of Sequential"):
        lin = linearize(tied, x, parameters=other)
    close(lin.value, torch.func.functional_call(tied, other, (x,)), 1e-14, "value")


def test_dropout_keeps_the_drawn_mask():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 6, bias=False))
    x = torch.ones(4, 6)
    torch.manual_seed(SEED)
    expected = net(x)
    torch.manual_seed(SEED)
    lin = linearize(net, x)
    close(lin.value, expected, 0.0, "value under the same seed")
    close(lin.jvp(x), lin.value, 1e-6, "a linear network's derivative along x")


def test_train_eval_and_replaced_layers_make_a_new_plan():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.Tanh())
    x = torch.randn(50, 3)
    assert (linearize(net, x).value == 0).any()
    net.eval()
    close(linearize(net, x).value, net(x), 0.0, "eval")
    net[2] = nn.Sigmoid()
    close(linearize(net, x).value, net(x), 0.0, "replaced layer")
    net.append(nn.ReLU())
    close(linearize(net, x).value, net(x), 0.0, "appended layer")
    residual = Residual(3, 2).eval()
    before = linearize(residual, x).value[0]
    residual.scale = 4.0
    close(linearize(residual, x).value[0], 2 * before, 1e-6, "changed attribute")
    net.register_forward_hook(lambda module, args, out: out * 2)
    with pytest.warns(UserWarning, match="torch.func"):
        close(linearize(net, x).value, net(x), 0.0, "hooked")


class Scaled(nn.Module):
    """A function and a parameter that may be there, and a buffer in parts."""

    def __init__(self):
        super().__init__()
        self.activation = torch.tanh
        self.register_parameter("scale", None)
        self.register_buffer("mask", torch.rand(4, 6, dtype=torch.float64))

    def forward(self, x):
        y = self.activation(x) * self.mask[0, : x.shape[1]]
        return y if self.scale is None else y * self.scale


def test_changed_functions_parameters_and_buffers_are_noticed():
    net, x = nn.Sequential(Scaled()), torch.randn(4, 3, dtype=torch.float64)
    check(net, (4, 3))
    net[0].activation = torch.sin
    close(linearize(net, x).value, net(x), 1e-15, "function")
    net[0].scale = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    close(linearize(net, x).value, net(x), 1e-15, "parameter")
    net[0].mask.mul_(-3)
    close(linearize(net, x).value, net(x), 1e-15, "buffer")
    assert set(linearize(net, x).rules.values()) == {"sin", "mul"}


@pytest.mark.parametrize(
    "activation_of",
    [lambda net: lambda x: x * net.mask[0, 0], lambda net: lambda x, net=net: x * net.mask[0, 0]],
)
def test_a_plan_keeps_no_module_alive(activation_of):
    net, x = Scaled(), torch.randn(2, 3, dtype=torch.float64)
    net.activation = activation_of(net)
    close(linearize(net, x).value, net(x), 1e-15, "value")
    known = weakref.ref(net)
    del net
    gc.collect()
    assert known() is None


def test_compiled_graph_follows_train_eval_and_replaced_layers():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())
    x = torch.randn(5, 3)
    compiled = torch.compile(lambda net, x: linearize(net, x).vjp(x), fullgraph=True, backend="aot_eager")
    for change in (lambda: None, net.eval, lambda: net.__setitem__(2, nn.Sigmoid()), lambda: net.append(nn.ReLU())):
        change()
        close(compiled(net, x), linearize(net, x).vjp(x), 1e-6, "after a change")


@pytest.mark.parametrize(
    ("make", "slow"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), hooked(nn.Mish()), nn.Linear(4, 3)), {"1"}),
        (lambda: nn.Sequential(nn.Linear(4, 4), hooked(nn.Softmin(-1))), {"1"}),
        (lambda: nn.Sequential(Branching(), nn.Linear(4, 3)), {"0"}),
        (lambda: Branching(), {"Branching"}),
        (lambda: nn.Sequential(nn.Linear(4, 4), Noisy()), {"1"}),
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)).eval()),
            {"1"},
        ),
        (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()), {"0"}),
        (lambda: nn.Sequential(nn.Linear(4, 4), hooked(nn.Dropout1d(0.5)), nn.Tanh()), {"1"}),
    ],
)
def test_fallback_for_that_module_alone(make, slow):
    net = make()
    with pytest.warns(UserWarning, match="no rule for") as warned:
        lin = check(net, (5, 4), fallback=True, tolerance=1e-12)
    assert {name for name, rule in lin.rules.items() if "fallback" in rule} == slow
    assert len([w for w in warned if "no rule" in str(w.message)]) == 1


def test_fallback_that_takes_a_value_twice():
    class Twice(nn.Module):
        def forward(self, x):
            h = x.exp()
            return torch.hypot(h, h)

    with pytest.warns(UserWarning, match="no rule for hypot"):
        check(Twice(), (3, 2), fallback=True)


def test_further_arguments_keep_their_defaults():
    class Optional(nn.Module):
        def forward(self, x, mask=None, *, scale=0.5):
            return torch.tanh(x if mask is None else x * mask) * scale

    class Variadic(nn.Module):
        def forward(self, *inputs, **options):
            return torch.tanh(inputs[0]) * len(inputs)

    class Switched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Optional()

        def forward(self, x, doubled=False):
            return self.inner(x, x.exp(), scale=2.0) if doubled else self.inner(x)

    for net in (Optional(), Variadic(), Switched(), nn.Sequential(Switched())):
        assert set(check(net, (4, 3)).rules.values()) == {"tanh", "mul"}


def test_children_with_their_own_parameters_are_traced():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return torch.tanh(x) * self.gate

    lin = check(nn.Sequential(nn.Linear(3, 4), nn.Sequential(Gate(), Gate())), (5, 3))
    assert set(lin.rules.values()) == {"linear", "tanh", "mul"}


def test_fallback_of_train_mode_batch_norm_updates_its_statistics_once():
    class OwnBatchNorm(nn.BatchNorm1d):
        pass

    net = nn.Sequential(nn.Linear(3, 4), OwnBatchNorm(4)).double()
    twin = copy.deepcopy(net)
    x = torch.randn(6, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="no rule for 1"):
        lin = linearize(net, x)
    lin.vjp(torch.randn(2, 6, 4, dtype=torch.float64))
    twin(x)
    close(net[1].running_mean, twin[1].running_mean, 1e-14, "running mean")
    assert net[1].num_batches_tracked == 1
    with pytest.raises(ValueError, match="batch_statistics.*1 in train mode"):
        linearize(net, x, batch_statistics="frozen")


def test_forward_that_changes_its_own_state_runs_every_time():
    net = nn.Sequential(Counting()).double()
    twin = copy.deepcopy(net)
    x = torch.randn(5, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="no rule for 0"):
        for _ in range(3):
            linearize(net, x)
            twin(x)
    assert net[0].calls == twin[0].calls == 3
    close(net[0].average, twin[0].average, 1e-14, "buffer")


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("write", [torch.relu_, lambda h: h.mul_(2), lambda h: F.relu(h, inplace=True)])
def test_a_value_changed_in_place_is_read_as_changed(write):
    class Net(nn.Module):
        def forward(self, x):
            h = x * 1.0
            write(h)
            return h.sin()

    x = torch.linspace(-1, 1, 6).view(2, 3)
    close(linearize(Net(), x).value, Net()(x), 1e-6, "value")


def _write_a_view(h):
    h[:, :1].mul_(2)
    return h.sin()


def _write_a_flat_view(h):
    torch.relu_(h.flatten())
    return h.sin()


def _read_a_view(h):
    view = h.view(-1)
    h.relu_()
    return view.sin()


def _write_one_of_a_list(h):
    torch._foreach_add_([h], 1.0)
    return h.sin()


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("forward", [_write_a_view, _write_a_flat_view, _read_a_view, _write_one_of_a_list])
def test_what_shares_memory_with_a_changed_value_is_read_as_changed(forward):
    net, x = Function(lambda m, x: forward(x * 1.0)), torch.linspace(-1, 1, 6).view(2, 3)
    close(linearize(net, x).value, net(x), 1e-6, "value")


@pytest.mark.filterwarnings("error:.*no rule for")
def test_values_that_are_changed_in_place_and_not_read_again_keep_their_rules():
    layers = nn.Linear(4, 3), nn.Flatten(), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3, 4)
    net = Function(lambda m, x: m.layers(x).view(x.shape[0], -1).add_(1.0).mul_(2.0).view(x.shape) + x)
    net.layers = nn.Sequential(*layers)
    x = torch.randn(2, 4)
    close(linearize(net, x).value, net(x), 1e-6, "value")


@pytest.mark.parametrize("write", [F.hardtanh_, lambda h: h.sin_(), lambda h: F.rrelu(h, training=True, inplace=True)])
def test_layers_without_a_rule_may_write_their_input(write):
    net = Function(lambda m, x: write(2 * x))
    x = torch.linspace(-1, 1, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="no rule for"):
        lin = linearize(net, x)
    torch.manual_seed(0)
    value = net(x)
    close(lin.value, value, 1e-12, "value")
    close(lin.vjp(x), torch.autograd.grad(value, x, x)[0], 1e-12, "vjp")


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("planned_before", [False, True])
@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 4), nn.Sequential(nn.Tanh()), nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)]
)
def test_a_forward_of_this_very_module_counts(layer, planned_before):
    layer = copy.deepcopy(layer)
    net, x = nn.Sequential(layer), torch.randn(2, 3, 4)
    if planned_before:
        linearize(net, x)
    layer.forward = lambda h: 3 * h
    close(linearize(net, x).value, 3 * x, 1e-6, "value")


class Attending(nn.MultiheadAttention):
    """Without a rule."""


class AsksForNone(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attending(4, 2, batch_first=True)

    def forward(self, x):
        value, weights = self.attention(x, x, x, need_weights=False)
        return value if weights is None else 0 * value


@pytest.mark.filterwarnings("ignore:.*no rule for")
def test_what_may_be_none_is_asked_for_none():
    net, x = AsksForNone(), torch.randn(2, 3, 4)
    for module in (net, nn.Sequential(nn.Linear(4, 4), net)):
        close(linearize(module, x).value, module(x), 1e-6, "value")


class Augmented(nn.Module):
    """Another name for what is changed; numbers that are changed are no tensors."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept

    def forward(self, x):
        h = x * 1.0
        y = h if self.kept else h + x
        h += 1
        h *= 2
        n = x.shape[0]
        n += 1
        return (h + y) / n


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("kept", [True, False])
def test_augmented_assignments_write(kept):
    net, x = Augmented(kept), torch.randn(3, 4, dtype=torch.float64)
    check(net, x.shape, fallback=kept)
    close(linearize(net, x).value, net(x), 1e-14, "value")


def test_value_that_does_not_depend_on_the_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.bias.expand(x.shape[0], 2)

    lin = linearize(Constant(), torch.randn(3, 4))
    assert lin.rules == {}
    assert torch.equal(lin.vjp(torch.ones(5, 3, 2)), torch.zeros(5, 3, 4))
    assert torch.equal(lin.jvp(torch.ones(3, 4)), torch.zeros(3, 2))


class TestBadInput:
    net = nn.Linear(3, 2)

    def test_no_module(self):
        with pytest.raises(TypeError, match="net: expected a torch.nn.Module, got function"):
            linearize(lambda x: x, torch.randn(2, 3))

    def test_integers(self):
        with pytest.raises(TypeError, match="x: expected a floating point tensor, got torch.int64; scale"):
            linearize(self.net, torch.ones(2, 3, dtype=torch.long))

    def test_list(self):
        with pytest.raises(TypeError, match="x: expected a tensor, got list"):
            linearize(self.net, [1.0])

    def test_batch_statistics(self):
        with pytest.raises(ValueError, match="batch_statistics: expected .*, got 'running'"):
            linearize(self.net, torch.randn(2, 3), batch_statistics="running")

    def test_unknown_parameter(self):
        with pytest.raises(ValueError, match="parameters: 'w' is no parameter of Linear; it has weight, bias"):
            linearize(self.net, torch.randn(2, 3), parameters={"w": torch.ones(2)})

    def test_parameter_shape(self):
        with pytest.raises(ValueError, match=r"parameters: 'bias' expected shape \(2,\), got \(3,\)"):
            linearize(self.net, torch.randn(2, 3), parameters={"bias": torch.ones(3)})

    def test_cotangent_shape(self):
        with pytest.raises(
            ValueError, match=r"cotangent: expected shape \[2, 2\] or a stack \[K, 2, 2\], got \[2, 3\]"
        ):
            linearize(self.net, torch.randn(2, 3)).vjp(torch.ones(2, 3))

    def test_tangent_shape(self):
        with pytest.raises(ValueError, match=r"tangent: expected shape \[2, 3\]"):
            linearize(self.net, torch.randn(2, 3)).jvp(torch.ones(2, 2))

    def test_cotangent_of_a_tuple(self):
        lin = linearize(Residual(3, 2), torch.randn(4, 3))
        with pytest.raises(TypeError, match="cotangent: expected a tuple of 2 tensors, got Tensor"):
            lin.vjp(torch.ones(4, 2))
        with pytest.raises(ValueError, match="all parts single or all parts stacked"):
            lin.vjp((torch.ones(4, 2), torch.ones(5, 4, 2)))

    def test_distributed_wrapper(self):
        with pytest.raises(TypeError, match="net: .*DataParallel.*the loss belongs inside the wrapped module"):
            linearize(nn.DataParallel(self.net), torch.randn(2, 3))
