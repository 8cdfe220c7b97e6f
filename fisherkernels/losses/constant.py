"""Networks and priors whose parameters get no gradient, while it still flows to their input."""

import torch
from torch import nn
from torch.nn.utils.stateless import _reparametrize_module

from fisherkernels import checks
from fisherkernels.linearize import Linearization, linearize


def check_module(name: str, network) -> None:
    """A module: of any other callable the parameters are out of reach."""
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"{name}: expected a torch.nn.Module, whose parameters can be held constant, "
            f"received {checks.type_name(network)}"
        )


def constant_parameters(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def call_constant(network, tensor: torch.Tensor):
    """network(tensor); the parameters of a module are held constant."""
    if not isinstance(network, nn.Module):
        return network(tensor)
    return torch.func.functional_call(network, constant_parameters(network), (tensor,))


def linearize_constant(network: nn.Module, tensor: torch.Tensor) -> Linearization:
    return linearize(network, tensor, parameters=constant_parameters(network))


def constant_prior(prior):
    """The prior with its parameters held constant; as it is where it is no module."""
    return ConstantPrior(prior) if isinstance(prior, nn.Module) else prior


class ConstantPrior:
    def __init__(self, prior: nn.Module):
        self.prior = prior

    def score(self, z: torch.Tensor) -> torch.Tensor:
        with self.held():
            return self.prior.score(z)

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        with self.held():
            return self.prior.log_density(z)

    def held(self):
        """What functional_call does around forward; that calls no other method, and a module made to do it breaks the
        graph of torch.compile."""
        return _reparametrize_module(self.prior, constant_parameters(self.prior), tie_weights=True)
