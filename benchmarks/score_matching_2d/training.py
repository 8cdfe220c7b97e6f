"""Algorithm 1 of Wenliang, "On the failure of variational score matching for VAE models", for many seeds at once."""

import math
import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.score_matching_2d.ensemble import Decoder, Encoder, single
from benchmarks.score_matching_2d.methods import Method
from fisherkernels.training import seeds

TRACE = 50  # values of the variance that are kept per training


class Settings(NamedTuple):
    cycles: int  # updates of the decoder
    encoder_updates: int  # J
    batch_size: int
    learning_rate: float  # of encoder and decoder at the start; it falls to 0 as half a cosine
    variance_learning_rate: float
    variance: float = 1.0  # at the start
    latent_dim: int = 2
    hidden: tuple[int, ...] = (30, 30)


class Trained(NamedTuple):
    encoder: Encoder
    decoder: Decoder
    variance: Tensor  # [E]
    trace: Tensor  # [T, E], the variance during training
    seconds: float  # of the processor, for all members together


class Draws:
    """Batches and noise of the members, each from a stream of its own."""

    def __init__(self, points: Tensor, members: Sequence[int], settings: Settings, num_samples: int):
        self.points, self.settings, self.num_samples = points, settings, num_samples
        self.streams = [seeds.generator(seeds.TRAIN, seed) for seed in members]

    def batch(self) -> Tensor:
        """x [N, E, D]."""
        shape = (self.settings.batch_size,)
        index = [torch.randint(len(self.points), shape, generator=stream) for stream in self.streams]
        return self.points[torch.stack(index, 1)]

    def noise(self) -> Tensor:
        """[S, N, E * d]."""
        shape = (self.num_samples, self.settings.batch_size, self.settings.latent_dim)
        draws = [torch.randn(shape, generator=stream, dtype=self.points.dtype) for stream in self.streams]
        return torch.cat(draws, 2)


def train(method: Method, points: Tensor, num_samples: int, members: Sequence[int], settings: Settings) -> Trained:
    """Trains one auto-encoder per seed in `members` on the points [n, D]."""
    data_dim = points.shape[1]
    nets = [single(data_dim, settings.latent_dim, settings.hidden, seed) for seed in members]
    encoder, decoder = Encoder([net for net, _ in nets]).to(points), Decoder([net for _, net in nets]).to(points)
    start = points.new_full((len(members),), math.log(settings.variance))
    log_variance = torch.nn.Parameter(start)
    batches = settings.cycles * settings.encoder_updates
    encoder_step = Step(list(encoder.parameters()), settings.learning_rate, batches)
    decoder_step = Step(list(decoder.parameters()), settings.learning_rate, settings.cycles)
    decoder_step.add(log_variance, settings.variance_learning_rate)
    draws = Draws(points, members, settings, num_samples)

    def options():
        variance = log_variance.exp()[:, None].expand(-1, data_dim)  # [E, D]
        return {"variance": variance, "num_samples": num_samples, "noise": draws.noise()}

    trace, start = [], time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "score_matching_loss: one sample cannot tell")
        warnings.filterwarnings("ignore", ".*torch.func.*")  # linearize has no rule for stacked layers
        for cycle in range(settings.cycles):
            for _ in range(settings.encoder_updates):
                x = draws.batch()
                encoder_step(method.inference_loss(encoder, decoder, x, **options()).loss)
            decoder_step(method.loss(encoder, decoder, x, **options()).loss)
            if (cycle + 1) % max(1, settings.cycles // TRACE) == 0:
                trace.append(log_variance.detach().exp())
    seconds = time.process_time() - start
    return Trained(encoder, decoder, log_variance.detach().exp(), torch.stack(trace), seconds)


class Step:
    """Adam whose learning rate falls to 0, on the gradient of a loss for its own parameters alone."""

    def __init__(self, parameters: list[torch.nn.Parameter], learning_rate: float, steps: int):
        self.steps, self.parameters = steps, parameters
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
        self.groups = [(self.optimizer.param_groups[0], learning_rate)]
        self.taken = 0

    def add(self, parameter: torch.nn.Parameter, learning_rate: float) -> None:
        self.parameters.append(parameter)
        self.optimizer.add_param_group({"params": [parameter], "lr": learning_rate})
        self.groups.append((self.optimizer.param_groups[-1], learning_rate))

    def __call__(self, loss: Tensor) -> None:
        for group, learning_rate in self.groups:
            group["lr"] = 0.5 * learning_rate * (1 + math.cos(math.pi * self.taken / self.steps))
        self.optimizer.zero_grad()
        loss.backward(inputs=self.parameters)
        self.optimizer.step()
        self.taken += 1
