"""Encoders and decoders: plain ``nn.Module``s made of standard layers."""

from fisherkernels.nets.conv import ConvDecoder, ConvEncoder
from fisherkernels.nets.dcgan import DCGANDecoder, DCGANEncoder
from fisherkernels.nets.discriminator import LatentDiscriminator
from fisherkernels.nets.mlp import MLPDecoder, MLPEncoder
from fisherkernels.nets.paper_celeba import PaperCelebADecoder, PaperCelebAEncoder
from fisherkernels.nets.paper_mnist import PaperMNISTDecoder, PaperMNISTEncoder
from fisherkernels.nets.resnet import ResNet18Decoder, ResNet18Encoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "DCGANDecoder",
    "DCGANEncoder",
    "LatentDiscriminator",
    "MLPDecoder",
    "MLPEncoder",
    "PaperCelebADecoder",
    "PaperCelebAEncoder",
    "PaperMNISTDecoder",
    "PaperMNISTEncoder",
    "ResNet18Decoder",
    "ResNet18Encoder",
]
