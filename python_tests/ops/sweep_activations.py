"""The activations of a network's sweeps, in operations that have derivatives of every order."""

import torch
from torch.nn import functional as F

SLOPE = 0.2
FUNCTIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, SLOPE),
    "silu": lambda x: x * torch.sigmoid(x),  # F.silu's derivatives end with the second
    "elu": F.elu,
    "softplus": F.softplus,
    "gelu": F.gelu,
}
