"""Settings are checked by a call and inside a recipe alike, with one error each."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import Field, ValidationError

from storage.base.errors import RecipeError
from storage.base.settings import Section


class Inner(Section):
    count: int = Field(default=1, gt=0)
    names: tuple[str, ...] = ()


class Outer(Section):
    inner: Inner = Inner()
    word: str


def test_a_call_with_wrong_settings_gives_one_error_of_ours() -> None:
    wrong: dict[str, Any] = {"inner": {"count": 0, "nmaes": []}, "word": "w"}
    with pytest.raises(RecipeError) as caught:
        Outer(**wrong)
    assert str(caught.value) == (
        "Outer.inner.count: Input should be greater than 0 (found 0). "
        "unknown key 'Outer.inner.nmaes'. Did you mean 'names'? Known here: count, names."
    )
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_section_inside_another_one_is_reported_with_the_whole() -> None:
    """The outer section's validation sees all mistakes: the inner section's own call would end it at the first."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"count": 0}, "word": 1})
    assert [fault["loc"] for fault in caught.value.errors()] == [("inner", "count"), ("word",)]


def test_a_mapping_is_read_under_the_key_that_its_reader_knows() -> None:
    assert Outer.read({"word": "w", "inner": {"names": ["a"]}}, "this") == Outer(word="w", inner=Inner(names=("a",)))
    with pytest.raises(
        RecipeError, match=r"^this\.inner: .*dictionary \(found 3\)\. the key 'this\.word' is missing\.$"
    ):
        Outer.read({"inner": 3}, "this")
    with pytest.raises(RecipeError, match=r"^this: Input should be a valid dictionary \(found 3\)\.$"):
        Outer.read(3, "this")


def test_settings_are_values() -> None:
    one = Inner(count=2, names=("a", "b"))
    for other in (Inner(count=2, names=("a", "b")), pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert other == one and hash(other) == hash(one)
    assert one != Inner(count=2)
    with pytest.raises(ValidationError, match="frozen"):
        one.count = 3
