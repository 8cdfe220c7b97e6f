"""fisher_shannon_loss against torch.distributions and scores by autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._inductor.utils import fresh_cache

from fisherkernels import reference
from fisherkernels.losses import elbo_loss, fisher_shannon_loss

cases = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "pair", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 4), st.sampled_from([3, 5])).map(torch.Size),
        "d": st.integers(1, 5),
        "num_samples": st.integers(1, 3),
        "lambda_z": st.sampled_from([0.0, 1, 0.3]),
        "f_z": st.sampled_from([0.0, 20, "per coordinate"]),
        "lambda_x": st.sampled_from([0.0, 0.2]),
        "f_x": st.sampled_from([0, 5.0]),
        "estimator": st.sampled_from(["analytic", "sampled"]),
        "per_dimension": st.booleans(),
        "likelihood": st.sampled_from(["float", "0-d", "flat", "trailing", "bernoulli", "bernoulli_logits"]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "seed": st.integers(0, 10**6),
    }
)
KEYS = ("num_samples", "lambda_z", "lambda_x", "f_x", "estimator", "per_dimension", "reduction")


@settings(max_examples=50)
@given(case=cases)
def test_equals_reference(kit, case):
    dtype, count, shape, d = case["dtype"], case["count"], case["shape"], case["d"]
    torch.manual_seed(case["seed"])
    encoder, decoder = kit.networks(case["network"], shape, d, dtype)
    x = torch.rand(count, *shape, dtype=dtype, requires_grad=True)
    options = {"noise": torch.randn(case["num_samples"], count, d, dtype=dtype)}
    options |= {key: case[key] for key in KEYS}
    options["f_z"] = torch.rand(d, dtype=dtype) if case["f_z"] == "per coordinate" else case["f_z"]
    if case["likelihood"].startswith("bernoulli"):
        options |= {"likelihood": case["likelihood"], "lambda_x": 0.0}
    else:
        options["variance"] = kit.variance(case["likelihood"], shape, dtype)
    ours = fisher_shannon_loss(encoder, decoder, x, **options)
    variance = options.get("variance", 1.0)
    exact = kit.doubled(encoder, decoder, variance, x)
    options |= {"variance": exact[2], "noise": options["noise"].double()}
    theirs = reference.fisher_shannon_loss(exact[0], exact[1], exact[3], **options)
    leaves = kit.leaves_of(encoder, decoder, variance, x)
    kit.assert_same(ours, theirs, leaves, dtype, kit.leaves_of(*exact))


def small_case(dtype=torch.float64):
    encoder, decoder = nn.Linear(4, 4, dtype=dtype), nn.Linear(2, 4, dtype=dtype)
    return encoder, decoder, torch.rand(3, 4, dtype=dtype), torch.randn(3, 2, dtype=dtype)


@pytest.mark.parametrize("estimator", ["analytic", "sampled"])
def test_gradcheck(estimator):
    encoder, decoder, x, noise = small_case()
    variance = torch.tensor(0.4, dtype=torch.float64)
    inputs = [*encoder.parameters(), *decoder.parameters(), x, variance]
    for tensor in inputs:
        tensor.requires_grad_()
    options = {"f_z": 3.0, "lambda_x": 0.5, "f_x": 1.0, "estimator": estimator, "noise": noise, "variance": variance}

    def loss(*_):
        return fisher_shannon_loss(encoder, decoder, x, **options).loss

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("per_dimension", [True, False])
@pytest.mark.parametrize("estimator", ["analytic", "sampled"])
def test_equals_the_formula_written_out(estimator, per_dimension):
    """Both information terms in plain Python floats."""
    encoder, decoder, x, noise = small_case()
    options = {"lambda_z": 2.0, "f_z": 1.5, "lambda_x": 0.3, "f_x": 4.0, "variance": 0.2}
    options |= {"estimator": estimator, "per_dimension": per_dimension, "noise": noise}
    loss, terms = fisher_shannon_loss(encoder, decoder, x, reduction="none", **options)
    mean, log_std = encoder(x).chunk(2, 1)
    output = decoder(mean + log_std.exp() * noise)
    for i in range(3):
        trace_z = trace_x = 0.0
        for j in range(2):
            square = noise[i, j].item() ** 2 if estimator == "sampled" else 1
            trace_z += square * math.exp(-2 * log_std[i, j].item())
        for j in range(4):
            error = (x[i, j] - output[i, j]).item()
            trace_x += (error / 0.2) ** 2 if estimator == "sampled" else 1 / 0.2
        information_z = 2.0 * abs(trace_z / (2 if per_dimension else 1) - 1.5)
        information_x = 0.3 * abs(trace_x / (4 if per_dimension else 1) - 4.0)
        assert math.isclose(terms["information_z"][i].item(), information_z, rel_tol=1e-12)
        assert math.isclose(terms["information_x"][i].item(), information_x, rel_tol=1e-12)
        assert math.isclose(loss[i].item(), sum(term[i].item() for term in terms.values()), rel_tol=1e-12)


def test_without_weights_it_is_the_bound():
    encoder, decoder, x, noise = small_case()
    bound = elbo_loss(encoder, decoder, x, variance=0.3, noise=noise)
    held = fisher_shannon_loss(encoder, decoder, x, variance=0.3, noise=noise, lambda_z=0.0)
    torch.testing.assert_close(held.loss, bound.loss)
    assert not held.terms["information_z"].any() and not held.terms["information_x"].any()


def test_a_term_left_out_may_overflow():
    """The number 0 as a weight leaves its term out, however large 1/sigma^2 is."""
    encoder, decoder, x, noise = small_case(torch.float32)
    with torch.no_grad():
        encoder.bias[2:] = -80.0
    loss = fisher_shannon_loss(encoder, decoder, x, noise=noise, lambda_z=0.0).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in (*encoder.parameters(), *decoder.parameters()))
    assert fisher_shannon_loss(encoder, decoder, x, noise=noise).loss.isinf()


def test_estimators_agree_in_expectation():
    """Over many samples of a decoder whose data it generates."""
    encoder, decoder = nn.Linear(4, 4).double(), nn.Linear(2, 4).double()
    with torch.no_grad():
        decoder.weight.zero_()
    x = decoder.bias.detach() + math.sqrt(0.3) * torch.randn(4000, 4).double()
    options = {"variance": 0.3, "lambda_x": 1.0, "num_samples": 20}
    sampled = fisher_shannon_loss(encoder, decoder, x, estimator="sampled", per_dimension=False, **options)
    analytic = fisher_shannon_loss(encoder, decoder, x, per_dimension=False, **options)
    for name in ("information_z", "information_x"):
        means = sampled.terms[name].mean(), analytic.terms[name].mean()
        torch.testing.assert_close(*means, rtol=0.05, atol=0)


def test_training_moves_the_information_to_the_wanted_value():
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)
    x, variance = torch.rand(32, 6), torch.tensor(0.0, requires_grad=True)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), variance], lr=0.02)
    for _ in range(400):
        optimiser.zero_grad()
        options = {"lambda_z": 100.0, "f_z": 7.0, "lambda_x": 100.0, "f_x": 3.0, "variance": variance.exp()}
        fisher_shannon_loss(encoder, decoder, x, **options).loss.backward()
        optimiser.step()
    log_std = encoder(x).detach()[:, 2:]
    assert abs((-2 * log_std).exp().mean(1) - 7.0).max() < 1.0
    assert abs((-variance).exp().item() - 3.0) < 0.5


COMPILED = [
    {"network": "pair", "variance": "trailing", "lambda_x": 0.5, "f_x": 2.0, "reduction": "sum"},
    {"network": "mlp", "variance": "0-d", "lambda_x": 0.5, "estimator": "sampled", "per_dimension": False},
    {"network": "conv", "likelihood": "bernoulli", "f_z": 20.0, "reduction": "none"},
]


@pytest.mark.parametrize("case", COMPILED)
def test_compiles_whole(kit, case):
    options, shape = dict(case), torch.Size([1, 4, 3])
    encoder, decoder = kit.networks(options.pop("network"), shape, 2, torch.float64)
    if "variance" in options:
        options["variance"] = kit.variance(options["variance"], shape, torch.float64)
    x, noise = torch.rand(3, *shape).double(), torch.randn(2, 3, 2).double()

    def call(x, noise):
        return fisher_shannon_loss(encoder, decoder, x, noise=noise, num_samples=2, **options)

    leaves = kit.leaves_of(encoder, decoder, options.get("variance"))
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    kit.assert_same(compiled(x, noise), call(x, noise), leaves, torch.float64)


def test_compiles_whole_by_inductor(kit):
    encoder, decoder, x, noise = small_case()
    leaves = kit.leaves_of(encoder, decoder)

    def loss(x, noise):
        return fisher_shannon_loss(encoder, decoder, x, noise=noise, f_z=20.0, lambda_x=0.1, estimator="sampled")

    with fresh_cache():
        kit.assert_same(torch.compile(loss, fullgraph=True)(x, noise), loss(x, noise), leaves, torch.float64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lambda_z": -1.0}, ValueError, "lambda_z: expected a finite number >= 0, received -1.0"),
        ({"lambda_x": -0.1}, ValueError, "lambda_x: expected a finite number >= 0, received -0.1"),
        ({"lambda_z": torch.tensor(-1.0)}, ValueError, "lambda_z: expected a value >= 0, received -1.0"),
        ({"lambda_z": torch.ones(2)}, ValueError, r"lambda_z: expected a float or a 0-d tensor.*\[2\]"),
        ({"lambda_z": "1"}, TypeError, "lambda_z: expected a float or a tensor, received str"),
        ({"f_z": -20.0}, ValueError, "f_z: expected a finite number >= 0, received -20.0"),
        ({"f_z": torch.tensor([1.0, -1.0])}, ValueError, "f_z: expected values >= 0.*smallest value of -1.0"),
        ({"f_z": torch.ones(3)}, ValueError, r"f_z: expected.*shape \[\] or \[2\].*received shape \[3\]"),
        ({"f_z": torch.ones(3, 2)}, ValueError, r"f_z: expected.*shape \[\] or \[2\].*received shape \[3, 2\]"),
        ({"f_z": torch.ones(2).double()}, TypeError, "f_z: expected dtype torch.float32.*received torch.float64"),
        ({"f_x": float("inf")}, ValueError, "f_x: expected a finite number >= 0, received inf"),
        ({"estimator": "exact"}, ValueError, "estimator: expected one of 'analytic', 'sampled', received 'exact'"),
        ({"likelihood": "poisson"}, ValueError, "likelihood: expected one of 'gaussian'.*'poisson'"),
        (
            {"likelihood": "bernoulli_logits", "lambda_x": 1.0},
            ValueError,
            "lambda_x: expected 0 with likelihood='bernoulli_logits', received 1.0",
        ),
        (
            {"likelihood": "bernoulli", "variance": 0.5},
            ValueError,
            "variance: expected to be left at 1.0 with likelihood='bernoulli'",
        ),
    ],
)
def test_bad_input(options, error, message):
    encoder, decoder, x, _ = small_case(torch.float32)
    with pytest.raises(error, match=message):
        fisher_shannon_loss(encoder, decoder, x, **options)
