import csv

import pytest
import torch
from PIL import Image


@pytest.mark.parametrize(("method", "stays"), [("kl", False), ("fisher_reparametrized", True), ("fisher", False)])
def test_the_saddle_of_p_I_holds_the_reparametrised_fisher_divergence_alone(example, method, stays):
    starts = torch.tensor([[0.2, 0.2], [-0.2, -0.2], [0.3, 0.1]])
    settings = {"num_steps": 300, "num_samples": 10, "seed": 0}
    path, _ = example.fit(example.POSTERIORS["p_I"], example.METHODS[method], "adam", starts, **settings)
    assert path.shape == (301, 3, 2) and torch.equal(path[0], starts)
    distance = path[-1].norm(dim=1)
    assert (distance < 0.3).all() if stays else (distance > 1.5).all()


def test_maximum(example):
    """Of p_I where 2 - z1 z2 = 1/4 and z1 = z2: -1.75 - 0.125."""
    assert example.maximum(example.POSTERIORS["p_I"]) == pytest.approx(-1.875, abs=1e-3)


def test_files(example, tmp_path, capsys):
    rows = example.main(["--num_steps", "2", "--num_samples", "2", "--grid", "2", "--out", str(tmp_path)])
    with open(tmp_path / "local_optima.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 2 * 3 * 2 * 4
    assert set(table[0]) == set(example.COLUMNS)
    with Image.open(tmp_path / "local_optima.png") as image:
        assert image.width > 1000
    assert "p_II  Fisher, z constant       SGD 4, Adam 4 of 4" in capsys.readouterr().out


def test_no_steps_are_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--num_steps", "0"])
    assert "--num_steps: expected an int >= 1, received 0" in capsys.readouterr().err
