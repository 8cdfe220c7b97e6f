"""decoder_score and stability against torch.autograd.grad."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fisherkernels import reference
from fisherkernels.losses import decoder_score, stability

sizes = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "pair", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 4), st.sampled_from([3, 5])).map(torch.Size),
        "d": st.integers(1, 5),
        "samples": st.sampled_from([(), (1,), (3,)]),
        "seed": st.integers(0, 10**6),
    }
)


@settings(max_examples=30)
@given(case=sizes, variance=st.sampled_from(["float", "0-d", "flat", "trailing"]))
def test_decoder_score(kit, case, variance):
    dtype, shape = case["dtype"], case["shape"]
    torch.manual_seed(case["seed"])
    _, decoder = kit.networks(case["network"], shape, case["d"], dtype)
    x = torch.rand(case["count"], *shape, dtype=dtype, requires_grad=True)
    z = torch.randn(*case["samples"], case["count"], case["d"], dtype=dtype, requires_grad=True)
    variance = kit.variance(variance, shape, dtype)
    ours = decoder_score(decoder, x, z, variance)
    exact = kit.doubled(decoder, x, z, variance)
    theirs = reference.decoder_score(*exact)
    assert ours.shape == z.shape
    compare(kit, ours, theirs, kit.leaves_of(decoder, x, z, variance), kit.leaves_of(*exact), dtype)


@settings(max_examples=30)
@given(case=sizes, kind=st.sampled_from(["posterior", "log_std"]))
def test_stability(kit, case, kind):
    dtype, shape = case["dtype"], case["shape"]
    torch.manual_seed(case["seed"])
    encoder, _ = kit.networks(case["network"], shape, case["d"], dtype)
    x = torch.rand(case["count"], *shape, dtype=dtype, requires_grad=True)
    eps = torch.randn(*case["samples"], case["count"], case["d"], dtype=dtype)
    ours = stability(encoder, x, eps, kind)
    exact = kit.doubled(encoder, x)
    theirs = reference.stability(*exact, eps.double(), kind)
    assert ours.shape == (case["count"],)
    compare(kit, ours, theirs, kit.leaves_of(encoder, x), kit.leaves_of(*exact), dtype)


def compare(kit, ours, theirs, leaves, their_leaves, dtype):
    kit.assert_close("value", ours, theirs, dtype)
    weights = torch.rand_like(theirs)
    one = kit.gradients((ours * weights).sum(), leaves)
    other = kit.gradients((theirs * weights).sum(), their_leaves)
    floor = 1e-2 * torch.stack([g.norm() for g in other]).norm().item()
    for leaf, a, b in zip(leaves, one, other, strict=True):
        kit.assert_close(f"gradient {list(leaf.shape)}", a, b, dtype, floor)


def test_gradcheck():
    encoder, decoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), nn.Linear(2, 3).double()
    x, eps, z = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 2, 2))
    nets = [*encoder.parameters(), *decoder.parameters()]

    def both(*_):
        return stability(encoder, x, eps), decoder_score(nn.Sequential(decoder, nn.Tanh()), x, z, 0.5)

    assert torch.autograd.gradcheck(both, [x, eps, z, *nets], fast_mode=True)


def test_empty_batch():
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)
    assert stability(encoder, torch.rand(0, 3), torch.rand(0, 2)).shape == (0,)
    assert decoder_score(decoder, torch.rand(0, 3), torch.rand(0, 2)).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda e, d, x: stability(e, x, torch.rand(2, 3)),
            ValueError,
            r"eps: expected shape \[2, 2\].*\[2, 3\]",
        ),
        (
            lambda e, d, x: stability(e, x, torch.rand(2, 2).double()),
            TypeError,
            "eps: expected dtype.*float64",
        ),
        (
            lambda e, d, x: stability(e, x, torch.rand(2, 2), "both"),
            ValueError,
            "kind: expected one of.*'both'",
        ),
        (
            lambda e, d, x: decoder_score(d, x, torch.rand(3, 2)),
            ValueError,
            r"z: expected shape \[2, d\].*\[3, 2\]",
        ),
        (lambda e, d, x: decoder_score(d, x, torch.rand(2, 3)), ValueError, r"decoder: expected.*\[2, 3\]"),
        (
            lambda e, d, x: decoder_score(d, x, torch.rand(2, 2), 0.0),
            ValueError,
            "variance: expected.*> 0.*0.0",
        ),
        (
            lambda e, d, x: decoder_score(d, x.long(), x),
            TypeError,
            "x: expected a floating-point.*int64.*scale",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.Linear(3, 4), nn.Linear(2, 3), torch.rand(2, 3))
