"""Chains that are swept as one, held against their steps run one by one."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from linearize_cases import Function
from linearize_oracle import OTHER_WAYS, PRIMITIVE, all_close, check, close, gradients, rms, scalar_of
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fisherkernels import fisher_ae_loss, linearize, ops, reference
from fisherkernels.linearize import chain, chain_pieces, linearize_for_stacks
from fisherkernels.linearize.plan import plan_of

swept_run = pytest.mark.skipif(not ops.backends()["cpu"].active, reason="chains need the native cpu library")


class Functional(nn.Module):
    """Functional forms, keywords, no bias; a parameter is read between the layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 2, 3)), nn.Parameter(torch.randn(4, 2, 2))
        self.weight, self.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        h = F.conv1d(x, weight=self.first, padding=1)
        h = F.batch_norm(h, self.mean, self.var, self.weight, self.bias, training=True, momentum=0.3)
        h = F.leaky_relu(h, negative_slope=0.3)
        return torch.tanh(F.conv_transpose1d(h, self.second, stride=2))


class Tied(nn.Module):
    """One convolution and one BatchNorm, twice each."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(F.silu(self.norm(self.conv(x)))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return F.relu(x + self.inner(x))


class BeforeActivation(nn.Module):
    """Norm, activation, convolution, twice, and what came in."""

    def __init__(self, channels, norm):
        super().__init__()
        layers = [norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.inner = nn.Sequential(*layers, *copy.deepcopy(layers))

    def forward(self, x):
        return x + self.inner(x)


def before_activation(norm=lambda channels: nn.GroupNorm(2, channels)):
    return nn.Sequential(nn.Conv2d(2, 4, 3), BeforeActivation(4, norm), norm(4), nn.SiLU(), nn.Flatten())


class FunctionalGroups(nn.Module):
    """Keywords; GroupNorm without parameters, InstanceNorm with them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 2)
        self.weight, self.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        h = F.gelu(F.group_norm(self.conv(x), num_groups=2, eps=1e-2))
        return F.tanh(F.instance_norm(h, weight=self.weight, bias=self.bias, eps=1e-2))


def activations():
    """No norms; keys that are values, and inputs."""
    return nn.Sequential(
        nn.Linear(3, 16), nn.Softplus(), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 5, 2), nn.SiLU(),
        nn.Conv2d(5, 4, 2, bias=False), nn.ReLU(), nn.GELU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 2), nn.ELU(),
        nn.Tanh(), nn.Conv2d(3, 3, 2), nn.LeakyReLU(0.2), nn.Conv2d(3, 2, 1), nn.Sigmoid(),
    )  # fmt: skip


def groups():
    return nn.Sequential(
        nn.Linear(3, 24), nn.Unflatten(1, (6, 2, 2)), nn.GroupNorm(3, 6), nn.Softplus(),
        nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.GroupNorm(1, 4), nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ELU(), nn.Conv2d(4, 2, 2), nn.GroupNorm(2, 2),
    )  # fmt: skip


def encoder():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5),
        nn.LeakyReLU(0.2), nn.Conv2d(5, 3, 2), nn.Flatten(),
    )  # fmt: skip


def decoder():
    return nn.Sequential(
        nn.Linear(3, 16), nn.Unflatten(1, (4, 2, 2)), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(4, affine=False), nn.GELU(),
        nn.ConvTranspose2d(4, 2, 2, dilation=2), nn.Sigmoid(),
    )  # fmt: skip


def moved():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.ELU(), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(4, 4, 3, groups=2, dilation=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def picked():
    """Maxima, masks, and what is padded."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Conv2d(4, 3, 2), nn.SiLU(),
        nn.Dropout(0.5), nn.ReflectionPad2d(1), nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 4, 2), nn.LeakyReLU(0.2),
        nn.Dropout2d(0.2), nn.ChannelShuffle(2), nn.ZeroPad2d(1), nn.Conv2d(4, 3, 3), nn.AdaptiveMaxPool2d(2),
    )  # fmt: skip


def interrupted():
    """A softmax has no piece, nor have other constants than 0 around the maps."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softmax(1), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3),
        nn.ConstantPad2d(1, 0.5), nn.GroupNorm(1, 3), nn.Conv2d(3, 3, 4), nn.Flatten(), nn.BatchNorm1d(48), nn.ReLU(),
        nn.Linear(48, 2),
    )  # fmt: skip


