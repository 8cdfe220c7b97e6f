from pathlib import Path

import pytest
import torch
import yaml

from fisherkernels import losses
from fisherkernels.nets import MLPDecoder, MLPEncoder
from fisherkernels.training import VAE, FisherShannon, MutualAE

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def x():
    return torch.rand(6, 1, 8, 8)


def gradients(model, loss):
    nets = [*model.encoder.parameters(), *model.decoder.parameters()]
    return torch.autograd.grad(loss, nets, allow_unused=True)


@pytest.mark.parametrize(
    "options",
    [
        {"f_z": 20.0},
        {"f_z": [1.0, 2.0, 3.0], "lambda_z": 0.1},
        {"lambda_x": 0.5, "f_x": 3.0, "variance": 0.2},
        {"estimator": "sampled", "num_samples": 2, "f_z": 5.0},
        {"per_dimension": False},
        {"likelihood": "bernoulli", "learn_variance": False},
    ],
)
def test_options_reach_the_fisher_shannon_loss(options, x, run):
    model = run.model(FisherShannon, **options).eval()
    noise = model.draw_noise(x, torch.Generator().manual_seed(1))
    given = {"likelihood": "gaussian", "variance": 1.0, "num_samples": 1, **options}
    given.pop("learn_variance", None)
    if isinstance(given.get("f_z"), list):
        given["f_z"] = torch.tensor(given["f_z"])
    if given["likelihood"] == "gaussian":
        given["variance"] = model.variance
    expected = losses.fisher_shannon_loss(model.encoder, model.decoder, x, noise=noise, **given)
    got = model.loss(x, noise)
    torch.testing.assert_close(got.terms, expected.terms)
    torch.testing.assert_close(gradients(model, got.loss), gradients(model, expected.loss))


@pytest.mark.parametrize(
    "options",
    [
        {"information": 10.0},
        {"weight": 0.3, "num_samples": 2, "variance": 0.2},
        {"likelihood": "bernoulli", "learn_variance": False},
    ],
)
def test_options_reach_the_mutual_ae_loss(options, x, run):
    model = run.model(MutualAE, **options).eval()
    noise = model.draw_noise(x, torch.Generator().manual_seed(1))
    assert [part.shape[2] for part in noise] == [3, 3, 64]
    given = {"likelihood": "gaussian", "variance": 1.0, "num_samples": 1, **options}
    given.pop("learn_variance", None)
    if given["likelihood"] == "gaussian":
        given["variance"] = model.variance
    expected = losses.mutual_ae_loss(
        model.encoder, model.decoder, x, approximation=model.approximation, noise=noise, **given
    )
    got = model.loss(x, noise)
    torch.testing.assert_close(got.terms, expected.terms)
    torch.testing.assert_close(gradients(model, got.loss), gradients(model, expected.loss))
    z = model.sample_posterior(x, noise)
    assert z.shape == (model.num_samples, 6, 3)


def test_the_approximation_learns_beside_the_encoder(run, tmp_path):
    model = run.model(MutualAE)
    nets = model.encoder, model.approximation
    started = [torch.nn.utils.parameters_to_vector(net.parameters()) for net in nets]
    run.fit(tmp_path, model=model, max_steps=2)
    trained = [torch.nn.utils.parameters_to_vector(net.parameters()) for net in nets]
    for before, after in zip(started, trained, strict=True):
        assert not torch.equal(before, after)
    assert not torch.equal(*trained)


