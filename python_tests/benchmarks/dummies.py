"""A case with contenders whose faults are known."""

import torch

from benchmarks.case import Case, Contender


def _contender(name, function, **keywords):
    return Contender(name, lambda device, dtype: function, **keywords)


def _right(x, y):
    return x * y, (x + y, x - y)


def _off_by(factor):
    return lambda x, y: (x * y * factor, (x + y, x - y))


def _with_nan(x, y):
    product = (x * y).clone()
    product[0] = torch.nan
    return product, (x + y, x - y)


def _raises(x, y):
    raise RuntimeError("graph break\nlong explanation")


def _other_computation(x, y):
    return x / y, (x, y)


CASE = Case(
    name="dummy",
    title="[7]",
    inputs=lambda generator: (torch.rand(7, generator=generator), torch.rand(7, generator=generator) + 1),
    reference=lambda device, dtype: _right,
    contenders=(
        _contender("ours", _right),
        _contender("rounded", _off_by(1 + 1e-7)),
        _contender("wrong", _off_by(1.001)),
        _contender("nan", _with_nan),
        _contender("raises", _raises),
        _contender("wrong shape", lambda x, y: ((x * y)[:-1], (x + y, x - y))),
        _contender("too few", lambda x, y: (x * y,)),
        _contender("other", _other_computation, reference=lambda device, dtype: _other_computation),
    ),
    outputs=("product", "pair"),
    bytes_moved=3 * 7 * 4,
    traffic="three arrays of 7",
)
