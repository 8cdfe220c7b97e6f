"""Lightning modules, data modules and run folders (needs ``pip install 'fisherkernels[train]'``)."""

from fisherkernels.training.autoencoder import AutoEncoder
from fisherkernels.training.batches import BatchLoader, ImageDataset
from fisherkernels.training.celeba import CelebADataModule
from fisherkernels.training.checkpoints import AtomicCheckpointIO, RunCheckpoints
from fisherkernels.training.data import (
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageDataModule,
    MNISTDataModule,
)
from fisherkernels.training.diagonal import DiagonalAutoEncoder
from fisherkernels.training.errors import NonFiniteLossError
from fisherkernels.training.fisher_ae import FisherAE
from fisherkernels.training.fisher_net import FisherNet
from fisherkernels.training.loggers import CSVMetrics, TensorBoardEvents
from fisherkernels.training.predictions import PredictionWriter
from fisherkernels.training.vae import VAE

__all__ = [
    "VAE",
    "AtomicCheckpointIO",
    "AutoEncoder",
    "BatchLoader",
    "CSVMetrics",
    "CelebADataModule",
    "DiagonalAutoEncoder",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FisherAE",
    "FisherNet",
    "ImageDataModule",
    "ImageDataset",
    "MNISTDataModule",
    "NonFiniteLossError",
    "PredictionWriter",
    "RunCheckpoints",
    "TensorBoardEvents",
]
