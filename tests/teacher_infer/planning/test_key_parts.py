"""In which parts two keys differ."""

from __future__ import annotations

from typing import Any

import pytest

from teacher_infer.planning.key_parts import differences

DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1, "b": {"c": [1.0]}}, {"a": 1, "b": {"c": [1.0]}}, []),
        ({"encoding": {"k": 64}}, {"encoding": {"k": 128}}, ["encoding.k: 64 -> 128"]),
        ({"teacher": {"weights": DIGEST}}, {"teacher": {"weights": OTHER}}, ["teacher.weights"]),
        ({"teacher": {"code": {"nets": DIGEST}}}, {"teacher": {"code": {}}}, ["teacher.code.nets"]),
        ({"weights": DIGEST, "parameters": None}, {"weights": None, "parameters": OTHER}, ["parameters", "weights"]),
        ({}, {"seed": 0}, ["seed: none -> 0"]),
        ({"seed": None}, {}, []),
        ({"preprocessing": None}, {"preprocessing": {"end_token": "e"}}, ["preprocessing.end_token: none -> e"]),
    ],
)
def test_parts_that_differ_are_named_and_shown_where_they_can_be_read(
    old: dict[str, Any], new: dict[str, Any], found: list[str]
) -> None:
    assert differences(old, new) == found
