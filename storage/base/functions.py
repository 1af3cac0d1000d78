"""Functions that a user names as `package.module:function`: imported and called, their failures in sentences."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from storage.base.errors import RecipeError, StillhouseError, StoreLost
from storage.base.names import nearest


def call(
    function: Callable[..., Any], arguments: dict[str, Any], name: str, error: type[StillhouseError], remedy: str = ""
) -> Any:
    """Call a function that a recipe named. Raises `error` when it does not take the arguments, or fails."""
    signature = _signature(function)
    if signature is not None:
        try:
            signature.bind(**arguments)
        except TypeError as reason:
            raise error(f"{name} refused its arguments: {reason}.", f"It takes {signature}.", remedy) from None
    with guarded(name, error):
        return function(**arguments)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """None for some functions written in C, which tell no signature and refuse for themselves."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


@contextmanager
def guarded(name: str, error: type[StillhouseError]) -> Generator[None]:
    """What a user's own function raises becomes an `error` that names it; its cause keeps the traceback.

    A lost connection becomes StoreLost, which another try may mend.
    """
    try:
        yield
    except StillhouseError:
        raise
    except (ConnectionError, TimeoutError) as reason:
        raise StoreLost(f"{name} failed ({type(reason).__name__}: {reason}).") from reason
    except Exception as reason:
        raise error(f"{name} failed ({type(reason).__name__}: {reason}).") from reason


def find_function(name: str, key: str) -> Callable[..., Any]:
    """The function behind 'package.module:function'; `key` is the recipe's key that named it.

    Raises RecipeError when the module or the function is not there, or fails while it is imported.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise RecipeError(f"{key} is '{name}'.", "It names a function as package.module:function.")
    try:
        module = importlib.import_module(module_name)
    except StillhouseError:
        raise
    except Exception as error:
        raise RecipeError(
            f"{key}: the module '{module_name}' cannot be imported ({type(error).__name__}: {error}).",
            "It is looked for in the working directory and in the installed packages.",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise RecipeError(
            f"{key}: '{module_name}' has no function '{function_name}'.{nearest(function_name, functions)}"
        )
    return function
