import csv

import pytest
import torch
from PIL import Image

import fisherkernels as fk


@pytest.fixture
def model(example):
    torch.manual_seed(0)
    mean, root = torch.randn(3), torch.randn(3, 3)
    return example.LogDensity(mean, root @ root.t() + torch.eye(3), width=8, depth=2).double()


def test_all_of_the_log_density_has_rules(model):
    rules = fk.linearize(model, torch.rand(2, 3, dtype=torch.float64)).rules
    assert not any(rule.startswith("fallback") for rule in rules.values())


def test_the_gaussian_that_a_model_stands_on(example, model):
    x = torch.randn(5, 3, dtype=torch.float64)
    precision = model.whitening.t() @ model.whitening
    gaussian = example.gaussian(model).double()
    torch.testing.assert_close(gaussian.score(x), (model.mean - x) @ precision)
    expected = 0.5 * ((model.mean - x) @ precision).square().sum(1) - precision.trace()
    torch.testing.assert_close(fk.hyvarinen_score(gaussian, x), expected)


def test_score(model):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(model.score(x.detach()), expected)


@pytest.mark.filterwarnings("ignore:fisherkernels.linearize. no rule")
def test_the_spirals_own_score(example):
    class Mixture(torch.nn.Module):
        def forward(self, x):
            squares = (x[:, None] - density.centres).square().sum(2)
            return torch.logsumexp(-0.5 * squares / example.ARM_VARIANCE, 1)

    density = example.SpiralsDensity(pieces=60)
    x = torch.randn(20, 2, dtype=torch.float64)
    torch.testing.assert_close(density.hyvarinen_score(x), fk.hyvarinen_score(Mixture(), x))
    torch.testing.assert_close(density.log_density(x), Mixture()(x))


def test_training_lowers_the_score_towards_that_of_the_true_density(example):
    x, _ = example.synthetic_points("spirals", 2000, seed=2)
    torch.manual_seed(0)
    model = example.LogDensity(x.mean(0), torch.cov(x.t()), width=64, depth=2)
    before = example.mean_score(model, x)
    example.train(model, x, noise_std=0.0, batch_size=128, steps=60, rate=1e-2)
    assert example.SpiralsDensity().hyvarinen_score(x).mean() < example.mean_score(model, x) < before - 0.2


def test_the_error_of_denoising_is_the_score(example):
    """For any density: on many draws of x + noise, with x in one dimension at -1 and 1 and a Gaussian of the noised."""
    torch.manual_seed(0)
    clean = torch.ones(200_000, 1)
    clean[::2] = -1
    noisy = example.noised(clean, example.NOISE_STD, torch.Generator().manual_seed(0))
    model = example.LogDensity(torch.zeros(1), torch.tensor([[1 + example.NOISE_STD**2]]), width=4, depth=1)
    error = (example.denoised(model, noisy) - clean).square().mean().item()
    assert example.score_of_denoising(error, 1) == pytest.approx(example.mean_score(model, noisy), abs=0.05)


def test_files(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "SLICE_REPEATS", 2)
    rows = example.main(["--steps", "1", "--out", str(tmp_path)])
    with open(tmp_path / "exact_score_matching.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["density"] for row in table] == ["gaussian", "before", "exact", "true", "gaussian", "before", "exact"]
    assert [float(row["hyvarinen_score"]) for row in table] == [row["hyvarinen_score"] for row in rows]
    assert [row["steps"] for row in table] == ["0", "0", "1", "0", "0", "0", "1"]
    with Image.open(tmp_path / "exact_score_matching.png") as image:
        assert image.size == (1200, 600)
    assert "true density -22" in capsys.readouterr().out


def test_no_steps_are_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--steps", "0"])
    assert "--steps: expected an int >= 1, received 0" in capsys.readouterr().err
