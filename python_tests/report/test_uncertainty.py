import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from fisherkernels import cli, nets
from fisherkernels.report.loading import load_run
from fisherkernels.report.uncertainty import choose_images
from fisherkernels.report.uncertainty_figures import STEPS, Panel, _draw_ellipses, draw_map
from fisherkernels.report.uncertainty_posterior import Posterior, posterior_of
from fisherkernels.training import VAE, FisherNet

CONFIGS = Path(__file__).parents[2] / "configs"


def random_posterior(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(count, width, width, generator=generator))[0]
    std = (0.1 + torch.rand(count, width, generator=generator)).sort(dim=1, descending=True).values
    return Posterior(torch.randn(count, width, generator=generator), std, axes)


def mahalanobis(posterior, points):
    """Of points [N, K, d] from the mean, in the metric of the covariance, [N, K]."""
    offset = points - posterior.mean[:, None]
    return torch.einsum("nki,nij,nkj->nk", offset, posterior.covariance.inverse(), offset).sqrt()


@pytest.mark.parametrize("width", [2, 5])
def test_points_along_the_axes_are_that_many_standard_deviations_away(width):
    posterior = random_posterior(7, width)
    steps = torch.tensor(STEPS, dtype=torch.float32)
    for axis in range(width):
        distance = mahalanobis(posterior, posterior.along(axis, steps))
        torch.testing.assert_close(distance, steps.abs().expand(7, -1), rtol=1e-3, atol=1e-4)
    assert posterior.along(0, steps).shape == (7, 4, width)


def test_the_posterior_is_the_models():
    images = torch.rand(5, 1, 4, 4)
    encoder = nets.MLPEncoder(16, [8], 3)
    vae = VAE(encoder, nets.MLPDecoder(3, [8], (1, 4, 4)), 3)
    posterior = posterior_of(vae, images, batch_size=2)
    mean, log_std = encoder(images).chunk(2, dim=1)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.covariance, torch.diag_embed((2 * log_std).exp()))
    assert (posterior.std.diff(dim=1) <= 0).all()

    decoder = nets.MLPDecoder(3, [8], (1, 4, 4), activation="tanh")
    fisher_net = FisherNet(nets.MLPEncoder(16, [8], 3, mean_only=True), decoder, 3, variance=0.01)
    posterior = posterior_of(fisher_net, images, batch_size=2)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: decoder(z[None])[0]))(posterior.mean).flatten(1, -2)
    metric = jacobian.mT @ jacobian / 0.01 + torch.eye(3)
    torch.testing.assert_close(posterior.covariance, metric.inverse(), rtol=1e-3, atol=1e-5)
    assert not posterior.mean.requires_grad


@pytest.mark.parametrize("seed", range(4))
def test_the_drawn_ellipses_are_one_and_two_standard_deviations(seed):
    posterior = random_posterior(1, 2, seed)
    axes = Figure().subplots()
    _draw_ellipses(axes, Panel("FisherNet", "#000000", posterior))
    ellipses = [patch for patch in axes.patches if isinstance(patch, Ellipse) and not patch.fill]
    distances = []
    for ellipse in ellipses:
        boundary = ellipse.get_patch_transform().transform(ellipse.get_path().vertices[::6])  # ends of the arcs
        distance = mahalanobis(posterior, torch.tensor(boundary, dtype=torch.float32)[None])
        assert distance.max() - distance.min() < 0.02
        distances.append(distance.mean().item())
    assert sorted(distances) == pytest.approx([1, 2], rel=0.01)
    (low, high), extent = axes.get_xlim(), 2 * posterior.covariance[0, 0, 0].sqrt().item()
    assert low < posterior.mean[0, 0] - extent and high > posterior.mean[0, 0] + extent


