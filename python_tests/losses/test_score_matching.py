"""score_matching_loss against the double-backward reference, and what its estimates are of."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._inductor.utils import fresh_cache

from fisherkernels import reference
from fisherkernels.losses import fisher_ae_loss, inference_loss, score_matching_loss

OBJECTIVES = ["m1", "m2", "m3"]
every = pytest.mark.parametrize("objective", OBJECTIVES)
pytestmark = pytest.mark.filterwarnings("ignore:score_matching_loss. one sample:RuntimeWarning")

cases = st.fixed_dictionaries(
    {
        "network": st.sampled_from(["mlp", "pair", "conv"]),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
        "count": st.integers(1, 5),
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 4), st.sampled_from([3, 5])).map(torch.Size),
        "d": st.integers(1, 5),
        "num_samples": st.integers(1, 4),
        "objective": st.sampled_from(OBJECTIVES),
        "unbiased": st.booleans(),
        "variance": st.sampled_from(["float", "0-d", "flat", "trailing"]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "grad_x": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
)


@settings(max_examples=60)
@given(case=cases)
def test_equals_double_backward(kit, case):
    dtype, count, shape, d = case["dtype"], case["count"], case["shape"], case["d"]
    torch.manual_seed(case["seed"])
    encoder, decoder = kit.networks(case["network"], shape, d, dtype)
    variance = kit.variance(case["variance"], shape, dtype)
    x = torch.rand(count, *shape, dtype=dtype, requires_grad=case["grad_x"])
    options = {
        "variance": variance,
        "noise": torch.randn(case["num_samples"], count, d, dtype=dtype),
        "unbiased": case["unbiased"] and case["num_samples"] > 1,
        **{key: case[key] for key in ("num_samples", "objective", "reduction")},
    }
    ours = score_matching_loss(encoder, decoder, x, **options)
    exact = kit.doubled(encoder, decoder, variance, x)
    options |= {"variance": exact[2], "noise": options["noise"].double()}
    theirs = reference.score_matching_loss(exact[0], exact[1], exact[3], **options)
    leaves = kit.leaves_of(decoder, variance, x)
    untouched = torch.autograd.grad(ours.loss.sum(), list(encoder.parameters()), retain_graph=True, allow_unused=True)
    assert untouched == (None,) * len(untouched)
    kit.assert_same(ours, theirs, leaves, dtype, kit.leaves_of(*exact[1:]))


def small_case(L=3, N=3, D=4, d=2, dtype=torch.float64):
    encoder = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 2 * d)).to(dtype)
    decoder = nn.Sequential(nn.Linear(d, 3), nn.SiLU(), nn.Linear(3, D)).to(dtype)
    return encoder, decoder, torch.rand(N, D, dtype=dtype), torch.randn(L, N, d, dtype=dtype)


@every
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradcheck(objective, unbiased):
    encoder, decoder, x, noise = small_case(N=2, D=3)
    variance = torch.rand(3, dtype=torch.float64) + 0.5
    inputs = [*decoder.parameters(), variance.requires_grad_()]

    def loss(*_):
        options = {"objective": objective, "unbiased": unbiased, "num_samples": 3}
        return score_matching_loss(encoder, decoder, x, variance=variance, noise=noise, **options).loss

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_m1_is_the_reconstruction_of_the_fisher_auto_encoder():
    encoder, decoder, x, noise = small_case()
    options = {"noise": noise, "num_samples": 3, "variance": 0.4}
    _, terms = fisher_ae_loss(encoder, decoder, x, **options)
    torch.testing.assert_close(
        score_matching_loss(encoder, decoder, x, **options).terms["score"], terms["reconstruction"]
    )


def test_m2_of_one_sample_is_m1():
    encoder, decoder, x, noise = small_case(L=1)
    m1, m2 = (
        score_matching_loss(encoder, decoder, x, objective=objective, noise=noise, variance=0.4, reduction="none")
        for objective in ("m1", "m2")
    )
    torch.testing.assert_close(m2.loss, m1.loss)


@pytest.mark.parametrize(("objective", "sign"), [("m2", -1), ("m3", 1)])
def test_pairs_of_samples_estimate_the_squared_mean_without_bias(objective, sign):
    """A linear decoder under noise of +1 and -1: every draw of two samples, counted once, gives expectations exactly.

    E s is the score at the posterior's mean; the biased estimate is too large by half of E ||s - E s||^2.
    """
    encoder, decoder = nn.Linear(4, 2).double(), nn.Linear(1, 4).double()
    x, variance = torch.rand(3, 4).double(), 0.4
    mean, log_std = encoder(x).chunk(2, 1)
    expected = ((x - decoder(mean)) / variance).square().sum(1)
    spread = (log_std.exp() @ decoder.weight.T / variance).square().sum(1)
    pairs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=2))).double()
    draws = pairs[:, :, None, None].expand(4, 2, 3, 1)
    for unbiased, bias in ((True, 0.0), (False, 0.5)):
        options = {"objective": objective, "unbiased": unbiased, "num_samples": 2, "variance": variance}
        estimates = [
            score_matching_loss(encoder, decoder, x, noise=noise, **options).terms["mean_score"] for noise in draws
        ]
        torch.testing.assert_close(sum(estimates) / 4, sign * 0.5 * (expected + bias * spread))


def test_the_objectives_agree_at_a_posterior_without_spread():
    """With s the same in all samples M2 is M1, and M3 differs from it by the cross term alone."""
    encoder, decoder, x, noise = small_case()
    still = torch.zeros_like(noise)
    m1, m2, m3 = (
        score_matching_loss(encoder, decoder, x, objective=objective, noise=still, num_samples=3, variance=0.4)
        for objective in OBJECTIVES
    )
    torch.testing.assert_close(m2.loss, m1.loss)
    divergence = -4 / 0.4
    torch.testing.assert_close(m3.terms["mean_score"], m1.terms["score"] - divergence)


@every
def test_terms_sum_to_the_unreduced_loss(objective):
    encoder, decoder, x, noise = small_case()
    results = {
        reduction: score_matching_loss(
            encoder, decoder, x, objective=objective, noise=noise, num_samples=3, variance=0.5, reduction=reduction
        )
        for reduction in ("none", "sum", "mean")
    }
    none = results["none"]
    assert none.loss.shape == (3,)
    torch.testing.assert_close(sum(none.terms.values()), none.loss)
    torch.testing.assert_close(results["sum"].loss, none.loss.sum())
    torch.testing.assert_close(results["mean"].loss, none.loss.mean())


@every
def test_noise_comes_from_the_global_generator(objective):
    encoder, decoder, x, _ = small_case()
    torch.manual_seed(3)
    drawn = score_matching_loss(encoder, decoder, x, objective=objective, num_samples=2)
    torch.manual_seed(3)
    noise = torch.randn(2, 3, 2, dtype=torch.float64)
    assert drawn.loss == score_matching_loss(encoder, decoder, x, objective=objective, num_samples=2, noise=noise).loss


@every
def test_running_statistics_are_updated_once(kit, objective):
    shape = torch.Size([1, 3, 3])
    networks = kit.networks("conv", shape, 2, torch.float64)
    score_matching_loss(*networks, torch.rand(4, *shape).double(), objective=objective, num_samples=2)
    counts = [m.num_batches_tracked.item() for n in networks for m in n if isinstance(m, nn.BatchNorm2d)]
    assert counts == [1, 1]


@every
@pytest.mark.parametrize("compiled", [False, True])
def test_empty_batch(objective, compiled):
    encoder, decoder, _, _ = small_case()
    encoder.append(nn.BatchNorm1d(4).double())

    def call(reduction):
        return score_matching_loss(
            encoder, decoder, torch.rand(0, 4).double(), objective=objective, num_samples=2, reduction=reduction
        )

    run = torch.compile(call, backend="eager", fullgraph=True) if compiled else call
    full = score_matching_loss(encoder, decoder, torch.rand(2, 4).double(), objective=objective)
    for reduction in ("mean", "sum"):
        value, terms = run(reduction)
        assert value.shape == () and value == 0
        assert terms.keys() == full.terms.keys() and all(term.shape == (0,) for term in terms.values())
        value.backward()
    assert run("none").loss.shape == (0,)
    assert all((p.grad == 0).all() for p in decoder.parameters())
    assert all(p.grad is None for p in encoder.parameters())


@every
def test_nan_stays_in_its_sample(objective):
    encoder, decoder, x, noise = small_case(N=4)
    options = {"objective": objective, "noise": noise, "num_samples": 3, "reduction": "none"}
    clean = score_matching_loss(encoder, decoder, x, **options)
    x[2, 1] = float("nan")
    spoilt = score_matching_loss(encoder, decoder, x, **options)
    bad = torch.tensor([False, False, True, False])
    assert torch.equal(spoilt.loss.isnan(), bad)
    torch.testing.assert_close(spoilt.loss[~bad], clean.loss[~bad])


@every
def test_strided_data(kit, objective):
    networks = kit.networks("conv", torch.Size([2, 3, 5]), 2, torch.float64)
    x = torch.rand(8, 5, 2, 3, dtype=torch.float64)[::2].permute(0, 2, 3, 1)  # [4, 2, 3, 5], no dense stride
    noise = torch.randn(2, 2, 4, dtype=torch.float64).transpose(1, 2)  # [2, 4, 2]
    strided, dense = (
        score_matching_loss(*networks, data, objective=objective, noise=draws, num_samples=2)
        for data, draws in ((x, noise), (x.contiguous(), noise.contiguous()))
    )
    torch.testing.assert_close(strided.loss, dense.loss)


@every
@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_half_precision(objective, mode):
    encoder, decoder, x, noise = small_case(dtype=torch.float32)
    options = {"objective": objective, "num_samples": 3, "reduction": "none", "noise": noise}
    exact = score_matching_loss(encoder, decoder, x, **options)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough = score_matching_loss(encoder, decoder, x, **options)
    else:
        options["noise"] = noise.bfloat16()
        rough = score_matching_loss(encoder.bfloat16(), decoder.bfloat16(), x.bfloat16(), **options)
    size = max(term.abs().max().item() for term in exact.terms.values())
    for term, expected in zip(rough.terms.values(), exact.terms.values(), strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected, rtol=0.03, atol=0.03 * size)


def test_inference_after_learning_under_one_autocast():
    """The encoder, run without a graph first, is cast anew where its gradient is wanted."""
    encoder, decoder, x, noise = small_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        score_matching_loss(encoder, decoder, x, noise=noise, num_samples=3).loss.backward()
        inference_loss(encoder, decoder, x, noise=noise, num_samples=3).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("objective", "network", "options"),
    [
        ("m1", "mlp", {"variance": "0-d"}),
        ("m2", "mlp", {"variance": "flat", "unbiased": True, "reduction": "none"}),
        ("m2", "pair", {"variance": "float", "num_samples": 1}),
        ("m3", "conv", {"variance": "float", "reduction": "sum"}),
        ("m3", "pair", {"variance": "trailing", "unbiased": True}),
    ],
)
def test_compiles_whole(kit, objective, network, options):
    dtype, shape = torch.float64, torch.Size([1, 4, 3])
    networks = kit.networks(network, shape, 2, dtype)
    options = {"objective": objective, "num_samples": 3} | options
    options["variance"] = kit.variance(options["variance"], shape, dtype)
    x, noise = torch.rand(3, *shape, dtype=dtype), torch.randn(options["num_samples"], 3, 2, dtype=dtype)

    def call(x, noise):
        return score_matching_loss(*networks, x, noise=noise, **options)

    run = torch.compile(call, backend="aot_eager", fullgraph=True)
    kit.assert_same(run(x, noise), call(x, noise), kit.leaves_of(networks[1], options["variance"]), dtype)


def test_compiles_whole_by_inductor(kit):
    encoder, decoder, x, noise = small_case()
    variance = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def call(x, noise):
        options = {"objective": "m3", "variance": variance, "num_samples": 3}
        return score_matching_loss(encoder, decoder, x, noise=noise, **options)

    with fresh_cache():
        compiled = torch.compile(call, fullgraph=True)(x, noise)
        kit.assert_same(compiled, call(x, noise), kit.leaves_of(decoder, variance), torch.float64)


@pytest.mark.parametrize(("objective", "then"), [("m2", "m2 is then m1"), ("m3", "m3 is then m1 plus")])
def test_one_sample_is_warned_about(objective, then):
    encoder, decoder, x, noise = small_case(L=1)
    with pytest.warns(RuntimeWarning, match=f"one sample cannot tell.*{then}.*Raise num_samples") as caught:
        score_matching_loss(encoder, decoder, x, objective=objective, noise=noise)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_matching_loss(encoder, decoder, x, noise=noise)
        score_matching_loss(encoder, decoder, x, objective=objective, num_samples=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": "m4"}, ValueError, "objective: expected one of 'm1', 'm2', 'm3', received 'm4'"),
        (
            {"objective": "m2", "unbiased": True},
            ValueError,
            "num_samples: expected an int >= 2 with unbiased=True, received 1",
        ),
        (
            {"objective": "m3", "encoder": lambda x: x},
            TypeError,
            "encoder: expected a torch.nn.Module.*received function",
        ),
    ],
)
def test_bad_input(options, error, message):
    encoder, decoder, x, _ = small_case()
    with pytest.raises(error, match=message):
        score_matching_loss(options.pop("encoder", encoder), decoder, x, **options)


def test_m1_and_m2_take_any_callable():
    encoder, decoder, x, noise = small_case()
    for objective in ("m1", "m2"):
        options = {"objective": objective, "noise": noise, "num_samples": 3}
        plain = score_matching_loss(encoder.forward, decoder.forward, x, **options)
        assert plain.loss == score_matching_loss(encoder, decoder, x, **options).loss
