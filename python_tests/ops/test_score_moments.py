import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops


def oracle(scores):
    samples = scores.shape[0]
    gram = torch.einsum("snd,tnd->nst", scores, scores)
    return gram.diagonal(dim1=1, dim2=2).sum(1) / samples, gram.sum((1, 2)) / samples**2


def laid_out(scores, layout):
    """The same numbers in other strides."""
    if layout == "transposed":
        return scores.movedim(0, 2).contiguous().movedim(2, 0)
    if layout == "strided":
        return torch.stack([scores, scores.neg()], dim=3)[..., 0]
    return scores


@given(
    samples=st.sampled_from([1, 2, 5, 20]),
    rows=st.sampled_from([0, 1, 2, 63]),
    columns=st.sampled_from([0, 1, 7, 64, 300, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_value_and_gradients(device, random_tensor, check_against, samples, rows, columns, dtype, layout):
    scores = laid_out(random_tensor((samples, rows, columns), dtype, device), layout)
    check_against(ops.score_moments, oracle, [scores])


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output(device, random_tensor, check_against, output):
    scores = random_tensor((3, 5, 9), device=device)
    check_against(lambda t: ops.score_moments(t)[output], lambda t: oracle(t)[output], [scores])


def test_rows_longer_than_a_thousand_packs(device, random_tensor, check_against):
    check_against(ops.score_moments, oracle, [random_tensor((2, 3, 4500), torch.float32, device)])


def test_one_sample_has_equal_moments(device, random_tensor):
    mean_square, square_mean = ops.score_moments(random_tensor((1, 7, 300), torch.float32, device))
    assert torch.equal(mean_square, square_mean)


def test_bfloat16_is_summed_in_float32(device, random_tensor):
    scores = random_tensor((4, 3, 2000), torch.bfloat16, device)
    for value, expected in zip(ops.score_moments(scores), oracle(scores.double()), strict=True):
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


def test_nan_stays_in_its_row(device, random_tensor):
    scores = random_tensor((3, 4, 5), torch.float32, device)
    clean = ops.score_moments(scores)
    scores[1, 2, 3] = float("nan")
    bad = torch.tensor([False, False, True, False], device=device)
    for value, before in zip(ops.score_moments(scores), clean, strict=True):
        assert torch.equal(value.isnan(), bad)
        assert torch.equal(value[~bad], before[~bad])


def test_bad_input():
    with pytest.raises(ValueError, match=r"scores must have shape \[samples, rows, columns\].*, got \[2, 3\]"):
        ops.score_moments(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"with at least one sample, got \[0, 3, 4\]"):
        ops.score_moments(torch.ones(0, 3, 4))
    with pytest.raises(TypeError, match="scores must be float32, float64 or bfloat16, got torch.int64"):
        ops.score_moments(torch.ones(2, 2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="scores must be a Tensor, got list"):
        ops.score_moments([[[1.0]]])
