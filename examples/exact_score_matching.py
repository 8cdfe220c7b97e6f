"""Energy-based models trained by exact score matching: a density in the plane, and one of 8x8 digits.

    python examples/exact_score_matching.py [--steps 1500] [--out runs/exact_score_matching]

The model is an energy network on top of the Gaussian that has the data's mean m and covariance C,

    log p(x) = network(x) - (x - m)^T C^-1 (x - m) / 2 + constant,

which can be normalised whatever the network's weights are, as a multilayer perceptron of SiLUs grows at most linearly.
The constant is never needed: training minimises the mean of `fk.hyvarinen_score`, |grad log p|^2 / 2 + Laplacian of
log p, exact and differentiable by one ordinary backward pass (Hyvarinen, JMLR 2005, eq. 4). Two data sets:

- `spirals` of fisherkernels.training, whose density is a mixture of Gaussians along the arms. Its own Hyvarinen score
  is the least that any model can have, and the distance to it is the Fisher divergence left.
- scikit-learn's digits, pixels from -1 to 1 plus fresh N(0, 0.3^2) in every step: the density is that of noised digits.
  There E[digit | noised x] = x + 0.3^2 grad log p(x) (Tweedie's formula) is the best denoiser by squared error, and

      E |x + s^2 grad log p(x) - digit|^2 = s^4 (2 E[Hyvarinen score] + D / s^2)

  for any p: the error on held-out digits says without second derivatives what the held-out score has to be.

Beside them stand the best Gaussian, which is the model with a network of zeros, and the cost and spread of
`fk.sliced_hyvarinen_score` on the same network. The digits' model is also asked to tell noised held-out digits from
draws of the Gaussian of the same mean and covariance, by log p: the area under the ROC curve, 1/2 by chance.

Writes exact_score_matching.csv (one row per data set and density) and exact_score_matching.png.
"""

import argparse
import csv
import math
import time
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import fisherkernels as fk
from fisherkernels.training.data import DigitsDataModule
from fisherkernels.training.synthetic import synthetic_points

NOISE_STD = 0.3  # of the digits' pixels, which go from -1 to 1
ARM_VARIANCE = 0.15**2  # of the spirals' points around their arms
SLICE_REPEATS = 20
SHOWN = 7  # digits
COLUMNS = ("data", "density", "steps", "hyvarinen_score", "denoising_error", "auc")


class LogDensity(nn.Module):
    """x [N, n] -> log p(x) up to a constant, [N, 1]: a network on top of N(mean, covariance)."""

    def __init__(self, mean: Tensor, covariance: Tensor, width: int, depth: int):
        super().__init__()
        n = len(mean)
        sizes = [n] + [width] * depth
        hidden = [layer for i, o in zip(sizes[:-1], sizes[1:], strict=True) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.network = nn.Sequential(*hidden, nn.Linear(width, 1))
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)  # its square is the precision
        self.register_buffer("ones", torch.ones(1, n))

    def forward(self, x):
        z = F.linear(x - self.mean, self.whitening)
        return self.network(x) - 0.5 * F.linear(z * z, self.ones)

    def score(self, x: Tensor) -> Tensor:
        """grad log p, [N, n]."""
        with torch.no_grad():
            return fk.linearize(self, x).vjp(x.new_ones(len(x), 1))


class SpiralsDensity:
    """The density that `synthetic_points("spirals", ...)` draws from: its arms cut into Gaussians."""

    def __init__(self, pieces: int = 500):
        turn = ((torch.arange(pieces, dtype=torch.float64) + 0.5) / pieces).sqrt()
        arm = 4 * turn[:, None] * torch.stack([(3 * math.pi * turn).cos(), (3 * math.pi * turn).sin()], 1)
        self.centres = torch.cat([arm, -arm])  # [K, 2]

    def exponents(self, x: Tensor) -> Tensor:
        return -0.5 * torch.cdist(x.double(), self.centres).square() / ARM_VARIANCE  # [N, K]

    def log_density(self, x: Tensor) -> Tensor:
        """Up to a constant, [N]."""
        return self.exponents(x).logsumexp(1)

    def hyvarinen_score(self, x: Tensor) -> Tensor:
        """In closed form, [N]: of the mean and the spread of the centres that x can have come from."""
        weights = self.exponents(x).softmax(1)
        centre = weights @ self.centres
        spread = weights @ self.centres.square().sum(1) - centre.square().sum(1)
        score = (centre - x) / ARM_VARIANCE
        return 0.5 * score.square().sum(1) - 2 / ARM_VARIANCE + spread / ARM_VARIANCE**2


