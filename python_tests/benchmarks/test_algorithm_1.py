"""The cycle of Algorithm 1: every contender takes the same five updates and then the same one."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.runner import measure
from benchmarks.steps.algorithm_1 import ENCODER_UPDATES, Model, cycle_case

SHAPE, LATENT, WIDTH, BATCH = (1, 8, 8), 3, 2, 4


@pytest.mark.parametrize("divergence, objective", [("kl", "m1"), ("kl", "m3"), ("fisher", "m1")])
def test_contenders_agree_over_a_whole_cycle(divergence, objective):
    model = partial(Model, SHAPE, LATENT, WIDTH)
    case = cycle_case("cycle", "small nets", divergence, objective, model, SHAPE, LATENT, BATCH)
    uncompiled = tuple(contender for contender in case.contenders if "compiled" not in contender.name)
    exact = replace(case, contenders=uncompiled, tolerances={torch.float64: 1e-9, torch.float32: 1e-2})
    record = measure(exact, torch.device("cpu"), rounds=1, warm_up=0, with_memory=False, say=lambda *_, **__: None)
    for name, contender in record["contenders"].items():
        assert "failed" not in contender, f"{name}: {contender['failed']}"
        assert len(contender["seconds"]) == 1


def test_every_update_moves_what_it_trains_and_nothing_else():
    case = cycle_case("cycle", "small nets", "kl", "m1", partial(Model, SHAPE, LATENT, WIDTH), SHAPE, LATENT, BATCH)
    run = case.contender("ours").build(torch.device("cpu"), torch.float32)
    x, noise = case.inputs(torch.Generator().manual_seed(0))
    losses, encoder, decoder = run(x, noise[:1].expand_as(noise))
    assert losses.shape == (ENCODER_UPDATES + 1,)
    assert len(losses[:-1].unique()) == ENCODER_UPDATES  # on the same noise, so it is the encoder that moved
    assert all(gradient.isfinite().all() for gradient in (*encoder, *decoder))
    again, *_ = run(x, noise[:1].expand_as(noise))
    assert not torch.equal(again, losses)  # the optimisers go on
