"""swap's choices: which sites, what is put there, what is left alone and why, and what an example run adds."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.nn.utils import parametrize

from actsearch.errors import SwapError
from actsearch.genotype import Genotype
from actsearch.swap import Site, SwapReport, swap, unswap

X = torch.linspace(-2, 2, 12).reshape(3, 4)
CUBE = Genotype.of_op("cube")


def reasons(report: SwapReport) -> dict[str, str]:
    return {site.name: reason for site, reason in report.skipped}


class Block(nn.Module):
    """One ReLU object called three times, as in torchvision's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.other = self.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.fc(self.relu(self.fc(self.relu(self.fc(x)))))) + self.other(x + 1)


def test_a_shared_instance_is_one_site_or_split_by_name_and_by_call() -> None:
    model = Block()
    before = model(X)
    kept = swap(model, lambda site: nn.Tanh())
    assert [site.name for site in kept.replaced] == ["relu", "other"]
    assert model.relu is model.other
    unswap(model, kept)
    split = swap(model, lambda site: nn.Tanh(), shared="split")
    assert [site.name for site in split.replaced] == ["relu", "relu_2", "relu_3", "other"]
    assert len({id(model.get_submodule(site.name)) for site in split.replaced}) == 4
    again = swap(model, lambda site: site.default(), shared="split")
    assert sorted(site.name for site in again.replaced) == ["other", "relu", "relu_2", "relu_3"]
    unswap(model, again)
    unswap(model, split)
    assert torch.equal(model(X), before)
    one_by_one = swap(model, nn.Tanh, shared="split", include="relu_2")
    first = F.relu(model.fc(X))
    second = torch.tanh(model.fc(first))
    torch.testing.assert_close(model(X), F.relu(model.fc(second)) + F.relu(X + 1))
    unswap(model, one_by_one)
    with pytest.raises(SwapError, match="'keep' or 'split', not 'both'"):
        swap(model, CUBE, shared="both")  # type: ignore[arg-type]


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.GELU())
        self.gate = nn.Sigmoid()
        self.f = F.silu

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.first(x)) * self.gate(x) * torch.sigmoid(x) + F.relu(x)


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (nn.ReLU, (), ["first.1"]),
        ([nn.ReLU, "f"], (), ["f", "first.1"]),
        (lambda site: site.kind == "call", (), ["relu_1"]),
        ("*", [nn.GELU, lambda site: site.function == "relu"], ["f"]),
        (lambda site: site.function == "silu" or site.value is F.relu, (), ["f", "relu_1"]),
    ],
)
def test_sites_are_chosen_by_name_type_and_predicate(include: Any, exclude: Any, names: list[str]) -> None:
    assert [site.name for site in swap(Mixture(), CUBE, include=include, exclude=exclude).replaced] == names


def test_gates_are_left_alone_unless_asked_for_and_softmax_always() -> None:
    model = nn.Sequential(Mixture(), nn.Softmax(1))
    report = swap(model, CUBE)
    assert reasons(report) == {"0.gate": "a gate", "0.sigmoid_1": "a gate"}
    unswap(model, report)
    names = [site.name for site in swap(model, CUBE, gates=True).replaced]
    assert names == ["0.gate", "0.f", "0.sigmoid_1", "0.relu_1", "0.first.1", "0.first.2"]


def test_a_mapping_gives_each_pattern_its_own() -> None:
    model = Mixture()
    report = swap(model, {"first.1": nn.Tanh, "first.*": CUBE, "f": lambda site: nn.Hardtanh()})
    assert isinstance(model.first[1], nn.Tanh)
    assert type(model.first[2]).__name__ == "Activation"
    assert isinstance(model.f, nn.Hardtanh)
    assert reasons(report)["relu_1"] == "no pattern of the mapping fits"


class Snake(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(x) ** 2


class QuickGELU(nn.Module):
    """As libraries bring their own: known by its name."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Swish(nn.Module):
    """A block of layers that only bears the name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x))


def test_activations_of_other_libraries_and_the_users_own_are_recognised() -> None:
    make = lambda: nn.Sequential(nn.Linear(4, 4), QuickGELU(), Snake(), Swish())  # noqa: E731
    assert [site.name for site in swap(make(), CUBE).replaced] == ["1", "3.relu_1"]
    for types in (Snake, [Snake], lambda module: isinstance(module, Snake)):
        assert [site.name for site in swap(make(), CUBE, types=types).replaced] == ["1", "2", "3.relu_1"]


