"""Random streams that are functions of what they are for, so that a resumed run draws what the first one drew."""

import numpy as np
import torch

TRAIN, VALIDATION, TEST, ORDER, DATA_NOISE, DATA, MEASURE = range(7)  # the first word of a stream's key


def fold_seed(*key: int) -> int:
    """A 63-bit seed that depends on every word of the key; neighbouring keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*key: int) -> torch.Generator:
    """A CPU generator for the stream named by ``key``: the draws do not depend on the device of the run."""
    return torch.Generator().manual_seed(fold_seed(*key))
