"""Two processes on half a batch each: loss and gradients of one process on the whole."""

import os
import subprocess
import sys
from pathlib import Path

import data_parallel_worker as worker
import pytest
import torch

WORLD_SIZE = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    script, environment = Path(worker.__file__), os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script)]
    processes = [
        subprocess.Popen([*command, str(rank), str(WORLD_SIZE), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(WORLD_SIZE)
    ]
    errors = [process.communicate(timeout=180)[1].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def whole(name):
    model = worker.Model(name)
    loss = model(*worker.inputs())
    loss.backward()
    return model, loss.detach()


@pytest.mark.parametrize("name", worker.LOSSES)
def test_data_parallel_gradients(ranks, name):
    model, loss = whole(name)
    results = [result["ddp", name] for result, _ in ranks]
    torch.testing.assert_close(torch.stack([part for part, _ in results]).mean(), loss)
    for _, gradients in results:
        torch.testing.assert_close(gradients, worker.gradients(model))
    assert any(gradient.norm() > 0 for gradient in results[0][1])


@pytest.mark.parametrize("name", worker.LOSSES)
def test_sharded_step(ranks, name):
    model, loss = whole(name)
    torch.optim.SGD(model.parameters(), lr=worker.STEP).step()
    results = [result["fsdp", name] for result, _ in ranks]
    torch.testing.assert_close(torch.stack([part for part, _ in results]).mean(), loss)
    for _, parameters in results:
        torch.testing.assert_close(parameters, [p.detach() for p in model.parameters()])


def test_synchronised_batch_norm_is_refused_by_name(ranks):
    for _, message in ranks:
        assert "net: 1 is a SyncBatchNorm in train mode" in message
