"""Dropout of numbers and channels: the very draw of torch's own, once, and no larger than it has to be."""

import pytest
import torch
from linearize_cases import Function
from torch import nn
from torch.nn import functional as F

from fisherkernels import linearize
from fisherkernels.linearize.rules import RULES

pytestmark = pytest.mark.filterwarnings("ignore:dropout")  # of ranks that torch will see otherwise one day

LAYERS = {
    "Dropout": (lambda: nn.Dropout(0.5), (9, 5), (9, 5)),
    "Dropout1d": (lambda: nn.Dropout1d(0.5), (9, 5, 4), (9, 5, 1)),
    "Dropout1d of one sample": (lambda: nn.Dropout1d(0.5), (9, 5), (9, 1)),
    "Dropout2d": (lambda: nn.Dropout2d(0.5), (9, 5, 4, 3), (9, 5, 1, 1)),
    "Dropout2d of sequences": (lambda: nn.Dropout2d(0.5), (9, 5, 4), (9, 5, 1)),
    "Dropout2d of features": (lambda: nn.Dropout2d(0.5), (9, 5), (9, 5)),
    "Dropout3d": (lambda: nn.Dropout3d(0.5), (9, 5, 2, 1, 3), (9, 5, 1, 1, 1)),
    "Dropout3d of one sample": (lambda: nn.Dropout3d(0.5), (9, 2, 1, 3), (9, 1, 1, 1)),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.5), (9, 5), (9, 5)),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.5), (9, 5, 4, 3), (9, 5, 1, 1)),
    "F.dropout1d": (lambda: Function(lambda m, x: F.dropout1d(x, 0.5)), (9, 5, 4), (9, 5, 1)),
    "torch.alpha_dropout": (lambda: Function(lambda m, x: torch.alpha_dropout(x, 0.5, True)), (9, 5), (9, 5)),
}


def outcome(function, *args):
    """What it gives under the same seed, and the generator's next numbers."""
    torch.manual_seed(0)
    return function(*args), torch.rand(3).tolist()


@pytest.mark.parametrize("name", LAYERS)
def test_the_draw(name):
    make, shape, mask = LAYERS[name]
    net, x = make(), torch.randn(shape)
    expected, after = outcome(net, x)
    lin, drawn = outcome(linearize, net, x)
    torch.testing.assert_close(lin.value, expected, rtol=1e-6, atol=1e-6)
    assert drawn == after
    (rule,) = lin.rules.values()
    assert RULES[rule].forward(x, 0.5, True)[1][0].shape == mask


@pytest.mark.parametrize("name", LAYERS)
def test_products_draw_nothing(name):
    """They are those of the draw: the difference of two values of the same draw."""
    make, shape, _ = LAYERS[name]
    net, x, t = make().double(), torch.randn(shape).double(), torch.randn(shape).double()
    lin, _ = outcome(linearize, net, x)
    state = torch.get_rng_state()
    pushed, pulled = lin.jvp(t), lin.vjp(t)
    assert torch.equal(torch.get_rng_state(), state)
    change = outcome(net, x + t)[0] - outcome(net, x)[0]
    for product in (pushed, pulled):  # J is diagonal
        torch.testing.assert_close(product, change, rtol=1e-12, atol=1e-12)
    assert 0 < (pushed == 0).double().mean() < 1


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_and_everything_dropped(name):
    make, shape, _ = LAYERS[name]
    rule = RULES[next(iter(linearize(make(), torch.randn(shape)).rules.values()))]
    x, t = torch.randn(shape), torch.randn(shape)
    for p, training, factor in ((0.0, True, 1), (0.5, False, 1), (1.0, True, 0)):
        (value, saved), after = outcome(rule.forward, x, p, training)
        assert after == outcome(torch.clone, x)[1]  # nothing was drawn
        assert torch.equal(value, factor * x) and torch.equal(rule.apply(saved, t, False), factor * t)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dim", [0, -1])
def test_empty(name, dim):
    make, shape, _ = LAYERS[name]
    shape = list(shape)
    shape[dim] = 0
    net, x = make(), torch.randn(shape)
    expected, after = outcome(net, x)
    lin, drawn = outcome(linearize, net, x)
    assert lin.value.shape == expected.shape and lin.vjp(x).shape == lin.jvp(x).shape == x.shape
    assert drawn == after


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d", "alpha_dropout"])
def test_probabilities_that_are_none(name):
    x = torch.randn(2, 3, 2)
    net = Function(lambda m, x: getattr(F, name)(x, 1.5, True))
    for call in (net, lambda x: linearize(net, x)):
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            call(x)
