"""Encoders and decoders: plain ``nn.Module``s made of standard layers."""

from fisherkernels.nets.mlp import MLPDecoder, MLPEncoder
from fisherkernels.nets.paper_mnist import PaperMNISTDecoder, PaperMNISTEncoder

__all__ = ["MLPDecoder", "MLPEncoder", "PaperMNISTDecoder", "PaperMNISTEncoder"]
