"""Whether the sweeps' matrix products outrun torch's on this CPU where these are at their best."""

from functools import cache

import torch

from fisherkernels.timing import shortest_time

_SAMPLES, _WIDTH, _REPEATS = 256, 1024, 5
_CLEARLY = 1.25  # so that two runs of a program do not choose differently


@torch.compiler.assume_constant_result
def sweeps_outrun_torch() -> bool:
    """Measured once per process, in some hundredths of a second.

    MKL leaves half of the units of some processors with AVX-512 idle. Elsewhere torch's large products are as fast as
    the sweeps' or faster.
    """
    return _measured()


@cache
def _measured() -> bool:
    options = {"dtype": torch.float32, "device": "cpu"}
    x, weight = torch.ones(_SAMPLES, _WIDTH, **options), torch.ones(_WIDTH, _WIDTH, **options)
    no_bias, sweep = torch.empty(0, **options), torch.ops.fisherkernels.mlp_value.default
    with torch.no_grad():
        ours = shortest_time(lambda: sweep(x, [weight], [no_bias], [], [], [], []), _REPEATS)
        theirs = shortest_time(lambda: x @ weight.t(), _REPEATS)
    return theirs > _CLEARLY * ours
