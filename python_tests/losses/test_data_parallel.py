"""Data-parallel wrappers: refused around a network, fine around the module that computes the loss."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fisherkernels.losses import (
    decoder_score,
    elbo_loss,
    fisher_ae_loss,
    inference_loss,
    score_matching_loss,
    stability,
)


@pytest.fixture
def process_group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("loss", [elbo_loss, fisher_ae_loss, inference_loss, score_matching_loss])
@pytest.mark.parametrize("wrap", [nn.DataParallel, DistributedDataParallel, fully_shard])
def test_wrapped_networks_are_refused(process_group, loss, wrap):
    with pytest.raises(
        TypeError, match="encoder: expected a plain.*the loss belongs inside the wrapped module"
    ):
        loss(wrap(nn.Linear(3, 4)), nn.Linear(2, 3), torch.rand(2, 3))
    with pytest.raises(
        TypeError, match="decoder: expected a plain.*the loss belongs inside the wrapped module"
    ):
        loss(nn.Linear(3, 4), wrap(nn.Linear(2, 3)), torch.rand(2, 3))


def test_scores_refuse_them_too():
    with pytest.raises(TypeError, match="encoder: expected a plain.*DataParallel"):
        stability(nn.DataParallel(nn.Linear(3, 4)), torch.rand(2, 3), torch.rand(2, 2))
    with pytest.raises(TypeError, match="decoder: expected a plain.*DataParallel"):
        decoder_score(nn.DataParallel(nn.Linear(2, 3)), torch.rand(2, 3), torch.rand(2, 2))


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Sequential(nn.Linear(2, 3), nn.SiLU())

    def forward(self, x, noise):
        return fisher_ae_loss(self.encoder, self.decoder, x, noise=noise).loss


def test_loss_inside_the_wrapped_module_trains(process_group):
    plain = AutoEncoder()
    x, noise = torch.rand(5, 3), torch.randn(5, 2)
    expected = torch.autograd.grad(plain(x, noise), list(plain.parameters()))
    DistributedDataParallel(plain)(x, noise).backward()
    for parameter, gradient in zip(plain.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
