"""swap on code that hides its activations: for each, the sites that are found, and that the new function ran there."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actsearch.genotype import Genotype
from actsearch.swap import Site, swap, unswap
from actsearch.swap.rewrite import base_of

X = torch.linspace(-2, 2, 12).reshape(3, 4)
ACT = {"relu": F.relu, "tanh": torch.tanh}
GLOBAL_ACTIVATION = nn.GELU()


class Scale(nn.Module):
    """The new function of these tests; no library has it, and its parameter must join the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


def helper(x: Tensor, slope: float = 0.1) -> Tensor:
    return F.leaky_relu(x, slope) + 1


def twice(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(function(x))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


@dataclasses.dataclass(frozen=True)
class Config:
    act: Callable[[Tensor], Tensor] = F.relu
    width: int = 4


class Calls(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + torch.relu(x - 1) + x.relu() + F.gelu(x, approximate="tanh") + (x + 1).tanh()


class InPlace(nn.Module):
    """Statements whose results are thrown away, on tensors that have another name too."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = x * 1
        also_a = a
        F.relu_(a)
        b = x + 1
        self.act(b)
        c = x + 2
        F.silu(c, inplace=True)
        d = x + 3
        d.tanh_()
        return also_a + 2 * b + 3 * c + 4 * d


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = 0.3
        self.held = F.leaky_relu

    def forward(self, x: Tensor) -> Tensor:
        local = 0.5
        x = self.held(x, 0.2)
        return F.leaky_relu(input=x, negative_slope=self.slope) + F.elu(x, local) + F.celu(x, 2.0)


class InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.acts = [F.relu, nn.Tanh(), (F.silu,)]

    def forward(self, x: Tensor) -> Tensor:
        for act in (*self.acts[:2], self.acts[2][0]):
            x = act(self.linear(x))
        return x


class InConfig(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.space = types.SimpleNamespace(act=torch.tanh, more={"b": nn.ELU()})

    def forward(self, x: Tensor) -> Tensor:
        return self.config.act(x) + self.space.act(x) + self.space.more["b"](x)


class Lambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (lambda x: F.relu(x)), (lambda x, k=2.0: k * x.tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        bias = 0.5

        def block(h: Tensor) -> Tensor:
            return F.relu(h + bias)

        return block(x) + (lambda h: F.silu(h))(x)


class Training(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = F.relu(x)
        return x + 1


class Partial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(F.gelu, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) + functools.partial(F.leaky_relu, negative_slope=0.3)(x)


class Helpers(nn.Module):
    def _inner(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    @staticmethod
    def _static(x: Tensor) -> Tensor:
        return F.softplus(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._inner(x) + self._static(x) + helper(x) + twice(F.relu, x) + swish(x)


class Lookups(nn.Module):
    activation = staticmethod(F.selu)
    module = nn.Tanh()

    def __init__(self) -> None:
        super().__init__()
        self.kind = "relu"

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.functional import mish

        act = F.silu if self.training else torch.relu
        y = act(x) + ACT[self.kind](x) + getattr(F, self.kind)(x) + self.activation(x) + self.module(x) + mish(x)
        return y + GLOBAL_ACTIVATION(x) + (0 if act is F.relu else 1)


class Parent(nn.Module):
    __slope = 0.1

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * F.leaky_relu(x, self.__slope)


class Child(Parent):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, scale=2.0) + F.relu(Parent.forward(self, x))


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) + 1

    return wrapper


class Decorated(nn.Module):
    @decorated
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.act = F.silu, nn.Tanh()

    def encode(self, x: Tensor) -> Tensor:
        self.seen: NotDefined = x  # type: ignore[name-defined] # noqa: F821
        return F.relu(x)


class CallsMethodOfChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.encode(x) + self.encoder.f(x) + self.encoder.act(x)


class Shared(nn.Module):
    """One block twice, one activation three times, one of them inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.block = nn.Sequential(nn.Linear(4, 4), self.act)
        self.again = self.block

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.act(self.again(self.block(x))) - 1)


class InModuleDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "b": nn.Tanh()})

    def forward(self, x: Tensor) -> Tensor:
        return self.branches["b"](self.branches["a"](x))


