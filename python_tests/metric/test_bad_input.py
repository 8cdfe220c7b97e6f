"""What FisherMetric refuses, and how it says it: argument, expected, received."""

import pytest
import torch
from metric_cases import Case
from torch import nn

from fisherkernels import FisherMetric

N, d, D = 3, 2, 4


def construct(**changes):
    arguments = {"decoder": nn.Linear(d, D), "mean": torch.randn(N, d), "noise_variance": 0.5} | changes
    return FisherMetric(arguments.pop("decoder"), arguments.pop("mean"), arguments.pop("noise_variance"), **arguments)


class Scalar(nn.Module):
    def forward(self, z):
        return z.sum()


class Pair(nn.Module):
    def forward(self, z):
        return z, 2 * z


CONSTRUCTOR = {
    "no module": ({"decoder": torch.sin}, TypeError, "torch.nn.Module"),
    "data-parallel": ({"decoder": nn.DataParallel(nn.Linear(d, D))}, TypeError, "DataParallel"),
    "no batch in the output": ({"decoder": Scalar()}, ValueError, r"decoder: expected an output \[3, \.\.\.\].*\[\]"),
    "two outputs": ({"decoder": Pair()}, ValueError, r"decoder: expected an output.*received tuple"),
    "other rows": ({"decoder": nn.Flatten(0)}, ValueError, r"decoder: expected an output \[3, \.\.\.\].*\[6\]"),
    "width": ({"mean": torch.randn(N, 5)}, ValueError, r"decoder: expected a network that takes.*\[3, 5\]"),
    "mean a list": ({"mean": [[0.0, 0.0]]}, TypeError, r"mean: expected a tensor \[N, d\], received list"),
    "mean 1-d": ({"mean": torch.randn(d)}, ValueError, r"mean: expected shape \[N, d\], received \[2\]"),
    "mean of a stack": ({"mean": torch.randn(1, N, d)}, ValueError, r"mean: expected shape \[N, d\].*\[1, 3, 2\]"),
    "integers": ({"mean": torch.ones(N, d, dtype=torch.int64)}, TypeError, "mean: expected float32.*int64"),
    "mixed dtypes": ({"decoder": nn.Linear(d, D).double()}, TypeError, "decoder: expected parameters of dtype"),
    "zero noise": ({"noise_variance": 0.0}, ValueError, "noise_variance: expected a finite number > 0, received 0.0"),
    "negative noise": ({"noise_variance": -1}, ValueError, "noise_variance: expected.*> 0, received -1"),
    "nan noise": ({"noise_variance": float("nan")}, ValueError, "noise_variance: expected.*nan"),
    "infinite noise": ({"noise_variance": float("inf")}, ValueError, "noise_variance: expected.*inf"),
    "text noise": ({"noise_variance": "1"}, TypeError, "noise_variance: expected a float or a tensor, received str"),
    "zero in noise": (
        {"noise_variance": torch.tensor([1.0, 1.0, 0.0, 1.0])},
        ValueError,
        "noise_variance: expected values > 0, received a smallest value of 0",
    ),
    "nan in noise": ({"noise_variance": torch.tensor(float("nan"))}, ValueError, "noise_variance: expected values > 0"),
    "noise shape": (
        {"noise_variance": torch.ones(5)},
        ValueError,
        r"noise_variance: expected.*\[4\].*\[3, 1\].*\[3, 4\].*received shape \[5\]",
    ),
    "noise per sample without a column": ({"noise_variance": torch.ones(N)}, ValueError, r"received shape \[3\]"),
    "noise dtype": ({"noise_variance": torch.ones(()).double()}, TypeError, "noise_variance: expected dtype"),
    "noise device": ({"noise_variance": torch.ones((), device="meta")}, ValueError, "noise_variance: expected device"),
    "statistics": ({"batch_statistics": "running"}, ValueError, "batch_statistics.*'running'"),
    "budget": ({"memory_budget": 0}, ValueError, "memory_budget: expected an int >= 1, received 0"),
}


@pytest.mark.parametrize("name", CONSTRUCTOR)
def test_constructor(name):
    changes, error, message = CONSTRUCTOR[name]
    with pytest.raises(error, match=message):
        construct(**changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_reason(dtype):
    with pytest.raises(TypeError, match="mean: expected float32 or float64.*condition number"):
        construct(decoder=nn.Linear(d, D).to(dtype), mean=torch.randn(N, d).to(dtype))


def test_autocast_does_not_reach_the_metric_in_half_precision():
    """Either the metric comes out in float32, or the refusal says what to do."""
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="decoder's output: expected dtype"):
        construct()


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(d, 5), nn.BatchNorm1d(5), nn.Linear(5, D)

    def forward(self, z):
        return self.last(self.norm(self.first(z)))


def test_train_mode_batch_norm_is_refused_by_name():
    decoder = Coupled()
    with pytest.raises(ValueError, match='decoder: .*norm.*train mode.*batch_statistics="frozen"'):
        construct(decoder=decoder)
    construct(decoder=decoder, batch_statistics="frozen").sample()
    decoder.eval()
    construct(decoder=decoder).sample()


