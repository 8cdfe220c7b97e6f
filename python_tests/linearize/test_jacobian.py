"""Per-sample Jacobians and stacks of tangents against torch.func, in chunks, compiled, and within their budget."""

import copy
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jacobian_cases import CASES, FALLBACKS, ResidualDecoder, by_functorch, conv_decoder, conv_encoder, linearized
from linearize_cases import MODULES as LAYERS
from linearize_oracle import all_close, close, gradients, scalar_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fisherkernels import linearize

ALL = {**CASES, **FALLBACKS}
BY_THEMSELVES = ["AvgPool1d overlapping", "AvgPool3d overlapping", "AdaptiveMaxPool2d", "ChannelShuffle", "Unfold"]
BY_THEMSELVES += ["Fold", "Dropout2d eval", "AlphaDropout eval", "GLU", "Softmin", "PReLU per channel", "Mish"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def flat(tangents):
    """A tangent stack [d, N, ...] as [N, out, d]."""
    return tangents.reshape(*tangents.shape[:2], -1).permute(1, 2, 0)


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("budget", [1, 2000, 2**30])
@pytest.mark.parametrize("name", ALL)
def test_jacobian(name, budget):
    make, shape = ALL[name]
    net = make()
    lin, x = linearized(net, shape)
    expected, actual = by_functorch(net, x), lin.jacobian(memory_budget=budget)
    close(actual, expected, 1e-12, "jacobian")
    ours = gradients(scalar_of([actual]), net, x)
    all_close(ours, gradients(scalar_of([expected]), net, x), 1e-11, "jacobian")
    with torch.no_grad():
        close(linearize(net, x).jacobian(memory_budget=budget), expected, 1e-12, "jacobian without grad")


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_jacobian_of_one_layer(name):
    """Unit tangents of all samples at once, where the layer's Jacobian is the same for each."""
    make, shape = LAYERS[name]
    net = make()
    lin, x = linearized(net, shape)
    close(lin.jacobian(), by_functorch(net, x), 1e-12, "jacobian")


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("name", [name for name, (_, shape) in ALL.items() if len(shape) == 2])
def test_tangents(name):
    make, shape = ALL[name]
    net = make()
    lin, x = linearized(net, shape)
    expected, tangents = by_functorch(net, x), lin.tangents()
    assert tangents.shape == (shape[1], *lin.value.shape)
    close(flat(tangents), expected, 1e-12, "tangents")
    ours = gradients(scalar_of([flat(tangents)]), net, x)
    all_close(ours, gradients(scalar_of([expected]), net, x), 1e-11, "tangents")


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    make, shape = CASES[name]
    net = make()
    lin, x = linearized(net, shape, torch.float32)
    expected = by_functorch(copy.deepcopy(net).double(), x.double()).float()
    close(lin.jacobian(memory_budget=500), expected, 2e-6, "jacobian")


@given(
    batch=st.integers(0, 4),
    d=st.integers(0, 5),
    width=st.integers(1, 7),
    out=st.integers(1, 6),
    budget=st.sampled_from([1, 400, 10**6]),
    grad=st.booleans(),
)
def test_sizes(batch, d, width, out, budget, grad):
    net = nn.Sequential(nn.Linear(d, width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out)).double()
    x = torch.randn(batch, d, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        lin = linearize(net, x)
        jacobian, tangents = lin.jacobian(memory_budget=budget), lin.tangents()
    assert jacobian.shape == (batch, out, d)
    assert tangents.shape == (d, batch, out)
    if jacobian.numel():
        close(jacobian, by_functorch(net, x), 1e-12, "jacobian")
        close(flat(tangents), jacobian, 1e-13, "tangents")


@pytest.mark.parametrize(("batch", "d"), [(0, 2), (3, 0), (0, 0)])
def test_empty_conv_decoder(batch, d):
    net = conv_decoder(d).double()
    lin, x = linearized(net, (batch, d))
    jacobian = lin.jacobian(memory_budget=1)
    assert jacobian.shape == (batch, 32, d)
    assert lin.tangents().shape == (d, batch, 1, 4, 8)
    (jacobian.sum() + lin.value.sum()).backward()
    assert net[0].weight.grad.shape == (8, d)


def test_empty_batch_of_images():
    lin, _ = linearized(conv_encoder(), (0, 1, 4, 5))
    assert lin.jacobian().shape == (0, 3, 20)


@pytest.mark.parametrize(("name", "budget"), [("conv decoder", 2**30), ("conv encoder", 7000), ("linear", 2**30)])
def test_compiled(name, budget):
    make, shape = CASES[name]
    net = make().double()
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()

    def everything(net, x):
        lin = linearize(net, x)
        jacobian = lin.jacobian(memory_budget=budget)
        return (jacobian, lin.tangents()) if x.dim() == 2 else (jacobian,)

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")(net, x)
    eager = everything(net, x)
    for i, (a, e) in enumerate(zip(compiled, eager, strict=True)):
        close(a, e, 1e-12, f"output {i}")
    ours = gradients(scalar_of([c.contiguous() for c in compiled]), net, x)
    all_close(ours, gradients(scalar_of([e.contiguous() for e in eager]), net, x), 1e-11, "all of them")


def test_first_layer_takes_the_basis_once():
    d, batch, width, out = 5, 7, 11, 3
    net = nn.Sequential(
        nn.Linear(d, width), nn.Unflatten(1, (width, 1)), nn.Flatten(), nn.ReLU(), nn.Linear(width, out)
    )
    lin = linearize(net, torch.randn(batch, d))
    with FlopCounterMode(display=False) as counter:
        lin.tangents()
    assert counter.get_total_flops() == 2 * (d * d * width + d * batch * width * out)


def test_last_layer_takes_the_basis_of_cotangents_once():
    inputs, batch, width, out = 13, 7, 11, 3
    net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, out), nn.Unflatten(1, (1, out)))
    lin = linearize(net, torch.randn(batch, inputs))
    with FlopCounterMode(display=False) as counter:
        lin.jacobian()
    assert counter.get_total_flops() == 2 * (out * out * width + out * batch * width * inputs)


