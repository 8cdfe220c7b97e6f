"""One rank of test_two_processes.py: python data_parallel_worker.py RANK WORLD_SIZE FOLDER.

Writes FOLDER/RANK.pt: {(kind, name): (loss, parameters' gradients or values)}.
"""

import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fisherkernels as fk

N, L, D, WIDTH = 4, 3, (2, 4, 4), 3
STEP = 0.1


def networks(outputs: int) -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, outputs)
    )
    decoder = nn.Sequential(
        nn.Linear(WIDTH, 64), nn.Unflatten(1, (4, 4, 4)), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 3, 1, 1)
    )
    return encoder, decoder


def diagonal(loss, **options):
    """A loss of an encoder with two outputs per latent dimension, its noise [L, N, d]."""
    return lambda m, x, data, latent: loss(
        m.encoder, m.decoder, x, variance=m.log_variance[0].exp(), num_samples=L, noise=latent, **options
    )


def fisher_net(m, x, data, latent):
    return fk.fisher_net_loss(
        m.encoder,
        m.decoder,
        x,
        log_noise_variance=m.log_variance[0],
        dataset_size=100,
        num_samples=L,
        noise=(data, latent),
        method="cholesky",
        logdet=True,
    )


LOSSES = {
    "elbo": diagonal(fk.elbo_loss),
    "fisher_ae": diagonal(fk.fisher_ae_loss),
    "fisher_net": fisher_net,
    "fisher_shannon": diagonal(fk.fisher_shannon_loss, lambda_x=0.1, f_z=2.0),
    "score_matching": diagonal(fk.score_matching_loss, objective="m3"),
    "inference": diagonal(fk.inference_loss, divergence="fisher"),
}
ONE_SIDED = ("score_matching", "inference")  # leave one of the networks without a gradient


class Model(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = networks(WIDTH if name == "fisher_net" else 2 * WIDTH)
        self.log_variance = nn.Parameter(torch.full((1,), -0.5))  # FSDP shards no 0-d parameter
        self.name = name
        self.double()

    def forward(self, x, data, latent):
        return LOSSES[self.name](self, x, data, latent).loss


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [N, ...] and the noise of both sides, [L, N, D] and [L, N, d]."""
    generator = torch.Generator().manual_seed(1)
    features = D[0] * D[1] * D[2]
    shapes = (N, *D), (L, N, features), (L, N, WIDTH)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def share(rank: int, world_size: int) -> tuple[torch.Tensor, ...]:
    x, data, latent = inputs()
    return x[rank::world_size], data[:, rank::world_size], latent[:, rank::world_size]


def data_parallel(name: str, rank: int, world_size: int):
    model = Model(name)
    wrapped = DistributedDataParallel(model, find_unused_parameters=name in ONE_SIDED)
    loss = wrapped(*share(rank, world_size))
    loss.backward()
    return loss.detach(), gradients(model)


def sharded(name: str, rank: int, world_size: int):
    """The parameters after one step of plain gradient descent."""
    model = Model(name)
    mesh = init_device_mesh("cpu", (world_size,))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=STEP)
    loss = model(*share(rank, world_size))
    loss.backward()
    optimizer.step()
    return loss.detach(), [p.detach().full_tensor() for p in model.parameters()]


def synchronised_batch_norm() -> str:
    decoder = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8)))
    try:
        fk.linearize(decoder, torch.rand(4, WIDTH))
    except TypeError as error:
        return str(error)
    return ""


def main(rank: int, world_size: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    results = {("ddp", name): data_parallel(name, rank, world_size) for name in LOSSES}
    results |= {("fsdp", name): sharded(name, rank, world_size) for name in LOSSES}
    torch.save((results, synchronised_batch_norm()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
