import math
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.correctness import Gate, relative_rms
from benchmarks.fisher_net import (
    by_hand,
    conjugate_gradients,
    exact,
    floors,
    images,
    nifty,
    routes,
    sample,
    step,
    trained,
)
from benchmarks.suites import cases

N, D_LATENT, HIDDEN = 5, 3, (9, 8)


@pytest.fixture
def problem():
    """A decoder with trained-like, well separated ReLUs, and the arguments of a sample, in float64."""
    torch.manual_seed(0)
    decoder = trained.mlp([D_LATENT, *HIDDEN, 11]).double()
    noise = torch.randn(N, 11).double(), torch.randn(N, D_LATENT).double()
    return decoder, (torch.randn(N, D_LATENT).double(), torch.tensor(0.02).double(), *noise)


ROUTES = {
    "ours": routes.ours("auto"),
    "ours, cg": routes.ours("cg"),
    "ours, cholesky": routes.ours("cholesky"),
    "CG over torch.func": routes.cg(routes.torch_func_maps),
    "CG by hand": routes.cg(routes.by_hand_maps),
    "Cholesky": routes.torch_func_cholesky(chunk_size=2),
    "direct by hand": routes.by_hand_direct,
    "implicit CG over torch.func": routes.implicit_cg(routes.torch_func_maps),
    "implicit CG by hand": routes.implicit_cg(routes.by_hand_maps),
}


@pytest.mark.parametrize("name", ROUTES)
def test_every_route_draws_the_exact_sample(name, problem):
    decoder, arguments = problem
    z = ROUTES[name](decoder, 1e-12)(*arguments)
    assert relative_rms(z, exact.sample(decoder, *arguments)) < 1e-10
    assert exact.relative_residual(decoder, *arguments, z).max() < 1e-10


@pytest.mark.parametrize(
    "name", ["ours", "ours, cg", "Cholesky", "direct by hand", "implicit CG over torch.func", "implicit CG by hand"]
)
def test_every_differentiable_route_has_the_exact_gradient(name, problem):
    decoder, (mean, variance, *noise) = problem
    leaves = [mean.requires_grad_(), variance.requires_grad_(), *decoder.parameters()]
    grad = torch.randn(N, D_LATENT).double()

    def gradients(sampler):
        return torch.autograd.grad(sampler(mean, variance, *noise), leaves, grad, materialize_grads=True)

    expected = gradients(exact.prepare(decoder, 0))
    for received, right in zip(gradients(ROUTES[name](decoder, 1e-13)), expected, strict=True):
        assert relative_rms(received, right) < 1e-8


def test_linear_operator_draws_the_exact_sample(problem):
    pytest.importorskip("linear_operator")
    decoder, arguments = problem
    with torch.no_grad():
        z = routes.linear_operator_cg(decoder, 1e-12)(*arguments)
    assert relative_rms(z, exact.sample(decoder, *arguments)) < 1e-10


def test_nifty_draws_the_exact_sample(problem):
    for module in nifty.NIFTY["requires"]:
        pytest.importorskip(module)
    decoder, arguments = problem
    z = nifty.sampler("lax.map")(decoder, 1e-12)(*arguments)
    assert z.dtype == torch.float64
    assert relative_rms(z, exact.sample(decoder, *arguments)) < 1e-10


def test_conjugate_gradients_stop_each_item_at_its_own_residual():
    diagonals = torch.tensor([[1.0, 1.0, 1.0], [1.0, 10.0, 100.0]]).double()
    rhs = torch.ones(2, 3).double()
    x, products = conjugate_gradients.solve(lambda v: diagonals * v, rhs, torch.zeros_like(rhs), 1e-10)
    assert relative_rms(x, 1 / diagonals) < 1e-9
    assert products == 1 + 3  # the residual at the start, and as many steps as there are eigenvalues
    with pytest.raises(RuntimeError, match="1 of 2 items did not converge in 2 iterations"):
        conjugate_gradients.solve(lambda v: diagonals * v, rhs, torch.zeros_like(rhs), 1e-10, max_iter=2)


