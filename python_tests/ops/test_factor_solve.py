import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops


def make_factor(random_tensor, rows, size, dtype=torch.float64, device="cpu"):
    """Cholesky factors of matrices whose eigenvalues are of order one."""
    square = random_tensor((rows, size, size), dtype, device) / max(1, size) ** 0.5
    return torch.linalg.cholesky(square @ square.mT + torch.eye(size, dtype=dtype, device=device))


@given(
    size=st.sampled_from([0, 1, 2, 3, 4, 7, 8, 20, 33, 129, 140]),
    rows=st.sampled_from([0, 1, 3]),
    systems=st.sampled_from([0, 1, 4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided"]),
)
def test_against_dense_solve(device, random_tensor, size, rows, systems, dtype, layout):
    factor = make_factor(random_tensor, rows, size, dtype, device)
    rhs = random_tensor((systems, rows, size), dtype, device, layout)
    solution = ops.factor_solve(factor, rhs)
    expected = torch.linalg.solve(factor.double() @ factor.double().mT, rhs.double()[..., None])[..., 0]
    assert solution.dtype is dtype and solution.shape == rhs.shape and solution.is_contiguous()
    if solution.numel():
        error = (solution.double() - expected).norm() / expected.norm()
        assert error <= {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]


def test_what_lies_above_the_diagonal_is_not_read(device, random_tensor):
    factor, rhs = make_factor(random_tensor, 2, 9, device=device), random_tensor((3, 2, 9), device=device)
    above = torch.ones_like(factor).triu(1).bool()
    assert torch.equal(ops.factor_solve(factor.masked_fill(above, torch.nan), rhs), ops.factor_solve(factor, rhs))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_system(device, random_tensor, value):
    factor = make_factor(random_tensor, 4, 6, torch.float32, device)
    rhs = random_tensor((2, 4, 6), torch.float32, device)
    clean = ops.factor_solve(factor, rhs)
    rhs[1, 2, 3] = value
    solution = ops.factor_solve(factor, rhs)
    assert solution[1, 2].isnan().all()
    solution[1, 2] = clean[1, 2]
    assert torch.equal(solution, clean)


def test_a_factor_of_nan_gives_nan(device, random_tensor):
    factor = make_factor(random_tensor, 3, 6, torch.float32, device)
    factor[1] = torch.full((6, 6), torch.nan, device=device).tril()
    solution = ops.factor_solve(factor, random_tensor((2, 3, 6), torch.float32, device))
    assert solution[:, 1].isnan().all() and solution[:, [0, 2]].isfinite().all()


def test_same_bits_every_time(device, random_tensor):
    factor = make_factor(random_tensor, 5, 140, torch.float32, device)
    rhs = random_tensor((2, 5, 140), torch.float32, device)
    assert torch.equal(ops.factor_solve(factor, rhs), ops.factor_solve(factor, rhs))


def test_opcheck(device, random_tensor):
    args = make_factor(random_tensor, 2, 5, device=device), random_tensor((3, 2, 5), device=device)
    torch.library.opcheck(torch.ops.fisherkernels.factor_solve.default, args)


@pytest.mark.parametrize("position", [0, 1])
def test_autograd_is_refused(device, random_tensor, position):
    args = [make_factor(random_tensor, 2, 5, device=device), random_tensor((3, 2, 5), device=device)]
    args[position].requires_grad_()
    with pytest.raises(RuntimeError, match="factor_solve has no derivative .*: FisherMetric differentiates implicitly"):
        ops.factor_solve(*args)
    with torch.no_grad():
        assert not ops.factor_solve(*args).requires_grad


L, R = torch.zeros(2, 3, 3), torch.zeros(4, 2, 3)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((L.half(), R), TypeError, "factor must be float32 or float64, got torch.float16; .* condition"),
        ((L, R.double()), TypeError, "rhs must have dtype torch.float32"),
        ((L, [0.0]), TypeError, "rhs must be a Tensor, got list"),
        ((L[:, :2], R), ValueError, r"factor must have shape \[N, d, d\], got \[2, 2, 3\]"),
        ((L, R[0]), ValueError, r"rhs must have shape \[S, 2, 3\] beside factor, got \[2, 3\]"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.factor_solve(*args)
