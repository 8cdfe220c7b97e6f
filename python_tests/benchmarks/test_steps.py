"""The count of FLOPs that training steps are held against."""

from benchmarks.steps.contenders import Model
from benchmarks.steps.floors import ELBO, FISHER, step_flops
from fisherkernels.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder


def test_perceptrons():
    def make():
        return Model(MLPEncoder(30, (20, 10), 3), MLPDecoder(3, (10, 20), (30,)), 3)

    encoder, decoder = 2 * (30 * 20 + 20 * 10 + 10 * 6), 2 * (3 * 10 + 10 * 20 + 20 * 30)
    first = 2 * 30 * 20
    flops = step_flops(make, (30,), 3, 4)
    assert flops[FISHER] == 4 * (6 * (encoder + decoder) - first)
    assert flops[ELBO] == 4 * (3 * (encoder + decoder) - first)


def test_convolutions():
    def make():
        return Model(ConvEncoder((2, 8, 8), (5,), (2,), 3), ConvDecoder(3, (2, 8, 8), (5,), (2,)), 3)

    first = 2 * 5 * 2 * 9 * 4 * 4  # per sample: 5 maps of 4 x 4 from 2, 3 x 3 numbers of each
    flops = step_flops(make, (2, 8, 8), 3, 7)
    assert flops[FISHER] + 7 * first == 2 * (flops[ELBO] + 7 * first)
    assert flops[FISHER] > 7 * 5 * first