def cut(last):
    """A chain as planned, of which the kernels take the front alone."""
    return lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), *last())


def smooth(*extra):
    return nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Softplus(), nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Tanh(), *extra
    )


def norms_alone():
    """BatchNorm twice, an activation behind another one, BatchNorm at the end."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.BatchNorm2d(3, eps=0.1), nn.Tanh(), nn.SiLU(), nn.ELU(),
        nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2, track_running_stats=False),
    )  # fmt: skip


NETWORKS = {  # and the input's shape behind N
    "encoder": (encoder, (2, 6, 6)),
    "decoder": (decoder, (3,)),
    "moved": (moved, (2, 8, 8)),
    "picked": (picked, (2, 8, 8)),
    "picked, in eval mode": (lambda: picked().eval().requires_grad_(), (2, 8, 8)),
    "interrupted": (interrupted, (2, 8, 8)),
    "cut at a padding": (cut(lambda: [nn.SiLU(), nn.Conv2d(4, 3, 3, padding="same"), nn.BatchNorm2d(3)]), (2, 8, 8)),
    "cut at BatchNorm of single numbers": (cut(lambda: [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]), (2, 8, 8)),
    "cut at BatchNorm in eval mode": (cut(lambda: [nn.Tanh(), nn.BatchNorm2d(4).eval(), nn.ReLU()]), (2, 8, 8)),
    "smooth": (smooth, (2, 7)),
    "an activation with other constants": (lambda: smooth(nn.Conv1d(4, 2, 2), nn.Softplus(2.0)), (2, 7)),
    "norms alone": (norms_alone, (1, 4, 5)),
    "activations alone": (activations, (3,)),
    "groups": (groups, (3,)),
    "groups in functional form": (FunctionalGroups, (2, 5)),
    "before the activation": (before_activation, (2, 5, 5)),
    "BatchNorm before the activation": (lambda: before_activation(nn.BatchNorm2d), (2, 5, 5)),
    "a norm first": (lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Conv1d(2, 3, 2), nn.Tanh()), (2, 5)),
    "a norm alone": (lambda: nn.Sequential(nn.InstanceNorm1d(2, affine=True), nn.GELU()), (2, 5)),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.SiLU(), nn.ConvTranspose3d(2, 1, 2)),
        (1, 3, 2, 3),
    ),
    "mean pooling in one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.AvgPool1d(2), nn.BatchNorm1d(3), nn.SiLU(), nn.Conv1d(3, 2, 2)),
        (2, 9),
    ),
    "mean pooling in three dimensions": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 2, 2), nn.AvgPool3d(2, 1), nn.GroupNorm(1, 2), nn.Tanh(), nn.Conv3d(2, 1, 1)
        ),
        (1, 5, 4, 4),
    ),
    "functional": (Functional, (2, 5)),
    "tied": (Tied, (3, 4, 4)),
    "residual": (lambda: nn.Sequential(Residual(), Residual()), (3, 4, 4)),
    "cumulative average": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3, momentum=None), nn.ReLU()),
        (2, 5),
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(chain, "LEAST_WORK", 0)
    monkeypatch.setattr(chain_pieces, "SMALLEST_MAP", 2)


@pytest.fixture
def step_by_step(monkeypatch):
    """start(): from here on no chain is swept."""
    return lambda: monkeypatch.setattr(chain.SweptChain, "run", lambda self, x: False)


def make(name, dtype=torch.float64, samples=4):
    build, shape = NETWORKS[name]
    return build().to(dtype), torch.randn(samples, *shape, dtype=dtype).requires_grad_()


def linearized(net, x):
    """Always with the same dropout."""
    torch.manual_seed(7)
    return linearize(net, x)


def swept(lin):
    return len(lin._folded.folded)


@pytest.mark.parametrize(
    "make, kinds",
    [
        (encoder, ["conv2d leaky_relu conv2d batch_norm leaky_relu conv2d"]),
        (
            decoder,
            [
                "linear unflatten batch_norm relu conv_transpose2d batch_norm gelu conv_transpose2d sigmoid",
            ],
        ),
        (
            moved,
            [
                "conv2d avg_pool2d batch_norm elu interpolate conv2d silu adaptive_avg_pool2d flatten linear",
            ],
        ),
        (
            picked,
            [
                "conv2d batch_norm max_pool2d dropout conv2d silu dropout pad max_pool2d conv2d leaky_relu dropout2d "
                "channel_shuffle pad conv2d"
            ],
        ),
        (interrupted, ["conv2d batch_norm", "conv2d batch_norm pad group_norm conv2d"]),
        (lambda: NETWORKS["mean pooling in one dimension"][0](), ["conv1d avg_pool1d batch_norm silu conv1d"]),
        (lambda: NETWORKS["mean pooling in three dimensions"][0](), ["conv3d avg_pool3d group_norm tanh conv3d"]),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Conv1d(3, 3, 2), nn.BatchNorm1d(3)), ["conv1d batch_norm"]),
        (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 3, 2)), ["batch_norm conv1d"]),
        (before_activation, ["group_norm silu conv2d group_norm silu conv2d", "group_norm silu"]),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)), []),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Conv1d(3, 3, 2), nn.Tanh()), []),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.GELU(), nn.Conv1d(3, 3, 2)), ["conv1d gelu conv1d"]),
        (
            lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3)),
            ["conv1d batch_norm group_norm instance_norm"],
        ),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.GroupNorm(2, 4), nn.Linear(4, 2)), []),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, track_running_stats=True)), []),
        (
            lambda: nn.Sequential(
                nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)
            ),
            ["conv1d batch_norm"],
        ),
        (Functional, ["conv1d batch_norm leaky_relu conv_transpose1d tanh"]),
        (Residual, ["conv2d batch_norm relu conv2d"]),
    ],
)
def test_chains(make, kinds):
    plan = plan_of(make())
    assert [" ".join(plan.steps[i].rule for i in stretch.steps) for stretch in plan.chains] == kinds


@swept_run
@every_network
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_swept_in_eager_mode(name, dtype):
    net, x = make(name, dtype)
    cut_once = name in ("cut at a padding", "interrupted")
    expected = len(plan_of(net).chains) + cut_once
    assert swept(linearize(net, x)) == expected
    assert swept(linearize(net, x.detach())) == expected
    assert swept(linearize(net.requires_grad_(False), x)) == expected
    assert swept(linearize(net, x.detach())) == 0  # nothing to record


@every_network
def test_against_double_backward(name):
    build, shape = NETWORKS[name]
    check(build(), (4, *shape), tolerance=1e-11)


def products_of(lin, cotangent, stack, tangent):
    yield "value", [lin.value]
    yield "vjp", [lin.vjp(cotangent)]
    yield "value and vjp", [lin.value, lin.vjp(cotangent), lin.vjp(cotangent.sin())]
    yield "vjp at the value", [lin.vjp(lin.value.tanh())]
    yield "vjp of a stack", [lin.vjp(stack)]
    yield "vjp after a stack", [lin.vjp(cotangent)]
    yield "jvp", [lin.jvp(tangent)]


@every_network
def test_same_as_step_by_step(name, step_by_step):
    net, x = make(name)
    chained = linearized(net, x)
    given = torch.randn_like(chained.value), torch.randn(3, *chained.value.shape).to(x), torch.randn_like(x)
    results = {what: (parts, gradients(scalar_of(parts), net, x)) for what, parts in products_of(chained, *given)}
    step_by_step()
    lin = linearized(net, x)
    assert swept(lin) == 0
    assert chained.rules == lin.rules and chained.work() == lin.work() and chained.coupled == lin.coupled
    assert chained._record.shapes == lin._record.shapes
    for what, parts in products_of(lin, *given):
        for result, part in zip(results[what][0], parts, strict=True):
            close(result, part, 1e-12, what)
        all_close(results[what][1], gradients(scalar_of(parts), net, x), 1e-10, what)


def layer_of(draw, channels, dims):
    """A weight with random geometry, and what may be behind it."""
    out = draw(st.sampled_from([2, 4]))
    options = dict(
        stride=draw(st.sampled_from([1, 2])),
        padding=draw(st.sampled_from([0, 1])),
        dilation=draw(st.sampled_from([1, 2])),
        groups=draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
    )
    kind = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    if kind == "ConvTranspose" and options["stride"] == 2:
        options["output_padding"] = draw(st.sampled_from([0, 1]))
    conv = getattr(nn, f"{kind}{dims}d")(channels, out, draw(st.sampled_from([1, 2, 3])), **options)
    options = dict(eps=1e-2, affine=draw(st.booleans()))
    of_groups = nn.GroupNorm(draw(st.sampled_from([1, 2])), out, **options)
    norm = draw(st.sampled_from([getattr(nn, f"BatchNorm{dims}d")(out, **options), of_groups]))
    behind = [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.SiLU(), nn.Softplus(), nn.GELU(), nn.ELU(), nn.Sigmoid()]
    activation = draw(st.sampled_from(behind))
    layers = draw(st.sampled_from([[norm, activation], [norm], [activation], [activation, norm]]))
    pool = getattr(nn, f"MaxPool{dims}d")(2, 1, 1)
    layers += draw(st.sampled_from([[], [pool], [nn.Dropout(0.4)], [pool, nn.Dropout(0.4)]]))
    return [conv, *layers], out


@given(data=st.data(), dims=st.sampled_from([1, 2]), samples=st.sampled_from([2, 5]), seed=st.integers(0, 10**6))
def test_random_chains(data, dims, samples, seed):
    """Convolutions of any geometry, norms, activations, maxima and dropout in any order."""
    torch.manual_seed(seed)
    channels, layers = 2, data.draw(st.sampled_from([[], [nn.GroupNorm(1, 2), nn.SiLU()]]))
    for _ in range(data.draw(st.sampled_from([1, 2, 3]))):
        more, channels = layer_of(data.draw, channels, dims)
        layers += more
    net = nn.Sequential(*layers).double()
    x = torch.randn(samples, 2, *[11] * dims, dtype=torch.float64).requires_grad_()
    twin, smallest = copy.deepcopy(net), []
    for module in twin:
        if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            module.register_forward_pre_hook(lambda _, given: smallest.append(given[0].abs().min()))
    try:
        torch.manual_seed(seed)
        value = twin(x)
    except (RuntimeError, ValueError):  # nothing is left of the maps
        assume(False)
    # Else rounding decides on which side of a kink it is, or is all that BatchNorm of a constant map gives.
    assume(all(s > 1e-9 for s in smallest) and value.std() > 1e-3)
    torch.manual_seed(seed)
    lin = linearize(net, x)
    close(lin.value, value, 1e-11, "value")  # norms of nearly constant maps enlarge what rounding left
    expected = [value, torch.autograd.grad(value, x, value.sin(), create_graph=True)[0]]
    parts = [lin.value, lin.vjp(lin.value.sin())]
    close(parts[1], expected[1], 1e-10, "product", floor=1e-3)  # a norm of two numbers all but leaves none
    all_close(gradients(scalar_of(parts), net, x), gradients(scalar_of(expected), twin, x), 1e-9, "both")
    for result, buffer in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(result, buffer)


@every_network
def test_kernels_and_twins(name):
    net, x = make(name, torch.float32, 9)

    def run():
        lin = linearized(net, x)
        parts = [lin.value, lin.vjp(lin.value.sin())]
        return parts, gradients(scalar_of(parts), net, x)

    parts, grads = run()
    with ops.use_twins():
        expected_parts, expected_grads = run()
    for result, expected in zip(parts, expected_parts, strict=True):
        close(result, expected, 2e-5, "value or vjp")
    all_close(grads, expected_grads, 1e-3, "both")


# torch's double backward of a convolution refuses the rows that a stride left over, as "encoder" has them.
NO_LEFTOVER = ["smooth", "norms alone", "three dimensions", "tied", "residual", "before the activation", "picked"]


@pytest.mark.parametrize("name", NO_LEFTOVER)
def test_second_derivatives(name, step_by_step):
    net, x = make(name)

    def twice(parts):
        grads = torch.autograd.grad(scalar_of(parts), [*net.parameters(), x], create_graph=True)
        return gradients(scalar_of(grads), net, x)

    def swept():
        lin = linearized(net, x)
        return [lin.value, lin.vjp(lin.value.sin())]

    with mock.patch.multiple(F, **PRIMITIVE):
        torch.manual_seed(7)
        value = net(x)
        expected = twice([value, torch.autograd.grad(value, x, value.sin(), create_graph=True)[0]])
    all_close(twice(swept()), expected, 1e-9, "chain")
    step_by_step()
    all_close(twice(swept()), expected, 1e-9, "rules")


@swept_run
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_a_gradient(way, step_by_step):
    net, x = make("smooth")
    wanted = [x, *net.parameters()]
    lin = linearized(net, x)
    assert swept(lin) == 1
    results = way(lin, wanted)
    step_by_step()
    all_close(results, way(linearized(net, x), wanted), 1e-10, "gradient")


class TestBackward:
    """Of part of the inputs, more than once, through several products."""

    @pytest.fixture(params=["encoder", "decoder"])
    def case(self, request):
        net, x = make(request.param)
        cotangent = torch.randn_like(linearized(net, x).value).requires_grad_()
        return net, x, cotangent, [x, *net.parameters(), cotangent]

    @staticmethod
    def losses(net, x, cotangent):
        lin = linearized(net, x)
        return [scalar_of([lin.value]), scalar_of([lin.vjp(cotangent)]), scalar_of([lin.vjp(lin.value.sin())])]

    @pytest.fixture
    def truth(self, case, monkeypatch):
        net, x, cotangent, leaves = case
        with monkeypatch.context() as context:
            context.setattr(chain.SweptChain, "run", lambda self, x: False)
            return torch.autograd.grad(sum(self.losses(net, x, cotangent)), leaves)

    def test_of_some_inputs(self, case, truth):
        net, x, cotangent, leaves = case
        loss = sum(self.losses(net, x, cotangent))
        for chosen in (*([i] for i in range(len(leaves))), [0, 2], [1, len(leaves) - 1], [1, 3, 4]):
            found = torch.autograd.grad(loss, [leaves[i] for i in chosen], retain_graph=True)
            loss.backward(inputs=[leaves[i] for i in chosen], retain_graph=True)
            for i, grad in zip(chosen, found, strict=True):  # one that vanishes is held against the others' size
                close(grad, truth[i], 1e-10, f"gradient {i}", 1e-3 * max(map(rms, truth)))
            for i, leaf in enumerate(leaves):
                assert (leaf.grad is not None) == (i in chosen)
                leaf.grad = None

    def test_twice_adds_up(self, case, truth):
        net, x, cotangent, leaves = case
        loss = sum(self.losses(net, x, cotangent))
        loss.backward(retain_graph=True)
        again = torch.autograd.grad(loss, leaves, retain_graph=True)
        loss.backward()
        all_close(again, truth, 1e-10, "the second pass")
        all_close([leaf.grad / 2 for leaf in leaves], truth, 1e-10, "both")
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    def test_losses_of_one_sweep_add_up(self, case, truth):
        net, x, cotangent, leaves = case
        for loss in self.losses(net, x, cotangent):
            loss.backward(retain_graph=True)
        all_close([leaf.grad for leaf in leaves], truth, 1e-10, "all")

    def test_a_weight_changed_before_backward(self, case):
        net, x, cotangent, _ = case
        for loss in range(3):
            chosen = self.losses(net, x, cotangent)[loss]
            with torch.no_grad():
                net[0].weight.add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                chosen.backward()

    def test_a_product_alone(self, case):
        """The last bias, which no product depends on, gets no gradient, and a hook on the value is not called."""
        net, x, cotangent, _ = case
        lin = linearized(net, x)
        lin.value.register_hook(pytest.fail)
        lin.vjp(torch.ones_like(lin.value)).sum().backward()
        last = [module for module in net if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))][-1]
        assert last.weight.grad is not None
        assert last.bias.grad is None or isinstance(net[-1], nn.Sigmoid)


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_gradient_arrives(stopped, create_graph):
    net, x = make("encoder")
    lin = linearize(net, x)
    loss = sum(stopped(t).sum() for t in (lin.value, lin.vjp(lin.value.sin())))
    for grad in torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True, create_graph=create_graph):
        assert grad is None or not grad.any()


@pytest.mark.parametrize("weights", ["leaves", "made inside"])
def test_activation_checkpointing(weights):
    net, x = make("decoder")

    def part(x):
        names = dict(net.named_parameters()) if weights == "made inside" else {}
        lin = linearize(net, x, parameters={name: p.sin() for name, p in names.items()})
        return scalar_of([lin.value, lin.vjp(lin.value.sin())])

    result = gradients(checkpoint(part, x, use_reentrant=False), net, x)
    all_close(result, gradients(part(x), net, x), 1e-13, "both")


def test_what_was_used_is_given_up():
    """A product's cotangents are freed on the way through its backward, unless the graph is kept."""
    net, x = make("encoder")
    lin = linearize(net, x)
    product = lin.vjp(lin.value)
    node = product.grad_fn
    product.sum().backward(retain_graph=True)
    assert len(node.saved_tensors) > 0
    product.sum().backward()
    with pytest.raises(RuntimeError, match="freed"):
        node.saved_tensors  # noqa: B018


