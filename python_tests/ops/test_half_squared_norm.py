import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops


def oracle(t):
    return 0.5 * torch.einsum("ij,ij->i", t.flatten(1), t.flatten(1))


@given(
    rows=st.sampled_from([0, 1, 2, 63]),
    columns=st.sampled_from([0, 1, 7, 64, 300, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_value_and_gradients(device, random_tensor, check_against, rows, columns, dtype, layout):
    check_against(ops.half_squared_norm, oracle, [random_tensor((rows, columns), dtype, device, layout)])


@pytest.mark.parametrize("shape", [(5,), (4, 3, 2, 5)])
def test_any_shape_of_row(device, random_tensor, check_against, shape):
    t = random_tensor(shape, device=device)
    check_against(ops.half_squared_norm, lambda t: 0.5 * (t * t).reshape(shape[0], -1).sum(1), [t])


def test_bad_input():
    with pytest.raises(ValueError, match=r"t must have at least one dimension \[rows, ...\], got shape \[\]"):
        ops.half_squared_norm(torch.tensor(1.0))
    with pytest.raises(TypeError, match="t must be float32, float64 or bfloat16, got torch.int64"):
        ops.half_squared_norm(torch.ones(2, 2, dtype=torch.int64))
