"""Inputs by name: what each kind of `forward` gets, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from jobs.models.model_call import apply_model
from storage.base.errors import UsageError

A, B = torch.tensor([1.0]), torch.tensor([2.0])


def module(forward: Callable[..., Any]) -> nn.Module:
    """A module with this function as its `forward`."""
    return type("Made", (nn.Module,), {"forward": forward})()


TWO = module(lambda self, x, mask=None: (x, mask))


def test_inputs_go_by_name_whatever_their_order() -> None:
    assert apply_model(TWO, {"mask": B, "x": A}) == (A, B)
    assert apply_model(TWO, {"x": A}, mask=B) == (A, B)


def test_a_single_input_may_have_any_name() -> None:
    assert apply_model(TWO, {"pixels": A}) == (A, None)
    assert apply_model(module(lambda self, x, /: x), {"pixels": A}) is A


@pytest.mark.parametrize("forward", [lambda self, *inputs: inputs, lambda self, **inputs: tuple(inputs.values())])
def test_a_forward_that_takes_anything_gets_everything(forward: Callable[..., Any]) -> None:
    assert apply_model(module(forward), {"p": A, "q": B}) == (A, B)


@pytest.mark.parametrize(
    ("forward", "inputs", "said"),
    [
        (lambda self, x, mask=None: x, {"x": A, "flag": B}, r"takes no 'flag'.*\(x, mask=\.\.\.\)"),
        (lambda self, x, mask: x, {"pixels": A}, "needs 'mask'"),
        (lambda self, x, mask: x, {"x": A}, "needs 'mask'"),
        (lambda self, x, mask=None: x, {"mask": A}, "needs 'x'"),
        (lambda self: A, {"x": A}, "takes no 'x'"),
    ],
)
def test_names_that_do_not_fit_are_refused(forward: Callable[..., Any], inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        apply_model(module(forward), inputs)


def test_a_transformers_model_swallows_no_name() -> None:
    class PreTrainedModel(nn.Module):
        """Known by its class's name, so that nothing imports transformers."""

        def forward(self, input_ids: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            return input_ids, attention_mask, kwargs

    assert apply_model(PreTrainedModel(), {"attention_mask": B, "input_ids": A}) == (A, B, {})
    with pytest.raises(UsageError, match="takes no 'token_types'"):
        apply_model(PreTrainedModel(), {"input_ids": A, "token_types": B})


def test_wrappers_are_looked_through() -> None:
    wrapped = torch.compile(TWO, backend="eager")
    assert apply_model(wrapped, {"mask": B, "x": A}) == (A, B)
    with pytest.raises(UsageError, match=r"Made\.forward takes no 'flag'"):
        apply_model(nn.DataParallel(TWO), {"x": A, "flag": B})
