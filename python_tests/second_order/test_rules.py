"""Every rule's second derivative, between curved layers, against torch.func: value and every gradient."""

import copy

import pytest
import torch
from laplacian_oracle import laplacian_by_functorch
from linearize_cases import ALL
from linearize_oracle import SEED, all_close, close, gradients, parts, scalar_of
from torch import nn

import fisherkernels as fk


class Between(nn.Module):
    """A network between curved functions, so that it meets tangents and second derivatives that differ by sample, or
    alone; its outputs (``count`` where it gives a tuple) flat in one tensor.
    """

    def __init__(self, net, curved, count):
        super().__init__()
        self.net, self.curved, self.count = net, curved, count

    def forward(self, x):
        value = self.net(x + 0.3 * x * x if self.curved else x)
        pieces = [value[i] for i in range(self.count)] if self.count else [value]
        flat = torch.cat([piece.reshape(piece.shape[0], -1) for piece in pieces], dim=1)
        return torch.tanh(flat) if self.curved else flat


def per_sample(make, shape):
    """Whether the value leads with N and keeps samples apart."""
    lin = fk.linearize(make(), torch.randn(shape))
    return not lin.coupled and all(value.dim() > 0 and len(value) == shape[0] for value in parts(lin.value))


CASES = {name: case for name, case in ALL.items() if per_sample(*case)}
COUPLED = sorted(set(ALL) - set(CASES))


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_rule(name, curved):
    make, shape = CASES[name]
    net, x = make().double(), torch.randn(shape, dtype=torch.float64)
    value = copy.deepcopy(net)(x)
    net = Between(net, curved, len(value) if isinstance(value, tuple) else 0)
    twin = copy.deepcopy(net)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(SEED)
    value, jacobian, laplacian = fk.laplacian(net, mine)
    expected = laplacian_by_functorch(twin, theirs)
    torch.manual_seed(SEED)
    close(value, twin(theirs), 1e-12, "value")
    assert jacobian.shape == (len(x), value[0].numel(), x[0].numel())
    close(laplacian, expected, 1e-11, "laplacian")
    ours, oracle = gradients(scalar_of([laplacian]), net, mine), gradients(scalar_of([expected]), twin, theirs)
    all_close(ours, oracle, 1e-10, "laplacian")


@pytest.mark.parametrize("name", COUPLED)
def test_what_mixes_samples_is_refused(name):
    make, shape = ALL[name]
    with pytest.raises(ValueError, match="couples the samples|expected a value of shape|expected a value that is one"):
        fk.laplacian(make(), torch.randn(shape))
