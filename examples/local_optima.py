"""Where a Gaussian posterior ends when it is fitted by the KL or the Fisher divergence, with and without z's gradient.

    python examples/local_optima.py [--num_steps 1500] [--out runs/local_optima]

Figure 2 of Wenliang, "On the failure of variational score matching for VAE models" (2022), section 3.3.2. Under a
standard normal prior of (z1, z2), two likelihoods of one observation give the posteriors

    p_I:  x = 2 ~ N(z1 z2, 0.5^2), with two modes and a saddle at the origin between them,
    p_II: x = 1 ~ N(z1 relu(z2), 1), with one bulk.

A factorised Gaussian q starts at each point of a grid, and `fk.inference_loss` moves its mean and its standard
deviation by gradients of the KL divergence, of the Fisher divergence through z = mean + std noise, and of the Fisher
divergence with z held constant, each by SGD and by Adam. Reparametrised, the Fisher divergence has a local optimum at
the saddle of p_I, where q shrinks until its shape fits the posterior's as well as it can; with z constant it has none.
On p_II, where the paper found one far from the bulk with Adam, no start ends so here.
The paper does not print its step sizes, its number of samples or the width q starts with: the defaults here are ours.

Every start is one row of a batch whose loss is a sum, so that all of them move independently at once.

Writes local_optima.csv (one row per posterior, method, optimiser and start) and local_optima.png: the means' ways to
their ends (crosses) over the posterior's contours, orange where the posterior's density at the end is less than a
twentieth of its maximum, else blue or green by the sign of z1.
"""

import argparse
import csv
import math
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import fisherkernels as fk


class Product(nn.Module):
    """z [R, 2] -> z1 z2, [R, 1]."""

    def forward(self, z):
        return z[:, :1] * z[:, 1:]


class RectifiedProduct(nn.Module):
    """z [R, 2] -> z1 relu(z2), [R, 1]."""

    def forward(self, z):
        return z[:, :1] * torch.relu(z[:, 1:])


class Posterior(NamedTuple):
    decoder: nn.Module
    x: float
    variance: float
    extent: float  # the starts' grid covers [-extent, extent]^2
    sgd_rate: float  # the Fisher divergence of p_I is a hundred times as curved

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z, x) up to a constant, [N, 2] -> [N]."""
        error = self.x - self.decoder(z)[:, 0]
        return -0.5 * z.square().sum(1) - 0.5 * error.square() / self.variance


class Method(NamedTuple):
    label: str
    divergence: str
    reparametrize: bool


POSTERIORS = {
    "p_I": Posterior(Product(), x=2.0, variance=0.25, extent=2.0, sgd_rate=1e-3),
    "p_II": Posterior(RectifiedProduct(), x=1.0, variance=1.0, extent=3.0, sgd_rate=5e-3),
}
METHODS = {
    "kl": Method("KL, reparametrised", "kl", True),
    "fisher_reparametrized": Method("Fisher, reparametrised", "fisher", True),
    "fisher": Method("Fisher, z constant", "fisher", False),
}
ADAM_RATE = 1e-2
LABELS = {"sgd": "SGD", "adam": "Adam"}
START_STD = 0.5
LOW = math.log(20)  # nats under the maximum
COLUMNS = (
    "posterior", "method", "optimizer", "start_1", "start_2", "end_1", "end_2", "std_1", "std_2", "nats_below_maximum",
)  # fmt: skip


class Gaussians(nn.Module):
    """One Gaussian per start, whatever x is: mean and log_std, [N, 2] each."""

    def __init__(self, starts: Tensor):
        super().__init__()
        self.mean = nn.Parameter(starts.clone())
        self.log_std = nn.Parameter(torch.full_like(starts, math.log(START_STD)))

    def forward(self, x):
        return self.mean, self.log_std


def fit(
    posterior: Posterior, method: Method, optimizer: str, starts: Tensor, *, num_steps: int, num_samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Means on the way from the starts [N, 2], [num_steps + 1, N, 2], and the standard deviations at its end."""
    torch.manual_seed(seed)
    gaussians = Gaussians(starts)
    if optimizer == "sgd":
        steps = torch.optim.SGD(gaussians.parameters(), lr=posterior.sgd_rate)
    else:
        steps = torch.optim.Adam(gaussians.parameters(), lr=ADAM_RATE)
    x = torch.full((len(starts), 1), posterior.x)
    path = [starts]
    for _ in range(num_steps):
        steps.zero_grad()
        loss, _ = fk.inference_loss(
            gaussians,
            posterior.decoder,
            x,
            divergence=method.divergence,
            reparametrize=method.reparametrize,
            variance=posterior.variance,
            num_samples=num_samples,
            reduction="sum",
        )
        loss.backward()
        steps.step()
        path.append(gaussians.mean.detach().clone())
    return torch.stack(path), gaussians.log_std.detach().exp()