def maxima():
    """What max pooling picked, in tensors that are alive."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor]
    return [t for t in tensors if t.dtype == torch.int64 and t.dim() == 4]


@swept_run
def test_masks_and_maxima_are_saved_by_the_nodes():
    """So that hooks see them, and a loss that is kept does not keep them."""
    net, x = make("picked")
    held, packed = maxima(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.dtype) or t, lambda t: t):
        lin = linearized(net, x)
        assert swept(lin) == 1
        loss = scalar_of([lin.value, lin.vjp(lin.value.sin())])
    assert torch.int64 in packed and len(maxima()) > len(held)
    del lin
    loss.backward()
    assert len(maxima()) == len(held)


def under(context):
    def run(net, x):
        with context():
            return linearize(net, x)

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(under(lambda: torch.autocast("cpu", torch.bfloat16)), id="autocast"),
        pytest.param(under(torch.no_grad), id="no_grad"),
        pytest.param(lambda net, x: linearize(net.bfloat16(), x.bfloat16()), id="bfloat16"),
        pytest.param(lambda net, x: linearize(net.eval(), x), id="eval"),
        pytest.param(lambda net, x: linearize(net, x, batch_statistics="frozen"), id="frozen"),
        pytest.param(linearize_for_stacks, id="for stacks"),
        pytest.param(lambda net, x: linearize(net, x.to(memory_format=torch.channels_last)), id="channels last"),
        pytest.param(
            lambda net, x: linearize(net.to(memory_format=torch.channels_last), x), id="weights in channels last"
        ),
    ],
)
def test_step_by_step_otherwise(run):
    net, x = encoder(), torch.randn(4, 2, 6, 6, requires_grad=True)
    lin = run(net, x)
    assert swept(lin) == 0 and lin.value.shape[0] == 4


@swept_run
@pytest.mark.parametrize(
    "name, expected",
    [
        ("cut at a padding", [(0, 4), (6, 6)]),
        ("cut at BatchNorm of single numbers", [(0, 4)]),
        ("cut at BatchNorm in eval mode", [(0, 4)]),
        ("an activation with other constants", [(0, 6)]),
    ],
)
def test_the_front_of_a_chain_is_swept(name, expected):
    """As far as the kernels go, and again behind that; what is counted in a forward is counted once."""
    net, x = make(name)
    lin = linearize(net, x)
    assert [(first, end) for end, (first, _) in lin._folded.sweeps.items()] == expected
    counts = {module.num_batches_tracked.item() for module in net if hasattr(module, "num_batches_tracked")}
    assert counts == ({0, 1} if "eval" in name else {1})


@swept_run
@pytest.mark.parametrize(
    "front",
    [
        lambda: [nn.BatchNorm2d(2).eval()],
        lambda: [nn.Conv2d(2, 2, 1), nn.ELU(0.5)],
        lambda: [nn.Flatten(), nn.BatchNorm1d(50), nn.Unflatten(1, (2, 5, 5))],
        lambda: [nn.Flatten(2), nn.GroupNorm(2, 2), nn.Unflatten(2, (5, 5))],
    ],
)
def test_what_is_behind_is_swept(front):
    net = nn.Sequential(*front(), nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.SiLU()).double()
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    for at in (x, x.detach()):
        assert len(net) - 1 in linearize(net, at)._folded.sweeps
    check(net, x.shape, tolerance=1e-11)


@swept_run
def test_small_ones_are_left_to_the_rules(monkeypatch):
    """Activations alone or BatchNorm in a short step, groups in maps of a few numbers."""
    monkeypatch.undo()
    for behind, expected in ((nn.ReLU, [0, 0, 1]), (nn.SiLU, [0, 1, 1])):
        batch = nn.Sequential(nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), behind())
        sizes = [swept(linearize(batch, torch.randn(2, 2, size, size))) for size in (64, 128, 256)]
        assert sizes == expected
    small = nn.Sequential(nn.Conv2d(2, 4, 2), nn.SiLU(), nn.Conv2d(4, 4, 2))
    assert swept(linearize(small, torch.randn(3, 2, 5, 5))) == 0
    assert swept(linearize(small, torch.randn(2, 2, 128, 128))) == 1
    wide = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Unflatten(1, (32, 1)), nn.Conv1d(32, 2100, 1))
    assert swept(linearize(wide, torch.randn(8, 8))) == 1
    groups = nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.SiLU())
    assert [swept(linearize(groups, torch.randn(3, 2, size, size))) for size in (4, 5)] == [0, 1]


@pytest.mark.parametrize("number", [0, -1, -2, 4])
def test_a_number_of_groups_that_is_none(number):
    class Net(nn.Module):
        def forward(self, x):
            return F.silu(F.group_norm(x, number))

    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    with pytest.raises((ValueError, RuntimeError, ZeroDivisionError)):
        linearize(Net(), x)


@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 4), lambda: nn.BatchNorm2d(4)])
@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout2d])
def test_one_draw_where_a_chain_is_cut(norm, dropout):
    """In front of a norm of single numbers, which has no kernel."""
    net = nn.Sequential(nn.Conv2d(2, 4, 8), dropout(0.5), norm(), nn.SiLU(), nn.Conv2d(4, 3, 1))
    x = torch.randn(5, 2, 8, 8)
    torch.manual_seed(7)
    value, after = net(x), torch.rand(3)
    torch.manual_seed(7)
    lin = linearize(net, x)
    close(lin.value, value, 1e-4, "value")
    assert torch.equal(torch.rand(3), after)
    cotangent = torch.randn_like(value)
    close(lin.vjp(cotangent), lin.vjp(torch.stack([cotangent, cotangent]))[1], 1e-4, "product")


def test_draws_of_parameters_keep_their_turn():
    """A weight's own dropout comes behind that of what it multiplies."""
    net = Function(
        lambda m, x: F.conv1d(F.dropout(F.silu(F.group_norm(F.conv1d(x, m.v), 1)), 0.5), F.dropout(m.w, 0.5)),
        v=(4, 3, 2),
        w=(2, 4, 1),
    )
    x = torch.randn(3, 3, 6)
    torch.manual_seed(7)
    value = net(x)
    torch.manual_seed(7)
    close(linearize(net, x).value, value, 1e-5, "value")


