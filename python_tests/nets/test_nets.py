import pytest
import torch
from torch import fx, nn

import fisherkernels as fk
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


def test_wae_gan_nets_are_table_2():
    encoder = nets.PaperMNISTEncoder(mean_only=True)
    assert describe(encoder) == [*PAPER_ENCODER[:-1], ("Conv2d", 512, 8, 3, 2, 0)]
    assert encoder(torch.rand(2, 1, 28, 28)).shape == (2, 8)
    discriminator = nets.LatentDiscriminator(8)
    assert [type(layer) for layer in discriminator.layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.Flatten]
    assert [(layer.in_features, layer.out_features) for layer in discriminator.layers[::2]] == [(8, 256), (256, 1)]
    assert discriminator(torch.randn(5, 8)).shape == (5,)


def test_paper_celeba_nets_fit_together():
    encoder, decoder = nets.PaperCelebAEncoder(), nets.PaperCelebADecoder()
    assert encoder.layers[-1].in_features == 8192 and encoder.layers[-1].out_features == 128
    assert nets.PaperCelebAEncoder(mean_only=True).layers[-1].out_features == 64
    assert [row[1:] for row in describe(encoder) if row[0] == "Conv2d"] == [
        (3, 64, 5, 1, 2), (64, 128, 5, 1, 2), (128, 256, 5, 1, 2), (256, 512, 5, 1, 2),
    ]  # fmt: skip
    assert [row[1:] for row in describe(decoder) if row[0] == "Conv2d"] == [
        (64, 512, 5, 1, 2), (512, 256, 5, 1, 2), (256, 128, 5, 1, 2), (128, 64, 5, 1, 2), (64, 3, 5, 1, 2),
    ]  # fmt: skip
    image = torch.rand(2, 3, 64, 64)
    assert encoder(image).shape == (2, 128)
    assert decoder(torch.randn(2, 64)).shape == image.shape


def test_repeated_layers():
    encoder = nets.MLPEncoder(784, [300], 40, repeat=20)
    decoder = nets.MLPDecoder(40, [30, 20], (1, 28, 28), repeat=2)
    widths = [layer.out_features for layer in encoder.layers if isinstance(layer, nn.Linear)]
    assert widths == [300] * 20 + [80]
    widths = [layer.out_features for layer in decoder.layers if isinstance(layer, nn.Linear)]
    assert widths == [30, 20, 30, 20, 784]
    with pytest.raises(ValueError, match="repeat must be at least 1; got 0"):
        nets.MLPEncoder(4, [3], 2, repeat=0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64), (2, 8, 8)])
def test_dcgan_nets(shape):
    encoder = nets.DCGANEncoder(shape, latent_dim=5, width=4)
    decoder = nets.DCGANDecoder(5, shape, width=4)
    assert encoder(torch.rand(2, *shape)).shape == (2, 10)
    assert nets.DCGANEncoder(shape, 5, 4, mean_only=True)(torch.rand(2, *shape)).shape == (2, 5)
    image = decoder(torch.randn(2, 5))
    assert image.shape == (2, *shape) and 0 <= image.min() and image.max() <= 1


def test_dcgan_layers():
    assert describe(nets.DCGANEncoder((1, 32, 32))) == [
        ("Conv2d", 1, 64, 4, 2, 1), ("LeakyReLU",),
        ("Conv2d", 64, 128, 4, 2, 1), ("BatchNorm2d",), ("LeakyReLU",),
        ("Conv2d", 128, 256, 4, 2, 1), ("BatchNorm2d",), ("LeakyReLU",),
        ("Conv2d", 256, 200, 4, 1, 0),
    ]  # fmt: skip
    assert describe(nets.DCGANDecoder()) == [
        ("ConvTranspose2d", 100, 256, 4, 1, 0), ("BatchNorm2d",), ("ReLU",),
        ("ConvTranspose2d", 256, 128, 4, 2, 1), ("BatchNorm2d",), ("ReLU",),
        ("ConvTranspose2d", 128, 64, 4, 2, 1), ("BatchNorm2d",), ("ReLU",),
        ("ConvTranspose2d", 64, 1, 4, 2, 1), ("Sigmoid",),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 24)])
