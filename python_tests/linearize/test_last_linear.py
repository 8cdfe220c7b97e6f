"""Networks that end in a Linear layer, and the cost of a product, against torch.func and torch's own FLOP counter."""

import pytest
import torch
from jacobian_cases import by_functorch, conv_decoder, conv_encoder, linearized
from linearize_cases import hooked
from linearize_oracle import all_close, close, gradients, scalar_of
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fisherkernels import linearize


class Head(nn.Module):
    """A functional last layer, and reshapes behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(3, 5), nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        h = torch.sigmoid(self.first(x))
        return F.linear(h, self.weight).view(-1, 2, 3).unsqueeze(1)


ENDING_LINEAR = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 8), nn.Unflatten(1, (2, 4))),
        (5, 3),
        (2, 4),
    ),
    "dropout in eval mode": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2), nn.Dropout()).eval(),
        (5, 3),
        (2,),
    ),
    "functional": (Head, (4, 3), (1, 2, 3)),
    "one layer": (lambda: nn.Linear(3, 5), (4, 3), (5,)),
    "encoder": (conv_encoder, (2, 1, 4, 5), (3,)),
    "no samples": (lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 8)), (0, 3), (8,)),
}
ENDING_OTHERWISE = {
    "activation": lambda: nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()),
    "convolution": lambda: conv_decoder(3),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout()),
    "rows": lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Linear(1, 4)),
    "rows in the batch": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Flatten(0, 1), nn.Linear(1, 4), nn.Unflatten(0, (-1, 3))
    ),
    "identity": nn.Identity,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ENDING_LINEAR)
def test_products(name):
    make, shape, output_shape = ENDING_LINEAR[name]
    net = make()
    lin, x = linearized(net, shape)
    last = lin.last_linear()
    size = last.weight.shape[1]
    assert last.output_shape == output_shape
    t, c = torch.randn(2, 3, *shape, dtype=x.dtype), torch.randn(2, 3, shape[0], size, dtype=x.dtype)
    pushed, pulled = last.push(t), last.pull(c)
    assert pushed.shape == c.shape and pulled.shape == t.shape
    close((pushed @ last.weight.T).flatten(0, 1).flatten(2), lin.jvp(t.flatten(0, 1)).flatten(2), 1e-12, "W T t")
    y = torch.randn_like(lin.value)
    close(last.pull(y.flatten(1) @ last.weight), lin.vjp(y), 1e-12, "T^T W^T c")
    close(last.push(t[0, 0]), pushed[0, 0], 1e-12, "a single tangent")
    assert last.push(t[:0]).shape == (0, *c.shape[1:])
    if len(shape) == 2:
        tangents = last.tangents()
        assert tangents.shape == (shape[1], shape[0], size)
        close((tangents @ last.weight.T).flatten(2), lin.tangents().flatten(2), 1e-12, "W T")


def test_gradients():
    net = ENDING_LINEAR["mlp"][0]()
    lin, x = linearized(net, (5, 3))
    last = lin.last_linear()
    jacobian = (last.tangents() @ last.weight.T).permute(1, 2, 0)
    expected = by_functorch(net, x)
    close(jacobian, expected, 1e-12, "jacobian")
    all_close(gradients(scalar_of([jacobian]), net, x), gradients(scalar_of([expected]), net, x), 1e-11, "jacobian")


def test_given_parameters():
    net = nn.Linear(3, 2)
    weight = torch.randn(2, 3)
    assert linearize(net, torch.randn(4, 3), parameters={"weight": weight}).last_linear().weight is weight


@pytest.mark.parametrize("name", ENDING_OTHERWISE)
def test_none(name):
    assert linearize(ENDING_OTHERWISE[name](), torch.randn(4, 3)).last_linear() is None


def test_compiled():
    net = ENDING_LINEAR["functional"][0]().double()
    x = torch.randn(4, 3, dtype=torch.float64).requires_grad_()

    def products(net, x):
        last = linearize(net, x).last_linear()
        return last.tangents(), last.push(x), last.pull(last.push(x))

    torch._dynamo.reset()
    compiled = torch.compile(products, fullgraph=True, backend="aot_eager")(net, x)
    for i, (a, e) in enumerate(zip(compiled, products(net, x), strict=True)):
        close(a, e, 1e-12, f"output {i}")


def test_bad_shapes():
    last = linearize(ENDING_LINEAR["mlp"][0](), torch.randn(5, 3)).last_linear()
    with pytest.raises(ValueError, match=r"tangent: expected shape \[..., 5, 3\], got \[5, 6\]"):
        last.push(torch.ones(5, 6))
    with pytest.raises(ValueError, match=r"cotangent: expected shape \[..., 5, 6\], got \[6\]"):
        last.pull(torch.ones(6))


class TestWork:
    @pytest.mark.parametrize("make", [lambda: ENDING_LINEAR["mlp"][0](), lambda: conv_decoder(3), Head])
    @pytest.mark.parametrize("batch", [1, 4])
    def test_flops(self, make, batch):
        lin = linearize(make(), torch.randn(batch, 3))
        with FlopCounterMode(display=False) as counter:
            lin.jvp(torch.randn(2, batch, 3))
        assert lin.work().flops_per_tangent == counter.get_total_flops() / (2 * batch)

    def test_bytes_and_steps(self):
        net = nn.Sequential(
            nn.Linear(3, 6), nn.Tanh(), nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 8), nn.ReLU()
        )
        for batch in (0, 1, 5):
            work = linearize(net, torch.randn(batch, 3)).work()
            assert work == (2 * (3 * 6 + 6 * 8), 4 * 3 * (6 + 8), 4)
        assert linearize(net.double(), torch.randn(2, 3).double()).work().bytes_per_tangent == 8 * 3 * (6 + 8)

    @pytest.mark.filterwarnings("ignore:.*no rule for")
    def test_fallback(self):
        net = nn.Sequential(nn.Linear(3, 6), hooked(nn.PReLU(6)))
        assert linearize(net, torch.randn(5, 3)).work() == (2 * 3 * 6 + 2 * 6, 4 * 3 * 6, 2)
