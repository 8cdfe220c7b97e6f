import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def oracle(jacobian, precision, rhs, data):
    """Solution and factor, in float64, from the dense metric."""
    tangents, weights = jacobian.double().transpose(0, 1), precision.double().expand(jacobian.shape[1:])
    identity = torch.eye(jacobian.shape[0], dtype=torch.float64, device=jacobian.device)
    metric = torch.einsum("nid,nd,njd->nij", tangents, weights, tangents) + identity
    b = rhs.double()
    if data is not None:
        b = b + torch.einsum("nid,snd->sni", tangents, data.double())
    return torch.linalg.solve(metric, b[..., None])[..., 0], torch.linalg.cholesky(metric)


@pytest.fixture
def arguments(random_tensor):
    """make(d, N, D, S, ...): tangents with singular values of order one, and what else metric_solve takes."""

    def make(size, rows, columns, systems, dtype=torch.float64, device="cpu", layout="contiguous", **kinds):
        def normal(*shape):
            return random_tensor(shape, dtype, device)

        shapes = {"contiguous": (size, rows, columns), "rows": (rows, size, columns), "columns": (rows, columns, size)}
        shapes["strided"] = (size, rows, 2 * columns)
        jacobian = normal(*shapes[layout]) / max(1, columns) ** 0.5
        if layout == "strided":
            jacobian = jacobian[..., ::2]
        elif layout != "contiguous":
            jacobian = jacobian.movedim(layout == "rows" and 1 or 2, 0)
        per_sample, per_column = kinds.get("per_sample", False), kinds.get("per_column", False)
        precision = normal(rows if per_sample else 1, columns if per_column else 1).abs() + 0.5
        data = normal(systems, rows, columns) if kinds.get("data", True) else None
        return [jacobian, precision, normal(systems, rows, size), data]

    return make


def close(result, expected, tolerance):
    difference = (result.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    return result.shape == expected.shape and (expected.numel() == 0 or difference.item() <= tolerance)


@given(
    size=st.sampled_from([0, 1, 2, 3, 5, 8, 17, 33, 70]),
    rows=st.sampled_from([0, 1, 2, 5]),
    columns=st.sampled_from([0, 1, 7, 64, 300, 1031]),
    systems=st.sampled_from([0, 1, 2, 5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "rows", "columns", "strided"]),
    per_sample=st.booleans(),
    per_column=st.booleans(),
    data=st.booleans(),
)
def test_against_the_dense_metric(
    device, arguments, size, rows, columns, systems, dtype, layout, per_sample, per_column, data
):
    kinds = dict(per_sample=per_sample, per_column=per_column, data=data)
    args = arguments(size, rows, columns, systems, dtype, device, layout, **kinds)
    for result, expected in zip(ops.metric_solve(*args), oracle(*args), strict=True):
        assert result.dtype is dtype and result.is_contiguous()
        assert close(result, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(129, 2, 40), (150, 1, 530), (20, 1, 5000), (36, 17, 40)])
def test_large_metrics_and_few_samples(device, arguments, shape):
    """Blocks beyond the first of the factorisation, and columns cut into chunks."""
    args = arguments(*shape, 2, torch.float32, device, per_column=True)
    for result, expected in zip(ops.metric_solve(*args), oracle(*args), strict=True):
        assert close(result, expected, TOLERANCE[torch.float32])


def test_condition_number_of_five_hundred(request, device, random_tensor):
    """Eigenvalues of M from 1 to 500 in float32: a relative error below 1e-5 in half of the solutions, below the
    condition number times the unit in the last place in all."""
    size, rows, columns = 20, 30, 784
    left = torch.linalg.qr(random_tensor((rows, columns, size), device=device))[0]
    right = torch.linalg.qr(random_tensor((rows, size, size), device=device))[0]
    singular = torch.linspace(0, 499, size, dtype=torch.float64, device=device).sqrt()
    jacobian = (left * singular @ right.mT).permute(2, 0, 1).float()
    args = [jacobian, torch.ones(1, 1, device=device), random_tensor((2, rows, size), torch.float32, device)]
    args.append(random_tensor((2, rows, columns), torch.float32, device))
    expected = oracle(*args)[0]
    error = (ops.metric_solve(*args)[0].double() - expected).norm(dim=2) / expected.norm(dim=2)
    native = "native" in request.node.name
    assert error.median() <= (1e-5 if native else 2e-5)
    assert error.max() <= (1 if native else 2) * 500 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", range(4))
