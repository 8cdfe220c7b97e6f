"""torch.func over every loss: grad, per-sample gradients by vmap, forward mode."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

import fisherkernels as fk

N, L, D, WIDTH = 5, 2, 6, 3


def fisher_net(m, x, latent, data):
    options = {"log_noise_variance": m.log_variance, "dataset_size": 100, "num_samples": L, "logdet": True}
    return fk.fisher_net_loss(m.mean_encoder, m.decoder, x, noise=(data, latent), **options)


def diagonal(loss, **options):
    return lambda m, x, latent, data: loss(
        m.encoder, m.decoder, x, variance=m.log_variance.exp(), num_samples=L, noise=latent, **options
    )


def fisher_ae(m, x, latent, data):
    return diagonal(fk.fisher_ae_loss, prior=m.prior)(m, x, latent, data)


def mutual_ae(m, x, latent, data):
    options = {"approximation": m.approximation, "information": 2.0, "num_samples": L, "noise": (latent, latent, data)}
    return fk.mutual_ae_loss(m.encoder, m.decoder, x, variance=m.log_variance.exp(), **options)


def hyvarinen(m, x, latent, data):
    return fk.LossOutput(fk.hyvarinen_score(m.density, x).mean(), {})


LOSSES = {
    "elbo": diagonal(fk.elbo_loss),
    "fisher_ae": fisher_ae,
    "fisher_ae stopped": diagonal(fk.fisher_ae_loss, decoder_gradient="stopped", stability="log_std"),
    "fisher_net": fisher_net,
    "fisher_shannon": diagonal(fk.fisher_shannon_loss, lambda_x=0.1, f_z=2.0),
    "mutual_ae": mutual_ae,
    "m2": diagonal(fk.score_matching_loss, objective="m2"),
    "m3": diagonal(fk.score_matching_loss, objective="m3"),
    "kl": diagonal(fk.inference_loss),
    "fisher": diagonal(fk.inference_loss, divergence="fisher"),
    "fisher reparametrized": diagonal(fk.inference_loss, divergence="fisher", reparametrize=True),
    "hyvarinen": hyvarinen,
}


class Model(nn.Module):
    """Networks of all losses; a layer with a hook, and so without a rule, stands in the encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 8), nn.Mish(), nn.Linear(8, 2 * WIDTH))
        self.encoder[1].register_forward_hook(lambda module, args, value: None)
        self.mean_encoder = nn.Linear(D, WIDTH)
        self.decoder = nn.Sequential(nn.Linear(WIDTH, 8), nn.SiLU(), nn.Linear(8, D))
        self.approximation = nn.Linear(D, 2 * WIDTH)
        self.density = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1))
        self.prior = fk.priors.PolynomialExponentialFamily(WIDTH, 5)
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, name, x, latent, data):
        return LOSSES[name](self, x, latent, data).loss


@pytest.fixture
def case():
    torch.manual_seed(0)
    x, latent, data = torch.rand(N, D), torch.randn(L, N, WIDTH), torch.randn(L, N, D)
    return Model().double(), x.double(), latent.double(), data.double()


@pytest.mark.filterwarnings("ignore:fisherkernels.linearize. no rule")
@pytest.mark.parametrize("name", LOSSES)
def test_every_transform_gives_what_backward_gives(case, name):
    model, x, latent, data = case
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    model(name, x, latent, data).backward()
    expected = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    assert any(part.norm() > 0 for part in expected.values())

    def loss(parameters, x, latent, data):
        return functional_call(model, parameters, (name, x, latent, data))

    torch.testing.assert_close(grad(loss)(parameters, x, latent, data), expected)

    def of_one(parameters, x, latent, data):
        return loss(parameters, x[None], latent[:, None], data[:, None])

    per_sample = vmap(grad(of_one), (None, 0, 1, 1))(parameters, x, latent, data)
    torch.testing.assert_close({key: part.mean(0) for key, part in per_sample.items()}, expected)

    along = {key: torch.randn_like(part) for key, part in parameters.items()}
    _, change = jvp(lambda p: loss(p, x, latent, data), (parameters,), (along,))
    torch.testing.assert_close(change, sum((expected[key] * along[key]).sum() for key in along))


@pytest.mark.parametrize("name", ["fisher_ae", "m2"])
def test_a_compiled_transform(case, name):
    model, x, latent, data = case
    model.encoder[1] = nn.SiLU()  # has a rule
    parameters = {key: p.detach() for key, p in model.named_parameters()}

    def loss(parameters):
        return functional_call(model, parameters, (name, x, latent, data))

    torch._dynamo.reset()
    compiled = torch.compile(grad(loss), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(parameters), grad(loss)(parameters))