class VaeLoss(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x).mean()


class Task(pl.LightningModule):
    """Written directly in the LightningModule, with the traps of losses and metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.criterion = VaeLoss()
        self.bce = nn.BCEWithLogitsLoss()
        self.accuracy = torchmetrics.MeanMetric()

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x))

    def hinge_loss(self, x: Tensor) -> Tensor:
        return F.relu(1 - x).mean()

    def training_step(self, batch: Tensor, batch_idx: int = 0) -> Tensor:
        y = self(self.encode(batch))
        return F.softplus(-y).mean() + self.hinge_loss(y) + self.criterion(y)


def test_losses_metrics_and_steps_are_left_alone_and_what_they_call_is_not() -> None:
    task = Task()
    before = task.training_step(X)
    report = swap(task, nn.Tanh)
    assert [site.name for site in report.replaced] == ["relu_1", "tanh_1"]
    skipped = reasons(report)
    assert skipped["softplus_1"] == "called in training_step, where losses are computed; move it to forward"
    assert skipped["relu_2"] == "called in hinge_loss, where losses are computed; move it to forward"
    assert skipped["criterion.softplus_1"] == "part of a loss or metric"
    y = torch.tanh(task.fc(torch.tanh(task.fc(X))))
    expected = F.softplus(-y).mean() + F.relu(1 - y).mean() + F.softplus(y).mean()
    torch.testing.assert_close(task.training_step(X), expected)
    unswap(task, report)
    assert torch.equal(task.training_step(X), before)


class Scripted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def test_scripted_modules_are_listed_or_an_error_where_nothing_else_is() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Scripted()))
    with pytest.raises(SwapError, match=r"no activation was replaced in Sequential; 1 .*scripted by torch\.jit"):
        swap(scripted, CUBE)
    report = swap(nn.Sequential(scripted, nn.Tanh()), CUBE)
    assert [site.name for site in report.replaced] == ["1"]
    assert reasons(report) == {"0": "scripted by torch.jit; swap before scripting"}


def test_weights_keep_their_parametrisation_and_a_parametrised_module_is_changed_like_any() -> None:
    model = nn.Sequential(Swish(), nn.Tanh())
    parametrize.register_parametrization(model[0].fc, "weight", nn.Softplus())
    parametrize.register_parametrization(model[0].fc, "bias", Scripted())
    model[0].extra = nn.Parameter(torch.ones(2))
    parametrize.register_parametrization(model[0], "extra", nn.ReLU())
    before = model(X)
    report = swap(model, lambda site: site.default())
    assert sorted(site.name for site in report.replaced) == ["0.relu_1", "1"]
    assert set(reasons(report).values()) == {"it shapes a weight, as a parametrisation"}
    assert torch.equal(model(X), before)
    unswap(model, report)
    report = swap(model, CUBE)
    torch.testing.assert_close(model(X), model[0].fc(X) ** 9)
    unswap(model, report)
    assert torch.equal(model(X), before)


def test_recurrent_kernels_and_traced_graphs_are_listed() -> None:
    report = swap(nn.ModuleList([nn.LSTM(4, 4), torch.fx.symbolic_trace(Swish()), nn.ReLU()]), CUBE)
    assert [site.name for site in report.replaced] == ["2"]
    assert reasons(report) == {
        "0": "its activations are inside torch's kernel",
        "1.relu_1": "in a traced graph; swap before tracing",
    }


def test_a_forward_without_source_or_with_another_on_the_instance_is_listed() -> None:
    scope: dict[str, Any] = {"nn": nn, "F": F}
    exec("class Unseen(nn.Module):\n    def forward(self, x):\n        return F.relu(x)", scope)
    patched = Scripted()
    patched.forward = functools.partial(F.relu)  # type: ignore[method-assign]
    replaced = Swish()
    replaced.forward = lambda x: F.silu(x)  # type: ignore[method-assign]
    report = swap(nn.ModuleList([scope["Unseen"](), replaced, nn.ReLU()]), CUBE)
    assert reasons(report) == {
        "0.forward": "its source cannot be read; write the activation as a submodule",
        "1.forward": "forward was replaced on this one module; put it into the class",
    }


class Hidden(nn.Module):
    """Calls that no reading of the code shows."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.idle = nn.Tanh()
        self.skip = nn.ELU()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, name: str = "gelu") -> Tensor:
        y = self.act(self.norm(x)) + getattr(F, name)(x) + self.skip(x) + F.silu(x) * torch.sigmoid(x)
        return sum([getattr(y, "relu")(), torch.randn(())], y)  # noqa: B009


