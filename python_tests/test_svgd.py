"""svgd against the dense reference and against known targets."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fisherkernels import reference
from fisherkernels.svgd import median_bandwidth, svgd


@settings(max_examples=40)
@given(
    count=st.integers(1, 33),
    d=st.integers(1, 5),
    steps=st.integers(0, 4),
    bandwidth=st.sampled_from([None, 0.7]),
    step_rule=st.sampled_from(["plain", "rms"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_equals_dense(count, d, steps, bandwidth, step_rule, dtype, seed):
    torch.manual_seed(seed)
    particles = 3 + torch.randn(count, 2 * d, dtype=dtype)[:, ::2]  # strided

    def score(x):
        return 1 - x**3

    given_particles = particles.clone()
    ours = svgd(score, particles, steps, 0.01, bandwidth, step_rule)
    theirs = reference.svgd(score, particles.double(), steps, 0.01, bandwidth, step_rule)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert ours.dtype == dtype and (ours - theirs).norm() <= tolerance * theirs.norm()
    assert torch.equal(particles, given_particles)


class LargestTensor(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(getattr(self, "elements", 0), tensor.numel())
        return result


def test_never_holds_the_kernel_matrix():
    count = 5000
    with LargestTensor() as largest:
        svgd(lambda x: -x, torch.randn(count, 1), 1, 0.1)
    assert largest.elements < count**2 / 10


def test_reaches_a_gaussian():
    mean, std = torch.tensor([1.0, -0.5]), torch.tensor([0.7, 1.3])
    particles = svgd(lambda x: (mean - x) / std**2, torch.randn(100, 2), 300, 0.5)
    torch.testing.assert_close(particles.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(particles.std(0), std, rtol=0.1, atol=0)


def test_rms_step_moves_every_coordinate_by_the_step_size_first():
    particles = torch.randn(20, 3).double()
    moved = svgd(lambda x: torch.tensor([1.0, 1e3, 1e-2]) * (5 - x), particles, 1, 1e-3, step_rule="rms")
    torch.testing.assert_close((moved - particles).abs(), torch.full_like(moved, 1e-3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 30, 31])
def test_median_is_over_all_pairs_with_the_diagonal(count):
    particles = torch.randn(count, 2).double()
    distances = (particles[:, None] - particles[None]).norm(dim=2).flatten()
    expected = distances.quantile(0.5) ** 2 / math.log(count + 1)
    torch.testing.assert_close(
        median_bandwidth(particles), expected if expected > 0 else torch.ones_like(expected)
    )


def test_median_above_2000_is_that_of_evenly_spaced_particles():
    particles = torch.randn(3000, 2).double()
    subsample = particles[[i * 3000 // 2000 for i in range(2000)]]
    expected = median_bandwidth(subsample) * math.log(2001) / math.log(3001)
    torch.testing.assert_close(median_bandwidth(particles), expected)


@pytest.mark.parametrize("particles", [torch.tensor([[0.3]]), torch.full((5, 1), 0.3)])
def test_bandwidth_zero_is_one(particles):
    torch.testing.assert_close(
        svgd(lambda x: -x, particles, 3, 0.1), svgd(lambda x: -x, particles, 3, 0.1, bandwidth=1.0)
    )
    assert torch.isfinite(svgd(lambda x: -x, particles, 3, 0.1)).all()


def test_no_particles_and_no_graph():
    assert svgd(lambda x: -x, torch.zeros(0, 2), 3, 0.1).shape == (0, 2)
    weight = torch.ones(2, requires_grad=True)
    assert not svgd(lambda x: -weight * x, torch.randn(4, 2, requires_grad=True), 2, 0.1).requires_grad


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"particles": torch.zeros(3)}, ValueError, r"particles: expected shape \[M, d\], received \[3\]"),
        ({"particles": torch.zeros(3, 1).long()}, TypeError, "particles: expected a float32 or float64.*int64"),
        ({"particles": torch.zeros(3, 1).bfloat16()}, TypeError, "particles: expected a float32 or float64.*bfloat16"),
        ({"steps": -1}, ValueError, "steps: expected an int >= 0, received -1"),
        ({"steps": 1.0}, TypeError, "steps: expected an int >= 0, received float"),
        ({"step_size": 0.0}, ValueError, "step_size: expected a number > 0, received 0.0"),
        ({"bandwidth": -1.0}, ValueError, "bandwidth: expected None or a number > 0, received -1.0"),
        ({"step_rule": "adam"}, ValueError, "step_rule: expected 'plain' or 'rms', received 'adam'"),
        ({"score_fn": lambda x: x[:1]}, ValueError, r"score_fn: expected.*\[3, 1\], received \[1, 1\]"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {
        "score_fn": torch.neg,
        "particles": torch.randn(3, 1),
        "steps": 1,
        "step_size": 0.1,
    } | changes
    with pytest.raises(error, match=message):
        svgd(**arguments)