@swept_run
@pytest.mark.parametrize(
    "name", ["smooth", "groups", "before the activation", "activations alone", "a norm first", "picked"]
)
def test_compiled_autograd(name):
    net, x = make(name)
    lin = linearize(net, x)
    loss = scalar_of([lin.value, lin.vjp(lin.value.sin())])
    expected = torch.autograd.grad(loss, [x, *net.parameters()], retain_graph=True)
    with torch._dynamo.compiled_autograd._enable(lambda graph: graph):
        loss.backward()
    all_close([x.grad, *(p.grad for p in net.parameters())], expected, 1e-10, "both")


def test_traced_by_make_fx():
    """Its graphs are of operations that have derivatives."""
    net, x = make("groups")
    traced = make_fx(lambda x: linearize(net, x).value)(x)
    given = torch.randn_like(x)
    close(traced(given), linearize(net, given).value, 1e-12, "value")


@swept_run
def test_tangents_in_threads():
    """What the steps saved is filled in before another thread looks for it."""
    net, x = make("groups")
    for _ in range(20):
        lin = linearize(net, x)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lin.jvp, [x.detach()] * 4))
        assert all(torch.equal(result, results[0]) for result in results)


def test_a_single_number_per_channel_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU())
    with pytest.raises(ValueError, match="more than one value per channel"):
        linearize(net, torch.randn(1, 1, 2, 2, requires_grad=True))
    assert linearize(net, torch.randn(1, 1, 3, 2, requires_grad=True)).value.shape == (1, 2, 2, 1)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_number_for_each_channel(tracked, channels):
    """Nothing beyond a tensor's end is read."""
    net = nn.Sequential(nn.Conv2d(2, 4, 2), nn.BatchNorm2d(channels, track_running_stats=tracked), nn.ReLU())
    for x in (torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 4, 4)):
        with torch.set_grad_enabled(x.requires_grad), pytest.raises(ValueError, match=r"of shape \[4\]"):
            linearize(net, x)


