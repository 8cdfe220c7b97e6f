import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make_arguments(random_tensor, rows, size, hidden, *, on=0.4, **options):
    """first, weights, values and gram; the larger ``on``, the more units are on. options: dtype, device, layout."""
    weight = lambda out, into: random_tensor((out, into), **options) / max(1, into) ** 0.5  # noqa: E731
    first = weight(hidden[0], size)
    weights = [weight(b, a) for a, b in zip(hidden, hidden[1:], strict=False)]
    values = [torch.relu(random_tensor((rows, h), **options) + (2 * on - 1)) for h in hidden]
    last = weight(hidden[-1] + 3, hidden[-1])
    return first, weights, values, 4 * last.t() @ last


def metric_by_masks(first, weights, values, gram):
    """J^T N^-1 J + I in float64 from diagonal matrices."""
    tangents = (values[0] > 0).double().diag_embed() @ first.double()  # [N, h, d]
    for weight, value in zip(weights, values[1:], strict=True):
        tangents = (value > 0).double().diag_embed() @ (weight.double() @ tangents)
    metric = tangents.mT @ gram.double() @ tangents
    return metric + torch.eye(first.shape[1], dtype=torch.float64, device=first.device)


@given(
    size=st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 20, 33, 65, 130]),
    rows=st.sampled_from([0, 1, 3]),
    hidden=st.lists(st.sampled_from([1, 2, 5, 8, 31, 64]), min_size=1, max_size=4),
    on=st.sampled_from([-1.0, 0.3, 0.6, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_against_diagonal_masks(device, random_tensor, size, rows, hidden, on, dtype, layout):
    arguments = make_arguments(random_tensor, rows, size, hidden, on=on, dtype=dtype, device=device, layout=layout)
    factor = ops.relu_metric_factor(*arguments)
    assert factor.dtype is dtype and factor.shape == (rows, size, size) and factor.is_contiguous()
    if factor.numel():
        assert torch.equal(factor, factor.tril()) and bool((factor.diagonal(dim1=1, dim2=2) > 0).all())
        metric = metric_by_masks(*arguments)
        error = factor.double() @ factor.double().mT - metric
        assert error.norm() <= TOLERANCE[dtype] * metric.norm()


@pytest.mark.parametrize("on", [0.2, 1.5])
def test_layers_of_the_paper(device, random_tensor, on):
    arguments = make_arguments(random_tensor, 5, 20, [448, 448, 448], on=on, dtype=torch.float32, device=device)
    factor, metric = ops.relu_metric_factor(*arguments).double(), metric_by_masks(*arguments)
    assert (factor @ factor.mT - metric).norm() <= 1e-5 * metric.norm()


def test_a_unit_at_zero_is_off(device, random_tensor):
    first, weights, values, gram = make_arguments(random_tensor, 4, 3, [6, 6], device=device)
    off = [torch.where(value > 0, value, -0.0) for value in values]
    assert torch.equal(
        ops.relu_metric_factor(first, weights, off, gram), ops.relu_metric_factor(first, weights, values, gram)
    )


def test_what_belongs_to_units_that_are_off_is_not_read(random_tensor):
    if not ops.backends()["cpu"].active:
        pytest.skip("the twin multiplies by zero")
    first, weights, values, gram = make_arguments(random_tensor, 1, 3, [6, 6])
    expected = ops.relu_metric_factor(first, weights, values, gram)
    for t, i in ((first, 0), (weights[0], 1), (gram, 1)):
        t[values[i][0] <= 0] = torch.nan
    weights[0][:, values[0][0] <= 0] = torch.nan
    gram[:, values[1][0] <= 0] = torch.nan
    assert torch.equal(ops.relu_metric_factor(first, weights, values, gram), expected)


def test_unusable_samples_are_nan_and_the_others_untouched(device, random_tensor):
    first, weights, values, gram = make_arguments(random_tensor, 5, 4, [9, 7], dtype=torch.float32, device=device)
    values[0][:, 0] = torch.tensor([1.0, 0, 1, 0, 0])
    values[1][:, 0] = 1
    clean = ops.relu_metric_factor(first, weights, values, gram)
    first[0] = torch.nan
    factor = ops.relu_metric_factor(first, weights, values, gram)
    on = values[0][:, 0] > 0
    assert factor[on].isnan().all() and torch.equal(factor[~on], clean[~on])


def test_a_metric_that_is_not_positive_definite(device, random_tensor):
    first, weights, values, gram = make_arguments(random_tensor, 3, 4, [9], device=device)
    values[0][:] = 1
    values[0][1] = 0
    factor = ops.relu_metric_factor(first, weights, values, -100 * gram)
    assert factor[[0, 2]].isnan().all() and torch.equal(factor[1], torch.eye(4, dtype=factor.dtype, device=device))


def test_same_bits_every_time(device, random_tensor):
    arguments = make_arguments(random_tensor, 40, 33, [64, 64], dtype=torch.float32, device=device)
    assert torch.equal(ops.relu_metric_factor(*arguments), ops.relu_metric_factor(*arguments))


def test_a_sample_does_not_depend_on_the_others(random_tensor):
    """Nor on the number of threads that they are shared among."""
    if not ops.backends()["cpu"].active:
        pytest.skip("a batched product of the twin may sum in another order")
    first, weights, values, gram = make_arguments(random_tensor, 40, 33, [64, 64], dtype=torch.float32)
    together = ops.relu_metric_factor(first, weights, values, gram)
    for n in (0, 17, 39):
        alone = ops.relu_metric_factor(first, weights, [value[n : n + 1] for value in values], gram)
        assert torch.equal(alone[0], together[n])


def test_opcheck(device, random_tensor):
    arguments = make_arguments(random_tensor, 3, 4, [6, 5], device=device)
    torch.library.opcheck(torch.ops.fisherkernels.relu_metric_factor.default, arguments)


def test_compiles_full_graph(device, random_tensor):
    arguments = make_arguments(random_tensor, 3, 4, [6, 5], device=device)
    compiled = torch.compile(lambda *a: ops.relu_metric_factor(*a).sum(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), ops.relu_metric_factor(*arguments).sum())


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_autograd_is_refused(device, random_tensor, position):
    arguments = make_arguments(random_tensor, 2, 3, [5, 4], device=device)
    part = arguments[position]
    (part[0] if isinstance(part, list) else part).requires_grad_()
    with pytest.raises(RuntimeError, match="relu_metric_factor has no derivative .*: FisherMetric differentiates"):
        ops.relu_metric_factor(*arguments)
    with torch.no_grad():
        assert not ops.relu_metric_factor(*arguments).requires_grad


F, W, V1, V2, G = torch.zeros(5, 3), torch.zeros(4, 5), torch.zeros(2, 5), torch.zeros(2, 4), torch.zeros(4, 4)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((F.half(), [W], [V1, V2], G), TypeError, "first must be float32 or float64, got torch.float16"),
        ((F, [W.double()], [V1, V2], G), TypeError, r"weights\[0\] must have dtype torch.float32"),
        ((F, [W], [V1, None], G), TypeError, r"values\[1\] must be a Tensor, got NoneType"),
        ((F[0], [W], [V1, V2], G), ValueError, r"first must have shape \[any, any\], got \[3\]"),
        ((F, [W], [V1], G), ValueError, "one tensor of values for first and each of the 1 weights, got 1"),
        ((F, [W.t()], [V1, V2], G), ValueError, r"weights\[0\] must have shape \[any, 5\], got \[5, 4\]"),
        ((F, [W], [V1, V2[:1]], G), ValueError, r"values\[1\] must have shape \[2, 4\], got \[1, 4\]"),
        ((F, [W], [V1, V2], G[:3]), ValueError, r"gram must have shape \[4, 4\], got \[3, 4\]"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.relu_metric_factor(*args)
