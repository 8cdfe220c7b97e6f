import csv

import numpy as np
import pytest
import torch

from fisherkernels.measures import DeviationHistogram
from fisherkernels.measures.deviations import draw_figure, write_table


def test_shares_are_those_of_numpy(tmp_path):
    torch.manual_seed(0)
    std = torch.rand(101, 3) * torch.tensor([0.1, 1.0, 1.4])
    histogram = DeviationHistogram(3, bins=7, upper=1.4)
    for part in std.split(40):
        histogram.update(part)
    shares = histogram.compute()
    for j in range(3):
        expected, edges = np.histogram(std[:, j], bins=7, range=(0, 1.4))
        np.testing.assert_allclose(shares[j] * 101, expected, atol=1e-4)
    np.testing.assert_allclose(histogram.edges, edges, rtol=1e-6)

    write_table(tmp_path / "table.csv", shares, histogram.edges)
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["low", "high", "all", "z0", "z1", "z2"] and len(rows) == 7
    assert [float(row["z1"]) for row in rows] == pytest.approx(shares[1].tolist(), rel=1e-4)
    assert [float(row["all"]) for row in rows] == pytest.approx(shares.mean(0).tolist(), rel=1e-4)
    assert float(rows[2]["high"]) == pytest.approx(0.6)
    draw_figure(tmp_path / "figure.png", shares, histogram.edges)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_beyond_counts_in_the_last_bin():
    histogram = DeviationHistogram(1, bins=3, upper=1.5)
    histogram.update(torch.tensor([[0.0], [1.5], [40.0], [torch.inf], [torch.nan]]))
    assert histogram.counts.tolist() == [[1, 0, 4]]


def test_bad_arguments_are_named():
    for name in ("latent_dim", "bins"):
        with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, received 0"):
            DeviationHistogram(**{"latent_dim": 2, name: 0})
    with pytest.raises(ValueError, match="upper: expected a number > 0, received 0"):
        DeviationHistogram(2, upper=0)
