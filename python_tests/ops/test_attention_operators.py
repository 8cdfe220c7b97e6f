"""The product of scaled dot-product attention with a cotangent, and its backward pass, against double backward."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fisherkernels import ops
from fisherkernels.ops._attention_operators import AttentionPull, attention_pull

opset = torch.ops.fisherkernels
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 5, 7, 3, 4),
    (3, 17, 16, 16, 8),
    (2, 65, 130, 5, 33),
    (1, 64, 64, 64, 64),
    (2, 129, 3, 70, 1),
]
every_causal = pytest.mark.parametrize("causal", [False, True])


def make_arguments(random_tensor, sizes, dtype=torch.float64, device="cpu", layout=None):
    """Cotangent [N, L, e], query [N, L, d], key [N, S, d], value [N, S, e]; scores of about 1."""
    count, queries, keys, width, value_width = sizes
    shapes = (queries, value_width), (queries, width), (keys, width), (keys, value_width)
    return [random_tensor((count, *shape), dtype, device, layout) for shape in shapes]


def kept_of(query, key, dropped):
    """What dropout multiplies the weights with; some queries lose all."""
    if not dropped:
        return None
    generator = torch.Generator().manual_seed(3)
    sizes = *query.shape[:-1], key.shape[-2]
    return (torch.rand(sizes, generator=generator) > 0.4).to(query) / 0.6


def scale_of(query):
    return 1.5 / math.sqrt(query.shape[-1])


def oracle(causal, cotangent, query, key, value, dropped=False):
    """What autograd gives for attention in primitive operations."""
    inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in (query, key, value)]
    scores = scale_of(query) * (inputs[0] @ inputs[1].mT)
    if causal:
        later = torch.arange(key.shape[-2]) > torch.arange(query.shape[-2])[:, None]
        scores = scores.masked_fill(later.to(scores.device), -torch.inf)
    weights, kept = torch.softmax(scores, -1), kept_of(query, key, dropped)
    output = (weights if kept is None else weights * kept) @ inputs[2]
    return torch.autograd.grad(output, inputs, cotangent, create_graph=True)


def called(causal, cotangent, query, key, value, dropped=False):
    return attention_pull(cotangent, query, key, value, kept_of(query, key, dropped), scale_of(query), causal)


@given(
    sizes=st.sampled_from(SIZES),
    causal=st.booleans(),
    dropped=st.booleans(),
    used=st.lists(st.integers(0, 2), min_size=1, unique=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_values_and_gradients(device, random_tensor, check_against, sizes, causal, dropped, used, dtype, layout):
    """The loss uses all or some of the three."""
    args = make_arguments(random_tensor, sizes, dtype, device, layout)
    assume(sizes[2] > 1 and (sizes[1] > 1 or not causal))  # else all of the weight is on one key: nothing but rounding
    differentiable = [0, 1, 2] if used == [2] else None

    def part(function):
        return lambda *a: tuple(function(causal, *a, dropped)[i] for i in used)

    check_against(part(called), part(oracle), args, differentiable)


@every_causal
@pytest.mark.parametrize("dropped", [False, True])
def test_gradcheck(device, random_tensor, causal, dropped):
    args = [t.requires_grad_() for t in make_arguments(random_tensor, (2, 3, 4, 2, 3), device=device)]
    assert torch.autograd.gradcheck(lambda *a: called(causal, *a, dropped), args)
    assert torch.autograd.gradgradcheck(lambda *a: called(causal, *a, dropped), args)


@pytest.mark.parametrize("front", [(), (2,), (2, 3), (2, 1, 2)])
def test_leading_dimensions(device, random_tensor, front):
    args = [t.reshape(*front, *t.shape[1:]) for t in make_arguments(random_tensor, (math.prod(front), 5, 4, 3, 2))]
    for result, expected in zip(called(False, *args), oracle(False, *args), strict=True):
        torch.testing.assert_close(result, expected)


@every_causal
def test_one_key_gets_everything(device, random_tensor, causal):
    cotangent, *others = make_arguments(random_tensor, (2, 4, 1, 3, 5), device=device)
    to_query, to_key, to_value = called(causal, cotangent, *others)
    assert to_query.abs().max() < 1e-14 and to_key.abs().max() < 1e-14
    torch.testing.assert_close(to_value, cotangent.sum(1, keepdim=True))


def test_scores_far_apart(device, random_tensor):
    """Weights of 0 and 1, and scores whose exponentials overflow."""
    cotangent, query, key, value = make_arguments(random_tensor, (2, 6, 40, 8, 4), torch.float32, device)
    args = cotangent, 100 * query, 10 * key, value
    for result, expected in zip(called(False, *args), oracle(False, *(t.double() for t in args)), strict=True):
        assert (result - expected).norm() <= 1e-3 * expected.norm() + 1e-4
    to_value = called(False, *args)[2]
    torch.testing.assert_close(to_value.sum(1), cotangent.sum(1), rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_attention(device, random_tensor):
    args = make_arguments(random_tensor, (3, 5, 6, 4, 2), torch.float32, device)
    clean = called(True, *args)
    for position in range(4):
        poisoned = [t.clone() for t in args]
        poisoned[position][1, 2] = torch.nan
        for result, expected in zip(called(True, *poisoned), clean, strict=True):
            assert torch.equal(result[[0, 2]], expected[[0, 2]])
        assert any(result[1].isnan().any() for result in called(True, *poisoned))


@pytest.mark.parametrize("sizes", [(0, 3, 4, 2, 2), (2, 0, 4, 2, 2), (2, 3, 0, 2, 2), (2, 3, 4, 2, 0)])
def test_empty(device, random_tensor, sizes):
    args = [t.requires_grad_() for t in make_arguments(random_tensor, sizes, device=device)]
    results = called(False, *args)
    grads = torch.autograd.grad(sum(r.square().sum() for r in results), args)
    for found in (*results, *grads):
        assert not found.isnan().any() and not found.any()


@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=4))[:-1])
def test_some_need_gradients(device, random_tensor, needed):
    args = make_arguments(random_tensor, (2, 5, 4, 3, 2), device=device)
    args = [t.requires_grad_(n) for t, n in zip(args, needed, strict=True)]
    wanted = [t for t in args if t.requires_grad]
    found = []
    for run in (called, oracle):
        loss = sum(r.sin().sum() for r in run(False, *args))
        found.append(torch.autograd.grad(loss, wanted))
    for result, expected in zip(*found, strict=True):
        torch.testing.assert_close(result, expected)


def raw_calls(args, causal, dropped=False):
    rest = kept_of(*args[1:3], dropped), scale_of(args[1]), causal
    yield "attention_pull", (*args, *rest)
    tangents = [t.sin() for t in args[1:]]
    for absent in (None, 0, 1, 2):
        given = [None if i == absent else t for i, t in enumerate(tangents)]
        yield "attention_pull_backward", (*given, *args, *rest)


@every_causal
def test_kernels_agree_with_twins(random_tensor, causal):
    if not ops.backends()["cpu"].active:
        pytest.skip("no native cpu library")
    for sizes in SIZES:
        arguments = make_arguments(random_tensor, sizes)
        for name, args in (*raw_calls(arguments, causal), *raw_calls(arguments, causal, True)):
            results = getattr(opset, name)(*args)
            with ops.use_twins():
                expected = getattr(opset, name)(*args)
            torch.testing.assert_close(results, expected, rtol=1e-10, atol=1e-12)


@every_causal
def test_opcheck(device, random_tensor, causal):
    for name, args in raw_calls(make_arguments(random_tensor, (2, 3, 4, 2, 3), device=device), causal, causal):
        torch.library.opcheck(getattr(opset, name).default, args)


def test_not_differentiable_by_themselves(device, random_tensor):
    for name, args in raw_calls(make_arguments(random_tensor, (2, 3, 4, 2, 3), device=device), False):
        leaf = args[-6].detach().requires_grad_()
        with pytest.raises(RuntimeError, match=f"{name} has no derivative of its own: fisherkernels.linearize"):
            getattr(opset, name)(*args[:-6], leaf, *args[-5:])


def test_results_do_not_depend_on_the_number_of_threads(random_tensor):
    args = [t.requires_grad_() for t in make_arguments(random_tensor, (7, 70, 80, 9, 12), torch.float32)]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results = AttentionPull.apply(0.3, True, *args, kept_of(*args[1:3], True))
            found.append([*results, *torch.autograd.grad(sum(r.sin().sum() for r in results), args)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
