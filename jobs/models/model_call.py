"""Calls a model with its inputs by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from storage.base.errors import UsageError


def apply_model(model: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    """The logits of `model(**inputs, **options)`, with every input checked against the parameters of its `forward`.

    inputs: tensors by the names of their columns, as in `batch.inputs`. A single input may have any name: it is
    passed by position where `forward` has no parameter of that name. `forward(*inputs)` gets all inputs in their
    order, `forward(**inputs)` all by name. A model of the transformers library takes only the names that its
    `forward` spells out, although it would swallow others.

    DistributedDataParallel, FullyShardedDataParallel and torch.compile wrappers are looked through. Of an output with
    `logits`, as the transformers library gives, these are returned; any other output as it is.
    Raises UsageError for an input that `forward` does not take, and for a parameter without an input or default.
    """
    inner = _inner(model)
    forward = getattr(inner, "forward", inner)
    try:
        parameters = dict(inspect.signature(forward).parameters)
    except (TypeError, ValueError):  # some compiled modules have no signature
        return _logits(model(*inputs.values(), **options))
    kinds = {parameter.kind for parameter in parameters.values()}
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    }
    unknown = [name for name in inputs if name not in named]
    if unknown and Parameter.VAR_KEYWORD in kinds and not _is_transformers_model(model):
        unknown = []
    if unknown and not named and Parameter.VAR_POSITIONAL in kinds:
        return _logits(model(*inputs.values(), **options))
    if unknown and len(inputs) == 1 and _takes_position(parameters):
        first = next(iter(parameters))
        _refuse_missing(model, {n: p for n, p in named.items() if n != first}, inputs, options)
        return _logits(model(*inputs.values(), **options))
    if unknown:
        raise UsageError(
            f"The data has the inputs {', '.join(inputs)}, and {_name(model)}.forward takes no '{unknown[0]}'.",
            f"It takes {_shown(parameters)}; inputs are passed by name.",
            "Rename the column or the parameter, or choose the columns with source.columns.inputs.",
        )
    _refuse_missing(model, named, inputs, options)
    return _logits(model(**inputs, **options))


def _refuse_missing(
    model: Any, named: Mapping[str, Parameter], inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    required = [name for name, parameter in named.items() if parameter.default is Parameter.empty]
    missing = [name for name in required if name not in inputs and name not in options]
    if missing:
        raise UsageError(
            f"{_name(model)}.forward needs '{missing[0]}', and the data has the inputs {', '.join(inputs)}.",
            "Inputs are passed by name; every parameter without a default needs one.",
            "Rename the columns or the parameters, or add the column with source.columns.inputs.",
        )


def _logits(output: Any) -> Any:
    found = getattr(output, "logits", None)
    return output if found is None else found


def _inner(model: Any) -> Any:
    """The module inside a data-parallel or compiled wrapper."""
    while True:
        kinds = {cls.__name__ for cls in type(model).__mro__}
        if "OptimizedModule" in kinds:
            model = model._orig_mod
        elif kinds & {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}:
            model = model.module
        else:
            return model


def _is_transformers_model(model: Any) -> bool:
    return any(cls.__name__ == "PreTrainedModel" for cls in type(_inner(model)).__mro__)


def _takes_position(parameters: Mapping[str, Parameter]) -> bool:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)
    return any(parameter.kind in kinds for parameter in parameters.values())


def _name(model: Any) -> str:
    return type(_inner(model)).__name__


def _shown(parameters: Mapping[str, Parameter]) -> str:
    """A signature without its annotations and defaults, as in `(x, mask=...)`."""
    signs = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
    texts = [
        f"{signs.get(parameter.kind, '')}{name}"
        + ("=..." if parameter.default is not Parameter.empty and parameter.kind not in signs else "")
        for name, parameter in parameters.items()
    ]
    return f"({', '.join(texts)})"
