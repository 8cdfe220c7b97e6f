"""Parameter recovery by the joint Fisher and Kullback-Leibler divergences when the posterior is mis-scaled.

    python examples/parameter_recovery.py [--alpha 0.6] [--out runs/parameter_recovery]

Figure 1 of Wenliang, "On the failure of variational score matching for VAE models" (2022), section 3.1. The model is
p(z) = N(0, 1), p(x|z) = N(theta z, gamma) with gamma = 0.5 known, the data have its distribution at a true theta, and
the approximate posterior is q(z|x) = N(phi x, alpha v), v = 1 / (1 + theta^2 / gamma) being the variance of the exact
one. Minimising a divergence from q(z|x) p_data(x) to p(x, z) over theta and phi recovers the true theta if alpha = 1.

`fk.fisher_ae_loss` is the joint Fisher divergence and `fk.elbo_loss` the joint Kullback-Leibler divergence, each up to
a constant of the data. Both are quadratic in x and in the noise here, so two data points at one standard deviation and
two draws, +1 and -1, give their expectations exactly: nothing is sampled, and L-BFGS finds the minimum to all digits.
The KL divergence recovers theta at any alpha, because at the best phi its part of the posteriors, which differ by the
factor alpha only, is the same for every theta; the Fisher divergence is biased.

Writes parameter_recovery.csv (true theta, divergence, theta, phi) and parameter_recovery.png: theta against the true
theta, and the two joint densities found at a true theta of 2.
"""

import argparse
import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import fisherkernels as fk

GAMMA = 0.5
SHOWN = 2.0  # the true theta whose joint densities are drawn
LOSSES = {"fisher": fk.fisher_ae_loss, "kl": fk.elbo_loss}
LABELS = {"fisher": "joint Fisher divergence", "kl": "joint KL divergence"}
COLORS = {"fisher": "#d55e00", "kl": "#0072b2"}
COLUMNS = ("true_theta", "divergence", "theta", "phi")
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)  # mean 0, variance 1


class Encoder(nn.Module):
    """x [N, 1] -> mean phi x and log standard deviation of the mis-scaled posterior."""

    def __init__(self, theta: nn.Parameter, alpha: float):
        super().__init__()
        self.theta, self.alpha = theta, alpha
        exact = theta.detach() / (theta.detach().square() + GAMMA)
        self.phi = nn.Parameter(exact)

    @property
    def variance(self) -> torch.Tensor:
        return self.alpha / (1 + self.theta.square() / GAMMA)

    def forward(self, x):
        return self.phi * x, 0.5 * self.variance.log() + 0 * x


class Decoder(nn.Module):
    """z [R, 1] -> theta z."""

    def __init__(self, theta: nn.Parameter):
        super().__init__()
        self.theta = theta

    def forward(self, z):
        return self.theta * z


def divergence(name: str, encoder: Encoder, decoder: Decoder, true_theta: float) -> torch.Tensor:
    """The joint divergence `name` from q(z|x) p_data(x) to p(x, z), up to a constant of the data."""
    x = (true_theta**2 + GAMMA) ** 0.5 * SIGNS[:, None]  # [N, D] = [2, 1]
    noise = SIGNS[:, None, None].expand(2, 2, 1)  # [L, N, d]
    return LOSSES[name](encoder, decoder, x, variance=GAMMA, num_samples=2, noise=noise).loss


def recover(name: str, true_theta: float, alpha: float) -> tuple[Encoder, Decoder]:
    """Encoder and decoder at the minimum of a divergence, sought from the true theta on."""
    theta = nn.Parameter(torch.tensor(true_theta, dtype=torch.float64))
    encoder, decoder = Encoder(theta, alpha), Decoder(theta)
    optimizer = torch.optim.LBFGS(
        [encoder.phi, theta], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = divergence(name, encoder, decoder, true_theta)
        loss.backward()
        return loss

    optimizer.step(closure)
    return encoder, decoder


def joint_precision(encoder: Encoder, decoder: Decoder, true_theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Precision matrices of q(z|x) p_data(x) and of p(x, z), both with mean 0 in (x, z): [2, 2] each."""
    phi, theta, v = (t.item() for t in (encoder.phi.detach(), decoder.theta.detach(), encoder.variance.detach()))
    inference = [[1 / (true_theta**2 + GAMMA) + phi**2 / v, -phi / v], [-phi / v, 1 / v]]
    model = [[1 / GAMMA, -theta / GAMMA], [-theta / GAMMA, 1 + theta**2 / GAMMA]]
    return torch.tensor(inference, dtype=torch.float64), torch.tensor(model, dtype=torch.float64)


def draw(rows: list[dict], alpha: float, path: Path) -> None:
    figure = Figure(figsize=(12, 3.7), dpi=144, layout="constrained")
    left, *right = figure.subplots(1, 3)
    truth = sorted({row["true_theta"] for row in rows})
    left.plot(truth, truth, color="#8a9096", linestyle="--", label="true value")
    for name in LOSSES:
        recovered = [row["theta"] for row in rows if row["divergence"] == name]
        left.plot(truth, recovered, color=COLORS[name], marker="o", markersize=3, label=LABELS[name])
    left.set(xlabel="true θ", ylabel="θ recovered", title=f"posterior variance scaled by {alpha:g}")
    left.legend(frameon=False, fontsize="small")

    side = torch.linspace(-5, 5, 201, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)  # (x, z): [201^2, 2]
    for axes, name in zip(right, ("kl", "fisher"), strict=True):
        encoder, decoder = recover(name, SHOWN, alpha)
        precisions = joint_precision(encoder, decoder, SHOWN)
        joints = {"q(z|x) π(x)": "#1d2125", "p(x, z)": COLORS[name]}
        for precision, (label, color) in zip(precisions, joints.items(), strict=True):
            distance = torch.einsum("ni,ij,nj->n", points, precision, points).view(len(side), len(side))
            grid = (side.numpy(), side.numpy(), distance.T.numpy())
            axes.contour(*grid, levels=[0.25, 1, 4], colors=color, linewidths=1)
            axes.plot([], [], color=color, label=label)
        axes.set(xlabel="x", ylabel="z", title=f"{LABELS[name]}: θ = {decoder.theta.item():.2f}")
        axes.legend(frameon=False, fontsize="small", loc="upper left")
    figure.savefig(path)


def main(arguments=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=0.6, help="scale of the posterior's variance (%(default)s)")
    parser.add_argument("--num_values", type=int, default=12, help="true values of theta, 0.25 to 3 (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/parameter_recovery"))
    options = parser.parse_args(arguments)
    if not 0 < options.alpha:
        parser.error(f"--alpha: expected a number > 0, received {options.alpha}")
    options.out.mkdir(parents=True, exist_ok=True)

    rows = []
    for true_theta in torch.linspace(0.25, 3, options.num_values).tolist():
        for name in LOSSES:
            encoder, decoder = recover(name, true_theta, options.alpha)
            rows.append(dict(zip(COLUMNS, (true_theta, name, decoder.theta.item(), encoder.phi.item()), strict=True)))
    with open(options.out / "parameter_recovery.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.alpha, options.out / "parameter_recovery.png")

    print(f"posterior variance {options.alpha:g} times the exact one; theta recovered by the joint divergences")
    print("   true        KL    Fisher")
    for fisher, kl in zip(rows[::2], rows[1::2], strict=True):
        print(f"{fisher['true_theta']:7.2f}{kl['theta']:10.3f}{fisher['theta']:10.3f}")
    print(f"wrote parameter_recovery.csv and parameter_recovery.png to {options.out}")
    return rows


if __name__ == "__main__":
    main()
