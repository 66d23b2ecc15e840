"""The models: sizes as published, and every activation a site that a swap can find."""

import pytest
import torch
from torch import nn

from actsearch import models
from actsearch.errors import SettingsError, UnknownNameError
from actsearch.models import resnet

IMAGES = [(3, 32, 10), (1, 28, 10), (1, 8, 10), (3, 16, 100), (1, (9, 14), 3)]


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586), ("resnet56", 853_018)],
)
def test_resnets_have_the_published_parameter_counts(name, count):
    assert sum(p.numel() for p in getattr(resnet, name)().parameters()) == count


@pytest.mark.parametrize(("in_channels", "image_size", "count"), [(1, 28, 61_706), (1, 32, 61_706), (3, 32, 62_006)])
def test_lenet_has_the_classic_parameter_count(in_channels, image_size, count):
    model = models.lenet(in_channels=in_channels, image_size=image_size)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize(("in_channels", "image_size", "num_classes"), IMAGES)
def test_every_model_maps_images_of_any_shape_to_finite_logits(name, in_channels, image_size, num_classes):
    model = models.build(name, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    logits = model(torch.randn(2, in_channels, height, width))
    assert logits.shape == (2, num_classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", models.names())
def test_every_activation_is_a_module_of_its_own_that_runs_once(name):
    model = models.build(name, num_classes=10, in_channels=1, image_size=8)
    calls = []
    sites = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    for site in sites:
        site.register_forward_hook(lambda module, _inputs, _output: calls.append(module))
    assert not any(site.inplace for site in sites)
    model(torch.randn(2, 1, 8, 8))
    assert len(calls) == len(sites) == len(set(calls)) > 0


@pytest.mark.parametrize("name", models.names())
def test_without_its_activation_modules_a_model_holds_no_relu(name):
    """With identities in their places the same input and its negative give mirrored features: no hidden F.relu."""
    if name == "lenet":
        pytest.skip("max pooling is not odd")
    model = models.build(name, num_classes=4, in_channels=1, image_size=8).eval()
    for parent in list(model.modules()):
        for attribute, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, attribute, nn.Identity())
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.zeros_(parameter)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(x), -model(-x))


@pytest.mark.parametrize("name", models.names())
def test_the_same_seed_builds_the_same_weights(name):
    def weights() -> torch.Tensor:
        torch.manual_seed(3)
        model = models.build(name, num_classes=10, in_channels=1, image_size=8)
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize("stride", [1, 2])
def test_the_shortcut_copies_pixels_and_adds_empty_channels(stride):
    x = torch.randn(2, 5, 7, 7)
    y = resnet.BasicBlock(5, 8, stride).shortcut(x)
    assert torch.equal(y[:, 1:6], x[:, :, ::stride, ::stride])
    assert not y[:, :1].any()
    assert not y[:, 6:].any()


def test_options_reach_the_model():
    facts = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    assert models.build("resnet8", width=8, **facts).head.in_features == 32
    assert models.build("mlp", hidden=[5], **facts).fc1.weight.shape == (5, 64)


def test_an_unknown_model_lists_near_matches():
    with pytest.raises(UnknownNameError, match="resnet20"):
        models.build("resnet21", num_classes=10, in_channels=3, image_size=32)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"did you mean 'width'.*options: width"):
        models.build("resnet20", num_classes=10, in_channels=3, image_size=32, widht=8)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.resnet20(width=0),
        lambda: models.lenet(image_size=3),
        lambda: models.lenet(width=0),
        lambda: models.mlp(4, 2, hidden=(3, 0)),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(build):
    with pytest.raises(SettingsError) as caught:
        build()
    assert "\n" not in str(caught.value)
