"""Networks that were used in a loss are modules as before: copied, pickled, exported, checkpointed, accumulated on."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fisherkernels as fk

N, L, D, WIDTH = 6, 2, 8, 3


def diagonal(loss, **options):
    return lambda m, x, latent, data: loss(
        m.encoder, m.decoder, x, variance=m.log_variance.exp(), num_samples=L, noise=latent, **options
    )


def fisher_ae(m, x, latent, data):
    return diagonal(fk.fisher_ae_loss, prior=m.prior)(m, x, latent, data)


def fisher_net(m, x, latent, data):
    options = {"log_noise_variance": m.log_variance, "dataset_size": 100, "num_samples": L, "method": "cholesky"}
    return fk.fisher_net_loss(m.mean_encoder, m.decoder, x, noise=(data, latent), **options)


LOSSES = {
    "elbo": diagonal(fk.elbo_loss),
    "fisher_ae": fisher_ae,
    "fisher_net": fisher_net,
    "fisher_shannon": diagonal(fk.fisher_shannon_loss, lambda_x=0.1, f_z=2.0),
    "score_matching": diagonal(fk.score_matching_loss, objective="m3"),
    "inference": diagonal(fk.inference_loss, divergence="fisher"),
}


class Checkpointed(nn.Module):
    """A network whose activations are computed again in backward."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return checkpoint(self.network, x, use_reentrant=False)


class Model(nn.Module):
    def __init__(self, wrap=lambda network: network):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = wrap(nn.Sequential(nn.Linear(D, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 2 * WIDTH)))
        self.decoder = wrap(nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, D)))
        self.mean_encoder = nn.Linear(D, WIDTH)
        self.prior = fk.priors.PolynomialExponentialFamily(WIDTH, 5)
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.double()

    def forward(self, name, x, latent, data, reduction="mean"):
        return LOSSES[name](self, x, latent, data).loss


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    shapes = (N, D), (L, N, WIDTH), (L, N, D)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def gradients(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def trained(name, inputs, model=None):
    """Loss and gradients of one backward."""
    model = model or Model()
    loss = model(name, *inputs)
    loss.backward()
    return loss.detach(), gradients(model)


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch_save])
@pytest.mark.parametrize("name", LOSSES)
def test_copies_train_alike_and_apart(name, duplicate, inputs):
    model = Model()
    expected = trained(name, inputs, model)
    other = duplicate(model)
    other.zero_grad()
    torch.testing.assert_close(trained(name, inputs, other), expected, rtol=0, atol=0)
    with torch.no_grad():
        other.decoder[0].weight.add_(1)
    model.zero_grad()
    torch.testing.assert_close(trained(name, inputs, model), expected, rtol=0, atol=0)
    assert not torch.equal(other(name, *inputs), expected[0])


@pytest.mark.parametrize("name", LOSSES)
def test_accumulated_gradients_are_those_of_the_whole_batch(name, inputs):
    model, (x, latent, data) = Model(), inputs
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        (model(name, x[rows], latent[:, rows], data[:, rows]) / 3).backward()
    torch.testing.assert_close(gradients(model), trained(name, inputs)[1])


@pytest.mark.filterwarnings("ignore:fisherkernels.linearize. no rule")
@pytest.mark.parametrize("name", LOSSES)
def test_checkpointed_networks(name, inputs):
    torch.testing.assert_close(trained(name, inputs, Model(Checkpointed)), trained(name, inputs))


def test_networks_export_after_training(inputs):
    model = Model()
    trained("fisher_ae", inputs, model)
    x, latent, _ = inputs
    dynamic = ({0: torch.export.Dim.AUTO},)
    for network, given in ((model.encoder, x), (model.decoder, latent[0])):
        program = torch.export.export(network, (given,), dynamic_shapes=dynamic)
        torch.testing.assert_close(program.module()(given[:4]), network(given[:4]))


def test_a_loss_exports(inputs):
    model, (x, latent, _) = Model(), inputs

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, latent):
            return fisher_ae(self.model, x, latent, None).loss

    program = torch.export.export(Loss(), (x, latent))
    torch.testing.assert_close(program.module()(x, latent), Loss()(x, latent))
