"""A scalar is what YAML 1.2 says that it is, for this loader and for whoever reads what is written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from storage.base import yaml12

SCALARS: list[tuple[str, Any]] = [
    ("1e-5", 1e-5),
    ("1E5", 1e5),
    ("1e5", 1e5),
    ("-1e3", -1e3),
    ("+2.5E+3", 2500.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("1.e2", 100.0),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("3", 3),
    ("-3", -3),
    ("010", 10),
    ("0o17", 15),
    ("0x1F", 31),
    ("0b11", "0b11"),
    ("12:30:45", "12:30:45"),
    ("1:30", "1:30"),
    ("1_000", "1_000"),
    ("1_0.5", "1_0.5"),
    ("2024-01-02", "2024-01-02"),
    ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
    ("true", True),
    ("FALSE", False),
    ("no", "no"),
    ("Yes", "Yes"),
    ("on", "on"),
    ("off", "off"),
    ("y", "y"),
    ("null", None),
    ("~", None),
    ("", None),
    ("nUll", "nUll"),
    ("e5", "e5"),
    (".", "."),
    ("=", "="),
    ("<<", "<<"),
    ("'1e-5'", "1e-5"),
    ("!!str 1e-5", "1e-5"),
    ("!!float 1", 1.0),
    ("!!int 010", 10),
]


@pytest.mark.parametrize("text, value", SCALARS)
def test_a_scalar_has_the_value_of_the_core_schema(text: str, value: Any) -> None:
    for found in (yaml12.load(text), yaml12.load(f"key: [{text}]")["key"][:1] or [None]):
        found = found[0] if isinstance(found, list) else found
        assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number() -> None:
    assert math.isnan(yaml12.load(".nan"))


def test_keys_are_read_as_values_are() -> None:
    assert yaml12.load("{on: 1, 010: 2, 1e3: 3}") == {"on": 1, 10: 2, 1e3: 3}


def test_merge_keys_stay() -> None:
    assert yaml12.load("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}")["d"] == {"b": 1, "c": 3}


@pytest.mark.parametrize(
    "text",
    [
        "{a: 1, a: 2}",
        "!!int abc",
        "!!bool yes",
        "!!timestamp 2024-01-02",
        "!!binary YQ==",
        "9" * 5000,
        "[" * 5000,
        "? [1]\n: 2",
        "!!python/object:os.system {}",
        "a: b: c",
    ],
)
def test_what_cannot_be_read_is_a_yaml_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        yaml12.load(text)


def test_what_is_written_is_read_back_by_both_versions() -> None:
    value = {f"{number}": text for number, (text, _) in enumerate(SCALARS)}
    value |= {"numbers": [1e-5, 1e22, 3, True, None, math.inf], "twice": [dict(value), dict(value)]}
    text = yaml12.dump(value)
    assert yaml12.load(text) == value
    assert yaml.safe_load(text) == value
