"""YAML as version 1.2 reads it: the core schema, where PyYAML by itself reads version 1.1.

`1e-5` is a number, `010` is ten, and `no`, `12:30:45`, `1_000` and `2024-01-02` are text. Merge keys (`<<`) stay.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_MERGE = re.compile(r"<<\Z")

# In this order: every integer has the form of a float, too.
_FORMS = (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", _MERGE, ["<"]),
)


def load(text: str) -> Any:
    """The one document of a text. Raises yaml.YAMLError, also for a key that appears twice in a mapping."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def dump(value: Any) -> str:
    """A text that `load` and readers of YAML 1.1 give back as this value of mappings, lists and plain scalars."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
    # What the core schema does not have (!!timestamp, !!binary, !!set, ...) is refused.
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in ("str", "seq", "map")
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        # PyYAML by itself takes the last of two equal keys.
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, list):
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' appears twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def scalar(self, node: Any) -> Any:
        """The value of a null, bool, int or float, whether its tag was written or follows from its form."""
        kind, text = node.tag.removeprefix(_TAG), self.construct_scalar(node)
        form = next(form for name, form, _ in _FORMS if name == kind)
        if not form.match(text):
            raise yaml.constructor.ConstructorError(None, None, f"'{text}' is no {kind}", node.start_mark)
        try:
            return _VALUES[kind](text)
        except ValueError as error:  # Python limits the digits of an integer
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def _int(text: str) -> int:
    prefix = text[:2]
    return int(text[2:], 8) if prefix == "0o" else int(text[2:], 16) if prefix == "0x" else int(text)


def _float(text: str) -> float:
    lower = text.lower()
    return float(lower.replace(".", "", 1)) if lower.lstrip("+-") in (".inf", ".nan") else float(text)


_VALUES: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    "float": _float,
}


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either version of YAML would read as something else."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {
        first: list(forms) for first, forms in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _form, _first in _FORMS:
    _Loader.add_implicit_resolver(_TAG + _kind, _form, _first)
    if _kind in _VALUES:
        _Loader.add_constructor(_TAG + _kind, _Loader.scalar)
        _Dumper.add_implicit_resolver(_TAG + _kind, _form, _first)
# Merging is done before a mapping is made; anywhere else `<<` is a text.
_Loader.add_constructor(f"{_TAG}merge", _Loader.construct_yaml_str)
