"""Encoders and decoders: plain ``nn.Module``s made of standard layers."""

from fisherkernels.nets.conv import ConvDecoder, ConvEncoder
from fisherkernels.nets.mlp import MLPDecoder, MLPEncoder
from fisherkernels.nets.paper_mnist import PaperMNISTDecoder, PaperMNISTEncoder

__all__ = ["ConvDecoder", "ConvEncoder", "MLPDecoder", "MLPEncoder", "PaperMNISTDecoder", "PaperMNISTEncoder"]
