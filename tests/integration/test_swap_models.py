"""swap on the models of torchvision, timm, transformers and our own, and under torch.compile, autocast and export."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import Tensor, nn

import actsearch.models as own
from actsearch.cell import MixedCell
from actsearch.genotype import Genotype
from actsearch.swap import swap, unswap

CUBE = Genotype.of_op("cube")
IMAGE = (2, 3, 32, 32)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2Model(config)


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )


def vit() -> nn.Module:
    """torchvision's vit_b_16 with small images, and a head that is not zero."""
    model = torchvision.models.vit_b_16(image_size=32)
    nn.init.normal_(model.heads.head.weight)
    return model


# Name → how it is made, the shape of its input, sites, of these calls in code, gates left alone, sites that do not run.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int, int, int]] = {
    "resnet8": (own.resnet8, IMAGE, 7, 0, 0, 0),
    "resnet20": (own.resnet20, IMAGE, 19, 0, 0, 0),
    "lenet": (own.lenet, (2, 1, 28, 28), 4, 0, 0, 0),
    "mlp": (lambda: own.mlp(8), (2, 8), 2, 0, 0, 0),
    "resnet18": (torchvision.models.resnet18, IMAGE, 9, 0, 0, 0),
    "vit_b_16": (vit, IMAGE, 12, 0, 0, 0),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, IMAGE, 19 + 14, 0, 9, 0),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, IMAGE, 33 + 16, 0, 16, 0),
    "densenet121": (torchvision.models.densenet121, IMAGE, 121, 1, 0, 0),
    # Two auxiliary classifiers of two calls each run only in training.
    "googlenet": (lambda: torchvision.models.googlenet(init_weights=False), (2, 3, 64, 64), 61, 61, 0, 4),
    # Its attention has a gate that is off.
    "vit_tiny_patch16_224": (
        lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32),
        IMAGE,
        12,
        0,
        12,
        0,
    ),
    "convnext_atto": (lambda: timm.create_model("convnext_atto", pretrained=False), IMAGE, 12, 0, 0, 0),
    "gpt2": (gpt2, (2, 7), 2, 0, 0, 0),
    "bert": (bert, (2, 7), 3, 0, 0, 0),
}


def run(model: nn.Module, x: Tensor) -> Tensor:
    found = model(x)
    return found.last_hidden_state if hasattr(found, "last_hidden_state") else found


@pytest.mark.filterwarnings("ignore:.*:FutureWarning:timm")
@pytest.mark.parametrize("name", MODELS)
def test_every_site_of_a_librarys_model_is_replaced(name: str) -> None:
    make, shape, sites, calls, gates, idle = MODELS[name]
    model = make().eval()
    x = torch.randint(0, 50, shape) if name in ("gpt2", "bert") else torch.randn(shape)
    keys, types = list(model.state_dict()), [type(module) for module in model.modules()]
    with torch.no_grad():
        before = run(model, x)
        same = swap(model, lambda site: site.default())
        assert len(same.replaced) == sites
        assert sum(site.kind == "call" for site in same.replaced) == calls
        assert len(same.skipped) == gates
        assert {reason for _, reason in same.skipped} <= {"a gate"}
        assert torch.equal(run(model, x), before)
        unswap(model, same)
        report = swap(model, CUBE, example=x)
        assert [site.name for site in report.replaced] == [site.name for site in same.replaced]
        assert report.skipped == same.skipped, "the example run heard a call that was not found"
        assert len(report.unused) == idle
        ran: set[str] = set()
        for site in report.replaced:
            hook = lambda *_, site=site: ran.add(site.name)  # noqa: E731
            model.get_submodule(site.name).register_forward_hook(hook)
        changed = run(model, x)
        assert ran == {site.name for site in report.replaced} - set(report.unused)
        assert not torch.equal(changed, before)
        unswap(model, report)
        assert torch.equal(run(model, x), before)
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == types


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = F.silu

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(F.relu(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.blocks(x).mean((2, 3))))


def swapped() -> nn.Module:
    model = Net()
    report = swap(model, lambda site: nn.PReLU())
    assert len(report.replaced) == 5
    return model


X = torch.linspace(-1, 1, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_swapped_models_compute_the_same_in_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    model = swapped()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-5)
    compiled(X).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_can_be_swapped_after_it_was_compiled() -> None:
    torch._dynamo.reset()
    model = Net()
    compiled = torch.compile(model, backend="eager")
    before = compiled(X)
    report = swap(compiled, CUBE)
    assert len(report.replaced) == 5
    changed = compiled(X)
    assert torch.equal(changed, model(X))
    assert not torch.equal(changed, before)
    unswap(compiled, report)
    assert torch.equal(compiled(X), before)


def test_autocast_reaches_the_sites() -> None:
    model = swapped().eval()
    seen = set()
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            module.register_forward_hook(lambda _, inputs, output: seen.add(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(X)
    assert torch.bfloat16 in seen
    torch.testing.assert_close(found.float(), model(X), rtol=0.1, atol=0.1)


def test_a_state_goes_through_a_file_into_a_freshly_swapped_model(tmp_path: Path) -> None:
    model = swapped()
    model(X)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = swapped()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.eval()(X), model.eval()(X))
    assert set(Net().state_dict()) < set(model.state_dict())
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    assert torch.equal(torch.load(whole, weights_only=False)(X), model(X))


def test_exported_programs_hold_the_new_function() -> None:
    model = swapped().eval()
    exported = torch.export.export(model, (X,))
    torch.testing.assert_close(exported.module()(X), model(X))
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(X), model(X))
    assert not any(node.target in (F.relu, torch.tanh, F.silu) for node in traced.graph.nodes)


def test_the_cells_of_a_search_stand_at_calls_too() -> None:
    model, cell = Net(), MixedCell("tiny", "softmax")
    keys = set(model.state_dict())
    report = swap(model, lambda site: cell.add_site(site.name))
    assert set(cell.site_names) == {site.name for site in report.replaced}
    model(X).sum().backward()
    assert all(alpha.grad is not None for alpha in cell.alpha.values())
    assert set(model.state_dict()) == keys
    copied = copy.deepcopy(model)
    assert len({id(m.cell) for m in copied.modules() if hasattr(m, "cell")}) == 1
