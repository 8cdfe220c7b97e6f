"""mutual_ae_loss against torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fisherkernels import reference
from fisherkernels.losses import elbo_loss, mutual_ae_loss

cases = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "pair", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 4), st.sampled_from([3, 5])).map(torch.Size),
        "d": st.integers(1, 5),
        "num_samples": st.integers(1, 3),
        "weight": st.sampled_from([0.0, 1, 0.3]),
        "information": st.sampled_from([0, 10.0]),
        "likelihood": st.sampled_from(["float", "0-d", "flat", "trailing", "bernoulli", "bernoulli_logits"]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "seed": st.integers(0, 10**6),
    }
)


def draws(num_samples, count, d, features, dtype):
    widths = (d, d, features)
    return tuple(torch.randn(num_samples, count, width, dtype=dtype) for width in widths)


@settings(max_examples=40)
@given(case=cases)
def test_equals_reference(kit, case):
    dtype, count, shape, d = case["dtype"], case["count"], case["shape"], case["d"]
    torch.manual_seed(case["seed"])
    encoder, decoder = kit.networks(case["network"], shape, d, dtype)
    approximation, _ = kit.networks(case["network"], shape, d, dtype)
    x = torch.rand(count, *shape, dtype=dtype, requires_grad=True)
    options = {key: case[key] for key in ("num_samples", "weight", "information", "reduction")}
    options["noise"] = draws(case["num_samples"], count, d, shape.numel(), dtype)
    if case["likelihood"].startswith("bernoulli"):
        options["likelihood"] = case["likelihood"]
    else:
        options["variance"] = kit.variance(case["likelihood"], shape, dtype)
    ours = mutual_ae_loss(encoder, decoder, x, approximation=approximation, **options)
    variance = options.get("variance", 1.0)
    exact = kit.doubled(encoder, decoder, variance, x, approximation)
    options |= {"variance": exact[2], "noise": tuple(part.double() for part in options["noise"])}
    theirs = reference.mutual_ae_loss(exact[0], exact[1], exact[3], approximation=exact[4], **options)
    leaves = kit.leaves_of(encoder, decoder, variance, x, approximation)
    kit.assert_same(ours, theirs, leaves, dtype, kit.leaves_of(*exact))


def small_case(dtype=torch.float64):
    encoder, decoder, approximation = (nn.Linear(*size, dtype=dtype) for size in ((4, 4), (2, 4), (4, 4)))
    return encoder, decoder, torch.rand(3, 4, dtype=dtype), approximation, draws(1, 3, 2, 4, dtype)


def test_equals_the_formula_written_out():
    """The bound on the information in plain Python floats."""
    encoder, decoder, x, approximation, noise = small_case()
    options = {"variance": 0.3, "weight": 2.0, "information": 1.5, "noise": noise, "approximation": approximation}
    loss, terms = mutual_ae_loss(encoder, decoder, x, reduction="none", **options)
    _, z, eps = (part[0] for part in noise)
    generated = decoder(z) + math.sqrt(0.3) * eps
    mean, log_std = approximation(generated).chunk(2, 1)
    log_density = []
    for i in range(3):
        pairs = [(z[i, j].item(), mean[i, j].item(), log_std[i, j].item()) for j in range(2)]
        log_density.append(
            sum(-((v - m) ** 2) / (2 * math.exp(2 * s)) - s - 0.5 * math.log(2 * math.pi) for v, m, s in pairs)
        )
        assert math.isclose(terms["approximation"][i].item(), -log_density[i], rel_tol=1e-12)
    bound = math.log(2 * math.pi * math.e) + sum(log_density) / 3
    for i in range(3):
        assert math.isclose(terms["information"][i].item(), 2.0 * abs(bound - 1.5), rel_tol=1e-12)
        assert math.isclose(loss[i].item(), sum(term[i].item() for term in terms.values()), rel_tol=1e-12)


def test_the_rest_is_the_bound():
    encoder, decoder, x, approximation, noise = small_case()
    bound = elbo_loss(encoder, decoder, x, noise=noise[0], reduction="none")
    terms = mutual_ae_loss(encoder, decoder, x, approximation=approximation, noise=noise).terms
    for name, term in bound.terms.items():
        torch.testing.assert_close(terms[name], term)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli_logits"])
def test_whose_gradient_each_term_is(likelihood):
    """information reaches the decoder only, approximation the approximation only."""
    encoder, decoder, x, approximation, noise = small_case()
    options = {"approximation": approximation, "noise": noise, "likelihood": likelihood}
    terms = mutual_ae_loss(encoder, decoder, x, **options).terms
    reached = {"information": decoder, "approximation": approximation}
    for name, network in reached.items():
        for other in (encoder, decoder, approximation):
            grads = torch.autograd.grad(terms[name].sum(), other.parameters(), allow_unused=True, retain_graph=True)
            found = [grad is not None and grad.any().item() for grad in grads]
            assert all(found) if other is network else not any(found), name


@pytest.mark.parametrize("information", [0.0, 50.0])
def test_gradcheck(information):
    """For a decoder with Gaussian data; the pairs are constant in the second term, which is left out."""
    encoder, decoder, x, approximation, noise = small_case()
    variance = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    inputs = [*decoder.parameters(), variance]
    options = {"approximation": approximation, "noise": noise, "variance": variance, "information": information}

    def loss(*_):
        terms = mutual_ae_loss(encoder, decoder, x, **options).terms
        return terms["information"].sum() + terms["reconstruction"].sum()

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_the_bound_is_the_information_of_a_linear_model():
    """f(z) = w z with variance g: I = log(1 + w²/g)/2, met by r = the model's posterior."""
    w, g = 1.5, 0.5
    encoder, decoder, approximation = nn.Linear(1, 2).double(), nn.Linear(1, 1).double(), nn.Linear(1, 2).double()
    posterior_variance = 1 / (1 + w**2 / g)
    with torch.no_grad():
        decoder.weight.fill_(w)
        decoder.bias.zero_()
        approximation.weight.copy_(torch.tensor([[posterior_variance * w / g], [0.0]]))
        approximation.bias.copy_(torch.tensor([0.0, 0.5 * math.log(posterior_variance)]))
    x = torch.zeros(20_000, 1).double()
    terms = mutual_ae_loss(encoder, decoder, x, approximation=approximation, variance=g).terms
    assert terms["information"][0].item() == pytest.approx(0.5 * math.log(1 + w**2 / g), abs=0.03)