def test_resnet_18_nets(shape):
    encoder = nets.ResNet18Encoder(shape, latent_dim=5, width=4)
    decoder = nets.ResNet18Decoder(5, shape, width=4)
    assert encoder(torch.rand(2, *shape)).shape == (2, 10)
    assert nets.ResNet18Encoder(shape, 5, 4, mean_only=True)(torch.rand(2, *shape)).shape == (2, 5)
    image = decoder(torch.randn(2, 5))
    assert image.shape == (2, *shape) and 0 <= image.min() and image.max() <= 1
    # 17 convolutions and one Linear layer make the 18; shortcuts of other shapes add three
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(layer.kernel_size == (3, 3) for layer in convolutions) == 17
    assert sum(layer.kernel_size == (1, 1) for layer in convolutions) == 3
    assert encoder.layers[-1].in_features == 32


def test_the_resnets_derivatives_need_no_fallback():
    """The residual blocks are linearised by rules; vector-Jacobian products are those of autograd."""
    torch.manual_seed(0)
    encoder = nets.ResNet18Encoder((1, 8, 8), 2, 2).double().eval()
    decoder = nets.ResNet18Decoder(2, (1, 8, 8), 2).double().eval()
    for net, x in ((encoder, torch.rand(3, 1, 8, 8)), (decoder, torch.randn(3, 2))):
        x = x.double().requires_grad_()
        linearization = fk.linearize(net, x)
        assert not any("torch.func" in rule for rule in linearization.rules.values())
        cotangent = torch.randn_like(linearization.value)
        (expected,) = torch.autograd.grad(net(x), x, cotangent)
        torch.testing.assert_close(linearization.vjp(cotangent), expected)


def test_bad_image_sizes_are_named():
    for make in (nets.DCGANEncoder, lambda shape: nets.DCGANDecoder(out_shape=shape)):
        for shape in ((1, 28, 28), (1, 32, 16), (1, 4, 4)):
            with pytest.raises(ValueError, match=r"shape must be \(C, S, S\) with S = 8, 16, 32, ...; got \[1, "):
                make(shape)
    for make in (nets.ResNet18Encoder, lambda shape: nets.ResNet18Decoder(out_shape=shape)):
        with pytest.raises(ValueError, match=r"shape must be \(C, H, W\) with H and W multiples of 8; got \[1, 28, "):
            make((1, 28, 28))


def test_kaiming_initialization_keeps_the_signal_through_forty_layers():
    torch.manual_seed(0)
    x = torch.rand(64, 1, 8, 8)
    spread = {}
    for name in ("torch", "kaiming"):
        encoder = nets.MLPEncoder(64, [100], latent_dim=5, repeat=40, initialization=name)
        spread[name] = encoder(x).std(0).mean().item()
    assert spread["torch"] < 1e-6
    assert 1e-2 < spread["kaiming"] < 10


def test_kaiming_initialization_has_the_variance_of_he_et_al():
    torch.manual_seed(0)
    decoder = nets.MLPDecoder(200, [300, 400], [1, 28, 28], initialization="kaiming")
    linears = [layer for layer in decoder.layers if isinstance(layer, nn.Linear)]
    for linear, gain in zip(linears, (2.0, 2.0, 1.0), strict=True):
        assert linear.weight.var().item() == pytest.approx(gain / linear.in_features, rel=0.02)
        assert not linear.bias.any()


@pytest.mark.parametrize("net", [lambda **k: nets.MLPEncoder(4, [3], 2, **k),
                                 lambda **k: nets.MLPDecoder(2, [3], [4], **k)])  # fmt: skip
def test_unknown_initialization_is_refused(net):
    with pytest.raises(ValueError, match="initialization must be one of torch, kaiming; got 'he'"):
        net(initialization="he")
