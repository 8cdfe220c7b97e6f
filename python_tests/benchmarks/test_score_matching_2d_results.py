import csv

import pytest
import torch

from benchmarks.score_matching_2d import __main__ as command
from benchmarks.score_matching_2d import measures, results, runs
from benchmarks.score_matching_2d.training import Settings

SMALL = ["--seeds", "2", "--cycles", "2", "--batch-size", "5", "--train-size", "50", "--test-size", "20"]
SMALL += ["--prior-size", "64"]


@pytest.fixture
def trainings(monkeypatch):
    """What has been trained since the last look."""
    trained = []

    def train(method, points, num_samples, *rest):
        trained.append((method.label, num_samples))
        return real(method, points, num_samples, *rest)

    real = runs.train
    monkeypatch.setattr(runs, "train", train)
    return trained


def test_what_is_finished_is_not_trained_again(tmp_path, trainings, capsys):
    pytest.importorskip("matplotlib")
    few = [str(tmp_path / "runs"), *SMALL, "--sets", "rings", "--samples", "1", "2"]
    command.main([*few, "--methods", "m1", "m3_unbiased"])
    assert trainings == [("KL + M1", 1), ("KL + M1", 2), ("KL + M3, unbiased", 2)]  # unbiased needs two samples
    assert "rings-m1-S2.pt: NLL" in capsys.readouterr().out
    trainings.clear()

    out = tmp_path / "results"
    command.main([*few, "--methods", "m1", "m2", "--report-only", "--results", str(out)])
    assert trainings == []
    with (out / "points_2d.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["num_samples"], row["seed"]) for row in rows] == [
        ("m1", "1", "0"), ("m1", "1", "1"), ("m1", "2", "0"), ("m1", "2", "1"),
    ]  # fmt: skip
    found = torch.load(tmp_path / "runs" / "rings-m1-S2.pt")
    assert float(rows[3]["nll"]) == pytest.approx(found["nll"][1].item(), rel=1e-4)
    assert rows[3]["decoder_updates"] == "2" and rows[3]["encoder_updates"] == "10"
    assert (out / "points_2d.png").read_bytes().startswith(b"\x89PNG")

    command.main([*few, "--methods", "m1", "--learning-rate", "0.02"])
    assert trainings == [("KL + M1", 1), ("KL + M1", 2)]  # other settings


def test_table_has_mean_and_standard_error_over_the_seeds():
    found = {"nll": torch.tensor([1.0, 2.0, 3.0]), "variance": torch.tensor([0.5, 0.5, 0.5])}
    lines = results.markdown({runs.Run("moons", "m2", 5): found, runs.Run("moons", "elbo", 1): found}).splitlines()
    assert lines[2] == "| | NLL, S = 1 | gamma | NLL, S = 5 | gamma |"
    assert lines[4] == "| KL + M2 |  |  | 2.000 ± 0.577 | 0.500 ± 0.000 |"
    assert lines[5] == "| KL + ELBO | 2.000 ± 0.577 | 0.500 ± 0.000 |  |  |"


def test_padding_is_small_noise_beside_the_same_plane():
    plane = runs.points("moons", runs.TRAIN, runs.Data(500, 10, 64, 0))
    padded = runs.points("moons", runs.TRAIN, runs.Data(500, 10, 64, 3))
    assert torch.equal(padded[:, :2], plane) and padded.shape == (500, 5)
    assert 0.18 < padded[:, 2:].std() < 0.22
    assert not torch.equal(runs.points("moons", runs.TEST, runs.Data(10, 500, 64, 0)), plane)


def test_samples_and_density_are_of_the_same_model():
    """The samples' density under the model is its entropy, here that of an untrained, nearly linear net."""
    from benchmarks.score_matching_2d.methods import METHODS

    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    settings = Settings(1, 1, 5, 1e-4, 1e-4, variance=0.3)
    trained = runs.train(METHODS["m1"], x, 1, (0, 1), settings)
    found = runs.evaluate(trained, x, 2, 2**12)
    assert found["samples"].shape == (2, runs.SHOWN, 2)
    z, log_weight = measures.weighted_points(2**12, 2)
    for member in (0, 1):
        centres = trained.decoder(z.repeat(1, 2))[:, member].detach()
        samples = found["samples"][member]
        nll, _ = measures.density_measures(centres, log_weight, trained.variance[member].item(), samples)
        spread = torch.linalg.slogdet(2 * torch.pi * torch.e * torch.cov(samples.T))[1] / 2
        assert nll.mean() == pytest.approx(spread.item(), abs=0.08)