def test_training_moves_the_information_to_the_wanted_value():
    """From above and below, of a linear model whose information is known."""
    for wanted, start in ((0.4, 3.0), (1.2, 0.5)):
        torch.manual_seed(0)
        encoder, decoder, approximation = nn.Linear(1, 2), nn.Linear(1, 1), nn.Linear(1, 2)
        with torch.no_grad():
            decoder.weight.fill_(start)
            approximation.weight.zero_()
        parameters = [*encoder.parameters(), *decoder.parameters(), *approximation.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=0.02)
        options = {"approximation": approximation, "weight": 50.0, "information": wanted}
        for _ in range(300):
            optimiser.zero_grad()
            mutual_ae_loss(encoder, decoder, torch.randn(128, 1), **options).loss.backward()
            optimiser.step()
        assert 0.5 * math.log(1 + decoder.weight.item() ** 2) == pytest.approx(wanted, abs=0.15)


def test_running_statistics_are_updated_once():
    encoder, decoder, x, _, noise = small_case()
    approximation = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    mutual_ae_loss(encoder, decoder, x, approximation=approximation, noise=noise)
    assert approximation[1].num_batches_tracked == 1


@pytest.mark.parametrize("case", ["pair", "mlp bernoulli", "conv bernoulli_logits"])
def test_compiles_whole(kit, case):
    network, *likelihood = case.split()
    shape, options = torch.Size([1, 4, 3]), {"likelihood": likelihood[0]} if likelihood else {}
    encoder, decoder = kit.networks(network, shape, 2, torch.float64)
    approximation, _ = kit.networks(network, shape, 2, torch.float64)
    if not likelihood:
        options["variance"] = kit.variance("0-d", shape, torch.float64)
    x, noise = torch.rand(3, *shape).double(), draws(2, 3, 2, shape.numel(), torch.float64)

    def call(x, noise):
        return mutual_ae_loss(encoder, decoder, x, approximation=approximation, noise=noise, num_samples=2, **options)

    leaves = kit.leaves_of(encoder, decoder, approximation, options.get("variance"))
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    kit.assert_same(compiled(x, noise), call(x, noise), leaves, torch.float64)