def test_an_example_shows_calls_that_reading_does_not_and_sites_that_do_not_run() -> None:
    model = Hidden()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    report = swap(model, CUBE, exclude=["skip", "silu_1"], example={"x": X, "name": "mish"})
    assert [site.name for site in report.replaced] == ["act", "idle", "silu_1"][:2]
    assert report.unused == ["idle"]
    assert "idle: Tanh() (did not run)" in str(report)
    found = {site.name: (site.original, reason) for site, reason in report.skipped}
    assert set(found) == {"skip", "silu_1", "sigmoid_1", "mish", "relu"}
    assert found["mish"][0].startswith("mish at test_swap_options.py:")
    assert found["mish"][1] == "called where swap cannot see it; make it a submodule"
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_without_a_site_the_hidden_calls_of_an_example_are_named() -> None:
    class Only(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return getattr(F, "re" + "lu")(x)

    with pytest.raises(SwapError, match="none was found; give an example input"):
        swap(Only(), CUBE)
    with pytest.raises(SwapError, match=r"1 site\(s\) were left alone, such as relu \(called where swap cannot see it"):
        swap(Only(), CUBE, example=X)


def test_a_failure_half_way_leaves_the_model_untouched() -> None:
    class Refuses(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4), nn.Dropout(0.0, inplace=True))

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "inplace":
                raise RuntimeError("no")
            super().__setattr__(name, value)

    class Dropout(nn.Dropout):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "inplace" and "inplace" in vars(self):
                raise RuntimeError("it stays in place")
            super().__setattr__(name, value)

    model = nn.Sequential(Mixture(), Dropout(0.0, inplace=True))
    before, kind, names = model.eval()(X), type(model[0]), list(dict(model.named_modules()))
    with pytest.raises(RuntimeError, match="it stays in place"):
        swap(model, CUBE)
    assert torch.equal(model(X), before)
    assert type(model[0]) is kind
    assert list(dict(model.named_modules())) == names
    assert model[0].f is F.silu


def test_a_model_that_is_an_activation_is_told_so() -> None:
    with pytest.raises(SwapError, match="no activation was replaced in GELU: it is itself an activation"):
        swap(nn.GELU(), CUBE)


