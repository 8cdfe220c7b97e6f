"""Which products are taken for large weights is measured once."""

import pytest
import torch

from fisherkernels.linearize import pace


@pytest.mark.parametrize("seconds, expected", [((1.0, 2.0), True), ((1.0, 1.1), False), ((2.0, 1.0), False)])
def test_only_where_clearly_faster(monkeypatch, seconds, expected):
    """Ours, then torch's; a graph takes the answer as a constant."""
    left = list(seconds)
    monkeypatch.setattr(pace, "shortest_time", lambda function, repeats: function() is None or left.pop(0))
    pace._measured.cache_clear()
    try:
        assert pace.sweeps_outrun_torch() is expected
        compiled = torch.compile(lambda x: x + pace.sweeps_outrun_torch(), fullgraph=True, backend="eager")
        assert compiled(torch.zeros(())) == expected
        assert left == []
    finally:
        pace._measured.cache_clear()


def test_measured_cold_under_compile():
    pace._measured.cache_clear()
    compiled = torch.compile(lambda x: x + pace.sweeps_outrun_torch(), fullgraph=True, backend="aot_eager")
    assert compiled(torch.zeros(())) == pace.sweeps_outrun_torch()
