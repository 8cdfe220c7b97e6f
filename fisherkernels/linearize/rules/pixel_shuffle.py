"""Channels to pixels and back: each is the other's transpose."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Rule, lead


class PixelShuffle(Rule):
    traffic = 2

    def __init__(self, operation, inverse):
        self.operation, self.inverse = operation, inverse

    def forward(self, input: Tensor, factor: int):
        value = self.operation(input, factor)
        return value, (factor, tuple(input.shape), tuple(value.shape))

    def vjp(self, saved, cotangent, stacked, needs):
        factor, shape, _ = saved
        # Torch leaves empty tensors in the shape they had.
        return (self.inverse(cotangent, factor).reshape(lead(cotangent, stacked) + shape),)

    def jvp(self, saved, tangents, stacked):
        factor, _, shape = saved
        return self.operation(tangents[0], factor).reshape(lead(tangents[0], stacked) + shape)

    def keeps_samples(self, saved, operands, value):
        return len(value) > 3

    def of_one_sample(self, saved, active):
        factor, *shapes = saved
        return factor, *((1, *shape[1:]) for shape in shapes)


RULES = {
    "pixel_shuffle": PixelShuffle(F.pixel_shuffle, F.pixel_unshuffle),
    "pixel_unshuffle": PixelShuffle(F.pixel_unshuffle, F.pixel_shuffle),
}
FUNCTIONS = {F.pixel_shuffle: "pixel_shuffle", F.pixel_unshuffle: "pixel_unshuffle"}
METHODS: dict = {}
MODULES = {
    nn.PixelShuffle: Layer("pixel_shuffle", lambda module, read: (module.upscale_factor,)),
    nn.PixelUnshuffle: Layer("pixel_unshuffle", lambda module, read: (module.downscale_factor,)),
}
