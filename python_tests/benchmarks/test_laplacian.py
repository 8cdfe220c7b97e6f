import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as cli
from benchmarks import runner, suites
from benchmarks.case import TF32_TOLERANCE, with_tf32
from benchmarks.correctness import Gate
from benchmarks.laplacian import floors
from benchmarks.laplacian.cases import CASES, build, laplacian_case
from benchmarks.laplacian.nets import mlp, weights_of
from benchmarks.laplacian.routes import forward_by_hand, reduced_by_hand

CPU, N = torch.device("cpu"), 3
NETS = (("tanh", (4, 6, 5, 1)), ("SiLU", (7, 5, 4, 1)), ("tanh", (7, 5, 4, 1)))
EAGER = (
    "ours",
    "vmap(hessian), trace",
    "loop of Hessian-vector products",
    "forward Laplacian by hand",
    "torch-jet, simplified",
    "folx",
)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("name", EAGER)
def test_every_way_has_the_exact_laplacian_and_gradients(name, net, backward):
    case = laplacian_case(backward, *net, batch=N)
    contender = case.contender(name)
    if missing := contender.missing():
        pytest.skip(f"{missing} is not installed")
    errors = Gate(case, CPU, torch.float64, seed=1).check(contender, contender.build(CPU, torch.float64))
    layers = len(net[1]) - 1
    assert len(errors) == (1 + 2 * layers if backward else 1)
    assert all(error < 1e-11 for error in errors.values())


@pytest.mark.parametrize("backward", [False, True])
def test_reduced_tangents_by_hand_are_exact_and_only_there_where_they_are_fewer(backward):
    case = laplacian_case(backward, *NETS[1], batch=N)
    reduced = [contender for contender in case.contenders if "reduced" in contender.name]
    run = build(reduced_by_hand, backward, *NETS[1])(CPU, torch.float64)
    assert len(reduced) == 1 and Gate(case, CPU, torch.float64, seed=1).check(reduced[0], run)
    assert not [c for c in laplacian_case(backward, *NETS[0], batch=N).contenders if "reduced" in c.name]


def test_the_reference_is_the_trace_of_an_explicit_hessian():
    case = laplacian_case(False, *NETS[0], batch=N)
    (x,) = (t.double() for t in case.inputs(torch.Generator().manual_seed(0)))
    W, b, V, c, U, _ = _parameters(NETS[0])

    def scalar(item):
        return (U @ torch.tanh(V @ torch.tanh(W @ item + b) + c)).sum()

    expected = [torch.autograd.functional.hessian(scalar, item).trace() for item in x]
    torch.testing.assert_close(case.reference(CPU, torch.float64)(x)[0], torch.stack(expected)[:, None])


@pytest.mark.parametrize("backward", [False, True])
def test_floor_is_what_the_way_by_hand_multiplies(backward):
    """But for the reduction of the tangents: the counter sees the whole Gram matrix, autograd multiplies by either of
    its factors, and of the Cholesky factor there is one product in its backward pass alone.
    """
    for net in NETS[:2]:
        activation, (n, h, *rest) = net
        prepare = reduced_by_hand if n > h else forward_by_hand
        run = build(prepare, backward, *net)(CPU, torch.float32)
        with FlopCounterMode(display=False) as counter:
            run(torch.randn(N, n))
        floor = (floors.backward if backward else floors.forward)((n, h, *rest), N)
        passes = 3 if backward else 1
        reduction = passes * 2 * h * h * n + backward * 2 * h**3 if n > h else 0
        assert counter.get_total_flops() - reduction == pytest.approx(floor - passes * floors.reduction(n, h))


def test_more_tangents_than_units_cost_no_more():
    def between(n):
        first = 2 * N * n * 20
        return floors.forward((n, 20, 30, 1), N) - first - floors.reduction(n, 20)

    assert between(10) < between(20) == pytest.approx(between(21)) == pytest.approx(between(1000))


def test_a_missing_peer_is_left_out_and_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "jet.laplacian", None)
    case = laplacian_case(False, *NETS[0], batch=N)
    kept = tuple(case.contender(name) for name in ("ours", "torch-jet, simplified"))
    said = []
    record = runner.measure(
        replace(case, contenders=kept), CPU, 1, with_memory=False, say=lambda text, **_: said.append(text)
    )
    assert set(record["contenders"]["torch-jet, simplified"]) == {"relative_rms_error", "not installed"}
    assert "seconds" in record["contenders"]["ours"]
    assert any("to measure it install jet-for-pytorch" in line for line in said)


def test_memory_that_torch_does_not_see_is_not_reported(monkeypatch):
    monkeypatch.setattr(runner, "draw", lambda *_: ())
    monkeypatch.setattr(runner.memory, "peak_on_cuda", lambda *_: 7)
    peaks = {c.name: runner._peak(CASES[0], c, None, torch.device("cuda"), None) for c in CASES[0].contenders}
    assert peaks.pop("folx") is None and set(peaks.values()) == {7}


def test_the_suite_holds_every_case_forward_and_backward_and_the_large_one_is_for_gpus():
    found = suites.cases("laplacian")
    assert found == list(CASES) and len({case.name for case in found}) == len(found) == 8
    assert [case.name for case in found if "cpu" not in case.devices] == [
        "laplacian_2048_50",
        "laplacian_backward_2048_50",
    ]
    for case in found:
        assert case.outputs[0] == "laplacian" and (len(case.outputs) > 1) == ("backward" in case.name)


def test_tf32_is_checked_at_its_own_tolerance_and_only_on_gpus():
    case = CASES[0]
    loose = with_tf32(case)
    assert loose.tolerances == case.tolerances | {torch.float32: TF32_TOLERANCE}
    with pytest.raises(SystemExit, match="--tf32 needs --device cuda"):
        cli.main(["run", "--suite", "laplacian", "--tf32"])


def _parameters(net):
    return tuple(w.detach().double() for w in weights_of(mlp(*net)))