def test_backward_under_autocast():
    """A sweep in float32 stays one."""
    net, x = make("encoder", torch.float32)
    results = []
    for context in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
        lin = linearize(net, x)
        loss = scalar_of([lin.value, lin.vjp(lin.value.sin())])
        with context:
            results.append(gradients(loss, net, x))
    all_close(*results, 1e-6, "both")


def test_inference_mode_before_a_tangent():
    net, x = make("encoder")
    lin = linearize(net, x)
    with torch.inference_mode():
        lin.jvp(torch.ones_like(x))
        lin.vjp(torch.ones_like(lin.value))
    lin.jvp(torch.ones_like(x)).square().sum().backward()
    assert net[0].weight.grad.any()


def test_dropout_is_drawn_once():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout(0.5), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    x = torch.randn(4, 2, 6, 6, requires_grad=True)
    values = []
    for run in (net, lambda x: linearize(net, x).value):
        torch.manual_seed(3)
        values.append(run(x))
    close(*values, 1e-5, "value")


def test_given_parameters(step_by_step):
    net, x = make("encoder")
    scale = torch.tensor(1.3, dtype=x.dtype, requires_grad=True)
    given = {name: p * scale for name, p in net.named_parameters() if "weight" in name}
    results = []
    for _ in range(2):
        lin = linearize(net, x, parameters=given)
        loss = scalar_of([lin.value, lin.vjp(lin.value.sin())])
        results.append(torch.autograd.grad(loss, [scale, net[0].bias, net[2].weight], retain_graph=True))
        step_by_step()
    all_close(*results, 1e-11, "both")