class PeakMemory(TorchDispatchMode):
    """The most bytes that results of operations held at once; what an operation holds inside is not seen."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage)
                self._hold(storage.nbytes())
                weakref.finalize(storage, self._hold, -storage.nbytes())
        return result

    def _hold(self, size):
        self.held += size
        self.peak = max(self.peak, self.held)


def peak_bytes(function):
    with PeakMemory() as memory:
        function()
    return memory.peak


@pytest.mark.parametrize("name", ["mlp", "conv decoder", "mlp, cotangents"])
@torch.no_grad()
def test_chunks_stay_under_the_budget(name):
    net = {
        "mlp": lambda: nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 96)),
        "mlp, cotangents": lambda: nn.Sequential(nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 40)),
        "conv decoder": lambda: conv_decoder(32),
    }[name]()
    lin = linearize(net, torch.randn(32, net[0].in_features))
    budget = 200_000
    result = lin.jacobian().numel() * 4
    assert peak_bytes(lambda: lin.jacobian(memory_budget=budget)) < result + budget
    assert peak_bytes(lin.jacobian) > result + budget  # all in one chunk


def test_parameters_that_stand_in():
    net = ResidualDecoder().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    other = {name: torch.randn_like(p).requires_grad_() for name, p in net.named_parameters()}
    lin = linearize(net, x, parameters=other)
    twin = copy.deepcopy(net)
    twin.load_state_dict(other)
    close(lin.jacobian(), by_functorch(twin, x), 1e-12, "jacobian")
    lin.jacobian().sum().backward()
    assert other["second.weight"].grad is not None and net.second.weight.grad is None


class TestBadInput:
    def test_budget(self):
        lin = linearize(nn.Linear(3, 2), torch.randn(2, 3))
        with pytest.raises(ValueError, match="memory_budget: expected a positive number of bytes, got 0"):
            lin.jacobian(memory_budget=0)
        with pytest.raises(ValueError, match="memory_budget: expected a positive number of bytes, got nan"):
            lin.jacobian(memory_budget=float("nan"))
        with pytest.raises(TypeError, match="memory_budget: expected a number of bytes, got str"):
            lin.jacobian(memory_budget="1G")

    def test_tuple_value(self):
        class Pair(nn.Module):
            def forward(self, x):
                return x, 2 * x

        class Chunks(nn.Module):
            def forward(self, x):
                return x.chunk(2, dim=1)

        for net in (Pair(), Chunks()):
            lin = linearize(net, torch.randn(2, 4))
            for product in (lin.jacobian, lin.tangents):
                with pytest.raises(ValueError, match="net: expected a value that is one tensor .*, got a tuple of 2"):
                    product()

    def test_value_without_samples(self):
        class Total(nn.Module):
            def forward(self, x):
                return x.reshape(-1)

        with pytest.raises(ValueError, match=r"net: expected a value of shape \[2, ...\], one per sample, got \[6\]"):
            linearize(Total(), torch.randn(2, 3)).jacobian()

    def test_tangents_of_images(self):
        with pytest.raises(ValueError, match=r"x: expected shape \[N, d\] for its tangents, got \[2, 1, 4, 5\]"):
            linearize(conv_encoder(), torch.randn(2, 1, 4, 5)).tangents()