def mutual_ae_of_the_config(widen):
    """The model of configs/mutual_ae_mnist.yaml; ``widen`` gives every layer the scale that keeps its activations'."""
    options = yaml.safe_load((CONFIGS / "mutual_ae_mnist.yaml").read_text())["model"]["init_args"]
    latent_dim = options["latent_dim"]
    torch.manual_seed(0)
    encoder = MLPEncoder(latent_dim=latent_dim, **options.pop("encoder")["init_args"])
    decoder = MLPDecoder(latent_dim=latent_dim, **options.pop("decoder")["init_args"])
    for layer in (*encoder.modules(), *decoder.modules()):
        if widen and isinstance(layer, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return MutualAE(encoder, decoder, **options)


def binary_images(count):
    """Noisy copies of ten binary images."""
    generator = torch.Generator().manual_seed(1)
    prototypes = (torch.rand(10, 1, 28, 28, generator=generator) < 0.2).float()
    flipped = torch.rand(count, 1, 28, 28, generator=generator) < 0.02
    return (prototypes[torch.arange(count) % 10] - flipped.float()).abs()


def test_the_mutual_ae_starts_at_no_information_whatever_the_scale_of_its_nets():
    model, x = mutual_ae_of_the_config(widen=True), binary_images(32)
    assert model.encoder(x).abs().max() > 1 and not model.approximation(x).any()  # N(0, I)
    _, terms = model.loss(x, model.draw_noise(x, torch.Generator().manual_seed(2)))
    assert terms["information"][0].item() == pytest.approx(model.weight * model.information, abs=5)


def test_the_mutual_ae_of_the_config_falls_from_its_first_steps():
    model, x = mutual_ae_of_the_config(widen=False), binary_images(16)
    optimizer, generator, history = model.configure_optimizers(), torch.Generator().manual_seed(2), []
    for _ in range(100):
        loss, terms = model.loss(x, model.draw_noise(x, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        assert terms["information"][0] < model.weight * (model.information + 5)
    assert sum(history[-10:]) / 10 < 0.85 * history[0]


@pytest.mark.parametrize("kind", [FisherShannon, MutualAE])
def test_cut_and_resume_is_exact(kind, run, tmp_path):
    run.fit(tmp_path / "whole", model=run.model(kind), max_steps=8)
    run.fit(tmp_path / "cut", model=run.model(kind), max_steps=3)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    run.fit(tmp_path / "cut", model=run.model(kind), max_steps=8, ckpt_path=last)
    run.assert_same(tmp_path / "cut", tmp_path / "whole")


def test_validation_logs_the_place_in_the_fisher_shannon_plane(run, tmp_path):
    model = run.model(VAE)
    run.fit(tmp_path, model=model, max_epochs=1)
    (row,) = [row for row in run.rows(tmp_path) if row["val/loss"]]
    loader = model.trainer.datamodule.val_dataloader()
    x = torch.cat([batch for batch, _ in loader])
    with torch.no_grad():
        _, log_std = model.eval().encode(x)
    std = log_std.double().exp()
    assert float(row["val/fisher_information"]) == pytest.approx((1 / std**2).sum(1).mean().item(), rel=1e-4)
    assert float(row["val/entropy_power"]) == pytest.approx((std**2).prod(1).pow(1 / 3).mean().item(), rel=1e-4)


def test_bad_arguments_are_named(run):
    for name in ("lambda_z", "f_z", "lambda_x", "f_x"):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number >= 0, received -1.0"):
            run.model(FisherShannon, **{name: -1.0})
    with pytest.raises(ValueError, match="f_z: expected a number or 3 of them, latent_dim, received 2"):
        run.model(FisherShannon, f_z=[1.0, 2.0])
    with pytest.raises(ValueError, match="estimator: expected one of 'analytic', 'sampled', received 'exact'"):
        run.model(FisherShannon, estimator="exact")
    for name in ("weight", "information"):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number >= 0, received -1.0"):
            run.model(MutualAE, **{name: -1.0})
    for kind in (FisherShannon, MutualAE):
        with pytest.raises(ValueError, match="learn_variance: expected likelihood='gaussian' with learn_variance=True"):
            run.model(kind, likelihood="bernoulli")


def test_bernoulli_data_outside_the_unit_interval_is_named(x, run):
    for kind in (FisherShannon, MutualAE, VAE):
        model = run.model(kind, likelihood="bernoulli", learn_variance=False)
        noise = model.draw_noise(x, torch.Generator())
        with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\] for likelihood='bernoulli', received"):
            model.loss(x + 0.5, noise)
