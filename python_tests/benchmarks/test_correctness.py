import math
from dataclasses import replace

import pytest
import torch

from benchmarks.correctness import Gate, WrongResult, relative_rms
from benchmarks.suites import case as find_case
from benchmarks.suites import cases

from .dummies import CASE


def _gate(dtype=torch.float32, case=CASE):
    return Gate(case, torch.device("cpu"), dtype, seed=1)


@pytest.mark.parametrize("name", ["ours", "rounded", "other"])
def test_right_contenders_pass(name):
    contender = CASE.contender(name)
    errors = _gate().check(contender, contender.build(None, None))
    assert set(errors) == {"product", "pair"}
    assert all(error < 1e-6 for error in errors.values())


@pytest.mark.parametrize("name", ["wrong", "nan", "wrong shape", "too few"])
def test_wrong_contenders_are_refused(name):
    contender = CASE.contender(name)
    with pytest.raises(WrongResult):
        _gate().check(contender, contender.build(None, None))


def test_float64_is_checked_at_its_own_tolerance_and_size():
    tolerances = {torch.float32: 1e-5, torch.float64: 1e-9}
    case = replace(CASE, tolerances=tolerances, exact_inputs=lambda g: (torch.rand(3, generator=g), torch.ones(3)))
    assert [len(t) for t in _gate(torch.float64, case).inputs] == [3, 3]
    assert [len(t) for t in _gate(torch.float32, case).inputs] == [7, 7]
    contender = CASE.contender("rounded")
    _gate(torch.float32, case).check(contender, contender.build(None, None))
    with pytest.raises(WrongResult, match="product: relative RMS error 1e-07 in float64, allowed 1e-09"):
        _gate(torch.float64, case).check(contender, contender.build(None, None))


def test_a_solution_is_refused_for_its_median_residual():
    def residual(x, y, product):
        assert product.dtype == torch.float64
        return (product - x * y).abs() + 1e-3

    contender = CASE.contender("ours")
    run = contender.build(None, None)
    case = replace(CASE, residual=residual, residual_limit=2e-3)
    errors = _gate(case=case).check(contender, run)
    assert errors["median residual"] == pytest.approx(1e-3, rel=1e-3) and errors["worst residual"] < 2e-3
    with pytest.raises(WrongResult, match="median relative residual 0.001, allowed 5e-04"):
        _gate(case=replace(case, residual_limit=5e-4)).check(contender, run)


def test_relative_rms_is_over_all_elements_of_a_tuple():
    reference = (torch.tensor([3.0]), torch.tensor([4.0]))
    assert relative_rms((torch.tensor([3.0]), torch.tensor([4.5])), reference) == pytest.approx(0.1)


def test_relative_rms_of_bad_outputs():
    ones, zeros = torch.ones(2), torch.zeros(2)
    assert math.isnan(relative_rms(torch.tensor([1.0, torch.nan]), ones))
    assert math.isnan(relative_rms(torch.tensor([1.0, torch.inf]), ones))
    assert math.isnan(relative_rms(torch.ones(1, 2), ones))
    assert relative_rms(zeros, zeros) == 0
    assert relative_rms(ones, zeros) == math.inf


@pytest.mark.parametrize("name", ["gaussian_score", "gaussian_score_full", "posterior_residual", "stability"])
def test_ops_and_their_rivals_compute_the_same(name):
    """In float64, where any disagreement in formula shows, on the first 63 rows."""
    found = find_case(name)
    inputs = [t.double() for t in found.inputs(torch.Generator().manual_seed(0))]
    rows = inputs[0].shape[0]
    inputs = [t[:63] if t.shape[:1] == (rows,) else t for t in inputs]
    names = ("ours", "eager autograd")
    ours, eager = (found.contender(name).build(torch.device("cpu"), torch.float64) for name in names)
    for o, e in zip(ours(*inputs), eager(*inputs), strict=True):
        assert relative_rms(o, e) < 1e-12


def test_an_unknown_suite_or_case_is_named():
    with pytest.raises(ValueError, match="suite must be one of .* got 'nets'"):
        cases("nets")
    with pytest.raises(ValueError, match="no case is named 'nets'"):
        find_case("nets")
    with pytest.raises(ValueError, match="contender must be one of .* got 'theirs'"):
        CASE.contender("theirs")
