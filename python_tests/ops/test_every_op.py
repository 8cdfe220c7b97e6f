"""What holds for every operator: gradients, registration, compilation, one backward, rows apart, same bits."""

import pytest
import torch

from fisherkernels import ops

DATA = {"rows": (4, 5), "pairs": (2, 5), "stack": (3, 4, 5), "columns": (5,), "coefficients": (5, 3)}
CASES = {
    "gaussian_information": ["rows", "rows"],
    "gaussian_score": ["pairs", "rows", "columns"],
    "half_squared_norm": ["rows"],
    "score_moments": ["stack"],
    "stability_cotangent": ["rows", "pairs"],
    "posterior_residual": ["rows", "pairs", "rows", None, "rows", None],
    "posterior_residual coefficients": ["rows", "pairs", "rows", "coefficients", "rows", None],
    "posterior_residual score": ["rows", "pairs", "rows", None, "rows", "rows"],
}
every_case = pytest.mark.parametrize("case", CASES)
row_cases = pytest.mark.parametrize("case", [case for case in CASES if "rows" in CASES[case]])


@pytest.fixture
def make(device, random_tensor):
    """The wrapper and its arguments, leaves that require grad."""

    def make(case, dtype=torch.float64):
        args = [kind and random_tensor(DATA[kind], dtype, device).mul_(0.5) for kind in CASES[case]]
        if case == "gaussian_score":
            args[2] = args[2].abs() + 0.5
        return getattr(ops, case.split()[0]), [t if t is None else t.requires_grad_() for t in args]

    return make


def total(outputs):
    return sum(t.sin().sum() for t in (outputs if isinstance(outputs, tuple) else (outputs,)))


@every_case
def test_gradcheck(make, case):
    op, args = make(case)
    assert torch.autograd.gradcheck(op, args)


@every_case
def test_opcheck(make, case):
    op, args = make(case)
    torch.library.opcheck(getattr(torch.ops.fisherkernels, op.__name__).default, args)


@every_case
def test_compiles_full_graph(make, case):
    op, args = make(case)
    compiled = torch.compile(lambda *a: total(op(*a)), fullgraph=True, backend="aot_eager", dynamic=True)
    leaves = [t for t in args if t is not None]
    if case == "posterior_residual score":
        del leaves[2]  # z, which has no influence
    expected = torch.autograd.grad(total(op(*args)), leaves)
    for grad, truth in zip(torch.autograd.grad(compiled(*args), leaves), expected, strict=True):
        torch.testing.assert_close(grad, truth)


def test_compiles_with_inductor(random_tensor):
    """One graph through all four, as in a loss."""
    operators = ["gaussian_score", "half_squared_norm", "stability_cotangent", "posterior_residual"]
    kinds = [CASES[name] for name in operators]
    flat = [random_tensor(DATA[kind]).abs().add(0.5).requires_grad_() for case in kinds for kind in case if kind]

    def loss(flat):
        tensors = iter(flat)
        outputs = []
        for name, case in zip(operators, kinds, strict=True):
            outputs.append(total(getattr(ops, name)(*(kind and next(tensors) for kind in case))))
        return sum(outputs)

    expected = torch.autograd.grad(loss(flat), flat)
    compiled = torch.compile(loss, fullgraph=True)
    for grad, truth in zip(torch.autograd.grad(compiled(flat), flat), expected, strict=True):
        torch.testing.assert_close(grad, truth)


@every_case
def test_a_second_backward_says_so(make, case):
    op, args = make(case)
    leaves = [t for t in args if t is not None]
    grads = torch.autograd.grad(total(op(*args)), leaves, create_graph=True, allow_unused=True)
    loss = sum(grad.square().sum() for grad in grads if grad is not None)
    with pytest.raises(RuntimeError, match=f"fisherkernels::{op.__name__} is differentiable once"):
        torch.autograd.grad(loss, leaves, allow_unused=True)


@row_cases
def test_nan_stays_in_its_row(make, case):
    op, args = make(case, torch.float32)
    clean = op(*args)
    clean = clean[0] if isinstance(clean, tuple) else clean
    for position, kind in enumerate(CASES[case]):
        if kind not in ("rows", "pairs") or (case.endswith("score") and "posterior" in case and position == 2):
            continue
        poisoned = [t if t is None else t.detach().clone() for t in args]
        poisoned[position][1, 2] = float("nan")
        result = op(*poisoned)
        result = result[0] if isinstance(result, tuple) else result
        rows = [1] if kind == "rows" else [1, 3] if result.shape[0] == 4 else [1]
        bad = torch.zeros(result.shape[0], dtype=torch.bool, device=result.device)
        bad[rows] = True
        assert result[bad].isnan().flatten(1 if result.dim() > 1 else 0).any()
        assert torch.equal(result.reshape(4, -1).isnan().any(1), bad)
        assert torch.equal(result[~bad], clean[~bad])


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_every_time(device, random_tensor, case, dtype):
    shapes = {"rows": (600, 130), "pairs": (300, 130), "stack": (3, 200, 130)}
    shapes |= {"columns": (130,), "coefficients": (130, 3)}
    args = [kind and random_tensor(shapes[kind], dtype, device).mul_(0.5) for kind in CASES[case]]
    if case == "gaussian_score":
        args[2] = args[2].abs() + 0.5
    op = getattr(ops, case.split()[0])

    def run():
        leaves = [t if t is None else t.detach().requires_grad_() for t in args]
        outputs = op(*leaves)
        wanted = [t for t in leaves if t is not None]
        grads = torch.autograd.grad(total(outputs), wanted, allow_unused=True)
        return (*(outputs if isinstance(outputs, tuple) else (outputs,)), *(g for g in grads if g is not None))

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@every_case
def test_no_graph_without_gradients(make, case):
    op, args = make(case)
    with torch.no_grad():
        outputs = op(*args)
    assert not any(t.requires_grad for t in (outputs if isinstance(outputs, tuple) else (outputs,)))
