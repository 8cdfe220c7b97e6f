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


class Gate:
    """Fresh inputs of one dtype, and what each reference makes of them in float64 on the CPU, evaluated once."""

    def __init__(self, case, device, dtype, seed):
        self.case, self.dtype = case, dtype
        self.inputs = draw(case, torch.Generator().manual_seed(seed), device, dtype, check=True)
        self._expected = {}

    def check(self, contender, run):
        """{output name: relative RMS error}, and the median and worst residual of a float32 solution.

        Raises WrongResult where one is beyond the case's tolerance.
        """
        expected = self._evaluate(contender.reference or self.case.reference)
        received = run(*self.inputs)
        if len(received) != len(expected):
            raise WrongResult(f"gave {len(received)} outputs, expected {len(expected)}")
        pairs = zip(self.case.outputs, received, expected, strict=True)
        errors = {name: relative_rms(output, reference) for name, output, reference in pairs}
        tolerance = self.case.tolerances[self.dtype]
        for name, error in errors.items():
            if not error <= tolerance:  # also when the error is NaN
                kind = str(self.dtype).removeprefix("torch.")
                raise WrongResult(f"{name}: relative RMS error {error:.2g} in {kind}, allowed {tolerance:.0e}")
        return errors | self._residual(received[0])

    def _residual(self, received):
        """How well the first output solves the case's equation, in float64; nothing where there is none."""
        if self.case.residual is None or self.dtype != torch.float32:
            return {}
        cpu, exact = torch.device("cpu"), torch.float64
        residual = self.case.residual(*(t.detach().to(cpu, exact) for t in (*self.inputs, received)))
        median, worst = residual.median().item(), residual.max().item()
        limit = self.case.residual_limit
        if not median <= limit:
            raise WrongResult(f"median relative residual {median:.2g}, allowed {limit:.0e}")
        return {"median residual": median, "worst residual": worst}

    def _evaluate(self, reference):
        if reference not in self._expected:
            cpu, exact = torch.device("cpu"), torch.float64
            self._expected[reference] = reference(cpu, exact)(*(t.to(cpu, exact) for t in self.inputs))
        return self._expected[reference]


def _leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for item in value for leaf in _leaves(item)]