@every_network
def test_compiled(name):
    if name in ("picked", "cumulative average"):
        pytest.skip("graphs draw their own dropout, and torch's batch_norm takes no momentum that they compute")
    net, x = make(name)

    def loss(net, x):
        lin = linearize(net, x)
        return scalar_of([lin.value, lin.vjp(lin.value.sin())])

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    twin = copy.deepcopy(net)
    all_close(gradients(compiled(net, x), net, x), gradients(loss(twin, x), twin, x), 1e-10, "both")
    for result, buffer in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(result, buffer)


@swept_run
def test_norms_in_graphs():
    net, x = make("encoder")
    found = []

    def backend(graph, inputs):
        found.extend(node for node in graph.graph.nodes if "norm_" in str(node.target))
        return graph

    def products(x):
        lin = linearize(net, x)
        return lin.value, lin.vjp(lin.value.sin()), lin.jvp(x)

    value, product, tangent = torch.compile(products, fullgraph=True, backend=backend)(x)
    exported = torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager")(torch.zeros(()))
    assert len(found) == 2 * (1 - exported)  # torch 2.10 says so of every graph
    lin = linearize(net, x)
    for result, expected in zip((value, product, tangent), products(x), strict=True):
        close(result, expected, 1e-12, "value or product")
    assert lin.value.shape == value.shape