def noised(x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return x + std * torch.randn(x.shape, generator=generator)


def train(model: LogDensity, x: Tensor, *, noise_std: float, batch_size: int, steps: int, rate: float) -> float:
    """Milliseconds per step of Adam on the mean Hyvarinen score, its rate falling to 0 along a cosine."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for _ in range(steps):
        batch = x[torch.randint(len(x), (batch_size,), generator=generator)]
        optimizer.zero_grad()
        fk.hyvarinen_score(model, noised(batch, noise_std, generator)).mean().backward()
        optimizer.step()
        schedule.step()
    return 1000 * (time.perf_counter() - start) / steps


def mean_score(model: LogDensity, x: Tensor) -> float:
    with torch.no_grad():
        return fk.hyvarinen_score(model, x).mean().item()


def gaussian(model: LogDensity) -> LogDensity:
    """The Gaussian that a model stands on: the same with a network of zeros."""
    alone = LogDensity(model.mean, torch.eye(len(model.mean)), width=1, depth=1)
    alone.whitening = model.whitening
    for parameter in alone.parameters():
        nn.init.zeros_(parameter)
    return alone


def denoised(model: LogDensity, x: Tensor) -> Tensor:
    """E[digit | x], if p is the density of noised digits."""
    return x + NOISE_STD**2 * model.score(x)


def score_of_denoising(error: float, pixels: int) -> float:
    """The mean Hyvarinen score that belongs to a squared error per pixel."""
    return 0.5 * pixels * (error / NOISE_STD**4 - 1 / NOISE_STD**2)


def auc(model: LogDensity, real: Tensor, drawn: Tensor) -> float:
    """Of telling real data from drawn ones by log p."""
    with torch.no_grad():
        log_p = model(torch.cat([real, drawn]))[:, 0]
    return roc_auc_score([1] * len(real) + [0] * len(drawn), log_p.numpy())


def fit_spirals(steps: int) -> tuple[LogDensity, Tensor, list[dict]]:
    """The trained model, held-out points and the rows of the table."""
    (x, _), (held_out, _) = synthetic_points("spirals", 20_000, seed=0), synthetic_points("spirals", 5000, seed=1)
    torch.manual_seed(0)
    model = LogDensity(x.mean(0), torch.cov(x.t()), width=128, depth=3)
    scores = {"gaussian": mean_score(gaussian(model), held_out), "before": mean_score(model, held_out)}
    took = train(model, x, noise_std=0.0, batch_size=128, steps=steps, rate=5e-3)
    scores["exact"] = mean_score(model, held_out)
    scores["true"] = SpiralsDensity().hyvarinen_score(held_out).mean().item()
    print(f"spirals: held-out Hyvarinen score ({steps} steps of {took:.1f} ms)")
    print(f"  best Gaussian {scores['gaussian']:.2f}, before {scores['before']:.2f}, trained {scores['exact']:.2f},")
    print(f"  true density {scores['true']:.2f}: Fisher divergence {scores['exact'] - scores['true']:.2f}", flush=True)
    counts = {"exact": steps}
    rows = [
        {"data": "spirals", "density": name, "steps": counts.get(name, 0), "hyvarinen_score": score}
        for name, score in scores.items()
    ]
    return model, held_out, rows


def digits() -> tuple[Tensor, Tensor]:
    """Pixels from -1 to 1 for training and held out, [N, 64]."""
    train_set, _, test_set = DigitsDataModule().load()
    return tuple(2 * torch.stack([image for image, _ in part]).flatten(1) - 1 for part in (train_set, test_set))


def fit_digits(steps: int) -> tuple[LogDensity, Tensor, Tensor, Tensor, list[dict]]:
    """The trained model, held-out digits, the same noised, draws of their Gaussian, and the rows of the table."""
    x, clean = digits()
    torch.manual_seed(0)
    mean, covariance = x.mean(0), torch.cov(x.t()) + NOISE_STD**2 * torch.eye(x.shape[1])
    model = LogDensity(mean, covariance, width=128, depth=2)
    noisy = noised(clean, NOISE_STD, torch.Generator().manual_seed(1))
    drawn = torch.distributions.MultivariateNormal(mean, covariance).sample((len(clean),))
    rows = []

    def add(name: str, density: LogDensity, steps: int) -> None:
        error = (denoised(density, noisy) - clean).square().mean().item()
        numbers = (mean_score(density, noisy), error, auc(density, noisy, drawn))
        rows.append(dict(zip(COLUMNS, ("digits", name, steps, *numbers), strict=True)))

    add("gaussian", gaussian(model), 0)
    add("before", model, 0)
    took = train(model, x, noise_std=NOISE_STD, batch_size=32, steps=steps, rate=3e-3)
    add("exact", model, steps)
    print(f"digits: held out ({steps} steps of {took:.1f} ms)")
    print("            Hyvarinen score   by denoising   error per pixel   AUC against the Gaussian's draws")
    for row in rows:
        implied = score_of_denoising(row["denoising_error"], x.shape[1])
        print(f"  {row['density']:8}{row['hyvarinen_score']:17.1f}{implied:15.1f}{row['denoising_error']:18.4f}"
              f"{row['auc']:15.3f}")  # fmt: skip
    return model, clean, noisy, drawn, rows


def timed(loss) -> float:
    start = time.perf_counter()
    loss().mean().backward()
    return 1000 * (time.perf_counter() - start)


def compare_sliced(model: LogDensity, x: Tensor) -> None:
    """Spread of a batch's mean over draws of the directions, and time of loss and backward in turns."""
    losses = {
        "exact": lambda: fk.hyvarinen_score(model, x),
        "sliced, 1": lambda: fk.sliced_hyvarinen_score(model, x, 1),
        "sliced, 8": lambda: fk.sliced_hyvarinen_score(model, x, 8),
    }
    times, means = {name: [] for name in losses}, {name: [] for name in losses}
    for _ in range(SLICE_REPEATS):
        for name, loss in losses.items():
            times[name].append(timed(loss))
            with torch.no_grad():
                means[name].append(loss().mean())
    print(f"loss of {len(x)} digits and its backward, median ms; standard deviation over directions")
    for name in losses:
        milliseconds = torch.tensor(times[name]).median().item()
        print(f"  {name:10}{milliseconds:8.1f}{torch.stack(means[name]).std().item():10.2f}")


def draw_plane(axes, log_density, title: str):
    side = torch.linspace(-5.5, 5.5, 221)
    with torch.no_grad():
        values = log_density(torch.cartesian_prod(side, side)).view(len(side), -1).t()
    extent = (side[0], side[-1]) * 2
    nats = colormaps["viridis"].resampled(16)
    axes.imshow((values - values.max()).numpy(), origin="lower", extent=extent, vmin=-16, vmax=0, cmap=nats)
    axes.set(title=title, xticks=[], yticks=[])


def draw(spirals: tuple, digits: tuple, path: Path) -> None:
    (model, points, _), (digits_model, clean, noisy, drawn, _) = spirals, digits
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=[2.1, 1.1, 1.5])
    learned, true = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    histogram, images = figure.add_subplot(grid[1, 1]), figure.add_subplot(grid[:, 2])
    draw_plane(learned, model, "learned log-density, held-out points")
    learned.scatter(*points[:400].t().numpy(), s=2, color="white", alpha=0.7)
    draw_plane(true, SpiralsDensity().log_density, "true log-density")

    with torch.no_grad():
        values = [digits_model(part)[:, 0].numpy() for part in (drawn, noisy)]
    labels, colors = ["Gaussian's draws", "held-out digits"], ["#8a9096", "#1f66ad"]
    histogram.hist(values, bins=30, histtype="stepfilled", alpha=0.7, color=colors, label=labels)
    histogram.set(title="learned log-density, noised digits", xlabel="nats, up to a constant", yticks=[])
    histogram.legend(frameon=False, fontsize="small")

    columns = (clean, noisy, denoised(gaussian(digits_model), noisy), denoised(digits_model, noisy))
    tiles = torch.stack([column[:SHOWN] for column in columns], 1).view(SHOWN, 4, 8, 8)
    tiles = F.pad(tiles, (1, 1, 1, 1), value=-1.0)  # [SHOWN, 4, 10, 10]
    images.imshow(tiles.permute(0, 2, 1, 3).reshape(SHOWN * 10, 40).numpy(), vmin=-1, vmax=1, cmap="gray_r")
    images.set_xticks([4.5, 14.5, 24.5, 34.5], ["digit", "noised", "Gaussian", "learned"], fontsize="small")
    images.set(title="one step of denoising", yticks=[])
    images.spines[:].set_visible(False)
    images.tick_params(length=0)
    figure.savefig(path)


def main(arguments=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of Adam, per data set (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/exact_score_matching"))
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps: expected an int >= 1, received {options.steps}")
    options.out.mkdir(parents=True, exist_ok=True)

    spirals, digits = fit_spirals(options.steps), fit_digits(options.steps)
    compare_sliced(digits[0], digits[2][:64])
    rows = spirals[-1] + digits[-1]
    with open(options.out / "exact_score_matching.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(spirals, digits, options.out / "exact_score_matching.png")
    print(f"wrote exact_score_matching.csv and exact_score_matching.png to {options.out}")
    return rows


if __name__ == "__main__":
    main()
