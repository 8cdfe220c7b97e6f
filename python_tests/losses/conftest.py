"""Networks to lose on, and the comparison of a loss with its reference."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fisherkernels.priors import PolynomialExponentialFamily

sys.path.insert(0, str(Path(__file__).parent))  # the helper module beside the tests

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative root mean square


class PairEncoder(nn.Module):
    """Gives (mean, log_std) as a pair from two heads."""

    def __init__(self, features, width, d):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.Tanh())
        self.mean, self.log_std = nn.Linear(width, d), nn.Linear(width, d)

    def forward(self, x):
        hidden = self.trunk(x)
        return self.mean(hidden), self.log_std(hidden)


class Shell:
    """A prior that is none of the library's: only a score."""

    def score(self, z):
        return -z - 0.3 * torch.sin(z)


def make_networks(kind, shape, d, dtype):
    """An encoder and a decoder for x of trailing shape `shape`."""
    features, last = shape.numel(), shape[-1]
    decoder = nn.Sequential(
        nn.Linear(d, 7), nn.SiLU(), nn.Linear(7, features), nn.Sigmoid(), nn.Unflatten(1, shape)
    )
    if kind == "pair":
        encoder = PairEncoder(features, 6, d)
    elif kind == "mlp":
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, 2 * d))
    else:
        # float32 gets no kinks, which its rounding flips, and no bias before BatchNorm, whose gradient is 0
        exact = dtype == torch.float64
        activation = nn.LeakyReLU(0.2) if exact else nn.Softplus()
        encoder = nn.Sequential(
            nn.Conv2d(shape[0], 4, 3, 1, 1, bias=exact),
            nn.BatchNorm2d(4),
            activation,
            nn.Flatten(),
            nn.Linear(4 * shape[1] * last, 2 * d),
        )
        decoder = nn.Sequential(
            nn.Linear(d, 3 * shape[1] * last),
            nn.Unflatten(1, (3, shape[1], last)),
            nn.ConvTranspose2d(3, 4, 3, 1, 1, bias=exact),
            nn.BatchNorm2d(4),
            activation,
            nn.Conv2d(4, shape[0], 3, 1, 1),
            nn.Sigmoid(),
        )
    return encoder.to(dtype), decoder.to(dtype)


def make_prior(kind, d, dtype):
    if kind is None:
        return None
    if kind == "shell":
        return Shell()
    order = 5 if kind == "none" else 4
    prior = PolynomialExponentialFamily(d, order, kind).to(dtype)
    with torch.no_grad():
        prior.raw_coefficients += 0.1 * torch.randn(d, order, dtype=dtype)
    return prior


def make_variance(kind, shape, dtype):
    if kind == "float":
        return 0.5
    size = {"0-d": (), "flat": (shape.numel(),), "trailing": tuple(shape)}[kind]
    return (0.3 + torch.rand(size, dtype=dtype)).requires_grad_()


def leaves_of(*sources):
    """Everything with a gradient to compare."""
    leaves = []
    for source in sources:
        if isinstance(source, nn.Module):
            leaves.extend(source.parameters())
        elif isinstance(source, torch.Tensor) and source.requires_grad:
            leaves.append(source)
    return leaves


def gradients(output, leaves, retain_graph=None):
    found = torch.autograd.grad(output, leaves, allow_unused=True, retain_graph=retain_graph)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def assert_close(name, ours, theirs, dtype, floor=0.0):
    """Relative root mean square error within the tolerance of the dtype."""
    error, size = (ours - theirs).norm(), max(theirs.norm().item(), floor)
    assert error <= TOLERANCE[dtype] * size, f"{name}: error {error:.3e} of {size:.3e}"


def doubled(*sources):
    """Copies in float64, for a reference without rounding of its own."""
    copies = []
    for source in sources:
        if isinstance(source, nn.Module):
            source = copy.deepcopy(source).double()
        elif isinstance(source, torch.Tensor):
            source = source.detach().double().requires_grad_(source.requires_grad)
        copies.append(source)
    return copies


def assert_same(ours, theirs, leaves, dtype, their_leaves=None):
    """Loss, every term and every gradient of a random weighting of the terms."""
    assert ours.terms.keys() == theirs.terms.keys()
    whole = torch.stack([term.norm() for term in theirs.terms.values()]).norm().item()
    assert_close("loss", ours.loss, theirs.loss, dtype, whole)
    for name, term in theirs.terms.items():  # one that nearly vanishes by chance is judged by the whole
        assert_close(name, ours.terms[name], term, dtype, 1e-2 * whole)
    weights = {name: torch.rand_like(term) for name, term in theirs.terms.items()}
    sizes = sizes_of_parts(theirs, weights, their_leaves or leaves)
    results = []
    for output, at in ((ours, leaves), (theirs, their_leaves or leaves)):
        weighted = sum((output.terms[name] * weights[name]).sum() for name in weights)
        results.append(gradients(output.loss.sum() + weighted, at))
    # A small gradient (of a bias before BatchNorm, or where a term's own parts cancel) is judged by the whole: the
    # tolerance then is 5e-7 of that in float32, some of its last digits.
    floor = (5e-2 if dtype is torch.float32 else 1e-2) * torch.stack([g.norm() for g in results[1]]).norm().item()
    for i, (one, other) in enumerate(zip(*results, strict=True)):
        assert_close(f"gradient {i} {list(leaves[i].shape)}", one, other, dtype, max(floor, sizes[i]))


def sizes_of_parts(output, weights, leaves):
    """How large the terms' gradients are by themselves: the scale of a sum in which they cancel.

    The gradient of a scalar log noise variance is one: D/2 a point against the reconstruction's -D/2 or so.
    """
    sizes = torch.zeros(len(leaves))
    for name, term in output.terms.items():
        if term.requires_grad:
            parts = gradients((term * weights[name]).sum(), leaves, retain_graph=True)
            sizes = torch.maximum(sizes, torch.stack([g.norm().float() for g in parts]))
    return sizes.tolist()


@pytest.fixture
def kit():
    """The helpers above, as one namespace."""
    from types import SimpleNamespace

    return SimpleNamespace(
        networks=make_networks,
        prior=make_prior,
        variance=make_variance,
        leaves_of=leaves_of,
        gradients=gradients,
        doubled=doubled,
        assert_close=assert_close,
        assert_same=assert_same,
        PairEncoder=PairEncoder,
    )