def convolutional(norm):
    """Encoder and decoder of x [N, 1, 8, 8]."""
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), norm(4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64, 2 * WIDTH)
    )
    decoder = nn.Sequential(
        nn.Linear(WIDTH, 64),
        nn.LayerNorm(64),
        nn.Unflatten(1, (4, 4, 4)),
        nn.ConvTranspose2d(4, 4, 3, 1, 1),
        norm(4),
        nn.Softplus(),
        nn.ConvTranspose2d(4, 1, 4, 2, 1),
    )
    return nn.ModuleDict({"encoder": encoder, "decoder": decoder}).double()


class Loss(nn.Module):
    def __init__(self, networks):
        super().__init__()
        self.networks = networks

    def forward(self, x, noise):
        return fk.fisher_ae_loss(self.networks["encoder"], self.networks["decoder"], x, noise=noise).loss


NORMS = {
    "group": (lambda channels: nn.GroupNorm(2, channels), True),
    "batch": (lambda channels: nn.BatchNorm2d(channels, track_running_stats=False), True),
    "batch, eval": (nn.BatchNorm2d, False),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalised_networks(name):
    torch.manual_seed(0)
    norm, training = NORMS[name]
    model = Loss(convolutional(norm)).train(training)
    x, noise = torch.rand(N, 1, 8, 8).double(), torch.randn(N, WIDTH).double()
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    model(x, noise).backward()
    expected = {key: p.grad for key, p in model.named_parameters()}

    def loss(parameters):
        return functional_call(model, parameters, (x, noise))

    torch.testing.assert_close(grad(loss)(parameters), expected)
    along = {key: torch.randn_like(part) for key, part in parameters.items()}
    change = sum((expected[key] * along[key]).sum() for key in along)
    torch.testing.assert_close(jvp(loss, (parameters,), (along,))[1], change)
    if name != "batch":  # that couples the samples

        def of_one(parameters, x, noise):
            return functional_call(model, parameters, (x[None], noise[None]))

        per_sample = vmap(grad(of_one), (None, 0, 0))(parameters, x, noise)
        torch.testing.assert_close({key: part.mean(0) for key, part in per_sample.items()}, expected)


def test_running_statistics_are_refused_by_torch():
    model = Loss(convolutional(nn.BatchNorm2d))
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    x, noise = torch.rand(N, 1, 8, 8).double(), torch.randn(N, WIDTH).double()
    with pytest.raises(RuntimeError, match="would mutate a captured Tensor"):
        grad(lambda p: functional_call(model, p, (x, noise)))(parameters)


def test_the_metric(case):
    model, x, latent, _ = case
    z = latent[0]

    def total(z, gradient):
        metric = fk.FisherMetric(model.decoder, z, 0.5)
        solution, info = metric.solve(torch.ones_like(z), gradient=gradient, return_info=True)
        assert info.method == "cholesky"
        return solution.square().sum() + metric.logdet().sum()

    for gradient in ("full", "mean"):
        leaf = z.clone().requires_grad_()
        expected = torch.autograd.grad(total(leaf, gradient), leaf)[0]
        torch.testing.assert_close(grad(total)(z, gradient), expected)


def test_an_estimated_logdet(case):
    model, x, latent, _ = case
    z, t, probes = latent[0], torch.randn_like(latent[0]), torch.randn(4, N, WIDTH).double()

    def estimate(z):
        return fk.FisherMetric(model.decoder, z, 0.5).logdet("lanczos", noise=probes).sum()

    leaf = z.clone().requires_grad_()
    expected = torch.autograd.grad(estimate(leaf), leaf)[0]
    torch.testing.assert_close(grad(estimate)(z), expected)
    torch.testing.assert_close(jvp(estimate, (z,), (t,))[1], (expected * t).sum())


def test_a_second_derivative_is_there_too(case):
    """The kernels refuse it, their twins do not."""
    model, x, latent, data = case

    def loss(log_variance):
        variance = log_variance.exp()
        return fk.fisher_ae_loss(model.encoder, model.decoder, x, variance=variance, num_samples=L, noise=latent).loss

    at, step = torch.zeros((), dtype=torch.float64), 1e-4
    slope = grad(loss)
    torch.testing.assert_close(grad(slope)(at), (slope(at + step) - slope(at - step)) / (2 * step), rtol=1e-6, atol=0)
