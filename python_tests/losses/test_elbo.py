"""elbo_loss against torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._inductor.utils import fresh_cache

from fisherkernels import reference
from fisherkernels.losses import elbo_loss
from fisherkernels.losses.elbo import negative_log_likelihood

cases = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "pair", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 4), st.sampled_from([3, 5])).map(torch.Size),
        "d": st.integers(1, 5),
        "num_samples": st.integers(1, 3),
        "beta": st.sampled_from([0.0, 1, 2.5]),
        "likelihood": st.sampled_from(["float", "0-d", "flat", "trailing", "bernoulli", "bernoulli_logits"]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "seed": st.integers(0, 10**6),
    }
)


@settings(max_examples=50)
@given(case=cases)
def test_equals_reference(kit, case):
    dtype, count, shape, d = case["dtype"], case["count"], case["shape"], case["d"]
    torch.manual_seed(case["seed"])
    encoder, decoder = kit.networks(case["network"], shape, d, dtype)
    x = torch.rand(count, *shape, dtype=dtype, requires_grad=True)
    options = {"noise": torch.randn(case["num_samples"], count, d, dtype=dtype)}
    options |= {key: case[key] for key in ("num_samples", "beta", "reduction")}
    if case["likelihood"].startswith("bernoulli"):
        options["likelihood"] = case["likelihood"]
    else:
        options["variance"] = kit.variance(case["likelihood"], shape, dtype)
    ours = elbo_loss(encoder, decoder, x, **options)
    exact = kit.doubled(encoder, decoder, options.get("variance", 1.0), x)
    variance = options.get("variance", 1.0)
    options |= {"variance": exact[2], "noise": options["noise"].double()}
    theirs = reference.elbo_loss(exact[0], exact[1], exact[3], **options)
    leaves = kit.leaves_of(encoder, decoder, variance, x)
    kit.assert_same(ours, theirs, leaves, dtype, kit.leaves_of(*exact))


def small_case(dtype=torch.float64):
    encoder, decoder = nn.Linear(4, 4, dtype=dtype), nn.Linear(2, 4, dtype=dtype)
    return encoder, decoder, torch.rand(3, 4, dtype=dtype), torch.randn(3, 2, dtype=dtype)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli_logits"])
def test_gradcheck(likelihood):
    encoder, decoder, x, noise = small_case()
    inputs = [*encoder.parameters(), *decoder.parameters(), x, noise]
    for tensor in inputs:
        tensor.requires_grad_()

    def loss(*_):
        return elbo_loss(encoder, decoder, x, likelihood=likelihood, noise=noise, beta=0.5).loss

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_equals_the_formula_written_out():
    """One sample in plain Python floats."""
    encoder, decoder, x, noise = small_case()
    loss, terms = elbo_loss(encoder, decoder, x, noise=noise, variance=0.3, beta=2.0, reduction="none")
    mean, log_std = encoder(x).chunk(2, 1)
    output = decoder(mean + log_std.exp() * noise)
    for i in range(3):
        reconstruction = sum(
            (x[i, j].item() - output[i, j].item()) ** 2 / 0.6 + 0.5 * math.log(2 * math.pi * 0.3)
            for j in range(4)
        )
        pairs = [(mean[i, j].item(), log_std[i, j].item()) for j in range(2)]
        kl = sum(0.5 * (m**2 + math.exp(2 * s) - 1 - 2 * s) for m, s in pairs)
        assert math.isclose(terms["reconstruction"][i].item(), reconstruction, rel_tol=1e-12)
        assert math.isclose(terms["kl"][i].item(), 2 * kl, rel_tol=1e-12)
        assert math.isclose(loss[i].item(), reconstruction + 2 * kl, rel_tol=1e-12)


def test_saturated_probabilities_are_clamped():
    """Probabilities of exactly 0 and 1 cost 100 per wrong pixel and give finite gradients."""
    encoder, decoder, _, noise = small_case()
    saturated = nn.Sequential(decoder, nn.Hardsigmoid())
    with torch.no_grad():
        decoder.weight.zero_()
        decoder.bias.copy_(torch.tensor([9.0, 9.0, -9.0, -9.0]))
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    loss, terms = elbo_loss(encoder, saturated, x, likelihood="bernoulli", noise=noise[:1])
    assert terms["reconstruction"].item() == 200
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in (*encoder.parameters(), *decoder.parameters()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probabilities_cost_the_same_without_a_graph(dtype):
    """Grey data, saturated probabilities, and a NaN that stays with its image."""
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(5, 7, generator=generator).to(dtype)
    data[0], data[1, 0] = data[0].round(), torch.nan
    probability = torch.rand(3, 5, 7, generator=generator).to(dtype)
    probability[1, 0], probability[2, 3, 1] = torch.tensor([0, 1, 0, 1, 0, 1, 0]), torch.nan
    with_graph = negative_log_likelihood(probability.clone().requires_grad_(), data, "bernoulli", 1.0).detach()
    without = negative_log_likelihood(probability, data, "bernoulli", 1.0)
    assert with_graph.isnan().sum() == 4 and without.dtype == max(dtype, torch.float32, key=lambda kind: kind.itemsize)
    torch.testing.assert_close(without.to(dtype), with_graph.to(dtype), equal_nan=True)


def test_probabilities_and_logits_agree():
    encoder, decoder, x, noise = small_case()
    by_logits = elbo_loss(encoder, decoder, x, likelihood="bernoulli_logits", noise=noise)
    with_sigmoid = nn.Sequential(decoder, nn.Sigmoid())
    torch.testing.assert_close(
        elbo_loss(encoder, with_sigmoid, x, likelihood="bernoulli", noise=noise).loss, by_logits.loss
    )


def test_half_precision_sums_in_float32():
    encoder, decoder, x, noise = small_case(torch.float32)
    low = [part.to(torch.bfloat16) for part in (encoder, decoder, x, noise)]
    high = [part.float() for part in low[2:]]
    lower = elbo_loss(low[0], low[1], low[2], noise=low[3], reduction="none").loss
    assert lower.dtype == torch.float32
    upper = elbo_loss(encoder.float(), decoder.float(), high[0], noise=high[1], reduction="none").loss
    assert (lower - upper).norm() < 0.02 * upper.norm()


def test_compiles_whole_by_inductor(kit):
    encoder, decoder, x, noise = small_case()
    probabilities = nn.Sequential(decoder, nn.Sigmoid())
    leaves = kit.leaves_of(encoder, decoder)

    def loss(x, noise):
        return elbo_loss(encoder, probabilities, x, likelihood="bernoulli", noise=noise, beta=0.7)

    with fresh_cache():
        kit.assert_same(torch.compile(loss, fullgraph=True)(x, noise), loss(x, noise), leaves, torch.float64)
