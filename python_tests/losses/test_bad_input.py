"""What the losses refuse, and how they say it: argument, expected, received."""

import pytest
import torch
from torch import nn

from fisherkernels.losses import elbo_loss, fisher_ae_loss, fisher_shannon_loss, inference_loss, score_matching_loss
from fisherkernels.priors import PolynomialExponentialFamily

N, D, d = 3, 4, 2
LOSSES = [elbo_loss, fisher_ae_loss, fisher_shannon_loss, inference_loss, score_matching_loss]
every = pytest.mark.parametrize("loss", LOSSES)


def arguments(**changes):
    """Arguments that work, with changes."""
    good = {"encoder": nn.Linear(D, 2 * d), "decoder": nn.Linear(d, D), "x": torch.rand(N, D)}
    good |= changes
    return (good.pop("encoder"), good.pop("decoder"), good.pop("x")), good


class Returns(nn.Module):
    """Ignores its input."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result


CASES = {
    "odd columns": ({"encoder": nn.Linear(D, 5)}, ValueError, r"encoder: expected.*\[3, 2d\].*\[3, 5\]"),
    "no columns": ({"encoder": nn.Linear(D, 0)}, ValueError, r"encoder: expected.*\[3, 2d\].*\[3, 0\]"),
    "unflattened": (
        {"encoder": nn.Sequential(nn.Linear(D, 4), nn.Unflatten(1, (4, 1, 1)))},
        ValueError,
        r"encoder: expected.*\[3, 2d\].*\[3, 4, 1, 1\]",
    ),
    "unequal pair": (
        {"encoder": Returns((torch.rand(N, 2), torch.rand(N, 3)))},
        ValueError,
        r"encoder: expected mean and log_std.*\[3, d\].*\[3, 2\] and \[3, 3\]",
    ),
    "three outputs": (
        {"encoder": Returns((torch.rand(N, 2),) * 3)},
        TypeError,
        r"encoder: expected a tensor \[N, 2d\] or a pair.*tuple of 3",
    ),
    "wrong latent width": (
        {"decoder": nn.Linear(3, D)},
        ValueError,
        r"decoder: expected a network that takes latent samples of shape \[3, 2\]",
    ),
    "wrong output": (
        {"decoder": nn.Linear(d, 5)},
        ValueError,
        r"decoder: expected an output of shape \[3, 4\].*\[3, 5\]",
    ),
    "flat output for images": (
        {"x": torch.rand(N, 1, 2, 2), "encoder": nn.Sequential(nn.Flatten(), nn.Linear(D, 4))},
        ValueError,
        r"decoder: expected an output of shape \[3, 1, 2, 2\].*\[3, 4\]",
    ),
    "tuple from decoder": (
        {"decoder": Returns((torch.rand(N, D),))},
        TypeError,
        "decoder: expected a tensor.*tuple",
    ),
    "x of another width": (
        {"x": torch.rand(N, 7)},
        ValueError,
        r"encoder: expected a network that takes x of shape \[3, 7\]",
    ),
    "mixed dtypes": (
        {"x": torch.rand(N, D, dtype=torch.float64)},
        TypeError,
        "encoder: expected parameters of dtype torch.float64.*received torch.float32",
    ),
    "mixed dtypes in decoder": (
        {"decoder": nn.Linear(d, D).double()},
        TypeError,
        "decoder: expected parameters of dtype torch.float32.*received torch.float64",
    ),
    "mixed output dtypes": (
        {"encoder": Returns(torch.rand(N, 2 * d, dtype=torch.float64))},
        TypeError,
        "encoder's mean: expected dtype torch.float32, that of x, received torch.float64",
    ),
    "mixed devices": (
        {"encoder": nn.Linear(D, 2 * d, device="meta")},
        ValueError,
        "encoder: expected parameters on cpu.*received meta",
    ),
    "noise dtype": (
        {"noise": torch.randn(N, d, dtype=torch.float64)},
        TypeError,
        "noise: expected dtype torch.float32.*received torch.float64",
    ),
    "noise device": (
        {"noise": torch.randn(N, d, device="meta")},
        ValueError,
        "noise: expected device cpu.*received meta",
    ),
    "noise shape": (
        {"noise": torch.randn(2, N, d)},
        ValueError,
        r"noise: expected shape \[1, 3, 2\].*received \[2, 3, 2\]",
    ),
    "noise without samples": (
        {"noise": torch.randn(N, d), "num_samples": 2},
        ValueError,
        r"noise: expected shape \[2, 3, 2\].*received \[3, 2\]",
    ),
    "noise a number": ({"noise": 1.0}, TypeError, "noise: expected a tensor.*received float"),
    "zero variance": ({"variance": 0.0}, ValueError, "variance: expected a finite number > 0, received 0.0"),
    "negative variance": (
        {"variance": -1},
        ValueError,
        "variance: expected a finite number > 0, received -1",
    ),
    "nan variance": ({"variance": float("nan")}, ValueError, "variance: expected a finite.*received nan"),
    "infinite variance": (
        {"variance": float("inf")},
        ValueError,
        "variance: expected a finite.*received inf",
    ),
    "text variance": ({"variance": "1"}, TypeError, "variance: expected a float or a tensor, received str"),
    "zero in variance": (
        {"variance": torch.tensor([1.0, 0.0, 1.0, 1.0])},
        ValueError,
        "variance: expected values > 0, received a smallest value of 0",
    ),
    "nan in variance": (
        {"variance": torch.tensor(float("nan"))},
        ValueError,
        "variance: expected values > 0.*nan",
    ),
    "variance shape": (
        {"variance": torch.ones(3)},
        ValueError,
        r"variance: expected a float or a tensor of shape \[\], \[4\].*received shape \[3\]",
    ),
    "variance dtype": (
        {"variance": torch.ones(4, dtype=torch.float64)},
        TypeError,
        "variance: expected dtype torch.float32.*received torch.float64",
    ),
    "variance device": (
        {"variance": torch.ones(4, device="meta")},
        ValueError,
        "variance: expected device cpu.*received meta",
    ),
    "no samples": ({"num_samples": 0}, ValueError, "num_samples: expected an int >= 1, received 0"),
    "half a sample": ({"num_samples": 0.5}, TypeError, "num_samples: expected an int >= 1, received float"),
    "reduction": ({"reduction": "average"}, ValueError, "reduction: expected one of 'mean'.*'average'"),
    "integer images": (
        {"x": torch.zeros(N, D, dtype=torch.uint8)},
        TypeError,
        "x: expected a floating-point tensor, received dtype torch.uint8; scale integer images to floats",
    ),
    "list of data": ({"x": [[0.1]]}, TypeError, "x: expected a floating-point tensor.*received list"),
    "no batch dimension": (
        {"x": torch.rand(D)},
        ValueError,
        r"x: expected a batch.*at least 2 dimensions, received shape \[4\]",
    ),
    "no network": ({"encoder": None}, TypeError, "encoder: expected a torch.nn.Module, received NoneType"),
}


@every
@pytest.mark.parametrize("case", CASES)
def test_common_arguments(loss, case):
    changes, error, message = CASES[case]
    positional, options = arguments(**changes)
    with pytest.raises(error, match=message):
        loss(*positional, **options)


class Lazy:
    def score(self, z):
        return z[:, :1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"prior": 3},
            TypeError,
            r"prior: expected None or an object with a method score\(z\), received int",
        ),
        ({"prior": PolynomialExponentialFamily(3, 2)}, ValueError, "prior: expected d = 2.*received d = 3"),
        (
            {"prior": PolynomialExponentialFamily(2, 2).double()},
            TypeError,
            "prior: expected dtype torch.float32.*received torch.float64",
        ),
        ({"prior": Lazy()}, ValueError, r"prior: expected score\(z\).*\[3, 2\], received \[3, 1\]"),
        ({"decoder_gradient": "half"}, ValueError, "decoder_gradient: expected one of 'full'.*'half'"),
        ({"stability": True}, ValueError, "stability: expected one of 'posterior'.*True"),
    ],
)
def test_fisher_ae_arguments(options, error, message):
    positional, _ = arguments()
    with pytest.raises(error, match=message):
        fisher_ae_loss(*positional, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"likelihood": "poisson"}, ValueError, "likelihood: expected one of 'gaussian'.*'poisson'"),
        ({"beta": -1.0}, ValueError, "beta: expected a finite number >= 0, received -1.0"),
        ({"beta": torch.tensor(-1.0)}, ValueError, "beta: expected a value >= 0, received -1.0"),
        (
            {"beta": torch.ones(2)},
            ValueError,
            r"beta: expected a float or a 0-d tensor, received shape \[2\]",
        ),
        (
            {"likelihood": "bernoulli_logits", "variance": 0.5},
            ValueError,
            "variance: expected to be left at 1.0 with likelihood='bernoulli_logits'",
        ),
        (
            {"likelihood": "bernoulli_logits", "x": 255 * torch.ones(N, D)},
            ValueError,
            r"x: expected values in \[0, 1\].*from 255 to 255",
        ),
        (
            {"likelihood": "bernoulli", "decoder": nn.Sequential(nn.Linear(d, D), nn.Threshold(1e9, 2.0))},
            ValueError,
            r"decoder's output: expected values in \[0, 1\].*from 2 to 2",
        ),
    ],
)
def test_elbo_arguments(options, error, message):
    positional, options = arguments(**options)
    with pytest.raises(error, match=message):
        elbo_loss(*positional, **options)


@every
def test_another_error_of_a_network_is_passed_on(loss):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("the disk is full")

    positional, _ = arguments(encoder=Fails())
    with pytest.raises(RuntimeError, match="^the disk is full$"):
        loss(*positional)


@every
def test_wrong_arguments_are_refused_compiled_too(loss):
    positional, _ = arguments()

    def call(num_samples, variance):
        return loss(*positional, num_samples=num_samples, variance=variance).loss

    with pytest.raises(Exception, match="num_samples: expected an int >= 1"):
        torch.compile(call, backend="eager", fullgraph=True)(0, 1.0)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="variance: expected a finite number > 0"):
        torch.compile(call, backend="eager", fullgraph=True)(1, -1.0)
