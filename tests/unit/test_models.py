"""The models: sizes as published, and every activation a site that a swap can find."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import actsearch
from actsearch import models
from actsearch.errors import SettingsError, UnknownNameError
from actsearch.models import resnet
from actsearch.swap import FUNCTIONS

LARGE = {"vit_tiny", "vit_small", "minigpt", "tinygpt", "smallgpt"}  # built once here, not in every test
TEXT_MODELS = {"gpt", "minigpt", "tinygpt", "smallgpt"}
POINT_MODELS = {"pinn_mlp"}  # see test_pinn
FORCE_FIELDS = {"deep_potential", "painn", "ani2", "chgnet"}  # see test_force_fields
SMALL = {
    "gpt": {"layers": 2, "heads": 2, "width": 16},
    "vit": {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp_dim": 24, "patch": 1},
    "preact_resnet18": {"width": 4},
}
NAMES = sorted(set(models.names()) - LARGE - POINT_MODELS - FORCE_FIELDS)
IMAGE_MODELS = sorted(set(NAMES) - TEXT_MODELS)
IMAGES = [(3, 32, 10), (1, 28, 10), (1, 8, 10), (3, 16, 100), (1, (9, 14), 3)]


def facts_of_images(num_classes: int = 10, in_channels: int = 1, image_size: Any = 8) -> dict[str, Any]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "in_features": in_channels * height * width,
    }


FACTS_OF_TEXT = {"vocab_size": 11, "context": 7}


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A model that is quick, and an input for it."""
    if name in TEXT_MODELS:
        return models.build(name, FACTS_OF_TEXT, **SMALL.get(name, {})), torch.randint(0, 11, (3, 7))
    return models.build(name, facts_of_images(), **SMALL.get(name, {})), torch.randn(3, 1, 8, 8)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018)],
)
def test_resnets_have_the_published_parameter_counts(name, number):
    assert count(getattr(resnet, name)()) == number


@pytest.mark.parametrize(("in_channels", "image_size", "number"), [(1, 28, 61_706), (1, 32, 61_706), (3, 32, 62_006)])
def test_lenet_has_the_classic_parameter_count(in_channels, image_size, number):
    assert count(models.lenet(in_channels=in_channels, image_size=image_size)) == number


def test_the_wide_lenet_has_the_layers_of_its_paper():
    model = models.build("lenet_wide", facts_of_images(image_size=28))
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [
        (64, 1, 5, 5),
        (64, 64, 5, 5),
        (1024, 64 * 5 * 5),
        (10, 1024),
    ]


def test_the_preactivation_resnet_has_eighteen_layers_and_seventeen_sites():
    model = models.build("preact_resnet18", facts_of_images(image_size=32, in_channels=3))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", 0) == (3, 3)]
    assert len(layers) == 18
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 17
    assert count(model) == 11_172_170


@pytest.mark.parametrize(
    ("name", "layers", "width", "millions"),
    [("minigpt", 3, 192, 11), ("tinygpt", 6, 384, 30), ("smallgpt", 9, 576, 65)],
)
def test_gpts_have_the_published_millions_of_parameters_because_head_and_embedding_are_one(
    name, layers, width, millions
):
    with torch.device("meta"):
        model = models.build(name, {"vocab_size": 50_304, "context": 256})
    assert model.head.weight is model.tokens.weight
    assert round(count(model) / 1e6) == millions
    assert count(model) == width * (50_304 + 256) + layers * (12 * width**2 + 2 * width) + width


@pytest.mark.parametrize(("name", "depth", "inner", "mlp"), [("vit_tiny", 4, 384, 256), ("vit_small", 6, 512, 512)])
def test_vits_have_the_published_sizes(name, depth, inner, mlp):
    with torch.device("meta"):
        model = models.build(name, facts_of_images(image_size=32, in_channels=3))
    block = (512 * 3 * inner) + (inner * 512 + 512) + (512 * mlp + mlp) + (mlp * 512 + 512) + 4 * 512
    embedding = 512 * (3 * 16 + 1) + 512 * (1 + 64)
    assert count(model) == embedding + 512 + depth * block + 2 * 512 + 512 * 10 + 10
    assert model.position.shape == (1, 65, 512)


# --- shapes and sites --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize(("in_channels", "image_size", "num_classes"), IMAGES)
def test_every_image_model_maps_images_of_any_shape_to_finite_logits(name, in_channels, image_size, num_classes):
    coarse = {"patch": 4} if name == "vit" and image_size in (28, 32) else {}  # a patch a pixel would be 1,024 of them
    options = {**SMALL.get(name, {}), **coarse}
    model = models.build(name, facts_of_images(num_classes, in_channels, image_size), **options)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    logits = model(torch.randn(2, in_channels, height, width))
    assert logits.shape == (2, num_classes)
    assert logits.isfinite().all()


