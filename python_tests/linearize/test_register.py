"""Rules that a user registers, as docs/own_layers.md has them."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fisherkernels as fk
from fisherkernels.linearize import rules

GUIDE = Path(__file__).parents[2] / "docs" / "own_layers.md"


@pytest.fixture(autouse=True)
def registry():
    """The tables of rules, restored afterwards."""
    before = dict(rules.RULES), dict(rules.MODULES)
    yield
    for table, old in zip((rules.RULES, rules.MODULES), before, strict=True):
        table.clear()
        table.update(old)


@pytest.fixture
def guide(registry):
    """The names that the guide's code defines, all of which has run."""
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(GUIDE), "exec"), names)
    return names


def network(guide):
    torch.manual_seed(0)
    layers = nn.Linear(3, 6), guide["Snake"](6), guide["LowRank"](6, 2), nn.Tanh(), nn.Linear(6, 4)
    return nn.Sequential(*layers).double()


def test_every_product_and_gradient_is_that_of_torch_func(guide):
    net, x = network(guide), torch.randn(5, 3).double()
    c, t = torch.randn(2, 5, 4).double(), torch.randn(2, 5, 3).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lin = fk.linearize(net, x)
        ours = lin.vjp(c), lin.vjp(c[0]), lin.jvp(t), lin.jvp(t[0]), lin.jacobian(), fk.laplacian(net, x).laplacian
    assert lin.rules == {"0": "linear", "1": "SnakeRule", "2": "LowRankRule", "3": "tanh", "4": "linear"}
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x)  # [5, 4, 3]
    hessian = torch.func.vmap(torch.func.hessian(net))(x)  # [5, 4, 3, 3]
    pulled, pushed = torch.einsum("kno,noi->kni", c, jacobian), torch.einsum("kni,noi->kno", t, jacobian)
    theirs = pulled, pulled[0], pushed, pushed[0], jacobian, hessian.diagonal(0, -2, -1).sum(-1)
    gradients = []
    for parts in (ours, theirs):
        total = sum(part.square().sum() for part in parts)
        gradients.append(torch.autograd.grad(total, list(net.parameters())[:-1]))
    for one, other in zip((*ours, *gradients[0]), (*theirs, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other)


def test_compiles_whole_and_takes_given_parameters(guide):
    net = network(guide)
    x, c = torch.randn(5, 3).double(), torch.randn(5, 4).double()

    def pull(x, c):
        return fk.linearize(net, x).vjp(c)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(pull, backend="eager", fullgraph=True)(x, c), pull(x, c))
    frequency = torch.rand(6).double() + 1
    given = fk.linearize(net, x, parameters={"1.frequency": frequency}).vjp(c)
    with torch.no_grad():
        net[1].frequency.copy_(frequency)
    torch.testing.assert_close(given, pull(x, c))


def test_networks_planned_before_follow():
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    class TwiceRule(fk.ElementwiseRule):
        factor = 2

        def forward(self, input):
            return self.factor * input, (input,)

        def slopes(self, saved):
            return torch.full_like(saved[0], self.factor), torch.zeros_like(saved[0])

    class Wrong(TwiceRule):
        factor = 3

    net, x = nn.Sequential(nn.Linear(2, 2), Twice()), torch.ones(1, 2)
    assert "TwiceRule" not in fk.linearize(net, x).rules.values()
    fk.register_rule(Twice, TwiceRule)
    assert fk.linearize(net, x).rules["1"] == "TwiceRule"
    fk.register_rule(Twice, Wrong())
    torch.testing.assert_close(fk.linearize(net, x).value, 1.5 * net(x))
    Wrong.__name__ = "tanh"  # a name that is taken
    fk.register_rule(Twice, Wrong())
    assert fk.linearize(net, x).rules["1"] == "tanh 2"
    assert fk.linearize(nn.Tanh(), x).rules == {"Tanh": "tanh"}


def test_mistakes_are_named():
    class Half(fk.Rule):
        def forward(self, input):
            return input / 2, ()

    with pytest.raises(TypeError, match=r"layer: expected a subclass of torch\.nn\.Module, received function"):
        fk.register_rule(torch.nn.functional.relu, Half)
    with pytest.raises(TypeError, match=r"rule: expected a fisherkernels\.Rule, received Tanh"):
        fk.register_rule(nn.Tanh, nn.Tanh)
    with pytest.raises(TypeError, match="rule: expected Half to define vjp, jvp, curved"):
        fk.register_rule(nn.Tanh, Half())
    with pytest.raises(TypeError, match="rule: expected Flat to define slopes"):
        fk.register_rule(nn.Tanh, type("Flat", (fk.ElementwiseRule,), {"forward": Half.forward}))
    assert fk.linearize(nn.Tanh(), torch.ones(1, 1)).rules == {"Tanh": "tanh"}
