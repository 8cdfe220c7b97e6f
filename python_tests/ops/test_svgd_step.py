import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops

TWIN = sys.modules["fisherkernels.ops.svgd_step"]


def oracle(particles, score, bandwidth):
    """All pairs at once, in float64."""
    x, s, h = (t.double() for t in (particles, score, bandwidth))
    difference = x[:, None] - x[None]  # [M, M, d]
    kernel = (-difference.square().sum(2) / h).exp()[..., None]
    return (kernel * s[None] + 2 / h * kernel * difference).sum(1) / max(1, len(x))


def relative_error(result, expected):
    return ((result.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@given(
    count=st.sampled_from([0, 1, 2, 5, 16, 31, 33, 64, 67, 130, 300]),
    size=st.sampled_from([0, 1, 2, 3, 4, 5, 8, 13, 16, 17, 35]),
    bandwidth=st.sampled_from([0.05, 1.0, 30.0]),
    offset=st.sampled_from([0.0, 1000.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_against_all_pairs_at_once(device, random_tensor, count, size, bandwidth, offset, dtype, layout):
    particles = random_tensor((count, size), dtype, device, layout) + offset
    score = random_tensor((count, size), dtype, device, layout)
    h = torch.tensor(bandwidth * max(1, size), dtype=dtype, device=device)
    result = ops.svgd_step(particles, score, h)
    assert result.dtype is dtype and result.shape == (count, size) and result.is_contiguous()
    assert relative_error(result, oracle(particles, score, h)) <= {torch.float32: 4e-6, torch.float64: 1e-11}[dtype]


def test_many_particles_keep_their_digits(device, random_tensor):
    particles, score = (random_tensor((3000, 2), torch.float32, device) for _ in range(2))
    h = torch.tensor(0.3, device=device)
    assert relative_error(ops.svgd_step(particles, score, h), oracle(particles, score, h)) <= 4e-5


@pytest.mark.skipif(not ops.backends()["cpu"].active, reason="no native CPU library")
def test_the_native_kernel_sums_in_parts(random_tensor):
    """The twin's sums over all particles lose more."""
    particles, score = (random_tensor((3000, 2), torch.float32) for _ in range(2))
    h = torch.tensor(0.3)
    assert relative_error(ops.svgd_step(particles, score, h), oracle(particles, score, h)) <= 4e-6


def test_far_particles_do_not_meet(device):
    particles = torch.tensor([[0.0], [1e6]], device=device)
    score = torch.tensor([[2.0], [-6.0]], device=device)
    torch.testing.assert_close(ops.svgd_step(particles, score, torch.tensor(1.0, device=device)), score / 2)


def test_a_particle_that_is_not_finite_is_seen_everywhere(device, random_tensor):
    particles, score = (random_tensor((40, 3), torch.float32, device) for _ in range(2))
    particles[17, 1] = torch.nan
    assert ops.svgd_step(particles, score, torch.tensor(1.0, device=device))[:, 1].isnan().all()


def test_same_bits_every_time_and_with_one_thread(random_tensor):
    particles, score = (random_tensor((500, 6), torch.float32) for _ in range(2))
    h = torch.tensor(2.0)
    first = ops.svgd_step(particles, score, h)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(ops.svgd_step(particles, score, h), first)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_tiles_of_the_twin_do_not_change_the_result(monkeypatch, random_tensor, rows):
    args = random_tensor((41, 3)), random_tensor((41, 3)), torch.tensor(2.0).double()
    with ops.use_twins():
        whole = ops.svgd_step(*args)
        monkeypatch.setattr(TWIN, "TILE_ELEMENTS", 41 * rows)
        torch.testing.assert_close(ops.svgd_step(*args), whole, rtol=1e-12, atol=1e-12)


def test_opcheck(device, random_tensor):
    args = random_tensor((9, 3), device=device), random_tensor((9, 3), device=device), torch.tensor(1.5).double()
    torch.library.opcheck(torch.ops.fisherkernels.svgd_step.default, (*args[:2], args[2].to(device)))


def test_compiles_full_graph(device, random_tensor):
    args = random_tensor((9, 3), device=device), random_tensor((9, 3), device=device), torch.tensor(1.5).double()
    args = *args[:2], args[2].to(device)
    compiled = torch.compile(ops.svgd_step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), ops.svgd_step(*args))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_autograd_is_refused(device, random_tensor, position):
    args = [random_tensor((4, 2), device=device) for _ in range(2)] + [torch.tensor(1.0).double().to(device)]
    args[position].requires_grad_()
    with pytest.raises(RuntimeError, match="svgd_step has no derivative of its own: particles carry no graph"):
        ops.svgd_step(*args)
    with torch.no_grad():
        assert not ops.svgd_step(*args).requires_grad


X, H = torch.zeros(3, 2), torch.tensor(1.0)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((X.half(), X, H), TypeError, "particles must be float32 or float64, got torch.float16"),
        ((X, X.double(), H), TypeError, "score must have dtype torch.float32"),
        ((X[0], X[0], H), ValueError, r"particles must .*got .*\[2\]"),
        ((X, X[:2], H), ValueError, r"score must .*\[3, 2\].*got .*\[2, 2\]"),
        ((X, X, H[None]), ValueError, r"bandwidth must be a 0-d tensor, got shape \[1\]"),
        ((X, X, 1.0), TypeError, "bandwidth must be a Tensor, got float"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.svgd_step(*args)
