import pytest
import torch
from torch import fx, nn

from fisherkernels import nets

STANDARD_LAYERS = (
    nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.LeakyReLU, nn.ReLU, nn.ELU,
    nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Flatten, nn.Unflatten,
)  # fmt: skip

PAPER_ENCODER = [
    ("Conv2d", 1, 64, 3, 2, 2), ("LeakyReLU",),
    ("Conv2d", 64, 128, 3, 2, 2), ("BatchNorm2d",), ("LeakyReLU",),
    ("Conv2d", 128, 256, 3, 2, 2), ("BatchNorm2d",), ("LeakyReLU",),
    ("Conv2d", 256, 512, 3, 2, 1), ("BatchNorm2d",), ("LeakyReLU",),
    ("Conv2d", 512, 16, 3, 2, 0),
]  # fmt: skip
PAPER_DECODER = [
    ("ConvTranspose2d", 8, 512, 5, 1, 1), ("BatchNorm2d",), ("ReLU",),
    ("ConvTranspose2d", 512, 256, 5, 1, 1), ("BatchNorm2d",), ("ReLU",),
    ("ConvTranspose2d", 256, 128, 5, 2, 1), ("BatchNorm2d",), ("ReLU",),
    ("ConvTranspose2d", 128, 64, 5, 1, 1), ("BatchNorm2d",), ("ReLU",),
    ("ConvTranspose2d", 64, 1, 4, 2, 0), ("Sigmoid",),
]  # fmt: skip


def describe(net: nn.Module) -> list[tuple]:
    """The layers of a net in the notation of the supplement: (name, in, out, kernel, stride, padding)."""
    rows = []
    for layer in net.layers:
        name = type(layer).__name__
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            rows.append((name, layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0],
                         layer.padding[0]))  # fmt: skip
        elif name not in ("Flatten", "Unflatten"):
            rows.append((name,))
    return rows


def test_paper_nets_are_table_1():
    encoder, decoder = nets.PaperMNISTEncoder(), nets.PaperMNISTDecoder()
    assert describe(encoder) == PAPER_ENCODER
    assert describe(decoder) == PAPER_DECODER
    images = torch.rand(2, 1, 28, 28)
    assert encoder.layers[:-1](images).shape == (2, 16, 1, 1)
    assert encoder(images).shape == (2, 16)
    reconstruction = decoder(torch.randn(2, 8))
    assert reconstruction.shape == (2, 1, 28, 28)
    assert 0 <= reconstruction.min() and reconstruction.max() <= 1


def test_paper_nets_take_another_latent_dim():
    assert nets.PaperMNISTEncoder(latent_dim=3)(torch.rand(2, 1, 28, 28)).shape == (2, 6)
    assert nets.PaperMNISTDecoder(latent_dim=3)(torch.randn(2, 3)).shape == (2, 1, 28, 28)


def test_paper_encoder_slope():
    slopes = {layer.negative_slope for layer in nets.PaperMNISTEncoder().layers if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.2}


@pytest.mark.parametrize("hidden", [[], [7], [7, 5]])
def test_mlp_shapes(hidden):
    assert nets.MLPEncoder(64, hidden, 3)(torch.rand(4, 1, 8, 8)).shape == (4, 6)
    assert nets.MLPDecoder(3, hidden, (1, 8, 8))(torch.randn(4, 3)).shape == (4, 1, 8, 8)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "silu", "softplus", "tanh"])
@pytest.mark.parametrize("output", ["sigmoid", "tanh", "identity"])
def test_nets_trace_to_standard_layers(activation, output):
    for net in (nets.MLPEncoder(4, [3], 2, activation), nets.MLPDecoder(2, [3], (4,), output, activation)):
        leaves = [m for m in fx.symbolic_trace(net).modules() if not list(m.children())]
        assert leaves and all(type(m) in STANDARD_LAYERS for m in leaves)


@pytest.mark.parametrize("net", [nets.PaperMNISTEncoder, nets.PaperMNISTDecoder])
def test_paper_nets_trace_to_standard_layers(net):
    traced = fx.symbolic_trace(net())
    assert all(type(m) in STANDARD_LAYERS for m in traced.modules() if not list(m.children()))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14), (2, 1, 1)])
