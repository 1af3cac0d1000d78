"""Which columns are what, as a recipe or a call says it."""

from __future__ import annotations

from typing import Any

import pytest

from storage.base.errors import RecipeError
from storage.samples.columns import Columns


def test_a_list_of_inputs_is_kept_as_a_tuple() -> None:
    listed: dict[str, Any] = {"inputs": ["x", "n"], "label": False}
    columns = Columns(**listed)
    assert columns == Columns(inputs=("x", "n"), label=False)
    assert columns.inputs == ("x", "n") and len({columns, Columns.model_validate(listed)}) == 1
    assert columns.model_dump(mode="json") == {"sample_id": "sample_id", **listed}


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"inputs": "x"}, r"^Columns\.inputs: Input should be a valid list \(found 'x'\)\.$"),
        ({"inputs": ["x", 1]}, r"^Columns\.inputs\.1: .*valid string \(found 1\)\.$"),
        ({"label": True}, r"Columns\.label: .*valid string"),
        ({"label": "No"}, r"^Columns\.label: is a text and no boolean in YAML 1\.2; write false for no labels"),
        ({"sample_id": None}, r"^Columns\.sample_id: .*valid string \(found None\)\.$"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(RecipeError, match=rule):
        Columns(**settings)
