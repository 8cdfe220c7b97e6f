"""Trains auto-encoders on points in the plane by every method, and compares them on held-out points.

    python -m benchmarks.score_matching_2d OUT_DIR [options]

Wenliang, "On the failure of variational score matching for VAE models", section 5.1, figures 3 and 7: two hidden layers
of 30, d = 2, J = 5 updates of the encoder for each of the decoder, ten seeds, which are trained at once. What OUT_DIR
has already is not trained again.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.score_matching_2d import results
from benchmarks.score_matching_2d.methods import METHODS
from benchmarks.score_matching_2d.runs import Data, ordered, result
from benchmarks.score_matching_2d.training import Settings
from fisherkernels.training.synthetic import SYNTHETIC_SETS

MAIN = ("elbo", "m1", "m2", "m3", "fd_m1", "fd_reparametrized_m1")


def main(arguments=None):
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    options.out_dir.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        options.cycles,
        options.encoder_updates,
        options.batch_size,
        options.learning_rate,
        options.variance_learning_rate,
        options.variance,
    )
    data = Data(options.train_size, options.test_size, options.prior_size, options.padding)
    done = {}
    for run in ordered(options.sets, options.methods, options.samples):
        if not options.report_only or (options.out_dir / run.file).exists():
            done[run] = result(options.out_dir, run, options.seeds, settings, data)
    if options.results:
        results.write(done, options.results)


def parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_matching_2d", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SYNTHETIC_SETS, default=list(SYNTHETIC_SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(MAIN))
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 5, 20], help="S")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--cycles", type=int, default=500, help="updates of the decoder")
    parser.add_argument("--encoder-updates", type=int, default=5, help="J, for each of the decoder's")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=3e-2, help="at the start; it falls as half a cosine")
    parser.add_argument("--variance-learning-rate", type=float, default=3e-2)
    parser.add_argument("--variance", type=float, default=0.1, help="gamma at the start")
    parser.add_argument("--train-size", type=int, default=100_000)
    parser.add_argument("--test-size", type=int, default=1000)
    parser.add_argument("--prior-size", type=int, default=2**15, help="points of z for the density")
    parser.add_argument("--padding", type=int, default=0, help="further coordinates of the data, small noise")
    parser.add_argument("--report-only", action="store_true", help="train nothing; leave out what is missing")
    parser.add_argument("--results", type=Path, help="folder for table, text and figure")
    return parser


if __name__ == "__main__":
    sys.exit(main())