def test_what_is_not_finite_stays_in_its_sample(device, arguments, position, value):
    args = arguments(5, 4, 30, 2, torch.float32, device, per_sample=True, per_column=True)
    clean = ops.metric_solve(*args)
    args[position] = args[position].clone()
    args[position][(2, 3) if position == 1 else (1, 2, 3)] = value
    solution, factor = ops.metric_solve(*args)
    assert solution[1, 2].isnan().all()
    others = torch.arange(4, device=device) != 2
    assert torch.equal(solution[:, others], clean[0][:, others]) and torch.equal(factor[others], clean[1][others])
    if position < 2:
        lower = torch.ones(5, 5, device=device).tril().bool()
        assert factor[2][lower].isnan().all() and not factor[2][~lower].any() and solution[:, 2].isnan().all()
    else:
        assert torch.equal(factor, clean[1]) and torch.equal(solution[0], clean[0][0])


def test_a_metric_that_is_not_positive_definite_gives_nan(device, arguments):
    args = arguments(3, 2, 8, 1, device=device, per_sample=True)
    args[1][0] = -100.0
    solution, factor = ops.metric_solve(*args)
    assert solution[:, 0].isnan().all() and factor[0].tril().isnan().any()
    assert solution[:, 1].isfinite().all() and factor[1].isfinite().all()


@pytest.mark.parametrize("shape", [(20, 18, 300), (70, 3, 600), (9, 2, 3000)])
def test_same_bits_every_time(device, arguments, shape):
    args = arguments(*shape, 2, torch.float32, device, per_column=True)
    for first, second in zip(ops.metric_solve(*args), ops.metric_solve(*args), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(20, 40, 300), (90, 3, 2000), (9, 1, 9000)])
def test_results_do_not_depend_on_the_number_of_threads(arguments, shape):
    if not ops.backends()["cpu"].active:
        pytest.skip("no native CPU library")
    args, threads = arguments(*shape, 2, torch.float32), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.metric_solve(*args))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("data", [True, False])
def test_opcheck(device, arguments, data):
    args = arguments(3, 4, 7, 2, device=device, data=data)
    torch.library.opcheck(torch.ops.fisherkernels.metric_solve.default, args)


def both_operators(jacobian, precision, rhs, data):
    solution, factor = ops.metric_solve(2 * jacobian, precision, rhs.sin(), data)
    return solution.cos() + ops.factor_solve(factor, solution)


def test_compiles_full_graph(device, arguments):
    args = arguments(4, 3, 9, 2, device=device)
    compiled = torch.compile(both_operators, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), both_operators(*args))


def test_compiles_with_inductor(arguments):
    args = arguments(4, 3, 9, 2)
    torch.testing.assert_close(torch.compile(both_operators, fullgraph=True)(*args), both_operators(*args))


@pytest.mark.parametrize("position", range(4))
def test_autograd_is_refused(device, arguments, position):
    args = arguments(3, 2, 5, 1, device=device)
    args[position].requires_grad_()
    with pytest.raises(RuntimeError, match="metric_solve has no derivative .*: FisherMetric differentiates implicitly"):
        ops.metric_solve(*args)
    with torch.no_grad():
        solution, factor = ops.metric_solve(*args)
    assert not solution.requires_grad and not factor.requires_grad


J, P, R, Y = torch.zeros(3, 2, 5), torch.ones(1, 1), torch.zeros(4, 2, 3), torch.zeros(4, 2, 5)


@pytest.mark.parametrize(
    "args, error, message",
    [
        (([0.0], P, R, Y), TypeError, "jacobian must be a Tensor, got list"),
        ((J.bfloat16(), P, R, Y), TypeError, "jacobian must be float32 or float64, got torch.bfloat16; .* condition"),
        ((J, P.double(), R, Y), TypeError, "precision must have dtype torch.float32"),
        ((J, P, R.double(), Y), TypeError, "rhs must have dtype torch.float32"),
        ((J, P, R, Y.double()), TypeError, "data must have dtype torch.float32"),
        ((J, P, None, Y), TypeError, "rhs must be a Tensor, got NoneType"),
        ((J[0], P, R, Y), ValueError, r"jacobian must have three dimensions \[d, N, D\], got shape \[2, 5\]"),
        ((J, P[0], R, Y), ValueError, r"precision must have shape \[1 or 2, 1 or 5\] beside jacobian, got \[1\]"),
        ((J, P.expand(3, 5), R, Y), ValueError, r"precision must have shape .*, got \[3, 5\]"),
        ((J, P, R[:, :1], Y), ValueError, r"rhs must have shape \[S, 2, 3\] beside jacobian, got \[4, 1, 3\]"),
        ((J, P, R, Y[:3]), ValueError, r"data must have shape \[4, 2, 5\] beside jacobian and rhs, got \[3, 2, 5\]"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.metric_solve(*args)