def test_empty_batch():
    encoder, decoder, _, approximation, _ = small_case()
    loss, terms = mutual_ae_loss(encoder, decoder, torch.rand(0, 4).double(), approximation=approximation)
    loss.backward()
    assert loss == 0 and all(term.shape == (0,) for term in terms.values())
    assert all((p.grad == 0).all() for p in approximation.parameters())
    full = mutual_ae_loss(encoder, decoder, torch.rand(2, 4).double(), approximation=approximation)
    assert full.terms.keys() == terms.keys()


def test_nan_stays_in_its_sample():
    encoder, decoder, x, approximation, noise = small_case()
    x[1, 2] = float("nan")
    spoilt = mutual_ae_loss(encoder, decoder, x, approximation=approximation, noise=noise, reduction="none").loss
    assert spoilt.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_half_precision_sums_in_float32(mode):
    encoder, decoder, x, approximation, noise = small_case(torch.float32)
    exact = mutual_ae_loss(encoder, decoder, x, approximation=approximation, noise=noise)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough = mutual_ae_loss(encoder, decoder, x, approximation=approximation, noise=noise)
    else:
        low = [part.bfloat16() for part in (encoder, decoder, x)]
        noise = tuple(part.bfloat16() for part in noise)
        rough = mutual_ae_loss(*low, approximation=approximation.bfloat16(), noise=noise)
    for term, expected in zip(rough.terms.values(), exact.terms.values(), strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected, rtol=0.03, atol=0.03 * expected.abs().max().item())
    rough.loss.backward()
    assert all(p.grad.isfinite().all() for p in (*decoder.parameters(), *approximation.parameters()))


N, D, d = 3, 4, 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": -1.0}, ValueError, "weight: expected a finite number >= 0, received -1.0"),
        ({"weight": torch.ones(2)}, ValueError, r"weight: expected a float or a 0-d tensor.*\[2\]"),
        ({"information": -1}, ValueError, "information: expected a finite number >= 0, received -1"),
        ({"approximation": None}, TypeError, "approximation: expected a torch.nn.Module, received NoneType"),
        (
            {"approximation": nn.DataParallel(nn.Linear(D, 2 * d))},
            TypeError,
            "approximation: expected a plain.*DataParallel",
        ),
        (
            {"approximation": nn.Linear(7, 4)},
            ValueError,
            r"approximation: expected a network that takes x of shape \[3, 4\]",
        ),
        (
            {"approximation": nn.Linear(D, 5)},
            ValueError,
            r"approximation: expected an output \[3, 2d\].*received shape \[3, 5\]",
        ),
        (
            {"approximation": nn.Linear(D, 6)},
            ValueError,
            "approximation: expected a mean and log_std of width 2.*received 3",
        ),
        (
            {"approximation": nn.Linear(D, 4).double()},
            TypeError,
            "approximation: expected parameters of dtype torch.float32, that of x, received torch.float64",
        ),
        ({"noise": torch.randn(N, d)}, TypeError, "noise: expected three tensors.*received Tensor"),
        ({"noise": (torch.randn(N, d),) * 2}, ValueError, "noise: expected three tensors.*received 2"),
        (
            {"noise": (torch.randn(N, d), torch.randn(N, 1), torch.randn(N, D))},
            ValueError,
            r"noise: expected shape \[1, 3, 2\] \(num_samples, batch, latent width\), received \[1, 3, 1\]",
        ),
        (
            {"noise": (torch.randn(N, d), torch.randn(N, d), torch.randn(N, d))},
            ValueError,
            r"noise: expected shape \[1, 3, 4\] \(num_samples, batch, data width\), received \[1, 3, 2\]",
        ),
        (
            {"likelihood": "bernoulli", "x": 2 * torch.ones(N, D)},
            ValueError,
            r"x: expected values in \[0, 1\].*from 2 to 2",
        ),
    ],
)
def test_bad_input(options, error, message):
    options = {"x": torch.rand(N, D), "approximation": nn.Linear(D, 2 * d), **options}
    with pytest.raises(error, match=message):
        mutual_ae_loss(nn.Linear(D, 2 * d), nn.Linear(d, D), **options)
