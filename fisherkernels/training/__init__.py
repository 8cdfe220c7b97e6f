"""Lightning modules, data modules and run folders (needs ``pip install 'fisherkernels[train]'``)."""

from fisherkernels.training.array import ArrayDataModule
from fisherkernels.training.autoencoder import AutoEncoder
from fisherkernels.training.batches import BatchLoader, ImageDataset
from fisherkernels.training.binarized import BinarizedMNISTDataModule, ReversedMNISTDataModule
from fisherkernels.training.celeba import CelebADataModule
from fisherkernels.training.checkpoints import AtomicCheckpointIO, RunCheckpoints
from fisherkernels.training.data import (
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageDataModule,
    InMemoryDataModule,
    MNISTDataModule,
)
from fisherkernels.training.diagonal import DiagonalAutoEncoder
from fisherkernels.training.errors import NonFiniteLossError
from fisherkernels.training.fisher_ae import FisherAE
from fisherkernels.training.fisher_net import FisherNet
from fisherkernels.training.fisher_shannon import FisherShannon
from fisherkernels.training.image_folder import ImageFolderDataModule
from fisherkernels.training.loggers import CSVMetrics, TensorBoardEvents
from fisherkernels.training.mutual_ae import MutualAE
from fisherkernels.training.predictions import PredictionWriter
from fisherkernels.training.score_matching import ScoreMatching
from fisherkernels.training.svhn import SVHNDataModule
from fisherkernels.training.synthetic import SyntheticDataModule, synthetic_points
from fisherkernels.training.vae import VAE
from fisherkernels.training.wae_gan import WAEGAN

__all__ = [
    "VAE",
    "WAEGAN",
    "ArrayDataModule",
    "AtomicCheckpointIO",
    "AutoEncoder",
    "BatchLoader",
    "BinarizedMNISTDataModule",
    "CSVMetrics",
    "CelebADataModule",
    "DiagonalAutoEncoder",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FisherAE",
    "FisherNet",
    "FisherShannon",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolderDataModule",
    "InMemoryDataModule",
    "MNISTDataModule",
    "MutualAE",
    "NonFiniteLossError",
    "PredictionWriter",
    "ReversedMNISTDataModule",
    "RunCheckpoints",
    "SVHNDataModule",
    "ScoreMatching",
    "SyntheticDataModule",
    "TensorBoardEvents",
    "synthetic_points",
]
