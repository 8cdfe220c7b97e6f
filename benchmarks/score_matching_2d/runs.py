"""Trains what is missing in a folder, one file for each (data set, method, S)."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.score_matching_2d.measures import density_measures, weighted_points
from benchmarks.score_matching_2d.methods import METHODS
from benchmarks.score_matching_2d.training import Settings, train
from fisherkernels.training import seeds
from fisherkernels.training.synthetic import synthetic_points

TRAIN, TEST = range(2)  # parts of a data set
PADDING_STD = 0.2
ACTIVE = 0.5  # a latent dimension's posterior deviation below which it carries something about x
SHOWN = 1000  # samples of each model that are kept


class Run(NamedTuple):
    name: str  # of the data set
    method: str
    num_samples: int

    @property
    def file(self) -> str:
        return f"{self.name}-{self.method}-S{self.num_samples}.pt"


class Data(NamedTuple):
    train_size: int
    test_size: int
    prior_size: int  # points of z for the density
    padding: int  # further coordinates of N(0, PADDING_STD^2)


def points(name: str, part: int, data: Data) -> Tensor:
    size = data.train_size if part == TRAIN else data.test_size
    plane, _ = synthetic_points(name, size, seeds.fold_seed(part))
    noise = torch.randn(size, data.padding, generator=seeds.generator(seeds.DATA_NOISE, part))
    return torch.cat([plane, PADDING_STD * noise], 1)


def ordered(names, methods, sample_counts) -> Iterator[Run]:
    """Set by set; what cannot be estimated by so few samples is left out."""
    for name in names:
        for num_samples in sample_counts:
            for method in methods:
                if METHODS[method].runs_at(num_samples):
                    yield Run(name, method, num_samples)


def result(folder: Path, run: Run, members: int, settings: Settings, data: Data) -> dict:
    """The run's measures and samples: read where it was done before with the same settings, else made and written."""
    path, key = folder / run.file, {"members": members, **settings._asdict(), **data._asdict()}
    if path.exists():
        found = torch.load(path)
        if found["settings"] == key:
            return found
    start = time.time()
    trained = train(METHODS[run.method], points(run.name, TRAIN, data), run.num_samples, range(members), settings)
    found = {"settings": key, "seconds": trained.seconds, "trace": trained.trace, "variance": trained.variance}
    found |= evaluate(trained, points(run.name, TEST, data), settings.latent_dim, data.prior_size)
    found["state"] = {"encoder": trained.encoder.state_dict(), "decoder": trained.decoder.state_dict()}
    torch.save(found, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    print(f"{run.file}: NLL {spread(found['nll'])}, variance {spread(found['variance'])}, {time.time() - start:.0f} s")
    return found


@torch.no_grad()
def evaluate(trained, x: Tensor, latent_dim: int, prior_size: int) -> dict[str, Tensor]:
    """Of each member, on held-out points: nll, score_matching, active latent dimensions, samples of the model."""
    z, log_weight = weighted_points(prior_size, latent_dim)
    members = len(trained.variance)
    centres = trained.decoder(z.repeat(1, members)).transpose(0, 1)  # [E, K, D]
    pairs = zip(centres, trained.variance, strict=True)
    nll, score_matching = (
        torch.stack([part.mean() for part in parts])
        for parts in zip(*(density_measures(f, log_weight, gamma.item(), x) for f, gamma in pairs), strict=True)
    )
    mean, log_std = trained.encoder(x[:, None].expand(-1, members, -1))
    noise = torch.randn(SHOWN, *centres.shape[::2], generator=seeds.generator(seeds.TEST))  # [n, E, D]
    random = torch.randn(SHOWN, latent_dim, generator=seeds.generator(seeds.TEST, 1))
    samples = trained.decoder(random.repeat(1, members)) + trained.variance.sqrt()[:, None] * noise
    active = (log_std.unflatten(1, (members, -1)).exp() < ACTIVE).float().mean(0)  # [E, d]
    return {"nll": nll, "score_matching": score_matching, "active": active.sum(1), "samples": samples.transpose(0, 1)}


def spread(values: Tensor) -> str:
    """mean +- standard error over the seeds."""
    error = f" +- {values.std().item() / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{error}"
