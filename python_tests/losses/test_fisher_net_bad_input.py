"""What fisher_net_loss refuses, and how it says it: argument, expected, received."""

import pytest
import torch
from torch import nn
from torch.nn import DataParallel

from fisherkernels.losses import fisher_net_loss

N, D, d = 3, 4, 2


def call(**changes):
    arguments = {
        "mean_encoder": nn.Linear(D, d),
        "decoder": nn.Linear(d, D),
        "x": torch.rand(N, D),
        "log_noise_variance": 0.0,
        "dataset_size": 10,
    } | changes
    return fisher_net_loss(**arguments)


class Returns(nn.Module):
    """Ignores its input."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result


class Pair(nn.Module):
    def forward(self, z):
        return z, z


normal = torch.randn
CASES = {
    "list for x": ({"x": [[0.0]]}, TypeError, "x: expected a floating-point tensor.*list"),
    "integers": ({"x": torch.ones(N, D, dtype=torch.uint8)}, TypeError, r"x: expected a floating-point.*uint8.*/ 255"),
    "x 1-d": ({"x": torch.rand(D)}, ValueError, r"x: expected a batch \[N, \.\.\.\].*\[4\]"),
    "no encoder": ({"mean_encoder": None}, TypeError, "mean_encoder: expected a torch.nn.Module, received NoneType"),
    "no decoder": ({"decoder": 1.0}, TypeError, "decoder: expected a torch.nn.Module, received float"),
    "wrapped encoder": ({"mean_encoder": DataParallel(nn.Linear(D, d))}, TypeError, "mean_encoder:.*DataParallel"),
    "wrapped decoder": (
        {"decoder": DataParallel(nn.Linear(d, D))},
        TypeError,
        "decoder: expected a plain.*DataParallel.*the loss belongs inside the wrapped module",
    ),
    "mean and log_std": (
        {"mean_encoder": Pair()},
        TypeError,
        r"mean_encoder: expected a tensor \[N, d\] as output, received tuple",
    ),
    "encoder output 3-d": (
        {"mean_encoder": nn.Unflatten(1, (2, 2))},
        ValueError,
        r"mean_encoder: expected an output \[3, d\], received shape \[3, 2, 2\]",
    ),
    "encoder output of other rows": (
        {"mean_encoder": Returns(torch.rand(1, d))},
        ValueError,
        r"mean_encoder: expected an output \[3, d\], received shape \[1, 2\]",
    ),
    "encoder for other data": (
        {"mean_encoder": nn.Linear(5, d)},
        ValueError,
        r"mean_encoder: expected a network that takes x of shape \[3, 4\]",
    ),
    "decoder for other latents": (
        {"decoder": nn.Linear(3, D)},
        ValueError,
        r"decoder: expected a network that takes latent samples of shape \[3, 2\]",
    ),
    "decoder output": (
        {"decoder": nn.Linear(d, 5)},
        ValueError,
        r"decoder: expected an output of shape \[3, 4\].*\[3, 5\]",
    ),
    "flat decoder output": (
        {"x": torch.rand(N, 1, 2, 2), "mean_encoder": nn.Sequential(nn.Flatten(), nn.Linear(D, d))},
        ValueError,
        r"decoder: expected an output of shape \[3, 1, 2, 2\].*\[3, 4\]",
    ),
    "encoder dtype": ({"mean_encoder": nn.Linear(D, d).double()}, TypeError, "mean_encoder: expected parameters of"),
    "decoder dtype": ({"decoder": nn.Linear(d, D).double()}, TypeError, "decoder: expected parameters of dtype"),
    "encoder output dtype": (
        {"mean_encoder": Returns(torch.rand(N, d).double())},
        TypeError,
        "mean_encoder's output: expected dtype torch.float32.*float64",
    ),
    "encoder device": ({"mean_encoder": nn.Linear(D, d, device="meta")}, ValueError, "mean_encoder: expected.*on cpu"),
    "xi text": ({"log_noise_variance": "0"}, TypeError, "log_noise_variance: expected a float or a tensor.*str"),
    "xi bool": ({"log_noise_variance": True}, TypeError, "log_noise_variance: expected a float or a tensor.*bool"),
    "xi nan": ({"log_noise_variance": float("nan")}, ValueError, "log_noise_variance: expected a finite number.*nan"),
    "xi -inf": ({"log_noise_variance": -float("inf")}, ValueError, "log_noise_variance: expected a finite.*-inf"),
    "xi with nan": (
        {"log_noise_variance": torch.tensor([0.0, float("nan"), 0.0, 0.0])},
        ValueError,
        "log_noise_variance: expected finite values",
    ),
    "xi per sample": (
        {"log_noise_variance": torch.zeros(N, 1)},
        ValueError,
        r"log_noise_variance: expected.*\[\], \[4\].*received shape \[3, 1\]",
    ),
    "xi dtype": ({"log_noise_variance": torch.zeros(()).double()}, TypeError, "log_noise_variance: expected dtype"),
    "xi device": ({"log_noise_variance": torch.zeros((), device="meta")}, ValueError, "log_noise_variance:.*device"),
    "no data": ({"dataset_size": 0}, ValueError, "dataset_size: expected an int >= 1, received 0"),
    "dataset_size float": ({"dataset_size": 1e4}, TypeError, "dataset_size: expected an int >= 1, received float"),
    "logdet": ({"logdet": "lu"}, ValueError, "logdet: expected one of False, True, 'exact', 'lanczos', received 'lu'"),
    "logdet 1": ({"logdet": 1}, ValueError, "logdet: expected one of False, True, 'exact', 'lanczos', received 1"),
    "no samples": ({"num_samples": 0}, ValueError, "num_samples: expected an int >= 1, received 0"),
    "odd mirrored": (
        {"num_samples": 3, "mirrored": True},
        ValueError,
        "num_samples: expected an even number with mirrored=True, received 3",
    ),
    "one mirrored": ({"mirrored": True}, ValueError, "num_samples: expected an even number.*received 1"),
    "gradient": ({"gradient": "none"}, ValueError, "gradient: expected one of 'full', 'mean', received 'none'"),
    "method": ({"method": "lu"}, ValueError, "method: expected one of 'auto', 'cg', 'cholesky', received 'lu'"),
    "tol": ({"tol": 0.0}, ValueError, "tol: expected.*received 0.0"),
    "tol above 1": ({"tol": 2.0}, ValueError, r"tol: expected.*\(0, 1\), received 2.0"),
    "max_iter": ({"max_iter": 0}, ValueError, "max_iter: expected an int >= 1, received 0"),
    "reduction": ({"reduction": "batchmean"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none'"),
    "statistics": ({"batch_statistics": "eval"}, ValueError, "batch_statistics: expected one of 'batch', 'frozen'"),
    "one noise": ({"noise": normal(1, N, d)}, TypeError, r"noise: expected a pair of tensors.*Tensor"),
    "noise swapped": (
        {"noise": (normal(1, N, d), normal(1, N, D))},
        ValueError,
        r"noise: expected shape \[1, 3, 4\] on the data side, received \[1, 3, 2\]",
    ),
    "noise of fewer samples": (
        {"noise": (normal(1, N, D), normal(1, N, d)), "num_samples": 2},
        ValueError,
        r"noise: expected shape \[2, 3, 4\].*received \[1, 3, 4\]",
    ),
    "noise of every mirrored sample": (
        {"noise": (normal(2, N, D), normal(2, N, d)), "num_samples": 2, "mirrored": True},
        ValueError,
        r"noise: expected shape \[1, 3, 4\].*received \[2, 3, 4\]",
    ),
    "noise dtype": (
        {"noise": (normal(1, N, D).double(), normal(1, N, d))},
        TypeError,
        "noise: expected dtype torch.float32",
    ),
    "BatchNorm in the decoder": (
        {"decoder": nn.Sequential(nn.Linear(d, D), nn.BatchNorm1d(D))},
        ValueError,
        'decoder: 1 in train mode couples.*batch_statistics="frozen"',
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    changes, error, message = CASES[name]
    with pytest.raises(error, match=message):
        call(**changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_reason(dtype):
    with pytest.raises(TypeError, match="x: expected float32 or float64, received.*condition number.*autocast"):
        call(x=torch.rand(N, D).to(dtype), mean_encoder=nn.Linear(D, d).to(dtype), decoder=nn.Linear(d, D).to(dtype))


def test_options_are_checked_for_an_empty_batch_too():
    for changes in ({"method": "lu"}, {"dataset_size": 0}, {"logdet": "lu"}, {"num_samples": 3, "mirrored": True}):
        with pytest.raises(ValueError):
            call(x=torch.rand(0, D), **changes)


def test_the_good_arguments_are_good():
    value, _ = call()
    assert torch.isfinite(value)


@pytest.mark.parametrize("method", ["auto", "cg", "cholesky"])
def test_no_latent_dimension(method):
    """The loss of the mean alone."""
    with pytest.warns(UserWarning, match="zero-element"):  # of torch's nn.Linear
        encoder, decoder = nn.Linear(D, 0), nn.Linear(0, D)
    x = torch.rand(N, D)
    value, terms = call(mean_encoder=encoder, decoder=decoder, x=x, method=method, logdet=True)
    torch.testing.assert_close(value, 0.5 * (x - decoder.bias).square().sum() / N)
    assert (terms["prior"] == 0).all() and (terms["logdet"] == 0).all()
