import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops

NAMES = ["solution", "residual", "direction", "history", "squared_norm", "status", "iterations", "product", "threshold"]


def random_state(random_tensor, device, rows, size, step, dtype=torch.float64, layout="contiguous"):
    """Arguments of one call. Row r is ordinary, done before, converging now, converging without a step, of negative
    curvature or NaN in product, residual or history, as r % 8 says."""
    kind = torch.arange(rows, device=device) % 8
    tensors = {name: random_tensor((rows, size), dtype, device) for name in NAMES[:3]}
    sign = torch.where(kind == 4, -1.0, 1.0).to(dtype)[:, None]
    product = random_tensor((rows, size), dtype, device, layout)
    product.copy_(sign * tensors["direction"] * product.abs())
    history = random_tensor((step + 3, rows, size), dtype, device) / max(1, size) ** 0.5
    history[step + 1 :] = torch.nan
    if size:
        product[kind == 5, size // 2] = torch.nan
        tensors["residual"][kind == 6, -1] = torch.inf
        history[step, kind == 7, 0] = torch.nan
    threshold = random_tensor((rows,), dtype, device, layout)
    threshold.copy_(torch.where(kind == 2, 1e9, torch.where(kind == 3, 1e-3, 1e-9)))
    tensors |= {
        "history": history,
        "squared_norm": torch.where(kind == 3, 1e-4, 1.5).to(dtype),
        "status": (kind == 1).int(),
        "iterations": torch.full((rows,), step, dtype=torch.int32, device=device),
        "product": product,
        "threshold": threshold,
    }
    return [tensors[name] for name in NAMES]


def updated_row(args, row, step):
    """The state of one row after a call, by the formulas, in float64; None for history where it is not defined."""
    x, r, p, history, rho, status, iterations, q, threshold = (t.double() if t.is_floating_point() else t for t in args)
    x, r, p, q, history = x[row], r[row], p[row], q[row], history[: step + 1, row]
    rho, status, iterations, threshold = (t[row].item() for t in (rho, status, iterations, threshold))
    unchanged = [x, r, p, None, rho]
    if status == 0 and not abs(rho) < torch.inf:
        return [*unchanged, 3, iterations]
    if status != 0 or rho <= threshold:
        return [*unchanged, max(status, 1), iterations]
    curvature = sum((p * q).tolist())
    if not abs(curvature) < torch.inf or curvature <= 0:
        return [*unchanged, 2 if curvature <= 0 else 3, iterations]
    alpha = rho / curvature
    new = r - alpha * q
    new = new - history.T @ (history @ new)
    norm = new.square().sum().item()
    if not norm < torch.inf:
        return [*unchanged, 3, iterations]
    status = 1 if norm <= threshold else 0
    return [x + alpha * p, new, new + norm / rho * p, new / norm**0.5, norm, status, iterations + 1]


def check_step(args, step):
    before = [t.clone() for t in args]
    expected = [updated_row(before, row, step) for row in range(len(before[0]))]
    assert ops.cg_update(*args, step) is None
    tolerance = 1e-12 if args[0].dtype is torch.float64 else 2e-5
    for row, (*vectors, norm, status, iterations) in enumerate(expected):
        assert (args[5][row].item(), args[6][row].item()) == (status, iterations), f"row {row}"
        vectors.append(torch.tensor([norm], dtype=torch.float64))
        results = [args[0][row], args[1][row], args[2][row], args[3][step + 1, row], args[4][row : row + 1]]
        olds = [before[0][row], before[1][row], before[2][row], None, before[4][row : row + 1]]
        stepped = iterations > before[6][row].item()
        for name, result, truth, old in zip(NAMES, results, vectors, olds, strict=False):
            if stepped:
                error = (result.double() - truth.to(result.device)).norm() / truth.norm().clamp_min(1e-3)
                assert truth.numel() == 0 or error <= tolerance, f"{name} of row {row}: relative error {error:.1e}"
            elif old is not None:
                assert torch.equal(result.nan_to_num(7.0), old.nan_to_num(7.0)), f"{name} of row {row}"
    for position in (7, 8):
        assert torch.equal(args[position].nan_to_num(7.0), before[position].nan_to_num(7.0))
    assert torch.equal(args[3][: step + 1].nan_to_num(7.0), before[3][: step + 1].nan_to_num(7.0))
    assert args[3][step + 2 :].isnan().all()


@given(
    rows=st.sampled_from([0, 1, 9, 40]),
    size=st.sampled_from([0, 1, 7, 20, 33, 64, 100]),
    step=st.sampled_from([0, 1, 3, 4, 9]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_one_step(device, random_tensor, rows, size, step, dtype, layout):
    check_step(random_state(random_tensor, device, rows, size, step, dtype, layout), step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [200, 301, 512, 1021, 1500, 4100])
def test_one_step_of_long_rows(device, random_tensor, size, dtype):
    """From several elements per thread to rows that a block of threads does not hold."""
    check_step(random_state(random_tensor, device, 9, size, 5, dtype), 5)


def start(b, tol=1e-5, max_iter=60):
    """The arguments before the first call, from x = 0, but for the product."""
    rho = b.square().sum(1)
    history = b.new_full((max_iter + 1, *b.shape), torch.nan)
    history[0] = b / rho.sqrt()[:, None]
    counts = torch.zeros(2, len(b), dtype=torch.int32, device=b.device)
    return [torch.zeros_like(b), b.clone(), b.clone(), history, rho, counts[0], counts[1]], tol**2 * rho


def times(matrix, vectors):
    return (matrix @ vectors[:, :, None])[:, :, 0]


def solve(matrix, b, tol=1e-5, max_iter=60, reorthogonalise=True):
    changed, threshold = start(b, tol, max_iter)
    for step in range(max_iter):
        if not reorthogonalise:
            changed[3].zero_()
        ops.cg_update(*changed, times(matrix, changed[2]), threshold, step)
        if changed[5].all():
            break
    return changed[0], changed[5], changed[6]


def metric(condition, size, count=4):
    """Symmetric matrices with eigenvalues from 1 to `condition`, float64."""
    basis = torch.linalg.qr(torch.randn(count, size, size, dtype=torch.float64)).Q
    eigenvalues = torch.logspace(0, 1, size, base=condition, dtype=torch.float64)
    return (basis * eigenvalues) @ basis.mT


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4])
def test_solves_systems(device, condition):
    matrix = metric(condition, 24).to(device)
    b = torch.randn(4, 24, dtype=torch.float64).to(device)
    truth = torch.linalg.solve(matrix, b)
    for dtype, tol, allowed in ((torch.float64, 1e-12, 1e-11), (torch.float32, 1e-6, 1e-6)):
        x, status, iterations = solve(matrix.to(dtype), b.to(dtype), tol, 40)
        assert status.tolist() == [1] * 4
        assert iterations.max() <= (1 if condition == 1 else 24)
        error = (x.double() - truth).norm(dim=1) / truth.norm(dim=1)
        assert error.max() <= allowed * condition, (dtype, error)


def test_reorthogonalisation_saves_iterations_in_float32(device):
    """The identity plus rank 6, as the metric of a trained decoder: 7 steps in exact arithmetic."""
    factor = torch.randn(8, 100, 6) * torch.tensor([2.3, 1.7, 1.0, 0.7, 0.3, 0.2])
    matrix = (torch.eye(100) + factor @ factor.mT).to(device)
    b = torch.randn(8, 100).to(device)
    x, status, iterations = solve(matrix, b)
    plain_x, plain_status, plain_iterations = solve(matrix, b, reorthogonalise=False)
    assert (status == 1).all() and (plain_status == 1).all()
    assert iterations.max() <= 7 < plain_iterations.min()
    truth = torch.linalg.solve(matrix.double(), b.double())
    for solution in (x, plain_x):
        assert ((solution - truth).norm(dim=1) / truth.norm(dim=1)).max() <= 1e-5


def test_rows_stop_on_their_own(device):
    """A row that is done, or broken, neither moves nor moves others."""
    matrix = metric(100.0, 11, 5).to(device)
    matrix[0] = 2 * torch.eye(11)
    b = torch.randn(5, 11, dtype=torch.float64).to(device)
    expected, _, steps = solve(matrix, b, 1e-10, 20)
    assert steps[0] == 1 and steps[1:].min() > 5
    matrix[1] = -matrix[1]
    matrix[2, 3, 4] = torch.nan
    b[3, 0] = torch.inf
    changed, threshold = start(b, 1e-10, 20)
    for step in range(20):
        ops.cg_update(*changed, times(matrix, changed[2]), threshold, step)
        if step == 0:
            early = [t[0].clone() for t in changed if t.shape[0] == 5]
            assert changed[5].tolist() == [1, 2, 3, 3, 0]
    assert changed[5].tolist() == [1, 2, 3, 3, 1]
    assert changed[6].tolist() == [1, 0, 0, 0, steps[4]]
    for old, now in zip(early, (t[0] for t in changed if t.shape[0] == 5), strict=True):
        assert torch.equal(old, now)
    assert not changed[0][1:4].any()
    assert torch.equal(changed[0][4], expected[4]) and torch.equal(changed[0][0], expected[0])


def test_same_bits_every_time(device, random_tensor):
    first = random_state(random_tensor, device, 40, 77, 6, torch.float32)
    second = [t.clone() for t in first]
    for args in (first, second):
        ops.cg_update(*args, 6)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_opcheck(device, random_tensor):
    args = random_state(random_tensor, device, 3, 5, 2)
    torch.library.opcheck(torch.ops.fisherkernels.cg_update.default, (*args, 2))


def two_steps_and_one(matrix, b, changed, threshold):
    """Two iterations on tensors made here, and one on arguments."""
    inner, _ = start(b * 2.0, 1e-10, 2)
    seen = []
    for step in range(2):
        ops.cg_update(*inner, times(matrix, inner[2]), threshold, step)
        seen.append(inner[0] + 0.0)
    ops.cg_update(*changed, times(matrix, changed[2]), threshold, 0)
    return *seen, *inner, changed[1] * 2.0


def check_compiled(backend, device):
    matrix, b = metric(10.0, 6).to(device), torch.randn(4, 6, dtype=torch.float64).to(device)
    changed, threshold = start(b, 1e-10, 2)
    clones = [t.clone() for t in changed]
    expected = two_steps_and_one(matrix, b, changed, threshold)
    results = torch.compile(two_steps_and_one, fullgraph=True, backend=backend)(matrix, b, clones, threshold)
    for result, truth in zip((*results, *clones), (*expected, *changed), strict=True):
        torch.testing.assert_close(result, truth, equal_nan=True)
    assert not torch.equal(expected[0], expected[1])


def test_compiles_full_graph(device):
    check_compiled("aot_eager", device)


def test_compiles_with_inductor():
    check_compiled("inductor", "cpu")


def test_autograd_does_not_record_it(random_tensor):
    args = random_state(random_tensor, "cpu", 1, 5, 0)
    weight = torch.ones(5, dtype=torch.float64, requires_grad=True)
    loss = (weight * args[0]).sum()
    with pytest.raises(RuntimeError, match="cg_update has no derivative of its own"):
        ops.cg_update(*args[:7], weight * args[7], args[8], 0)
    with torch.no_grad():
        ops.cg_update(*args[:7], weight * args[7], args[8], 0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def replaced(args, **changes):
    return [changes.get(name, value) for name, value in zip(NAMES, args, strict=True)]


def test_bad_input(random_tensor):
    args = random_state(random_tensor, "cpu", 3, 4, 1)
    before = [t.clone() for t in args]
    wide = torch.zeros(3, 8, dtype=torch.float64)
    cases = [
        (ValueError, "direction must have memory of its own", {"direction": args[1]}),
        (ValueError, r"residual is changed in place and must be contiguous, got strides \[8, 2\]",
         {"residual": wide[:, ::2]}),
        (ValueError, r"status is changed in place .* got strides \[2\]",
         {"status": torch.zeros(6, dtype=torch.int32)[::2]}),
        (ValueError, r"product must have the shape of solution, \[3, 4\], got \[3, 8\]", {"product": wide}),
        (ValueError, r"history must have shape \[iterations \+ 1, 3, 4\], got \[3, 8\]", {"history": wide}),
        (ValueError, r"threshold must have shape \[3\] beside solution, got \[3, 1\]",
         {"threshold": args[8][:, None]}),
        (ValueError, r"iterations must have shape \[3\] beside solution, got \[2\]", {"iterations": args[6][:2]}),
        (TypeError, "status must be an int32 Tensor, got torch.int64", {"status": args[5].long()}),
        (TypeError, "iterations must be an int32 Tensor, got int", {"iterations": 0}),
        (TypeError, "squared_norm must have dtype torch.float64 like the other arguments, got torch.float32",
         {"squared_norm": args[4].float()}),
        (TypeError, "solution must be float32 or float64, got torch.bfloat16; half precision does not resolve",
         {"solution": args[0].bfloat16()}),
        (ValueError, r"solution must have two dimensions \[rows, columns\], got shape \[4\]", {"solution": args[0][0]}),
        (ValueError, "status must be on cpu like solution, got meta", {"status": args[5].to("meta")}),
    ]  # fmt: skip
    for error, message, changes in cases:
        with pytest.raises(error, match=message):
            ops.cg_update(*replaced(args, **changes), 1)
    for step in (-1, 3):
        with pytest.raises(ValueError, match="step must be at least 0 and at most 2, history having 4 entries, got"):
            ops.cg_update(*args, step)
    for old, now in zip(before, args, strict=True):
        assert torch.equal(old.nan_to_num(7.0), now.nan_to_num(7.0))