def test_one_graph_for_all_batch_sizes():
    net, graphs = smooth().double(), []

    def loss(x):
        lin = linearize(net, x)
        return lin.value.sin().sum() + lin.vjp(lin.value.cos()).square().sum()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for samples in (3, 5, 8):
        x = torch.randn(samples, 2, 7, dtype=torch.float64, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(loss(x), x))
    assert len(graphs) == 1


@pytest.mark.parametrize("trained", ["both", "encoder", "decoder"])
def test_fisher_auto_encoder(trained):
    first = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.LeakyReLU(0.2), nn.Conv2d(3, 4, 2), nn.Flatten())
    last = nn.Sequential(
        nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(),
        nn.ConvTranspose2d(3, 1, 2), nn.Sigmoid(),
    )  # fmt: skip
    nets = nn.ModuleList([first, last]).double()
    for name, net in (("encoder", first), ("decoder", last)):
        net.requires_grad_(trained in ("both", name))
    x, noise = torch.rand(5, 1, 3, 3, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    wanted = [p for p in nets.parameters() if p.requires_grad]
    found = []
    for loss in (fisher_ae_loss, reference.fisher_ae_loss):
        output = loss(first, last, x, num_samples=2, noise=noise)
        found.append((output.loss, *torch.autograd.grad(output.loss, wanted)))
    all_close(*found, 1e-10, "the loss")
