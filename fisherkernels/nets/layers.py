"""What the nets choose by name: activations, output layers and initial weights."""

from collections.abc import Sequence

from torch import nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
OUTPUTS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "identity": nn.Identity}
INITIALIZATIONS = ("torch", "kaiming")


def make_activation(name: str) -> nn.Module:
    return _lookup(ACTIVATIONS, name, "activation")


def make_output(name: str) -> nn.Module:
    return _lookup(OUTPUTS, name, "output")


def initialize(linears: Sequence[nn.Linear], name: str) -> None:
    """Initial weights: "torch" leaves nn.Linear's own; "kaiming" draws N(0, 2 / fan_in), the last layer, which no
    activation follows, N(0, 1 / fan_in), and sets biases to 0."""
    if name not in INITIALIZATIONS:
        raise ValueError(f"initialization must be one of {', '.join(INITIALIZATIONS)}; got {name!r}")
    if name == "torch":
        return
    for linear in linears:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear" if linear is linears[-1] else "relu")
        nn.init.zeros_(linear.bias)


def check_sizes(**sizes) -> None:
    """Raises ValueError unless every int, or every int of a sequence, is at least 1."""
    for name, size in sizes.items():
        several = size if isinstance(size, (list, tuple)) else None
        for label, value in [(name, size)] if several is None else [(f"{name}[{i}]", v) for i, v in enumerate(several)]:
            if value < 1:
                raise ValueError(f"{label} must be at least 1; got {value}")


def _lookup(table: dict, name: str, argument: str) -> nn.Module:
    if name not in table:
        raise ValueError(f"{argument} must be one of {', '.join(table)}; got {name!r}")
    return table[name]()
