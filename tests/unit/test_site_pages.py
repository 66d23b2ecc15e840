"""The pages of the site that are made of the registry, the zoo, the files and the verbs are complete."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

from actsearch import cli, zoo
from actsearch.files import named_files
from actsearch.ops import registry
from actsearch.report import op_cards, op_plots, space_cards, zoo_gallery
from actsearch.report.curve import derivatives
from actsearch.report.plots import pixels
from actsearch.report.terminal import FAMILIES
from actsearch.space import SearchSpace

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "scripts" / "docs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_operation_has_a_card_and_a_line_in_the_index() -> None:
    pages = {group: op_cards.family(group, "pictures") for group in FAMILIES}
    index = op_cards.index()
    for op, spec in registry.items():
        (group,) = spec.groups
        assert f"{{ #{op} }}" in pages[group]
        assert f"pictures/{op_cards.picture_name(spec)}" in pages[group]
        assert f"]({group}.md#{op})" in index


@pytest.mark.parametrize("op", list(registry))
def test_a_card_tells_formula_range_smoothness_cost_and_reference(op: str) -> None:
    names = dict(op_cards.facts(registry[op]))
    assert names.keys() >= {"takes", "exact", "range", "bounded", "smoothness", "cost", "spaces", "reference"}
    assert ("trained" in names) == bool(registry[op].parameters)
    assert op_cards.latex(registry[op])
    assert "|" not in op_cards.latex(registry[op])  # it would end the cell of a table


def test_costs_count_the_operations_of_torch() -> None:
    assert op_cards.cost(registry["identity"]) == (0, 0)
    assert op_cards.cost(registry["relu"]) == (1, 1)
    assert op_cards.cost(registry["sin"]) == (1, 2)  # the cosine, and its product with what comes back
    assert op_cards.cost(registry["chebyshev"])[0] > 10


def test_a_series_tells_its_functions() -> None:
    first, second, third = op_cards.terms(registry["chebyshev"])
    assert first == r"\varphi_0 = 1"
    assert second == r"\varphi_1 = \tanh x"
    assert third == r"\varphi_2 = 2 \tanh^{2} x - 1"
    assert r"\pi" in op_cards.terms(registry["fourier"])[1]
    assert op_cards.terms(registry["relu"]) == []


@pytest.mark.parametrize("op", ["silu", "neg", "beta_mul", "chebyshev", "laaf_site", "max", "beta_mix", "left", "div"])
def test_an_operation_is_drawn(op: str) -> None:
    image = pixels(op_plots.draw_op(registry[op]))
    assert image.std() > 10


def test_the_derivatives_of_a_function_that_is_minus_x_are_known() -> None:
    x = np.array([-1.0, 2.0])
    found = derivatives(torch.neg, x, 3)
    assert [list(values) for values in found] == [[1.0, -2.0], [-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]


def test_every_function_of_the_zoo_is_in_the_gallery() -> None:
    gallery = zoo_gallery.gallery("pictures/{}.svg")
    for name in zoo.names():
        assert f"{{ #{name} }}" in gallery
        assert f"`zoo:{name}`" in gallery
        assert f"pictures/{name}.svg" in gallery
    assert gallery.count('class="item"') == len(zoo.names())


def test_a_clip_in_the_gallery_is_explained() -> None:
    for name in zoo.names():
        found = zoo_gallery.formulas(zoo.entry(name))
        assert len(found) == (2 if "clip" in found[0] else 1)
        assert not any("align" in line or "&" in line or line.endswith("\\") for line in found)


def test_every_space_is_shown_with_its_file() -> None:
    for name in SearchSpace.names():
        page = space_cards.card(SearchSpace.load(name), f"pictures/{name}.png")
        assert f"## {name} {{ #{name} }}" in page
        assert f"pictures/{name}.png" in page
        assert named_files("search_spaces")[name].read_text(encoding="utf-8").strip() in page


def test_every_verb_has_a_section_with_its_help(hooks: ModuleType) -> None:
    page = hooks.commands()
    for verb, function in cli.VERBS.items():
        section = page.partition(f"{{ #{verb} }}")[2].partition("\n## ")[0]
        assert (function.__doc__ or "").strip() in section
        assert f"usage: actsearch {verb}" in section


def test_every_configuration_is_listed(hooks: ModuleType) -> None:
    page = hooks.configs()
    for folder in ("search", "transfer", "tune"):
        for name in named_files(f"configs/{folder}"):
            assert f"{{ #{folder}-{name} }}" in page


def test_formulas_become_mathml(hooks: ModuleType) -> None:
    text = r'<p><span class="arithmatex">\(x &lt; 1\)</span></p><div class="arithmatex">\[\frac{x}{2}\]</div>'
    found = hooks.on_page_content(text)
    assert "<mo>&#x0003C;</mo>" in found
    assert "<mfrac>" in found
    assert "arithmatex" not in found


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = re.findall(r"[\w/]+\.(?:md|ipynb)\b", str(yaml.safe_load(text)["nav"]))
    assert len(nav) == len(set(nav))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {"ops/index.md", "zoo.md", "spaces.md", "configs.md", "cli.md", "changelog.md"}
    made |= {f"ops/{group}.md" for group in FAMILIES}
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    assert set(nav) == written | made | notebooks
    assert not written & made


def test_notebooks_are_stored_without_outputs() -> None:
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path
