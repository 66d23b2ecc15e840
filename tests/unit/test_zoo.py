"""The zoo: every function is what its name says, and comes out of every door the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import actsearch
from actsearch import cli, zoo
from actsearch.activation import Activation, load
from actsearch.errors import GenotypeError, UnknownNameError
from actsearch.genotype import Genotype

# Written from the papers' formulas, or torch's own where it has one.
GOLDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "atan2_minus_x": lambda x: torch.atan(x) ** 2 - x,
    "celu_01": lambda x: F.celu(x, 0.1),
    "cos_minus_x": lambda x: torch.cos(x) - x,
    "elu": F.elu,
    "gaussian": lambda x: torch.exp(-(x**2)),
    "gcu": lambda x: x * torch.cos(x),
    "gelu": F.gelu,
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "golu": lambda x: x * torch.exp(-torch.exp(-x)),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": F.leaky_relu,
    "lecun_tanh": lambda x: 1.7159 * torch.tanh(2 * x / 3),
    "lisht": lambda x: x * torch.tanh(x),
    "logish": lambda x: x * torch.log(1 + torch.sigmoid(x)),
    "logsigmoid": F.logsigmoid,
    "max_sigmoid": lambda x: torch.maximum(x, torch.sigmoid(x)),
    "max_tanh": lambda x: torch.maximum(x, torch.tanh(x)),
    "min_sin": lambda x: torch.minimum(x, torch.sin(x)),
    "mish": F.mish,
    "phish": lambda x: x * torch.tanh(F.gelu(x)),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "relu6": F.relu6,
    "selu": F.selu,
    "serf": lambda x: x * torch.erf(torch.log(1 + torch.exp(x))),
    "sigmoid": torch.sigmoid,
    "sigmoid_relu_gelu": lambda x: torch.sigmoid(F.relu(x)) * F.gelu(x),
    "silu": F.silu,
    "sinc_plus_x": lambda x: torch.where(x == 0, 1.0, torch.sin(x) / x) + x,
    "sinlu": lambda x: (x + torch.sin(x)) * torch.sigmoid(x),
    "smish": lambda x: x * torch.tanh(torch.log(1 + torch.sigmoid(x))),
    "snake": lambda x: x + torch.sin(x) ** 2,
    "softplus": F.softplus,
    "squareplus": lambda x: (x + torch.sqrt(x**2 + 4)) / 2,
    "star_relu": lambda x: 0.8944 * F.relu(x) ** 2 - 0.4472,
    "swish_beta": F.silu,
    "tanh": torch.tanh,
    "tanhexp": lambda x: x * torch.tanh(torch.exp(x)),
    "tanhshrink": F.tanhshrink,
    "x_asinh2": lambda x: x * torch.asinh(x) ** 2,
}
PUBLISHED = [name for name in zoo.names() if zoo.entry(name).kind == "published"]
X = torch.cat([torch.linspace(-30, 30, 4001, dtype=torch.float64), torch.tensor([0.0, 1e-3, -1e-3, 500.0, -500.0])])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_function_is_what_its_paper_says(name: str) -> None:
    # Constants such as 0.044715 are held in float32; log(0.999 + 0.001) is 1e-8 then, and stands beside x = -500.
    atol = 1e-5 if name in ("logish", "smish") else 1e-7
    torch.testing.assert_close(Activation(zoo.load(name))(X), GOLDEN[name](X), rtol=3e-7, atol=atol)


def test_nothing_stands_in_the_golden_list_that_is_not_in_the_zoo() -> None:
    assert set(GOLDEN) == set(PUBLISHED)


@pytest.mark.parametrize("name", zoo.names())
def test_an_entry_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    entry = zoo.entry(name)
    assert entry.title
    assert entry.reference
    assert entry.kind in ("published", "found")
    assert name == name.lower()
    if entry.kind == "published":
        assert entry.genotype.clip.kind == "none"
    else:
        assert {"space", "seed", "task", "score"} <= set(entry.origin or {})
    assert entry.genotype.provenance["zoo"] == name
    data = json.loads((Path(zoo.__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    assert data["genotype"]["formula"] == entry.genotype.formula
    assert set(data) <= {
        "format", "name", "title", "kind", "aliases", "reference", "note", "origin", "genotype",
    }  # fmt: skip


def test_names_and_aliases_are_unique() -> None:
    every = [*zoo.names(), *(alias for name in zoo.names() for alias in zoo.entry(name).aliases)]
    assert len(every) == len(set(every))
    assert all(name.isidentifier() for name in every)


def test_every_door_takes_a_name_of_the_zoo(tmp_path: Path) -> None:
    mish = zoo.load("mish")
    assert load("zoo:mish").genotype == mish
    assert actsearch.load("zoo:Mish").genotype == mish
    assert zoo.load("zoo:mish") == mish
    assert zoo.load("swish") == zoo.load("silu") == Genotype.of_op("silu")
    assert actsearch.zoo.names() == zoo.names()
    assert Genotype.load(mish.save(tmp_path / "mish.json")).provenance == mish.provenance


@pytest.mark.parametrize("door", [zoo.load, zoo.entry, load])
def test_an_unknown_name_lists_near_ones(door: Callable[[str], object]) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown function of the zoo 'misch'; did you mean 'mish'"):
        door("zoo:misch")


def test_a_file_that_is_no_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"format": "actsearch.genotype", "name": "other"}')
    with pytest.raises(GenotypeError, match="not an entry of the zoo"):
        zoo._read(path)


# -- the verbs -----------------------------------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_zoo_lists_every_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo"]) == 0
    shown = {line.split()[0] for line in lines(capsys)[1:] if line[:3].strip()}
    assert set(zoo.names()) <= shown


def test_zoo_show_and_use(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["zoo", "show", "relu2", "--png", "relu2.png"]) == 0
    text = "\n".join(lines(capsys))
    assert "Primer" in text
    assert "relu(x)**2" in text
    assert Path("relu2.png").stat().st_size > 10_000
    assert cli.main(["zoo", "use", "squared_relu"]) == 0
    text = "\n".join(lines(capsys))
    namespace: dict[str, object] = {"model": torch.nn.Sequential(torch.nn.GELU())}
    exec(text[text.index("import actsearch") :], namespace)
    assert torch.equal(namespace["model"](torch.tensor([-1.0, 3.0])), torch.tensor([0.0, 9.0]))  # type: ignore[operator]
    assert load("relu2.json").genotype == zoo.load("relu2")
    assert cli.main(["zoo", "use", "relu2"]) == 2
    assert "relu2.json is already there" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["show"], ["list", "mish"], ["use", "mish", "--png", "a.png"], ["show", "misch"]])
def test_zoo_explains_what_it_does_not_understand(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zoo", *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def exported(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_export_writes_every_form_and_prints_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "zoo:phish", "--to", "all", "--out", str(tmp_path)]) == 0
    assert exported(tmp_path) == [
        "phish.json", "phish.onnx", "phish.pt2", "phish.py", "phish.tex", "phish_numpy.py", "phish_sympy.py",
    ]  # fmt: skip
    shown = {line.split()[0].rpartition("/")[2]: line for line in lines(capsys)}
    for name, derivatives in (("phish.py", 2), ("phish_numpy.py", 2), ("phish_sympy.py", 2), ("phish.pt2", 2)):
        assert shown[name].count("derivative") == derivatives
    assert shown["phish.onnx"].count("derivative") == 1
    assert not any("MORE THAN EXPECTED" in line for line in shown.values())
    assert load(tmp_path / "phish.json").genotype == zoo.load("phish")


def test_export_of_a_run_goes_over_its_inputs_into_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from actsearch.run import RunDirectory

    zoo.load("serf").save(tmp_path / "genotype.json")
    RunDirectory(tmp_path).write_inputs(torch.linspace(-1.5, 42.0, 50))
    assert cli.main(["export", str(tmp_path), "--name", "Found"]) == 0
    (line,) = lines(capsys)
    assert "from -1.5 to 42" in line
    assert exported(tmp_path / "export") == ["found.py"]
    assert cli.main(["export", str(tmp_path / "genotype.json"), "--to", "latex", "--out", str(tmp_path / "f.tex")]) == 0
    assert (tmp_path / "f.tex").read_text().startswith("\\[")


def test_export_overwrites_only_when_told_to_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mish.tex").write_text("mine")
    command = ["export", "zoo:mish", "--to", "source,latex", "--out", str(tmp_path)]
    assert cli.main(command) == 2
    assert "mish.tex is already there; give --force" in capsys.readouterr().err
    assert exported(tmp_path) == ["mish.tex"]
    assert (tmp_path / "mish.tex").read_text() == "mine"
    assert cli.main([*command, "--force"]) == 0
    assert exported(tmp_path) == ["mish.py", "mish.tex"]


def test_an_export_that_fails_leaves_no_other_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from actsearch.export import onnx

    monkeypatch.setattr(onnx, "missing_packages", lambda: ["onnx"])
    assert cli.main(["export", "zoo:mish", "--to", "source,onnx", "--out", str(tmp_path / "new")]) == 2
    assert "pip install 'actsearch[onnx]'" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.py")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ["zoo:mish", "--to", "sorce"],
        ["zoo:mish", "--to", "numpy", "--trainable"],
        ["zoo:mish", "--name", "not a name"],
        ["zoo:mish", "--to", "source,json", "--out", "one.py"],
        ["nowhere.json"],
    ],
)
def test_export_explains_what_it_does_not_understand(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *wrong]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert exported(tmp_path) == []


def test_an_error_beyond_the_tolerance_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from actsearch import carrying
    from actsearch.export.parity import Parity

    def parity(value: float, first: float) -> Parity:
        return Parity(value, first, None, 10, (-1, 1), "here")

    assert "MORE" not in carrying._in_words(parity(1e-5, 1e-4))
    assert "MORE" in carrying._in_words(parity(2e-5, 0))
    assert "MORE" in carrying._in_words(parity(0, 2e-4))
    assert "MORE" in carrying._in_words(parity(math.inf, 0))


def test_a_trainable_export_is_a_module_with_parameters(tmp_path: Path) -> None:
    assert cli.main(["export", "zoo:swish_beta", "--trainable", "--out", str(tmp_path)]) == 0
    assert "self.u1_beta = nn.Parameter(torch.tensor(1.0))" in (tmp_path / "swish_beta.py").read_text()
