"""Hints for misspelt names, and functions found by package.module:function."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.errors import NoCache, RecipeError
from storage.names import find_function, nearest


@pytest.mark.parametrize(
    "word, hint",
    [("temprature", " Did you mean 'temperature'?"), ("wieght", " Did you mean 'weight'?"), ("zzz", ""), ("", "")],
)
def test_the_nearest_word_is_named_when_one_is_near(word: str, hint: str) -> None:
    assert nearest(word, ["temperature", "weight"]) == hint


def test_no_words_give_no_hint() -> None:
    assert nearest("temperature", []) == ""


def test_a_function_is_found_by_its_module_and_name(module: Callable[[str], str]) -> None:
    name = module("def make():\n    return 42\n")
    assert find_function(f"{name}:make", "factory")() == 42


@pytest.mark.parametrize("name", ["", "module", "module:", ":function"])
def test_a_name_of_another_form_is_refused_with_the_key_and_the_form(name: str) -> None:
    with pytest.raises(RecipeError, match=r"^teacher\.factory is '.*'\. It names a function as package\.module:func"):
        find_function(name, "teacher.factory")


@pytest.mark.parametrize("name", ["no_such_module:make", "storage.no_such_module:make", ".relative:make"])
def test_a_module_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"factory: the module '{name.partition(':')[0]}' cannot be imported"):
        find_function(name, "factory")


def test_a_module_that_fails_while_it_is_imported_is_named_with_its_failure(module: Callable[[str], str]) -> None:
    with pytest.raises(RecipeError, match=r"ZeroDivisionError: division by zero"):
        find_function(f"{module('1 / 0')}:make", "factory")


def test_an_error_of_our_own_passes_through_the_import(module: Callable[[str], str]) -> None:
    name = module("from storage.errors import NoCache\nraise NoCache('There is none.')\n")
    with pytest.raises(NoCache, match=r"^There is none\.$"):
        find_function(f"{name}:make", "factory")


def test_a_misspelt_function_is_answered_with_the_nearest(module: Callable[[str], str]) -> None:
    name = module("def small_cnn(): pass\ndef _hidden(): pass\nvalue = 3\n")
    with pytest.raises(RecipeError, match=r"has no function 'smal_cnn'\. Did you mean 'small_cnn'\?"):
        find_function(f"{name}:smal_cnn", "factory")
    with pytest.raises(RecipeError, match=r"has no function 'value'"):
        find_function(f"{name}:value", "factory")
