import csv

import pytest
import torch
from PIL import Image


def joint_divergence(example, name, encoder, decoder, true_theta):
    """The same divergence from the two joint densities' precision matrices A of q and B of p, in closed form."""
    a, b = example.joint_precision(encoder, decoder, true_theta)
    if name == "fisher":
        return 0.5 * ((b - a) @ torch.linalg.inv(a) @ (b - a)).trace()
    return 0.5 * ((b @ torch.linalg.inv(a)).trace() - 2 - torch.logdet(b) + torch.logdet(a))


@pytest.mark.parametrize("name", ["fisher", "kl"])
def test_the_losses_are_the_joint_divergences_up_to_a_constant(example, name):
    constants = []
    for theta, phi in ((1.3, 0.4), (0.6, 0.2), (-0.8, 0.5)):
        parameter = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        encoder, decoder = example.Encoder(parameter, 0.6), example.Decoder(parameter)
        encoder.phi.data.fill_(phi)
        loss = example.divergence(name, encoder, decoder, 1.7)
        constants.append((loss - joint_divergence(example, name, encoder, decoder, 1.7)).item())
    assert constants == pytest.approx([constants[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("true_theta", [0.5, 2.0])
def test_what_is_recovered(example, true_theta):
    """Both divergences with the exact posterior; only KL with a posterior whose variance is too small."""
    for name, alpha, exact in (("fisher", 1.0, True), ("kl", 1.0, True), ("kl", 0.6, True), ("fisher", 0.6, False)):
        _, decoder = example.recover(name, true_theta, alpha)
        error = abs(decoder.theta.item() - true_theta)
        assert error < 1e-5 if exact else error > 0.1, (name, alpha)


def test_files(example, tmp_path, capsys):
    rows = example.main(["--num_values", "2", "--out", str(tmp_path)])
    with open(tmp_path / "parameter_recovery.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["divergence"] for row in table] == ["fisher", "kl", "fisher", "kl"]
    assert [float(row["theta"]) for row in table] == [row["theta"] for row in rows]
    with Image.open(tmp_path / "parameter_recovery.png") as image:
        assert image.width > 1000
    assert "3.00     3.000     1.477" in capsys.readouterr().out


def test_a_variance_that_is_none_is_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--alpha", "0"])
    assert "--alpha: expected a number > 0, received 0.0" in capsys.readouterr().err
