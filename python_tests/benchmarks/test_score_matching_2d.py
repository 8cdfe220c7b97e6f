import pytest
import torch

import fisherkernels as fk
from benchmarks.score_matching_2d import ensemble, measures, training
from benchmarks.score_matching_2d.methods import METHODS
from fisherkernels.training import seeds

SETTINGS = training.Settings(
    cycles=3, encoder_updates=2, batch_size=7, learning_rate=1e-2, variance_learning_rate=3e-2, hidden=(5, 4)
)
POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(autouse=True)
def double_draws(monkeypatch):
    """The nets of both in float64, from the same float32 start."""
    single = ensemble.single
    monkeypatch.setattr(ensemble, "single", lambda *args: tuple(net.double() for net in single(*args)))


def alone(method, num_samples, seed):
    """Algorithm 1 for one auto-encoder of ordinary layers, written out."""
    s = SETTINGS
    encoder, decoder = ensemble.single(2, s.latent_dim, s.hidden, seed)
    log_variance = torch.zeros((), dtype=torch.float64, requires_grad=True)
    adam = [
        torch.optim.Adam(encoder.parameters(), lr=s.learning_rate),
        torch.optim.Adam(decoder.parameters(), lr=s.learning_rate),
        torch.optim.Adam([log_variance], lr=s.variance_learning_rate),
    ]
    decay = [
        torch.optim.lr_scheduler.CosineAnnealingLR(a, s.cycles * (1, s.encoder_updates)[a is adam[0]]) for a in adam
    ]
    stream = seeds.generator(seeds.TRAIN, seed)

    def options():
        noise = torch.randn(num_samples, s.batch_size, s.latent_dim, generator=stream, dtype=torch.float64)
        return {"variance": log_variance.exp(), "num_samples": num_samples, "noise": noise}

    def step(loss, *indices):
        for i in indices:
            adam[i].zero_grad()
        loss.backward()
        for i in indices:
            adam[i].step()
            decay[i].step()

    for _ in range(s.cycles):
        for _ in range(s.encoder_updates):
            x = POINTS[torch.randint(len(POINTS), (s.batch_size,), generator=stream)]
            how = {"divergence": method.divergence, "reparametrize": method.reparametrize}
            step(fk.inference_loss(encoder, decoder, x, **how, **options()).loss, 0)
        if method.objective == "elbo":
            loss = fk.elbo_loss(encoder, decoder, x, **options()).loss
        else:
            how = {"objective": method.objective, "unbiased": method.unbiased}
            loss = fk.score_matching_loss(encoder, decoder, x, **how, **options()).loss
        step(loss, 1, 2)
    return encoder, decoder, log_variance.detach().exp()


@pytest.mark.parametrize("name", ["elbo", "m1", "m2", "m3", "m3_unbiased", "fd_m1", "fd_reparametrized_m1"])
def test_each_member_is_trained_as_it_would_be_alone(name):
    method = METHODS[name]
    trained = training.train(method, POINTS, 3, (0, 1), SETTINGS)
    for member in (0, 1):
        encoder, decoder, variance = alone(method, 3, member)
        assert variance != 1
        torch.testing.assert_close(trained.variance[member], variance, rtol=1e-9, atol=0)
        for received, net in ((trained.encoder, encoder), (trained.decoder, decoder)):
            linear = [layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)]
            for stack, layer in zip(received.layers[::2], linear, strict=True):
                torch.testing.assert_close(stack.weight[member].T, layer.weight, rtol=1e-8, atol=1e-10)
                torch.testing.assert_close(stack.bias[member, 0], layer.bias, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variance", [1.0, 0.02])
def test_density_and_score_of_a_linear_decoder_are_those_of_its_gaussian(variance):
    weight = torch.tensor([[2.0, 0.3], [-0.5, 1.0]])  # [d, D]
    covariance = weight.T @ weight + variance * torch.eye(2)
    model = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
    x = model.sample((300,))
    z, log_weight = measures.weighted_points(2**15, 2)
    nll, score_matching = measures.density_measures(z @ weight, log_weight, variance, x)
    score = -torch.linalg.solve(covariance, x.T).T
    exact = 0.5 * score.square().sum(1) - torch.linalg.inv(covariance).trace()
    assert (nll + model.log_prob(x)).abs().mean() < 0.005 and (nll + model.log_prob(x)).mean().abs() < 0.001
    assert (score_matching - exact).mean().abs() < 0.02 * exact.abs().mean()
