"""Running the encoder and the decoder, and checking what they return."""

import torch
from torch import nn

from fisherkernels.checks import check_same, type_name

SHAPE_WORDS = ("shape", "size", "channels", "dimension", "expected more than 1 value")


def call(network, tensor: torch.Tensor):
    return network(tensor)


def run_network(name: str, function, network: nn.Module, tensor: torch.Tensor):
    """``function(network, tensor)``; a mismatch of dtype, device or shape is told in the caller's terms."""
    if torch.compiler.is_compiling():
        return function(network, tensor)
    try:
        return function(network, tensor)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        explained = explain(name, network, tensor, error)
        if explained is None:
            raise
        raise explained from error


def explain(name: str, network: nn.Module, tensor: torch.Tensor, error: Exception) -> Exception | None:
    """The mismatch behind an error, None if it is about something else."""
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    parameter = next((p for p in parameters if p.is_floating_point()), tensor)
    what = "latent samples" if name == "decoder" else "x"
    if parameter.dtype != tensor.dtype and not torch.is_autocast_enabled(tensor.device.type):
        return TypeError(
            f"{name}: expected parameters of dtype {tensor.dtype}, that of {what}, received {parameter.dtype}"
        )
    if parameter.device != tensor.device:
        return ValueError(
            f"{name}: expected parameters on {tensor.device}, that of {what}, received {parameter.device}"
        )
    if any(word in str(error).lower() for word in SHAPE_WORDS):
        return ValueError(
            f"{name}: expected a network that takes {what} of shape {list(tensor.shape)}, received: {error}"
        )
    return None


def split_posterior(output, x: torch.Tensor, name: str = "encoder") -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log_std, each [N, d], from the output of the encoder or of a network like it: [N, 2d], or that pair."""
    count = x.shape[0]
    if isinstance(output, torch.Tensor):
        if output.dim() != 2 or output.shape[0] != count or output.shape[1] % 2 or output.shape[1] == 0:
            raise ValueError(
                f"{name}: expected an output [{count}, 2d] (mean, then log_std; d >= 1), "
                f"received shape {list(output.shape)}"
            )
        mean, log_std = output.chunk(2, dim=1)
    else:
        pair = isinstance(output, (tuple, list)) and len(output) == 2
        if not pair or not all(isinstance(part, torch.Tensor) for part in output):
            received = (
                f"{type_name(output)} of {len(output)}"
                if isinstance(output, (tuple, list))
                else type_name(output)
            )
            raise TypeError(
                f"{name}: expected a tensor [N, 2d] or a pair (mean, log_std), received {received}"
            )
        mean, log_std = output
        if mean.dim() != 2 or mean.shape[0] != count or mean.shape != log_std.shape or mean.shape[1] == 0:
            raise ValueError(
                f"{name}: expected mean and log_std of the same shape [{count}, d], "
                f"received {list(mean.shape)} and {list(log_std.shape)}"
            )
    return match_dtype(f"{name}'s mean", mean, x), match_dtype(f"{name}'s log_std", log_std, x)


def as_mean(output, x: torch.Tensor) -> torch.Tensor:
    """The mean [N, d] that is all of the encoder's output."""
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"mean_encoder: expected a tensor [N, d] as output, received {type_name(output)}")
    if output.dim() != 2 or output.shape[0] != x.shape[0]:
        raise ValueError(
            f"mean_encoder: expected an output [{x.shape[0]}, d], received shape {list(output.shape)}"
        )
    return match_dtype("mean_encoder's output", output, x)


def match_dtype(name: str, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A network's output in x's dtype: cast under autocast, otherwise it must have it already."""
    if output.dtype != x.dtype and torch.is_autocast_enabled(x.device.type):
        output = output.to(x.dtype)
    check_same(name, output, "x", x)
    return output


def as_reconstruction(output, x: torch.Tensor, rows: int) -> torch.Tensor:
    """The decoder's output for `rows` latent samples, of x's trailing shape."""
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"decoder: expected a tensor as output, received {type_name(output)}")
    if output.shape != (rows, *x.shape[1:]):
        raise ValueError(
            f"decoder: expected an output of shape {[rows, *x.shape[1:]]}, one item of x per latent sample, "
            f"received {list(output.shape)}"
        )
    return match_dtype("decoder's output", output, x)