class Recurrent(nn.Module):
    """Gates are sigmoids that multiply; the tanh is an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.linear(x).chunk(2, 1)
        return torch.sigmoid(gate) * torch.tanh(value) + torch.softmax(x, 1)


CASES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "calls": (Calls, ["relu_1", "relu_2", "relu_3", "gelu_1", "tanh_1"]),
    "in place": (InPlace, ["act", "relu_1", "silu_1", "tanh_1"]),
    "arguments": (Arguments, ["held", "leaky_relu_1", "elu_1", "celu_1"]),
    "in a list": (InList, ["acts[0]", "acts[1]", "acts[2][0]"]),
    "in a config": (InConfig, ["config.act", "space.act", "space.more['b']"]),
    "a lambda": (Lambda, ["relu_1", "tanh_1"]),
    "a nested function": (Nested, ["relu_1", "silu_1"]),
    "if self.training": (Training, ["relu_1"]),
    "a partial": (Partial, ["act", "leaky_relu_1"]),
    "helpers": (Helpers, ["tanh_1", "softplus_1", "leaky_relu_1", "relu_1", "swish_1"]),
    "lookups": (Lookups, ["silu_1", "relu_1", "relu_2", "relu_3", "selu_1", "tanh_1", "mish_1", "gelu_1"]),
    "a parent": (Child, ["leaky_relu_1", "relu_1"]),
    "decorators": (Decorated, ["relu_1"]),
    "a child's method": (CallsMethodOfChild, ["encoder.act", "encoder.f", "encoder.relu_1"]),
    "shared": (Shared, ["act", "block.1"]),
    "in a ModuleDict": (InModuleDict, ["branches.b", "branches.a.1"]),
    "gates": (Recurrent, ["tanh_1"]),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, list[str]]:
    make, names = CASES[request.param]
    return make(), names


def default(site: Site) -> nn.Module:
    """What stood there; where an argument is a local variable, with its value."""
    local = {"F.elu(x, local)": nn.ELU(0.5), "F.leaky_relu(x, slope)": nn.LeakyReLU(0.1)}
    return local[site.original] if site.original in local else site.default()


def test_the_sites_are_found_and_what_stood_there_gives_the_same_bits(case: tuple[nn.Module, list[str]]) -> None:
    model, names = case
    before, keys, kind = model(X), list(model.state_dict()), type(model)
    report = swap(model, default)
    assert [site.name for site in report.replaced] == names
    assert torch.equal(model(X), before)
    assert set(keys) <= set(model.state_dict())
    assert isinstance(model, kind)
    unswap(model, report)
    assert type(model) is kind
    assert list(model.state_dict()) == keys
    assert not [name for name in vars(model) if name.startswith("_swap")]
    assert torch.equal(model(X), before)


def test_every_site_runs_the_new_function(case: tuple[nn.Module, list[str]]) -> None:
    model, names = case
    before = model(X)
    ran: list[str] = []

    def factory(site: Site) -> nn.Module:
        new = Scale()
        new.register_forward_hook(lambda *_: ran.append(site.name))
        return new

    report = swap(model, factory)
    changed = model(X)
    model.eval()(X)
    expected = {site.name for site in report.replaced} - ({"block.1"} if isinstance(model, Shared) else set())
    assert set(ran) == expected
    assert not torch.equal(changed, before)
    # Each new module is a part of the model: in its parameters, and in its state.
    modules = 1 if isinstance(model, Shared) else len(names)
    assert sum(p.numel() == 1 and p.item() == 3.0 for p in model.parameters()) == modules
    unswap(model, report)
    assert torch.equal(model.train()(X), before)


def test_a_swapped_model_can_be_copied_pickled_and_its_state_loaded(case: tuple[nn.Module, list[str]]) -> None:
    model, _ = case
    report = swap(model, lambda site: Scale())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    expected = model(X)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), expected)
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert torch.equal(model(X), expected), "the copy is not independent"
    if not isinstance(model, Lambda):  # no lambda can be pickled
        loaded = pickle.loads(pickle.dumps(model))
        assert torch.equal(loaded(X), expected)
        assert base_of(loaded) is base_of(model)
        unswap(loaded, report)
        assert type(loaded) is base_of(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    unswap(model, report)
    fresh = copy.deepcopy(model)
    swap(fresh, lambda site: Scale())
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(fresh(X), expected)


def test_swaps_follow_one_another_and_find_the_same_sites(case: tuple[nn.Module, list[str]]) -> None:
    model, names = case
    before = model(X)
    reports = [swap(model, new) for new in (lambda site: Scale(), Genotype.of_op("cube"), nn.Identity, nn.Tanh)]
    for report in reports:
        assert sorted(site.name for site in report.replaced) == sorted(names)
    assert not any(isinstance(module, Scale | nn.Identity) for module in model.modules())
    for report in reversed(reports):
        unswap(model, report)
    assert torch.equal(model(X), before)
    assert type(model) is base_of(model)


def test_gradients_are_those_of_the_original(case: tuple[nn.Module, list[str]]) -> None:
    model, _ = case
    if isinstance(model, Decorated):
        pytest.skip("its forward has no gradient")
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    swap(model, default)
    (found,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, expected)


def test_sites_are_selected_one_by_one_and_keep_their_names() -> None:
    model = Calls()
    before = model(X)
    report = swap(model, Scale, include="relu_*", exclude="relu_2")
    assert [site.name for site in report.replaced] == ["relu_1", "relu_3"]
    torch.testing.assert_close(model(X), before - F.relu(X) * 2 + 6 * X)
    second = swap(model, Scale, include="relu_2")
    assert [site.name for site in second.replaced] == ["relu_2"]
    torch.testing.assert_close(model(X), before - 2 * F.relu(X) - F.relu(X - 1) + 6 * X + 3 * (X - 1))
    unswap(model, second)
    torch.testing.assert_close(model(X), before - F.relu(X) * 2 + 6 * X)
    unswap(model, report)
    assert torch.equal(model(X), before)


class ActivationFn(nn.Module):
    """As in deepmd-kit: one class for every function, and for none."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return {"tanh": torch.tanh, "Linear": lambda x: x, "sigmoid": torch.sigmoid}[self.activation](x)


def test_a_class_whose_instances_carry_their_function_as_a_name_is_told_apart_by_it() -> None:
    model = nn.Sequential(ActivationFn("tanh"), ActivationFn("Linear"), ActivationFn("sigmoid"))
    report = swap(model, Scale)
    assert [(site.name, site.original, site.function) for site in report.replaced] == [
        ("0", "ActivationFn('tanh')", "tanh")
    ]
    assert [(site.name, reason) for site, reason in report.skipped] == [
        ("1", "linear: there is no activation"),
        ("2", "a gate"),
    ]
    unswap(model, report)
    assert torch.equal(model(X), X.tanh().sigmoid())


def test_an_example_that_requires_gradients_is_run_with_them() -> None:
    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return torch.autograd.grad(self.act(x).sum(), x)[0]

    model = Forces()
    assert swap(model, nn.SiLU, example=X.clone().requires_grad_()).unused == []
    with pytest.raises(RuntimeError, match="does not require grad"):
        swap(model, nn.SiLU, example=X)
