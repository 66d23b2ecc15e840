"""Settings of a search: plain data with defaults of the paper, and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actsearch.errors import ActsearchError, SettingsError
from actsearch.search.settings import RefineSettings, SearchSettings

BAD = [
    ({"epochs": 0}, "epochs must be a whole number from 1 on, not 0"),
    ({"epochs": 2.5}, "epochs must be a whole number"),
    ({"epochs": True}, "epochs must be a whole number"),
    ({"epoch": 5}, "unknown search setting 'epoch'; did you mean 'epochs'"),
    ({"alpha_rl": 1}, "unknown search setting 'alpha_rl'; did you mean 'alpha_lr'"),
    ({"relaxation": "dirichle"}, "unknown value of relaxation 'dirichle'; did you mean 'dirichlet'"),
    ({"evaluator": "tables"}, "unknown value of evaluator 'tables'; did you mean 'table'"),
    ({"order": 3}, "unknown value of order '3'"),
    ({"op_parameters": "weight"}, "did you mean 'weights'"),
    ({"shrink_unit": "steps"}, "did you mean 'step'"),
    ({"alpha_lr": 0}, "alpha_lr must be a positive"),
    ({"alpha_lr": float("nan")}, "alpha_lr must be a positive"),
    ({"weight_clip": -1}, "weight_clip must be a positive"),
    ({"anchor": -0.1}, "anchor must be a finite number from 0 on"),
    ({"alpha_weight_decay": "1e-3"}, "alpha_weight_decay must be a finite number"),
    ({"arch_fraction": 1.0}, "arch_fraction must lie between 0 and 1"),
    ({"alpha_betas": [0.5]}, "alpha_betas must be two numbers"),
    ({"alpha_betas": [0.5, 1.0]}, "alpha_betas must be two numbers"),
    ({"alpha_betas": 5}, "value of the wrong kind"),
    ({"epochs": 2, "shrink_start": 2}, r"epochs \(2\) must exceed shrink_start \(2\)"),
    ({"inner_lr": 0.1}, "inner_lr is used by order 2 only"),
    ({"refine": {"evaluation": 1}}, "unknown refine setting 'evaluation'; did you mean 'evaluations'"),
    ({"refine": {"width": 0}}, "refine.width must be a whole number from 1 on"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_setting_is_told_in_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        SearchSettings.from_dict(data)
    assert "\n" not in str(error.value)


def test_the_defaults_are_those_published_for_resnet20() -> None:
    s = SearchSettings()
    assert (s.epochs, s.alpha_lr, s.alpha_betas, s.alpha_weight_decay) == (50, 6e-4, (0.5, 0.999), 1e-3)
    assert (s.arch_fraction, s.warm, s.warm_epochs, s.shrink_start, s.relaxation) == (0.25, "relu", 1, 2, "dirichlet")


def test_settings_come_back_from_json() -> None:
    s = SearchSettings(epochs=7, order=2, inner_lr=0.1, alpha_betas=(0.1, 0.2), refine=RefineSettings(width=9))
    again = SearchSettings.from_dict(json.loads(json.dumps(s.to_dict())))
    assert again == s
    assert again.alpha_betas == (0.1, 0.2)
    assert isinstance(again.refine, RefineSettings)


def test_without_shrinking_a_search_may_be_short() -> None:
    assert SearchSettings(epochs=1, shrink=False).epochs == 1
    assert SearchSettings(epochs=1, shrink_unit="step").epochs == 1


def test_reading_settings_does_not_import_torch() -> None:
    code = "import sys, actsearch.search.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NAMES = list(SearchSettings().to_dict())
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 100), st.floats(), st.text(max_size=5), st.lists(st.floats(), max_size=3)
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.dictionaries(st.sampled_from([*NAMES, "epoch", "x"]), VALUES, max_size=4))
def test_any_values_give_settings_or_an_error_of_ours(data: dict[str, Any]) -> None:
    try:
        SearchSettings.from_dict(data)
    except ActsearchError as error:
        message = str(error)
        assert "\n" not in message
