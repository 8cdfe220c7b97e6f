"""FLOPs that a training step needs, counted over products of matrices and convolutions.

Backward costs twice what forward does. A Fisher AE step has four sweeps through each network, the value, a
vector-Jacobian product and backward of both, and two products for every weight's gradient; an ELBO step has the value,
its backward and one product. The data needs no gradient: the first layer's product with it falls out of either.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FISHER, ELBO = "value and product, backward of both", "ELBO"


def step_flops(make_model, x_shape, latent_dim, batch):
    """By route, for a model with an encoder and a decoder."""
    with torch.device("meta"):
        model = make_model().eval()  # no statistics to be updated
        x, z = torch.empty(batch, *x_shape), torch.empty(batch, latent_dim)
    forward = _flops(model.encoder, x) + _flops(model.decoder, z)
    first = next(module for module in model.encoder.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    seen = []
    with first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        model.encoder(x)
    of_data = _flops(first, seen[0])
    return {FISHER: float(6 * forward - of_data), ELBO: float(3 * forward - of_data)}


def _flops(module, inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(inputs)
    return counter.get_total_flops()