@pytest.mark.parametrize(("kernel_size", "norm_groups"), [(3, 0), (5, 2)])
def test_conv_nets_keep_any_image_size(shape, kernel_size, norm_groups):
    options = {"strides": [2, 1, 3], "kernel_size": kernel_size, "norm_groups": norm_groups, "activation": "silu"}
    encoder = nets.ConvEncoder(shape, [4, 6, 8], latent_dim=5, **options)
    assert encoder(torch.rand(2, *shape)).shape == (2, 10)
    decoder = nets.ConvDecoder(5, shape, [8, 6, 4], **options)
    image = decoder(torch.randn(2, 5))
    assert image.shape == (2, *shape) and 0 <= image.min() and image.max() <= 1
    for net in (encoder, decoder):
        leaves = [m for m in fx.symbolic_trace(net).modules() if not list(m.children())]
        assert all(type(m) in STANDARD_LAYERS for m in leaves)
        assert sum(type(m) is nn.GroupNorm for m in leaves) == (3 if norm_groups else 0)


def test_conv_nets_of_the_fisher_net_paper():
    encoder = nets.ConvEncoder((1, 28, 28), [32, 32, 64], [2, 1, 2], latent_dim=5)
    decoder = nets.ConvDecoder(5, (1, 28, 28), [64, 32, 32], [2, 1, 2], output="identity")
    assert describe(encoder) == [
        ("Conv2d", 1, 32, 3, 2, 1), ("ReLU",), ("Conv2d", 32, 32, 3, 1, 1), ("ReLU",), ("Conv2d", 32, 64, 3, 2, 1),
        ("ReLU",), ("Linear",),
    ]  # fmt: skip
    assert describe(decoder) == [
        ("Linear",), ("ConvTranspose2d", 64, 64, 3, 2, 1), ("ReLU",), ("ConvTranspose2d", 64, 32, 3, 1, 1), ("ReLU",),
        ("ConvTranspose2d", 32, 32, 3, 2, 1), ("ReLU",), ("ConvTranspose2d", 32, 1, 3, 1, 1), ("Identity",),
    ]  # fmt: skip
    assert decoder.layers[:2](torch.randn(2, 5)).shape == (2, 64, 7, 7)


def test_mean_only_leaves_log_std_out():
    assert nets.MLPEncoder(64, [7], 3, mean_only=True)(torch.rand(4, 1, 8, 8)).shape == (4, 3)
    assert nets.ConvEncoder((1, 8, 8), [4], [2], 3, mean_only=True)(torch.rand(4, 1, 8, 8)).shape == (4, 3)


def test_bad_arguments_are_named():
    for options, message in (
        ({"strides": [2]}, r"channels and strides must be of one length >= 1; got \[4, 4\] and \[2\]"),
        ({"strides": [2, 0]}, r"strides\[1\] must be at least 1; got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd; got 4"),
        ({"norm_groups": 3}, r"norm_groups must be 0 or divide all of channels \[4, 4\]; got 3"),
    ):
        options = {"channels": [4, 4], "strides": [2, 1], "latent_dim": 3} | options
        with pytest.raises(ValueError, match=message):
            nets.ConvEncoder((1, 8, 8), **options)
        with pytest.raises(ValueError, match=message):
            nets.ConvDecoder(out_shape=(1, 8, 8), **options)
    with pytest.raises(ValueError, match="latent_dim must be at least 1; got 0"):
        nets.MLPEncoder(4, [3], 0)
    with pytest.raises(ValueError, match=r"hidden\[1\] must be at least 1; got 0"):
        nets.MLPDecoder(2, [3, 0], (4,))
    with pytest.raises(ValueError, match="activation must be one of .*; got 'gelu'"):
        nets.MLPEncoder(4, [3], 2, "gelu")
    with pytest.raises(ValueError, match="output must be one of .*; got 'softmax'"):
        nets.MLPDecoder(2, [3], (4,), "softmax")