def square_grid(extent: float, count: int) -> Tensor:
    """[count^2, 2], row by row of equal first coordinate."""
    side = torch.linspace(-extent, extent, count)
    return torch.cartesian_prod(side, side)


def maximum(posterior: Posterior) -> float:
    """The highest log density on a fine grid."""
    return posterior.log_density(square_grid(3.0, 301)).max().item()


def draw_panel(axes, posterior: Posterior, path: Tensor, below: Tensor) -> None:
    side = torch.linspace(-posterior.extent - 0.5, posterior.extent + 0.5, 121)
    density = posterior.log_density(square_grid(posterior.extent + 0.5, 121)).exp().view(121, 121)
    axes.contourf(side.numpy(), side.numpy(), density.T.numpy(), levels=12, cmap="Greys", alpha=0.6)
    for k in range(path.shape[1]):
        way, end = path[:, k].numpy(), path[-1, k]
        color = "#e08a2e" if below[k] > LOW else "#1f66ad" if end[0] > 0 else "#3fa66a"
        axes.plot(*way.T, color=color, linewidth=0.7, alpha=0.8)
        axes.plot(*way[0], color=color, marker="o", markersize=2)
        axes.plot(*way[-1], color="#1d2125", marker="x", markersize=4)
    limit = posterior.extent + 0.5
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])


def main(arguments=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=1500, help="(%(default)s)")
    parser.add_argument("--num_samples", type=int, default=10, help="of z per step and start (%(default)s)")
    parser.add_argument("--grid", type=int, default=7, help="starts per side (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/local_optima"))
    options = parser.parse_args(arguments)
    for name in ("num_steps", "num_samples", "grid"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected an int >= 1, received {getattr(options, name)}")
    options.out.mkdir(parents=True, exist_ok=True)

    figure = Figure(figsize=(16, 5.6), dpi=120, layout="constrained")
    panels = figure.subplots(2, len(POSTERIORS) * len(METHODS))
    rows = []
    print("starts that end where the posterior's density is under a twentieth of its maximum")
    cases = [(p, m) for p in POSTERIORS for m in METHODS]
    for across, (posterior_name, method_name) in enumerate(cases):
        posterior, method = POSTERIORS[posterior_name], METHODS[method_name]
        starts, highest = square_grid(posterior.extent, options.grid), maximum(posterior)
        found = []
        for down, optimizer in enumerate(LABELS):
            settings = {key: getattr(options, key) for key in ("num_steps", "num_samples", "seed")}
            path, std = fit(posterior, method, optimizer, starts, **settings)
            below = highest - posterior.log_density(path[-1])
            axes = panels[down, across]
            draw_panel(axes, posterior, path, below)
            axes.set_title(f"{posterior_name}: {method.label}\n{LABELS[optimizer]}", fontsize="small")
            found.append(f"{LABELS[optimizer]} {int((below > LOW).sum())}")
            numbers = torch.cat([starts, path[-1], std, below[:, None]], dim=1).tolist()
            names = (posterior_name, method_name, optimizer)
            rows += [dict(zip(COLUMNS, (*names, *line), strict=True)) for line in numbers]
        print(f"  {posterior_name:5} {method.label:24} {', '.join(found)} of {len(starts)}", flush=True)
    with open(options.out / "local_optima.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    figure.savefig(options.out / "local_optima.png")
    print(f"wrote local_optima.csv and local_optima.png to {options.out}")
    return rows


if __name__ == "__main__":
    main()