def test_the_map_has_every_ellipse(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    posterior = random_posterior(30, 2)
    labels = torch.arange(30) % 12  # more classes than colours
    panels = [Panel(name, "#000000", posterior) for name in ("FisherNet", "VAE")]
    draw_map(panels, labels, {0: "zero"}, tmp_path / "map.png")
    figure = drawn[0]
    for axes in figure.axes:
        (ellipses,) = [item for item in axes.collections if isinstance(item, EllipseCollection)]
        assert np.allclose(ellipses.get_offsets(), posterior.mean)
        assert np.allclose(ellipses.get_widths(), 4 * posterior.std[:, 0])
        assert np.allclose(ellipses.get_heights(), 4 * posterior.std[:, 1])
        assert np.allclose(np.abs(np.cos(np.deg2rad(ellipses.get_angles()))), posterior.axes[:, 0, 0].abs(), atol=1e-5)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["zero", *(str(i) for i in range(1, 12))]


def test_images_are_chosen_by_class():
    labels = torch.tensor([3, 1, 3, 2, 1, 3])
    assert choose_images(labels, None, 4).tolist() == [0, 1, 2, 3]
    assert choose_images(labels, [3, 2], 3).tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match=r"--classes: expected labels among \[1, 2, 3\], received \[7\]"):
        choose_images(labels, [7, 1], 3)
    with pytest.raises(ValueError, match="--num_images: expected an int >= 1, received 0"):
        choose_images(labels, None, 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints of briefly trained models on digits, by name."""
    folder = tmp_path_factory.mktemp("runs")
    options = ["--trainer.max_steps", "3", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    options += ["--model.encoder.hidden", "[16]", "--model.decoder.hidden", "[16]"]
    checkpoints = {}
    for name, config, width in (("net", "fisher_net", 2), ("net3", "fisher_net", 3), ("vae", "vae", 2)):
        where = ["--trainer.default_root_dir", str(folder / name), "--model.latent_dim", str(width)]
        assert cli.main(["fit", "--config", str(CONFIGS / f"{config}_digits.yaml"), *options, *where]) == 0
        checkpoints[name] = str(folder / name / "checkpoints" / "last.ckpt")
    return checkpoints


def uncertainty(*options):
    return cli.main(["uncertainty", *options])


def test_pictures_and_numbers(runs, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--ckpt_path", runs["net"], "--vae", runs["vae"], "--out", str(out), "--image", "4"]
    assert uncertainty(*options, "--num_images", "12", "--classes", "1", "7") == 0
    names = {"posterior.png", "posterior.json", "posteriors.png", "posteriors.csv"}
    assert {path.name for path in out.iterdir()} == names
    printed = capsys.readouterr().out
    assert "FisherNet: one-sigma ellipses of 12 test images" in printed and "VAE: one-sigma" in printed

    run = load_run(runs["net"])
    images, labels = run.data.test_set[:]
    expected = posterior_of(run.model, images)
    facts = json.loads((out / "posterior.json").read_text())
    assert (facts["image"], facts["label"]) == (4, labels[4].item())
    for name in ("mean", "std", "covariance", "area"):
        assert np.allclose(facts["FisherNet"][name], getattr(expected, name)[4], rtol=1e-5)
    assert np.allclose(np.abs(facts["VAE"]["axes"]), [[1, 0], [0, 1]]) or facts["VAE"]["axes"] == [[0, 1], [1, 0]]

    with (out / "posteriors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["FisherNet"] * 12 + ["VAE"] * 12
    for row in rows[:12]:
        index = int(row["index"])
        assert int(row["label"]) == labels[index] and row["label"] in "17"
        assert float(row["std_1"]) == pytest.approx(expected.std[index, 0].item(), rel=1e-4)
        assert float(row["area"]) == pytest.approx(np.pi * float(row["std_1"]) * float(row["std_2"]), rel=1e-4)


def test_more_than_two_dimensions_have_no_map(runs):
    assert uncertainty("--ckpt_path", runs["net3"], "--format", "svg") == 0
    out = Path(runs["net3"]).parents[1] / "uncertainty"
    assert {path.name for path in out.iterdir()} == {"posterior.svg", "posterior.json", "posteriors.csv"}
    assert len(json.loads((out / "posterior.json").read_text())["FisherNet"]["std"]) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ckpt_path", "vae"], "--ckpt_path: expected a checkpoint of a FisherNet, received one of a VAE"),
        (["--ckpt_path", "net", "--vae", "net"], "--vae: expected a checkpoint of a VAE or a FisherAE, received one"),
        (["--ckpt_path", "net3", "--vae", "vae"], "--vae: expected latent_dim 3, that of --ckpt_path, received 2"),
        (["--ckpt_path", "net", "--image", "300"], "--image: expected an index below 300, received 300"),
        (["--ckpt_path", "net", "--classes", "11"], "--classes: expected labels among [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt, which does not exist"),
    ],
)
def test_mistakes_are_one_line(options, words, runs, tmp_path, capsys):
    assert uncertainty(*(runs.get(option, option) for option in options), "--out", str(tmp_path / "out")) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and words in text
    assert not (tmp_path / "out").exists()
