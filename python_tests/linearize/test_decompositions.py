"""Attention and transformer encoders, which are traced as the operations they consist of."""

import copy

import pytest
import torch
from linearize_cases import Function
from linearize_oracle import SEED, all_close, check, close, gradients, scalar_of
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm

import fisherkernels as fk
from fisherkernels import linearize, reference


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Block(nn.Module):
    """The attention of a vision transformer with its residual."""

    def __init__(self, attention, **options):
        super().__init__()
        self.norm, self.attention, self.options = nn.LayerNorm(4), attention, options

    def forward(self, x):
        y = self.norm(x)
        return x + self.attention(y, y, y, **self.options)[0]


class Patches(nn.Module):
    """A small vision transformer, of patches of 2 x 2, or back to them."""

    def __init__(self, size, out, encodes):
        super().__init__()
        self.encodes = encodes
        self.embed = nn.Conv2d(1, 8, 2, 2) if encodes else nn.Linear(size, 4 * 8)
        self.position = nn.Parameter(torch.randn(1, 4, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True), 1)
        self.head = nn.Linear(32 if encodes else 8, out)

    def forward(self, x):
        h = self.embed(x).flatten(2).mT if self.encodes else self.embed(x).unflatten(1, (4, 8))
        h = h + self.position
        y = self.norm(h)
        h = self.layers(h + self.attention(y, y, y, need_weights=False)[0])
        if self.encodes:
            return self.head(h.flatten(1)).chunk(2, 1)
        return self.head(h).unflatten(1, (2, 2)).unflatten(-1, (2, 2)).permute(0, 1, 3, 2, 4).reshape(-1, 1, 4, 4)


def no_fallback(lin):
    return not any("fallback" in rule for rule in lin.rules.values())


def same_seed(function, *args):
    torch.manual_seed(SEED)
    return function(*args)


@pytest.mark.filterwarnings("error:fisherkernels.linearize")
def test_fisher_ae_loss_of_vision_transformers_is_double_backward():
    encoder, decoder = Patches(None, 4, True).double(), Patches(2, 4, False).double()
    twins = copy.deepcopy(encoder), copy.deepcopy(decoder)
    x, noise = torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    ours = fk.fisher_ae_loss(encoder, decoder, x, num_samples=2, noise=noise)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = reference.fisher_ae_loss(*twins, x, num_samples=2, noise=noise)
        theirs.loss.backward()
    ours.loss.backward()
    close(ours.loss, theirs.loss, 1e-12, "loss")
    for net, twin in zip((encoder, decoder), twins, strict=True):
        for (name, one), other in zip(net.named_parameters(), twin.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                close(one.grad, other.grad, 1e-10, name, floor=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Block(nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True), need_weights=False),
        lambda: nn.Sequential(Block(nn.MultiheadAttention(4, 2, batch_first=True)), nn.Dropout(0.4)),
        lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.4, batch_first=True),
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 5, 0.4, batch_first=True, norm_first=True), 2),
    ],
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_dropout_draws_what_the_module_draws(make):
    net = make().double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    c, t = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    lin = same_seed(linearize, net, x)
    assert no_fallback(lin)
    value = same_seed(net, x)
    close(lin.value, value, 1e-12, "value")
    close(lin.vjp(c), torch.autograd.grad(value, x, c)[0], 1e-12, "vjp")
    close((lin.vjp(c) * t).sum(), (c * lin.jvp(t)).sum(), 1e-12, "jvp")


def test_weights_that_nobody_uses_are_not_averaged():
    x = torch.randn(2, 3, 4)
    block = Block(nn.MultiheadAttention(4, 2, batch_first=True))
    assert "mean" not in linearize(block, x).rules.values()
    block = Function(lambda m, x: m.attention(x, x, x))
    block.attention = nn.MultiheadAttention(4, 2, batch_first=True)
    assert "mean" in linearize(block, x).rules.values()


def _changes(layer):
    attention = layer.self_attn
    yield "norm_first", lambda: setattr(layer, "norm_first", True)
    yield "activation", lambda: setattr(layer, "activation", F.gelu)
    yield "heads", lambda: (setattr(attention, "num_heads", 4), setattr(attention, "head_dim", 1))
    yield "batch_first", lambda: setattr(attention, "batch_first", True)
    yield "dropout of weights", lambda: setattr(attention, "dropout", 0.5)
    yield "dropout", lambda: setattr(layer.dropout1, "p", 0.5)
    yield "eval", layer.eval
    yield "train", layer.train
    yield "bias", lambda: setattr(attention, "in_proj_bias", nn.Parameter(torch.ones(12)))
    yield "output bias", lambda: setattr(attention.out_proj, "bias", nn.Parameter(torch.ones(4)))
    yield "weights", lambda: attention.in_proj_weight.data.mul_(2)
    yield "a replaced layer", lambda: setattr(layer, "linear1", nn.Linear(4, 5))


