"""swap: what is found is replaced or listed with a reason, and can be put back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import actsearch.swap
from actsearch.activation import Activation
from actsearch.cell import MixedCell
from actsearch.errors import SwapError
from actsearch.genotype import Genotype
from actsearch.swap import ACTIVATION_TYPES, FUNCTIONS, Site, swap, unswap

CUBE = Genotype.of_op("cube")
X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Functional(nn.Module):
    """Holds activations as children and as a function, and calls one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.ReLU()
        self.function = F.silu
        self.gate = nn.Sigmoid()
        self.inner = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.GELU()), "b": nn.Tanh()})

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.act(self.linear(x)) - 0.1)
        return F.relu(self.inner["b"](self.inner["a"](x))) * self.gate(x)


def test_children_and_function_attributes_are_replaced_and_gates_are_left_alone() -> None:
    model = Functional()
    report = swap(model, CUBE)
    assert [site.name for site in report.replaced] == ["act", "function", "relu_1", "inner.b", "inner.a.1"]
    assert [(site.name, reason) for site, reason in report.skipped] == [("gate", "a gate")]
    assert all(isinstance(m, Activation) for m in (model.act, model.function, model.inner["b"], model.inner["a"][1]))
    x = model.linear(X) ** 3 - 0.1
    x = x**3
    expected = (model.inner["a"][0](x) ** 9) ** 3 * torch.sigmoid(x)
    torch.testing.assert_close(model(X), expected)
    text = str(report)
    assert "replaced 5 activation site(s)" in text
    assert "function: function silu" in text
    assert "gate: Sigmoid() (a gate)" in text


@pytest.mark.parametrize("kind", [t for t in ACTIVATION_TYPES if t.__module__.startswith("torch")], ids=str)
def test_every_known_type_is_found(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind())
    swap(model, CUBE)
    assert isinstance(model[0], Activation)


@pytest.mark.parametrize("function", sorted(FUNCTIONS, key=str), ids=lambda f: getattr(f, "__name__", str(f)))
def test_every_known_function_is_found_in_an_attribute(function: Callable[..., Tensor]) -> None:
    model = nn.Module()
    model.f = function
    report = swap(model, CUBE)
    assert isinstance(model.f, Activation)
    unswap(model, report)
    assert model.f is function
    assert not list(model.modules())[1:]


def test_gates_are_replaced_on_demand() -> None:
    model = Functional()
    assert "gate" in [site.name for site in swap(model, CUBE, gates=True).replaced]
    assert isinstance(model.gate, Activation)


def test_a_shared_instance_stays_shared_and_every_name_is_listed() -> None:
    relu = nn.ReLU()
    model = nn.ModuleDict({"a": relu, "b": nn.Sequential(relu, nn.ReLU())})
    report = swap(model, CUBE)
    assert [site.name for site in report.replaced] == ["a", "b.0", "b.1"]
    assert model["a"] is model["b"][0]
    assert model["a"] is not model["b"][1]
    unswap(model, report)
    assert model["a"] is relu
    assert model["b"][0] is relu


def test_two_names_of_one_instance_in_one_module_are_both_replaced() -> None:
    model = nn.Module()
    model.a = model.b = nn.ReLU()
    swap(model, CUBE)
    assert isinstance(model.a, Activation)
    assert model.a is model.b


def test_a_genotype_gives_every_site_its_own_module_and_a_module_stands_everywhere() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    swap(model, CUBE)
    assert model[0] is not model[1]
    one = nn.Hardtanh()
    swap(model, one)
    assert model[0] is one
    assert model[1] is one


def test_a_class_gives_every_site_an_instance() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Tanh())
    swap(model, nn.ReLU)
    assert isinstance(model[0], nn.ReLU)
    assert model[0] is not model[1]
    assert model[0].inplace is False


def test_a_factory_is_given_each_site() -> None:
    model, seen = Functional(), []

    def factory(site: Site) -> nn.Module:
        seen.append((site.name, site.original))
        return nn.Hardtanh()

    report = swap(model, factory, exclude="inner.*")
    assert seen == [
        ("act", "ReLU()"),
        ("function", "function silu"),
        ("relu_1", "F.relu(self.inner['b'](self.inner['a'](x)))"),
    ]
    assert [s.name for s in report.replaced] == [name for name, _ in seen]