def activations(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.ReLU | nn.GELU)]


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_is_a_module_of_its_own_that_runs_once(name):
    model, x = small(name)
    calls = []
    sites = activations(model)
    for site in sites:
        site.register_forward_hook(lambda module, _inputs, _output: calls.append(module))
    assert not any(getattr(site, "inplace", False) for site in sites)
    model(x)
    assert len(calls) == len(sites) == len(set(calls)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_swap_finds_every_site_and_leaves_no_activation_in_the_forward_pass(name):
    model, x = small(name)
    called = []

    class Audit(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in FUNCTIONS:
                called.append(function)
            return function(*args, **(kwargs or {}))

    expected = len(activations(model))
    report = actsearch.swap(model, lambda site: nn.Identity())
    assert len(report.replaced) == expected
    assert not report.skipped
    with Audit():
        model(x)
    assert called == []
    if name not in TEXT_MODELS:  # nor one written by hand: every layer that is left is linear or a normalisation
        return
    assert {type(m) for m in model.modules() if not list(m.children())} <= {
        nn.Embedding,
        nn.Linear,
        nn.LayerNorm,
        nn.Dropout,
        nn.Identity,
    }


@pytest.mark.parametrize("name", sorted({*IMAGE_MODELS} - {"lenet", "lenet_wide", "vit"}))
def test_without_its_activation_modules_a_model_is_odd(name):
    """With identities in their places the same input and its negative give mirrored logits: no hidden maximum."""
    model, x = small(name)
    model.eval()
    actsearch.swap(model, lambda site: nn.Identity())
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.zeros_(parameter)
    torch.testing.assert_close(model(x), -model(-x))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_builds_the_same_weights(name):
    def weights() -> Tensor:
        torch.manual_seed(3)
        return nn.utils.parameters_to_vector(small(name)[0].parameters())

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize("stride", [1, 2])
def test_the_shortcut_copies_pixels_and_adds_empty_channels(stride):
    x = torch.randn(2, 5, 7, 7)
    y = resnet.BasicBlock(5, 8, stride).shortcut(x)
    assert torch.equal(y[:, 1:6], x[:, :, ::stride, ::stride])
    assert not y[:, :1].any()
    assert not y[:, 6:].any()


def test_a_preactivation_block_that_keeps_its_shape_adds_to_its_raw_input():
    model, _ = small("preact_resnet18")
    block, x = model.blocks[1], torch.randn(2, 4, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x)
    shrinking, activated = model.blocks[2], torch.relu(model.blocks[2].bn1(x))
    nn.init.zeros_(shrinking.conv2.weight)
    torch.testing.assert_close(shrinking(x), shrinking.shortcut(activated))


# --- transformers ------------------------------------------------------------------------------------------------


def by_hand(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("name", ["gpt", "vit"])
def test_attention_is_that_of_the_textbook(name):
    model, _ = small(name)
    attention = model.eval().blocks[0].attention
    x = torch.randn(2, 5, 16)
    q, k, v = (part.view(2, 5, 2, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    y = by_hand(q, k, v, causal=name == "gpt").transpose(1, 2).reshape(2, 5, 16)
    torch.testing.assert_close(attention(x), attention.out(y))


def test_no_token_sees_the_tokens_after_it():
    model, tokens = small("gpt")
    model.eval()
    before = model(tokens)
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    after = model(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert all((before[:, t] != after[:, t]).any() for t in range(4, 7))


def test_the_order_of_earlier_tokens_matters_to_a_gpt():
    model = models.build("gpt", FACTS_OF_TEXT, layers=1, heads=2, width=16).eval()  # one layer sees a set of tokens
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert not torch.allclose(model(tokens)[0, 3], model(tokens[:, [1, 0, 2, 3]])[0, 3], rtol=1e-4, atol=1e-6)


def test_a_gpt_takes_fewer_tokens_than_its_context_and_refuses_more():
    model, tokens = small("gpt")
    model.eval()
    torch.testing.assert_close(model(tokens[:, :3]), model(tokens)[:, :3])
    with pytest.raises(SettingsError, match="8 tokens do not fit into the model's context of 7"):
        model(torch.zeros(1, 8, dtype=torch.int64))


def test_a_new_gpt_knows_nothing():
    model = models.build("gpt", {"vocab_size": 500, "context": 32})
    loss = F.cross_entropy(model(torch.randint(0, 500, (8, 32))).flatten(0, 1), torch.randint(0, 500, (8 * 32,)))
    assert loss.item() == pytest.approx(math.log(500), rel=0.01)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gpts_initial_weights_are_gpt2s(bias):
    model = models.build("gpt", {"vocab_size": 300, "context": 64}, layers=4, heads=2, width=128, bias=bias)
    for name, p in model.named_parameters():
        ends_branch = name.endswith(("out.weight", "fc2.weight"))
        if p.ndim > 1:
            assert p.detach().std().item() == pytest.approx(0.02 / math.sqrt(8) if ends_branch else 0.02, rel=0.05), (
                name
            )
        elif name.endswith("bias"):
            assert bias
            assert not p.any()
        else:
            assert (p == 1).all()


def test_the_order_of_patches_matters_to_a_vit_and_dropout_only_in_training():
    model, x = small("vit")
    model.eval()
    assert torch.equal(model(x), model(x))
    assert not torch.allclose(model(x), model(x.flip(-1)), atol=1e-5)
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", ["gpt", "vit"])
def test_second_derivatives_need_the_plain_attention(name):
    model, x = small(name)
    model.eval()
    weight = model.blocks[0].attention.qkv.weight

    def second() -> None:
        (gradient,) = torch.autograd.grad(model(x).square().sum(), weight, create_graph=True)
        gradient.square().sum().backward()

    with sdpa_kernel(SDPBackend.MATH):
        second()
    assert weight.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="derivative"):
        second()


# --- initial weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scaling_multiplies_the_weights_of_layers_and_nothing_else(name):
    model, _ = small(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    number = models.scale_weights(model, 1.5)
    spared = ("tokens.", "positions.", "position", "class_token")
    scaled = {n for n, p in before.items() if p.ndim > 1 and not n.startswith(spared)}
    assert number == len(scaled) > 0
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n] * 1.5 if n in scaled else before[n]), n
    if name in TEXT_MODELS:
        assert model.head.weight is model.tokens.weight


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_no_gain_is_refused(factor):
    with pytest.raises(SettingsError, match="above 0"):
        models.scale_weights(nn.Linear(2, 2), factor)


# --- the door ----------------------------------------------------------------------------------------------------


def test_options_reach_the_model():
    assert models.build("resnet8", facts_of_images(), width=8).head.in_features == 32
    assert models.build("mlp", facts_of_images(), hidden=[5]).fc1.weight.shape == (5, 64)
    assert len(models.build("gpt", FACTS_OF_TEXT, layers=5).blocks) == 5


def test_an_unknown_model_lists_near_matches():
    with pytest.raises(UnknownNameError, match="resnet20"):
        models.build("resnet21", facts_of_images())


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"did you mean 'width'.*options: width"):
        models.build("resnet20", facts_of_images(), widht=8)


@pytest.mark.parametrize("name", models.names())
def test_data_of_another_kind_is_refused_with_what_is_lacking(name):
    if name in POINT_MODELS:
        with pytest.raises(SettingsError, match=rf"model {name} needs equations \(domain\); the data gives num_c"):
            models.build(name, facts_of_images())
    elif name in FORCE_FIELDS:
        with pytest.raises(SettingsError, match=rf"model {name} needs frames \(elements, .*; the data gives num_c"):
            models.build(name, facts_of_images())
    elif name in TEXT_MODELS:
        with pytest.raises(
            SettingsError, match=rf"model {name} needs text \(vocab_size, context\); the data gives num_c"
        ):
            models.build(name, facts_of_images())
    else:
        with pytest.raises(SettingsError, match=rf"model {name} needs images \(.*; the data gives vocab_size and cont"):
            models.build(name, FACTS_OF_TEXT)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.resnet20(width=0),
        lambda: models.preact_resnet18(width=0),
        lambda: models.lenet(image_size=3),
        lambda: models.lenet(width=0),
        lambda: models.lenet(units=(5, 5, 5)),
        lambda: models.lenet(channels=(5, 0)),
        lambda: models.mlp(4, 2, hidden=(3, 0)),
        lambda: models.vit(image_size=30),
        lambda: models.vit(image_size=(32, 30)),
        lambda: models.vit(depth=0),
        lambda: models.vit(dropout=1.0),
        lambda: models.gpt(10, width=64, heads=3),
        lambda: models.gpt(0),
        lambda: models.gpt(10, dropout=-0.1),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(build):
    with pytest.raises(SettingsError) as caught:
        build()
    assert "\n" not in str(caught.value)