CALLS = {
    "v width": ("matvec", (torch.ones(N, 3),), {}, ValueError, r"v: expected shape \[3, 2\] or a stack.*\[3, 3\]"),
    "v rows": ("matvec", (torch.ones(1, d),), {}, ValueError, r"v: expected shape \[3, 2\].*\[1, 2\]"),
    "v 1-d": ("matvec", (torch.ones(d),), {}, ValueError, r"v: expected shape \[3, 2\].*\[2\]"),
    "v dtype": ("matvec", (torch.ones(N, d).double(),), {}, TypeError, "v: expected dtype torch.float32"),
    "v a number": ("matvec", (1.0,), {}, TypeError, "v: expected a tensor.*received float"),
    "b shape": ("solve", (torch.ones(2, 2, 2),), {}, ValueError, r"b: expected shape \[3, 2\].*\[2, 2, 2\]"),
    "b 4-d": ("solve", (torch.ones(1, 1, N, d),), {}, ValueError, r"b: expected shape.*\[1, 1, 3, 2\]"),
    "b dtype": ("solve", (torch.ones(N, d).double(),), {}, TypeError, "b: expected dtype torch.float32"),
    "method": ("sample", (), {"method": "lu"}, ValueError, "method: expected one of 'auto', 'cg', 'cholesky'.*'lu'"),
    "gradient": ("sample", (), {"gradient": "none"}, ValueError, "gradient: expected one of 'full', 'mean'.*'none'"),
    "tol 0": ("sample", (), {"tol": 0.0}, ValueError, "tol: expected.*> 0, received 0.0"),
    "tol 1": ("sample", (), {"tol": 1.0}, ValueError, r"tol: expected.*\(0, 1\), received 1.0"),
    "tol nan": ("sample", (), {"tol": float("nan")}, ValueError, "tol: expected.*nan"),
    "tol text": ("sample", (), {"tol": "small"}, TypeError, "tol: expected.*str"),
    "max_iter 0": ("sample", (), {"max_iter": 0}, ValueError, "max_iter: expected an int >= 1, received 0"),
    "max_iter 2.5": ("sample", (), {"max_iter": 2.5}, TypeError, "max_iter: expected an int >= 1, received float"),
    "no samples": ("sample", (0,), {}, ValueError, "num_samples: expected an int >= 1, received 0"),
    "odd mirrored": ("sample", (3,), {"mirrored": True}, ValueError, "num_samples: expected an even.*received 3"),
    "noise a tensor": ("sample", (), {"noise": torch.ones(1, N, d)}, TypeError, "noise: expected a pair.*Tensor"),
    "noise a triple": ("sample", (), {"noise": (torch.ones(1, N, d),) * 3}, TypeError, "noise: expected a pair.*tuple"),
    "data noise": (
        "sample",
        (),
        {"noise": (torch.ones(1, N, d), torch.ones(1, N, d))},
        ValueError,
        r"noise: expected shape \[1, 3, 4\] on the data side, received \[1, 3, 2\]",
    ),
    "latent noise": (
        "sample",
        (),
        {"noise": (torch.ones(1, N, D), torch.ones(1, N, D))},
        ValueError,
        r"noise: expected shape \[1, 3, 2\] on the latent side, received \[1, 3, 4\]",
    ),
    "noise of all mirrored": (
        "sample",
        (2,),
        {"noise": (torch.ones(2, N, D), torch.ones(2, N, d)), "mirrored": True},
        ValueError,
        r"noise: expected shape \[1, 3, 4\].*received \[2, 3, 4\]",
    ),
    "noise dtype": (
        "sample",
        (),
        {"noise": (torch.ones(1, N, D).double(), torch.ones(1, N, d))},
        TypeError,
        "noise: expected dtype torch.float32",
    ),
    "noise None inside": ("sample", (), {"noise": (None, None)}, TypeError, "noise: expected a tensor.*NoneType"),
    "logdet method": ("logdet", ("lu",), {}, ValueError, "method: expected one of 'auto', 'exact', 'lanczos'.*'lu'"),
    "num_probes": ("logdet", ("lanczos",), {"num_probes": 0}, ValueError, "num_probes: expected an int >= 1"),
    "num_steps": ("logdet", ("lanczos",), {"num_steps": 0}, ValueError, "num_steps: expected an int >= 1"),
    "probes": ("logdet", ("lanczos",), {"noise": torch.ones(8, 1, d)}, ValueError, r"noise: expected.*\[8, 1, 2\]"),
}


@pytest.mark.parametrize("name", CALLS)
def test_methods(name):
    method, arguments, options, error, message = CALLS[name]
    with pytest.raises(error, match=message):
        getattr(construct(), method)(*arguments, **options)


def test_solver_options_are_checked_for_both_routes():
    case = Case()
    for method in ("cg", "cholesky"):
        with pytest.raises(ValueError, match="tol: expected"):
            case.metric.solve(case.vectors(), method=method, tol=-1.0)