def test_a_factory_that_fails_leaves_the_model_untouched() -> None:
    model = Functional()
    before = model(X)
    with pytest.raises(SwapError, match="the factory made Tensor for site 'function'"):
        swap(model, lambda site: nn.Tanh() if site.name == "act" else torch.zeros(1))  # type: ignore[return-value]
    assert isinstance(model.act, nn.ReLU)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ("*", (), ["act", "function", "relu_1", "inner.b", "inner.a.1"]),
        ("inner.*", (), ["inner.b", "inner.a.1"]),
        (["act", "*.b"], (), ["act", "inner.b"]),
        ("*", "inner.*", ["act", "function", "relu_1"]),
        ("*", ["act", "function"], ["relu_1", "inner.b", "inner.a.1"]),
        ("inner.*", "*.1", ["inner.b"]),
    ],
)
def test_include_and_exclude_are_patterns_of_dotted_names(include: str, exclude: str, names: list[str]) -> None:
    report = swap(Functional(), CUBE, include=include, exclude=exclude)
    assert [site.name for site in report.replaced] == names
    reasons = {site.name: reason for site, reason in report.skipped}
    assert set(reasons) | set(names) == {"act", "function", "relu_1", "inner.b", "inner.a.1", "gate"}
    assert set(reasons.values()) <= {"not included", "excluded", "a gate"}


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), nn.ReLU()])
def test_a_swap_that_replaces_nothing_is_an_error(model: nn.Module) -> None:
    with pytest.raises(SwapError, match="no activation was replaced in ") as error:
        swap(model, CUBE)
    assert "\n" not in str(error.value)
    with pytest.raises(SwapError, match="site\\(s\\) were left alone"):
        swap(Functional(), CUBE, include="nothing")


def test_unswap_restores_the_outputs_bit_for_bit() -> None:
    model = Functional()
    before, names = model(X), list(dict(model.named_modules()))
    report = swap(model, CUBE)
    assert not torch.equal(model(X), before)
    unswap(model, report)
    assert torch.equal(model(X), before)
    assert list(dict(model.named_modules())) == names
    assert model.function is F.silu


def test_swaps_can_be_stacked_and_taken_back_in_turn() -> None:
    model = Functional()
    outputs, reports = [model(X)], []
    cell = MixedCell("tiny", "softmax")
    for activation in (CUBE, Genotype.of_op("sin"), lambda site: cell.add_site(site.name), Genotype.of_op("tanh")):
        reports.append(swap(model, activation))
        outputs.append(model(X))
    assert [len(r.replaced) for r in reports] == [5] * 4
    assert set(cell.site_names) == {"act", "function", "relu_1", "inner.b", "inner.a.1"}
    for report, expected in zip(reversed(reports), reversed(outputs[:-1]), strict=True):
        unswap(model, report)
        assert torch.equal(model(X), expected)


def test_the_mixed_cell_does_not_join_the_model() -> None:
    model, cell = Functional(), MixedCell("tiny")
    before = set(model.state_dict())
    swap(model, lambda site: cell.add_site(site.name))
    assert set(model.state_dict()) == before
    assert not {id(p) for p in model.parameters()} & {id(p) for p in cell.parameters()}


def test_a_swapped_model_can_be_copied_and_its_state_saved_and_loaded() -> None:
    genotype = Genotype.of_op("beta_mul")
    model = Functional()
    swap(model, genotype)
    assert "function.u1_beta" in model.state_dict()
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), model(X))
    copied.act.u1_beta.fill_(5.0)
    assert model.act.u1_beta.item() == 1.0
    other = Functional()
    swap(other, genotype)
    other.load_state_dict(copied.state_dict())
    assert torch.equal(other(X), copied(X))
    cell = MixedCell("grafs")
    searched = Functional()
    swap(searched, lambda site: cell.add_site(site.name))
    copied = copy.deepcopy(searched)
    assert copied.act.cell is copied.function.cell
    assert torch.equal(copied(X), searched(X))


@pytest.mark.parametrize(
    ("name", "modules", "gates"),
    # ResNet-18: the stem's and one shared by both layers of each of eight blocks. MobileNetV3: one Hardsigmoid in each
    # of nine squeeze-and-excitation blocks; their ReLUs count.
    [("resnet18", 9, 0), ("mobilenet_v3_small", 33, 9)],
)
def test_all_sites_of_torchvision_models_are_found(name: str, modules: int, gates: int) -> None:
    model = getattr(torchvision.models, name)(weights=None).eval()
    found = [m for m in model.modules() if isinstance(m, nn.ReLU | nn.Hardswish)]
    assert len(found) == modules
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        report = swap(model, CUBE)
        assert len(report.replaced) == modules
        assert len(report.skipped) == gates
        assert not any(isinstance(m, nn.ReLU | nn.Hardswish) for m in model.modules())
        unswap(model, report)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torch_transformers_compute_the_new_function_in_evaluation_too(activation: str) -> None:
    """Their fused path of evaluation would go on with ReLU or GELU."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation, batch_first=True), 2)
    x = torch.randn(2, 3, 8)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad():
        before = encoder.eval()(x)
        report = swap(encoder, CUBE)
        assert len(report.replaced) == 2
        trained = encoder.train()(x, src_key_padding_mask=padding)
        torch.testing.assert_close(encoder.eval()(x, src_key_padding_mask=padding)[~padding], trained[~padding])
        torch.testing.assert_close(encoder.eval()(x), encoder.train()(x))
        assert not torch.allclose(encoder(x), before, atol=1e-2)
        unswap(encoder, report)
        assert torch.equal(encoder.eval()(x), before)


def test_the_module_can_be_called_as_the_function() -> None:
    model = nn.Sequential(nn.ReLU())
    assert len(actsearch.swap(model, CUBE).replaced) == 1
