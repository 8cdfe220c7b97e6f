"""Interleaved timing: in every round each contender runs once on the same fresh inputs, in an order drawn anew."""

import gc
import random
import time

import torch


def interleave(runners, draw_inputs, rounds, warm_up, device, sets=1):
    """Returns {name: [seconds per call, one per round]}.

    runners: {name: function of the inputs}. draw_inputs() draws one set; `sets` of them are drawn per round
    and a contender's time is the mean over them, so that a cache that holds one set does not hold all. Nobody always
    runs behind the same one: some leave threads spinning and caches cold.
    """
    shuffle = random.Random(0).sample
    clock = _cuda_clock if device.type == "cuda" else _cpu_clock
    names = list(runners)
    samples = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for number in range(warm_up + rounds):
            inputs = [draw_inputs() for _ in range(sets)]
            for name in shuffle(names, len(names)):
                seconds = clock(runners[name], inputs) / sets
                if number >= warm_up:
                    samples[name].append(seconds)
    finally:
        gc.enable()
    return samples


def _cpu_clock(run, inputs):
    start = time.perf_counter()
    for arguments in inputs:
        run(*arguments)
    return time.perf_counter() - start


def _cuda_clock(run, inputs):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for arguments in inputs:
        run(*arguments)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def quartiles(samples):
    """(lower quartile, median, upper quartile), linearly interpolated."""
    points = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return tuple(torch.quantile(torch.tensor(samples, dtype=torch.float64), points).tolist())
