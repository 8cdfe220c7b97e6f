import csv
import struct
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fisherkernels import training


def tiny_model(kind=training.FisherAE, seed=3, **kwargs):
    """Nets with all that makes a resume hard: BatchNorm statistics, Dropout's own noise, two optimiser groups."""
    torch.manual_seed(seed)
    outputs = 3 if kind in (training.FisherNet, training.WAEGAN) else 6
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, outputs)
    )
    decoder = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
    options = {"learning_rate": 1e-3, "seed": seed}
    if kind is not training.WAEGAN:
        options["learn_variance"] = True
    if kind in (training.VAE, training.FisherShannon, training.MutualAE):
        options["likelihood"] = "gaussian"
    if kind is training.FisherNet:
        options["method"] = "cholesky"
    return kind(encoder, decoder, latent_dim=3, **(options | kwargs))


def fit(folder: Path, callbacks=(), model=None, ckpt_path=None, batch_size=256, every_n_steps=2, **kwargs):
    """Trains the tiny model on digits (5 steps an epoch) in its run folder; returns the trainer."""
    kwargs = {"max_epochs": 3, "log_every_n_steps": 1, "enable_progress_bar": False} | kwargs
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=[training.CSVMetrics(folder), training.TensorBoardEvents(folder)],
        callbacks=[*callbacks, training.RunCheckpoints(folder / "checkpoints", every_n_steps)],
        plugins=[training.AtomicCheckpointIO()],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **kwargs,
    )
    data = training.DigitsDataModule(batch_size=batch_size, seed=3)
    trainer.fit(model or tiny_model(), data, ckpt_path=ckpt_path)
    return trainer


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(folder: Path, reference: Path) -> None:
    """Every logged number, the parameters, the buffers and the optimiser state: bit for bit."""
    assert read_rows(folder) == read_rows(reference)
    ours, theirs = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (folder, reference))
    assert ours["global_step"] == theirs["global_step"]
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert type(a) is type(b)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def leaves(checkpoint: dict) -> list:
    state = [checkpoint["state_dict"], checkpoint["optimizer_states"]]
    return torch.utils._pytree.tree_leaves(state)


def write_celeba(root: Path, monkeypatch, parts=(6, 3, 2)) -> None:
    """Noise in CelebA's files and sizes; torchvision compares checksums with the real ones, which is left out."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    part_of = [part for part, count in enumerate(parts) for _ in range(count)]
    names = [f"{index:06d}.jpg" for index in range(1, len(part_of) + 1)]
    random = np.random.default_rng(0)
    for name in names:
        Image.fromarray(random.integers(0, 256, (218, 178, 3), np.uint8)).save(folder / "img_align_celeba" / name)

    def table(file, header, rows):
        lines = [f"{name} {' '.join(map(str, row))}" for name, row in zip(names, rows, strict=True)]
        head = [str(len(names)), " ".join(header)] if header else []
        (folder / file).write_text("\n".join(head + lines) + "\n")

    table("list_eval_partition.txt", None, [[part] for part in part_of])
    table("identity_CelebA.txt", None, [[1]] * len(names))
    table("list_bbox_celeba.txt", ["image_id", "x_1", "y_1", "width", "height"], [[1, 2, 3, 4]] * len(names))
    table("list_landmarks_align_celeba.txt", [f"x_{i}" for i in range(10)], [range(10)] * len(names))
    table("list_attr_celeba.txt", ["Male", "Smiling"], [[1, -1 if i % 2 else 1] for i in range(len(names))])
    monkeypatch.setattr("torchvision.datasets.CelebA.file_list", [])


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Root folder of 6 training, 3 validation and 2 test images."""
    write_celeba(tmp_path / "images", monkeypatch)
    return tmp_path / "images"


@pytest.fixture
def run():
    """The helpers of this folder's tests."""
    return type("Run", (), {
        "model": staticmethod(tiny_model), "fit": staticmethod(fit), "rows": staticmethod(read_rows),
        "assert_same": staticmethod(assert_same_run),
    })  # fmt: skip


def write_idx(path: Path, array: np.ndarray) -> None:
    """The IDX format: two zero bytes, type 8 (unsigned byte), number of dimensions, the sizes big-endian, the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(root: Path, train: int, test: int) -> Path:
    """Noise in the files of MNIST and FashionMNIST, with the labels 0, 1, ..., 9, 0, ..."""
    random = np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        for part, n in (("train", train), ("t10k", test)):
            folder = root / name / "raw"
            images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            write_idx(folder / f"{part}-images-idx3-ubyte", images)
            write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 10)
    return root


@pytest.fixture
def root(tmp_path):
    """Root folder of 40 training and 12 test images."""
    return write_mnist(tmp_path, 40, 12)


@pytest.fixture
def larger_root(tmp_path):
    """Root folder of 120 training and 40 test images."""
    return write_mnist(tmp_path, 120, 40)
