import itertools

import torch

from fisherkernels.training import seeds


def test_every_word_of_the_key_counts():
    keys = list(itertools.product(range(3), repeat=4))
    assert len({seeds.fold_seed(*key) for key in keys}) == len(keys)


def test_a_seed_fits_into_a_generator_and_repeats():
    draws = [torch.randn(3, generator=seeds.generator(0, 2**32, 10**9)) for _ in range(2)]
    assert torch.equal(*draws)
    assert 0 <= seeds.fold_seed(1) < 2**63