@pytest.fixture
def tiny_nets(monkeypatch, tmp_path):
    """Nets of the suite's layout, small, trained for two steps on noise."""
    monkeypatch.setattr(trained, "HIDDEN", HIDDEN)
    monkeypatch.setattr(trained.AutoEncoder.__init__, "__defaults__", (HIDDEN,))
    monkeypatch.setattr(trained, "STEPS", 2)
    monkeypatch.setattr(trained, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(images, "load", lambda: torch.rand(50, trained.PIXELS, generator=torch.Generator()))


def test_trained_nets_are_the_same_whether_read_or_trained_again(tiny_nets):
    first, read = trained.auto_encoder(D_LATENT), trained.auto_encoder(D_LATENT)
    (path,) = trained.CACHE.iterdir()
    path.unlink()
    again = trained.auto_encoder(D_LATENT)
    for name, value in first.state_dict().items():
        assert torch.equal(value, read.state_dict()[name]) and torch.equal(value, again.state_dict()[name])
    assert first.codes.abs().sum() > 0


def test_direct_floor_is_what_the_route_by_hand_multiplies_but_for_half_the_gram_matrix(tiny_nets):
    inputs = sample.make_inputs(D_LATENT, N)(torch.Generator().manual_seed(0))
    decoder = trained.auto_encoder(D_LATENT).decoder
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        by_hand.direct(by_hand.weights_of(decoder), inputs[0], torch.tensor(0.02), *inputs[1:])
    d, D = D_LATENT, trained.PIXELS
    forward, project = 2 * N * sum(layer.weight.numel() for layer in decoder[:-1:2]), 2 * N * d * D
    half = N * D * (2 * d * d - d * (d + 1))
    floor = floors.gram_of_tangents(D_LATENT, N, reduced=False)
    assert counter.get_total_flops() == forward + floor + half + project
    assert floors.sample(D_LATENT, inputs)["direct"] <= forward + floor + project + N * (d**3 / 3 + 4 * d**2)


def test_replacing_the_last_layer_by_a_square_one_saves_where_the_batch_is_large(tiny_nets):
    def floor(batch, reduced):
        return floors.gram_of_tangents(D_LATENT, batch, reduced)

    assert floor(1000, True) < floor(1000, False) and floor(1, True) > floor(1, False)


def test_with_all_units_on_active_units_save_nothing_but_the_factor(tiny_nets):
    hidden = HIDDEN[::-1]
    all_on = floors.gram_of_active_units(D_LATENT, torch.tensor([hidden] * N))
    h, d = hidden[-1], D_LATENT
    assert all_on == floors.gram_of_tangents(d, N, True) - h**3 / 3 + N * d * h * (h - 1)
    some = floors.active_units(d, sample.make_inputs(d, N)(torch.Generator().manual_seed(0))[0])
    assert some.shape == (N, len(hidden)) and 0 < floors.gram_of_active_units(d, some) < all_on


def test_cg_floor_grows_with_the_products_that_are_needed(tiny_nets, monkeypatch):
    inputs = sample.make_inputs(D_LATENT, N)(torch.Generator().manual_seed(0))
    counts = []
    for products in (3, 4):
        monkeypatch.setattr(floors, "_products_needed", lambda *_, products=products: products)
        counts.append(floors.sample(D_LATENT, inputs)["CG"])
    inner = sum(layer.weight.numel() for layer in trained.auto_encoder(D_LATENT).decoder[:-1:2])
    assert counts[1] - counts[0] == 2 * N * (2 * inner + HIDDEN[0] ** 2)


def test_facts_describe_the_metric(tiny_nets):
    facts = floors.facts(D_LATENT, sample.make_inputs(D_LATENT, N)(torch.Generator())[0])
    assert facts["noise variance"] == trained.NOISE_VARIANCE
    assert 1 <= facts["median condition number"] <= facts["largest condition number"] < math.inf


def test_every_training_step_has_the_exact_loss_and_gradients(tiny_nets):
    def draw(generator, batch):
        return torch.rand(batch, trained.PIXELS, generator=generator)

    others = {"implicit, CG over torch.func": step.IMPLICIT}
    case = step.step_case("tiny", "", partial(step.mlp_nets, D_LATENT), draw, D_LATENT, exact.prepare, others)
    cpu = torch.device("cpu")
    gate = Gate(case, cpu, torch.float64, seed=1)
    checked = [contender for contender in case.contenders if "compiled" not in contender.name]
    assert len(checked) == 5
    for contender in checked:
        assert gate.check(contender, contender.build(cpu, torch.float64))["gradients"] < 1e-9


def test_cases_have_names_of_their_own_and_the_large_ones_are_for_gpus():
    found = cases("fisher_net")
    assert len({case.name for case in found}) == len(found)
    on_gpus = {case.name for case in found if case.devices == ("cuda",)}
    assert on_gpus == {"fisher_net_sample_1024_20", "fisher_net_backward_1024_20", "fisher_net_step_colour"}


def test_without_the_data_set_bundled_digits_are_used(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.setenv(images.DATA_ROOT, str(tmp_path))
    x = images.load()
    assert "digits" in images.source() and x.shape == (1797, 784)
    assert x.min() == 0 and 0.9 < x.max() <= 1
