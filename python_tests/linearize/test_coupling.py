"""Networks that couple the samples of a batch: named, and refused where that leaves no per-sample Jacobian."""

import copy

import pytest
import torch
from jacobian_cases import by_functorch
from linearize_cases import Function, FunctionalBatchNorm, hooked
from linearize_oracle import close
from torch import nn
from torch.nn import functional as F

from fisherkernels import linearize


class OwnBatchNorm(nn.BatchNorm1d):
    """A subclass: no rule covers it."""


class Untraceable(nn.Module):
    """A fallback that calls the functional form."""

    def __init__(self):
        super().__init__()
        self.norm = FunctionalBatchNorm(5)

    def forward(self, x):
        return self.norm(x) if x.sum() > -torch.inf else x


COUPLING = {
    "module": (lambda: nn.BatchNorm1d(5), ("1",)),
    "without running statistics": (lambda: nn.BatchNorm1d(5, track_running_stats=False).eval(), ("1",)),
    "functional": (lambda: FunctionalBatchNorm(5), ("batch_norm",)),
    "nested": (lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm1d(5)), ("1.1",)),
}
COUPLING_FALLBACKS = {
    "subclass": (lambda: OwnBatchNorm(5), ("1",)),
    "functional in a fallback": (Untraceable, ("1",)),
    "mean of the batch": (lambda: Function(lambda m, x: x - x.mean(0)), ("mean", "sub")),
    "softmax over the batch": (lambda: Function(lambda m, x: x.softmax(0)), ("softmax",)),
    "product with the batch": (lambda: Function(lambda m, x: x @ (x.t() @ x)), ("t", "matmul", "matmul_1")),
    "attention over the batch": (
        lambda: Function(lambda m, x: F.scaled_dot_product_attention(x, x, x)),
        ("scaled_dot_product_attention",),
    ),
    "reversed batch": (lambda: Function(lambda m, x: x.flip(0)), ("flip",)),
}
SEPARATE = {
    "module in eval mode": lambda: nn.BatchNorm1d(5).eval(),
    "functional in eval mode": lambda: FunctionalBatchNorm(5).eval(),
    "GroupNorm": lambda: nn.GroupNorm(1, 5),
    "fallback": lambda: hooked(nn.Softmin(-1)),
    "products with constants": lambda: Function(lambda m, x: (m.v @ (x @ m.w)[..., None])[..., 0], w=(5, 6), v=(5, 6)),
    "attention over the features": lambda: Function(
        lambda m, x: F.scaled_dot_product_attention(x[..., None], x[..., None], x[..., None])[..., 0]
    ),
    "LayerNorm": lambda: nn.LayerNorm(5),
    "mean of a sample": lambda: Function(lambda m, x: x - x.mean(1, keepdim=True)),
    "joined and cut along the batch": lambda: Function(lambda m, x: sum(torch.cat([x, x.exp()]).tanh().chunk(2))),
    "through one row per feature": lambda: Function(lambda m, x: F.linear(x.reshape(-1, 1), m.w).view(-1, 5), w=(1, 1)),
    "another dimension in front": lambda: Function(lambda m, x: x.unsqueeze(0).exp().squeeze(0)),
}


def around(layer):
    return nn.Sequential(nn.Linear(3, 5), layer, nn.Tanh(), nn.Linear(5, 4)).double()


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(6, 3, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("name", {**COUPLING, **COUPLING_FALLBACKS})
def test_refused(name, x):
    make, steps = {**COUPLING, **COUPLING_FALLBACKS}[name]
    net = around(make())
    lin = linearize(net, x)
    assert lin.coupled == steps
    last = lin.last_linear()
    for product in (lin.jacobian, lin.tangents, last.tangents):
        with pytest.raises(ValueError, match=f'{steps[0]}.* couples the samples .*batch_statistics="frozen"'):
            product()


@pytest.mark.parametrize("name", COUPLING)
def test_frozen_statistics(name, x):
    net = around(COUPLING[name][0]())
    lin = linearize(net, x, batch_statistics="frozen")
    assert lin.coupled == ()
    still = copy.deepcopy(net)
    seen = still[:1](x) if name != "nested" else still[1][0](still[0](x))
    for module in still.modules():
        if isinstance(module, (nn.BatchNorm1d, FunctionalBatchNorm)):
            module.track_running_stats = True
            module.running_mean, module.running_var = seen.mean(0).detach(), seen.var(0, correction=0).detach()
    expected = by_functorch(still.eval(), x)
    close(lin.jacobian(), expected, 1e-12, "jacobian")
    close(lin.tangents().permute(1, 2, 0), expected, 1e-12, "tangents")


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("name", SEPARATE)
def test_accepted(name, x):
    net = around(SEPARATE[name]())
    lin = linearize(net, x)
    assert lin.coupled == ()
    expected = by_functorch(net, x)
    close(lin.jacobian(), expected, 1e-12, "jacobian")
    close(lin.tangents().permute(1, 2, 0), expected, 1e-12, "tangents")
    close(linearize(net, x[:1]).jacobian(), expected[:1], 1e-12, "jacobian of one sample")


@pytest.mark.filterwarnings("ignore:.*no rule for")
def test_nan_is_no_coupling(x):
    x[2] = torch.nan
    lin = linearize(around(hooked(nn.Softmin(-1))), x)
    assert lin.coupled == ()
    assert lin.jacobian().isnan().flatten(1).any(1).tolist() == [False, False, True, False, False, False]
