"""Hints for misspelt names, and functions found by package.module:function."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.base.errors import NoCache, RecipeError, SourceError
from storage.base.functions import call, find_function
from storage.base.names import nearest


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
    name = module("from storage.base.errors import NoCache\nraise NoCache('There is none.')\n")
    with pytest.raises(NoCache, match=r"^There is none\.$"):
        find_function(f"{name}:make", "factory")


def test_a_misspelt_function_is_answered_with_the_nearest(module: Callable[[str], str]) -> None:
    name = module("def small_cnn(): pass\ndef _hidden(): pass\nvalue = 3\n")
    with pytest.raises(RecipeError, match=r"has no function 'smal_cnn'\. Did you mean 'small_cnn'\?"):
        find_function(f"{name}:smal_cnn", "factory")
    for odd in ("value", "_hiden"):
        with pytest.raises(RecipeError, match=rf"has no function '{odd}'\.$"):
            find_function(f"{name}:{odd}", "factory")


# Calling what was named


def test_a_function_is_called_with_its_arguments() -> None:
    assert call(lambda a, *, b=2: (a, b), {"a": 1}, "m:f", SourceError) == (1, 2)
    assert call(dict, {"a": 1}, "builtins:dict", SourceError) == {"a": 1}


@pytest.mark.parametrize("arguments", [{}, {"c": 1}, {"a": 1, "c": 1}])
def test_arguments_that_do_not_fit_are_refused_with_those_that_do(arguments: dict[str, int]) -> None:
    def f(a: int, b: int = 2) -> None:
        raise AssertionError("it was called")

    takes = r"It takes \(a: 'int', b: 'int' = 2\) -> 'None'\."
    with pytest.raises(SourceError, match=rf"^m:f refused its arguments: .*\. {takes} Mend them\.$"):
        call(f, arguments, "m:f", SourceError, "Mend them.")


@pytest.mark.parametrize("failure", [TypeError("no len"), ValueError("no len"), KeyError("no len")])
def test_a_function_that_fails_is_named_with_its_failure(failure: Exception) -> None:
    def f() -> None:
        raise failure

    with pytest.raises(SourceError, match=rf"^m:f failed \({type(failure).__name__}: .*no len.*\)\.$") as caught:
        call(f, {}, "m:f", SourceError)
    assert caught.value.__cause__ is failure


def test_an_error_of_our_own_passes_through_the_call() -> None:
    def f() -> None:
        raise NoCache("There is none.")

    with pytest.raises(NoCache, match=r"^There is none\.$"):
        call(f, {}, "m:f", SourceError)