def test_changes_are_noticed():
    layer = nn.TransformerEncoderLayer(4, 2, 5, 0.0, bias=False)
    x = torch.randn(3, 5, 4)
    before = linearize(layer, x).value
    for name, change in _changes(layer):
        change()
        lin = same_seed(linearize, layer, x)
        expected = same_seed(layer, x)
        close(lin.value, expected, 1e-5, name)
        assert no_fallback(lin), name
        assert (expected - before).abs().max() > 1e-4, f"{name} changes nothing"
        before = expected
    layer.self_attn.add_zero_attn = True
    with pytest.warns(UserWarning, match="no rule for self_attn of TransformerEncoderLayer"):
        close(same_seed(linearize, layer, x).value, same_seed(layer, x), 1e-5, "add_zero_attn")


def test_compiled_graph_follows_changes():
    layer = nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True).double()
    net = Function(lambda m, x: m.layer(x, m.future[: x.shape[1], :3], m.padding))
    net.layer = layer
    net.register_buffer("future", torch.ones(7, 7, dtype=torch.bool).triu(1))
    net.register_buffer("padding", torch.tensor([[False, False, True], [False, True, True]]))
    x = torch.randn(2, 3, 4, dtype=torch.float64)

    def products(net, x):
        lin = linearize(net, x)
        return lin.value, lin.vjp(x), lin.jvp(x)

    compiled = torch.compile(products, fullgraph=True, backend="eager")
    for change in ({}, {"activation": F.gelu}, {"norm_first": True}):
        vars(layer).update(change)
        layer.self_attn.in_proj_weight.data.mul_(2)
        for one, other in zip(compiled(net, x), products(net, x), strict=True):
            close(one, other, 1e-12, f"compiled, {change}")


def test_given_parameters_stand_in_for_the_modules_own():
    net = Block(nn.MultiheadAttention(4, 2, batch_first=True)).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    given = {name: torch.randn_like(p).requires_grad_() for name, p in net.named_parameters()}
    lin = linearize(net, x, parameters=given)
    close(lin.value, torch.func.functional_call(net, given, (x,)), 1e-13, "value")
    lin.vjp(x).square().sum().backward()
    assert all(given[name].grad is not None for name in ("attention.in_proj_weight", "attention.out_proj.weight"))
    assert all(p.grad is None for p in net.parameters())


class OwnAttention(nn.MultiheadAttention):
    pass


def _hooked(module):
    module.register_forward_hook(lambda module, args, out: (2 * out[0], out[1]))
    return module


def _parametrized(module):
    weight_norm(module.out_proj)
    return module


def _decoder():
    net = Function(lambda m, x: m.layer(x, x.sin()))
    net.layer = nn.TransformerDecoderLayer(4, 2, 5, 0.0, batch_first=True)
    return net


FALLBACKS = {
    "subclass": (lambda: Block(OwnAttention(4, 2, batch_first=True), need_weights=False), "attention"),
    "bias_kv": (lambda: Block(nn.MultiheadAttention(4, 2, add_bias_kv=True), need_weights=False), "attention"),
    "zero_attn": (lambda: Block(nn.MultiheadAttention(4, 2, add_zero_attn=True)), "attention"),
    "hooked": (lambda: Block(_hooked(nn.MultiheadAttention(4, 2)), need_weights=False), "attention"),
    "parametrized": (lambda: Block(_parametrized(nn.MultiheadAttention(4, 2))), "attention"),
    "activation": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 5, 0.0, lambda h: h if h.sum() > 1e9 else h.sin())),
        "0",
    ),
    "decoder": (_decoder, "layer"),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_fallback_for_that_module_alone(name):
    make, slow = FALLBACKS[name]
    net = make().double()
    x, c = torch.randn(2, 2, 3, 4, dtype=torch.float64).requires_grad_()
    with pytest.warns(UserWarning, match=f"no rule for {slow} of"):
        lin = linearize(net, x)
    assert {name for name, rule in lin.rules.items() if "fallback" in rule} == {slow}
    with sdpa_kernel(SDPBackend.MATH):
        value = net(x)
    pulled = torch.autograd.grad(value, x, c, create_graph=True)[0]
    close(lin.value, value, 1e-12, "value")
    close(lin.vjp(c), pulled, 1e-12, "vjp")
    all_close(gradients(scalar_of([lin.vjp(c)]), net, x), gradients(scalar_of([pulled]), net, x), 1e-11, "vjp")


def test_a_mask_that_depends_on_the_input_is_differentiated():
    net = Function(lambda m, x: m.attention(x, x, x, attn_mask=x[0] @ x[1].mT, need_weights=False)[0])
    net.attention = nn.MultiheadAttention(4, 2, batch_first=True)
    with pytest.warns(UserWarning, match="no rule for additive_mask, scaled_dot_product_attention of"):
        check(net, (2, 3, 4), fallback=True)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(3, 3, dtype=torch.int), TypeError, "expected booleans or floating point, got torch.int32"),
        (torch.ones(5, 3, 3), RuntimeError, "shape"),
    ],
)
def test_masks_are_checked(mask, error, message):
    net = Function(lambda m, x: m.attention(x, x, x, attn_mask=m.mask)[0])
    net.attention = nn.MultiheadAttention(4, 2, batch_first=True)
    net.register_buffer("mask", mask)
    with pytest.raises(error, match=message):
        linearize(net, torch.randn(2, 3, 4))
