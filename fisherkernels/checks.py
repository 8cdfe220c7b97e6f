"""Input checks shared by the losses and the metric: every message names the argument, what was expected and what came.

Shapes, dtypes, devices and Python numbers are checked always; the values of tensors only in eager mode and on
the CPU, because a look at them breaks the graph under ``torch.compile``, synchronises a GPU, and is impossible inside
``torch.func.vmap``.
"""

import math

import torch

from fisherkernels.linearize.wrappers import refuse_distributed
from fisherkernels.transforms import inside_transform


def may_read_values(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not inside_transform()


def type_name(value) -> str:
    return type(value).__name__


def check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, received {value!r}")


def check_data(x, name: str = "x") -> None:
    """Floating-point data with a batch dimension and at least one more."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: expected a floating-point tensor [N, ...], received {type_name(x)}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point tensor, received dtype {x.dtype}; "
            f"scale integer images to floats first, for example {name}.float() / 255"
        )
    if x.dim() < 2:
        raise ValueError(
            f"{name}: expected a batch [N, ...] of at least 2 dimensions, received shape {list(x.shape)}"
        )


def check_network(name: str, network) -> None:
    """A callable that is not a data-parallel wrapper."""
    if not callable(network):
        raise TypeError(f"{name}: expected a torch.nn.Module, received {type_name(network)}")
    refuse_distributed(network, name)


def check_number(name: str, value, *, positive: bool = False) -> None:
    """A Python number: finite, and >= 0 or > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name}: expected a float or a tensor, received {type_name(value)}")
    inside = value > 0 if positive else value >= 0
    if not (inside and value < math.inf):
        raise ValueError(
            f"{name}: expected a finite number {'> 0' if positive else '>= 0'}, received {value}"
        )


def check_weight(name: str, value) -> None:
    """A number >= 0: a float, or a 0-d tensor."""
    if not isinstance(value, torch.Tensor):
        check_number(name, value)
    elif value.dim() != 0:
        raise ValueError(f"{name}: expected a float or a 0-d tensor, received shape {list(value.shape)}")
    elif may_read_values(value) and not value >= 0:
        raise ValueError(f"{name}: expected a value >= 0, received {value.item()}")


def check_count(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int >= 1, received {type_name(value)}")
    if value < 1:
        raise ValueError(f"{name}: expected an int >= 1, received {value}")


def check_same(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Same dtype and device as another tensor."""
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name}: expected dtype {other.dtype}, that of {other_name}, received {tensor.dtype}"
        )
    if tensor.device != other.device:
        raise ValueError(
            f"{name}: expected device {other.device}, that of {other_name}, received {tensor.device}"
        )


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float32 for half precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def check_beside(name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    """A few numbers used beside x: its device and dtype, or float32 beside half precision."""
    if tensor.dtype != working_dtype(x.dtype):
        check_same(name, tensor, "x", x)
    elif tensor.device != x.device:
        raise ValueError(f"{name}: expected device {x.device}, that of x, received {tensor.device}")


def as_variance(variance, x: torch.Tensor) -> torch.Tensor:
    """The decoder's variance as a tensor, 0-d or [D]."""
    if not isinstance(variance, torch.Tensor):
        check_number("variance", variance, positive=True)
        return torch.full((), variance, dtype=working_dtype(x.dtype), device=x.device)
    features = math.prod(x.shape[1:])
    check_beside("variance", variance, x)
    if variance.dim() > 0 and variance.shape not in ((features,), x.shape[1:]):
        raise ValueError(
            f"variance: expected a float or a tensor of shape [], [{features}] or {list(x.shape[1:])}, "
            f"received shape {list(variance.shape)}"
        )
    if may_read_values(variance) and not bool((variance > 0).all()):
        raise ValueError(
            f"variance: expected values > 0, received a smallest value of {variance.min().item()}"
        )
    return variance if variance.dim() == 0 else variance.reshape(-1)


def as_noise(noise, num_samples: int, mean: torch.Tensor, width: str = "latent width") -> torch.Tensor:
    """Standard normal draws [L, N, d]: fresh ones, or the caller's checked."""
    if noise is None:
        return torch.randn(num_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
    expected = f"[{num_samples}, {mean.shape[0]}, {mean.shape[1]}] (num_samples, batch, {width})"
    if not isinstance(noise, torch.Tensor):
        raise TypeError(f"noise: expected a tensor of shape {expected}, received {type_name(noise)}")
    if noise.dim() == 2 and num_samples == 1:
        noise = noise.unsqueeze(0)
    if noise.shape != (num_samples, *mean.shape):
        raise ValueError(f"noise: expected shape {expected}, received {list(noise.shape)}")
    check_same("noise", noise, "the encoder's output", mean)
    return noise


def check_common(encoder, decoder, x, variance, num_samples, reduction) -> torch.Tensor:
    """The arguments that every loss takes; gives the variance as a tensor, 0-d or [D]."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_data(x)
    check_network("encoder", encoder)
    check_network("decoder", decoder)
    check_count("num_samples", num_samples)
    return as_variance(variance, x)


def check_prior(prior, mean: torch.Tensor, method: str = "score") -> None:
    """None, or an object with this method of z, for latents of this width."""
    if prior is None:
        return
    if not callable(getattr(prior, method, None)):
        raise TypeError(
            f"prior: expected None or an object with a method {method}(z), received {type_name(prior)}"
        )
    width = getattr(prior, "d", None)
    if width is not None and width != mean.shape[1]:
        raise ValueError(
            f"prior: expected d = {mean.shape[1]}, half of the encoder's columns, received d = {width}"
        )
