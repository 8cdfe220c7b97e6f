"""Densities compared on the latent means of a model."""

import pytest
import torch

from fisherkernels.sampling import comparison
from fisherkernels.sampling.picture import save_picture


class Pixels:
    """A stand-in model whose latent vector is the image's first d pixels."""

    def __init__(self, d=2):
        self.d = d

    def encode_mean(self, x):
        return x.flatten(1)[:, : self.d]

    def decode(self, z):
        return torch.nn.functional.pad(z, (0, 16 - self.d)).unflatten(1, (1, 4, 4))


@pytest.fixture
def images(clusters):
    return Pixels().decode(clusters(400, 2, 0)), Pixels().decode(clusters(80, 2, 1))


def test_the_best_is_the_likeliest(images):
    result = comparison.compare(Pixels(), *images, ["gaussian", "gmm", "gmm"], num_samples=30)
    assert list(result.candidates) == ["standard_normal", "gaussian", "gmm"]
    assert result.best == "gmm" and result.below_best("gmm") == (0.0, 0.0)
    held_out = {name: candidate.held_out for name, candidate in result.candidates.items()}
    below, error = result.below_best("gaussian")
    difference = held_out["gmm"] - held_out["gaussian"]
    assert below == pytest.approx(difference.mean().item()) and below > 0.4
    assert error == pytest.approx(difference.std().item() / 80**0.5)
    for candidate in result.candidates.values():
        assert candidate.latent.shape == (30, 2)
        torch.testing.assert_close(candidate.images, Pixels().decode(candidate.latent))


def test_all_says_what_it_skips(images, monkeypatch):
    def missing(means, kind, seed):
        if kind == "flow":
            raise ModuleNotFoundError("flow needs zuko", name="zuko")
        return comparison.standard_normal(means.shape[1])

    monkeypatch.setattr(comparison, "fit_density", missing)
    result = comparison.compare(Pixels(), *images, ["all"], num_samples=3)
    assert list(result.candidates) == ["standard_normal", "gaussian", "gmm", "kde", "mkde"]
    assert result.skipped == {"flow": "flow needs zuko"}
    with pytest.raises(ModuleNotFoundError):
        comparison.compare(Pixels(), *images, ["flow"], num_samples=3)


def test_a_grid_for_three_dimensions_is_skipped_or_refused(clusters):
    model = Pixels(3)
    images = model.decode(clusters(60, 3, 0)), model.decode(clusters(30, 3, 1))
    with pytest.raises(ValueError, match="d: mkde .*received d = 3"):
        comparison.compare(model, *images, ["mkde"], num_samples=3)


def test_bad_input(images):
    for kinds, received in ((["gausian"], "gausian"), (["all", "gmm"], "all"), ([], "none")):
        with pytest.raises(ValueError, match=f"density: expected .* gaussian, gmm, .*received {received}"):
            comparison.compare(Pixels(), *images, kinds, num_samples=3)
    with pytest.raises(ValueError, match="num_samples: expected an int >= 1, received 0"):
        comparison.compare(Pixels(), *images, ["gaussian"], num_samples=0)
    with pytest.raises(ValueError, match="checkpoint: expected a model with an encoder's mean, received Linear"):
        comparison.compare(torch.nn.Linear(2, 2), *images, ["gaussian"], num_samples=3)


@pytest.mark.parametrize("d, channels, count", [(1, 1, 1), (2, 3, 50)])
def test_picture(d, channels, count, tmp_path, clusters):
    from PIL import Image

    class Colour(Pixels):
        def decode(self, z):
            return super().decode(z).expand(-1, channels, -1, -1)

    model = Colour(d)
    images = model.decode(clusters(60, d, 0)), model.decode(clusters(30, d, 1))
    result = comparison.compare(model, *images, ["gaussian"], num_samples=count)
    path = save_picture(result, images[1], tmp_path / "new" / "samples.png")
    with Image.open(path) as picture:
        assert picture.size[0] > 800 and picture.size[1] > 500
        assert len(picture.convert("RGB").getcolors(2**24)) > 50  # not blank
