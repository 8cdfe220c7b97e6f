"""The gate: no contender is timed before it agrees with a float64 reference on fresh random inputs."""

import math

import torch

from .case import draw


class WrongResult(Exception):
    """A contender disagrees with the reference."""


def relative_rms(output, reference):
    """RMS(output - reference) / RMS(reference) over all elements; a tuple of tensors counts as one vector.

    NaN or infinity anywhere in the output gives NaN; so do differing shapes.
    """
    outputs, references = _leaves(output), _leaves(reference)
    if [tuple(o.shape) for o in outputs] != [tuple(r.shape) for r in references]:
        return math.nan
    difference = norm = 0.0
    for o, r in zip(outputs, references, strict=True):
        o, r = o.detach().to("cpu", torch.float64), r.detach().to("cpu", torch.float64)
        difference += (o - r).square().sum().item()
        norm += r.square().sum().item()
    if not math.isfinite(difference):
        return math.nan
    return math.sqrt(difference / norm) if norm > 0 else (0.0 if difference == 0 else math.inf)


def check(case, contender, run, device, dtype, seed):
    """{output name: relative RMS error}; raises WrongResult where one is beyond the case's tolerance."""
    inputs = draw(case, torch.Generator().manual_seed(seed), device, dtype)
    reference = (contender.reference or case.reference)(torch.device("cpu"), torch.float64)
    expected = reference(*(t.to("cpu", torch.float64) for t in inputs))
    received = run(*inputs)
    if len(received) != len(expected):
        raise WrongResult(f"gave {len(received)} outputs, expected {len(expected)}")
    errors = {name: relative_rms(o, r) for name, o, r in zip(case.outputs, received, expected, strict=True)}
    tolerance = case.tolerances[dtype]
    for name, error in errors.items():
        if not error <= tolerance:  # also when the error is NaN
            kind = str(dtype).removeprefix("torch.")
            raise WrongResult(f"{name}: relative RMS error {error:.2g} in {kind}, allowed {tolerance:.0e}")
    return errors


def _leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for item in value for leaf in _leaves(item)]