class Residual(nn.Module):
    """In-place neighbours before and after the activations."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.ReLU(inplace),
            nn.Dropout(0.0, inplace),
            nn.Linear(4, 4),
        )
        self.last = nn.Hardsigmoid(inplace)
        self.act = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        y += x
        return self.last(self.act(y))


@pytest.mark.parametrize("new", [lambda site: nn.Tanh(), lambda site: nn.Softplus(), lambda site: nn.SiLU()])
def test_in_place_neighbours_do_not_spoil_gradients(new: Callable[[Site], nn.Module]) -> None:
    model, reference = Residual(True), Residual(False)
    reference.load_state_dict(model.state_dict())
    report = swap(model, new)
    assert report.out_of_place == ["net.3", "last"]
    assert "no longer in place: net.3, last" in str(report)
    swap(reference, new)
    for net in (model, reference):
        net(X).square().sum().backward()
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)  # type: ignore[arg-type]
    unswap(model, report)
    assert model.net[3].inplace
    assert model.last.inplace
    assert model.act.inplace


class Configured(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(4, 4)
        self.layers = [self.fc, config["act"]]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.config["act"](self.fc(x)))


def test_a_container_that_others_hold_too_is_not_changed() -> None:
    config = {"act": F.relu, "width": 4}
    model, outside = nn.Sequential(Configured(config), Configured(config)), Configured(config)
    before, expected = model(X), outside(X)
    report = swap(model, lambda site: nn.PReLU())
    assert [site.name for site in report.replaced] == [
        f"{block}.{place}" for block in (0, 1) for place in ("config['act']", "layers[1]")
    ]
    assert len({id(p) for p in model.parameters()}) == 4 + 4
    assert config == {"act": F.relu, "width": 4}
    assert torch.equal(outside(X), expected)
    unswap(model, report)
    assert model[0].config is config
    assert torch.equal(model(X), before)


def test_a_list_beside_registered_children_gets_the_same_new_modules() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()
            self.layers = [nn.Flatten(), self.act]

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model = Both()
    report = swap(model, lambda site: nn.PReLU())
    assert [site.name for site in report.replaced] == ["act", "layers[1]"]
    assert model.layers[1] is model.act
    assert list(model.state_dict()) == ["act.weight"]


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_transformer_layers_with_a_function_of_the_users_own(layer: Callable[..., nn.Module]) -> None:
    model = layer(4, 2, 8, 0.0, lambda x: F.relu(x) ** 2, batch_first=True)
    x = torch.randn(2, 3, 4)
    inputs = (x,) if layer is nn.TransformerEncoderLayer else (x, x)
    before = model.eval()(*inputs)
    report = swap(model, CUBE)
    assert [site.name for site in report.replaced] == ["activation"]
    assert not torch.allclose(model(*inputs), before)
    unswap(model, report)
    assert torch.equal(model(*inputs), before)


def test_a_method_named_like_an_activation_and_a_loss_function_in_an_attribute() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss_fn = F.softplus
            self.f, self.g = (lambda x: F.relu(x)), (lambda x: F.silu(x))

        def gelu(self, x: Tensor) -> Tensor:
            return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))

        def forward(self, x: Tensor) -> Tensor:
            return self.gelu(x) + self.f(x) + 2 * self.g(x)

    model = Model()
    before = model(X)
    report = swap(model, lambda site: site.default())
    assert [site.name for site in report.replaced] == ["gelu_1", "relu_1", "silu_1"]
    assert reasons(report) == {"loss_fn": "part of a loss or metric"}
    assert torch.equal(model(X), before)
    unswap(model, report)
    swap(model, {"gelu_1": CUBE, "relu_1": nn.Tanh, "silu_1": nn.Identity})
    torch.testing.assert_close(model(X), X**3 + torch.tanh(X) + 2 * X)


def my_loss(x: Tensor) -> Tensor:
    return F.softplus(x).mean()


def shifted(x: Tensor) -> Tensor:
    return F.softplus(x - 1).mean()


class Terms(pl.LightningModule):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + my_loss(x)

    def training_step(self, batch: Tensor, batch_idx: int = 0) -> Tensor:
        return shifted(self(batch))


def test_functions_that_are_losses_by_their_name_or_called_by_a_step_are_not_entered() -> None:
    report = swap(Terms(), CUBE)
    assert [site.name for site in report.replaced] == ["relu_1"]
    assert report.skipped == []


def test_lambdas_of_one_line_that_mention_the_same_names_are_told_apart() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = (lambda x: F.relu(x)), (lambda x: F.relu(x + 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x) - self.g(x)

    model = Model()
    swap(model, lambda site: nn.Identity() if site.name == "relu_1" else nn.Tanh())
    torch.testing.assert_close(model(X), X - torch.tanh(X + 1))


def test_a_function_called_with_different_arguments_has_no_default() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = F.leaky_relu

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x, 0.1) + self.f(x, 0.2)

    with pytest.raises(SwapError, match="f: function leaky_relu has arguments that are known only when it runs"):
        swap(Model(), lambda site: site.default())
    model = Model()
    swap(model, nn.Tanh)
    torch.testing.assert_close(model(X), 2 * torch.tanh(X))


def test_code_that_was_edited_since_its_import_is_not_guessed_at(tmp_path: Path) -> None:
    file = tmp_path / "edited_since.py"
    text = "import torch.nn as nn, torch.nn.functional as F\nclass Net(nn.Module):\n    def forward(self, x):\n"
    file.write_text(f"{text}        return F.relu(x)\n")
    spec = importlib.util.spec_from_file_location("edited_since", file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    file.write_text(f"{text}        return F.gelu(x)\n")
    with pytest.raises(SwapError, match="its source cannot be read"):
        swap(module.Net(), CUBE)
