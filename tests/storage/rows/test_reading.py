"""How row groups are read: defaults of the machine, which no recipe and no digest holds."""

from __future__ import annotations

from typing import Any

import pytest

from storage import Reading
from storage.base.errors import RecipeError


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"prefetch_bytes": -1}, r"^Reading\.prefetch_bytes: .*greater than or equal to 0 \(found -1\)\.$"),
        ({"threads": 0}, r"^Reading\.threads: .*greater than 0 \(found 0\)\.$"),
        ({"stall_s": 0.0}, r"^Reading\.stall_s: .*greater than 0 \(found 0\.0\)\.$"),
        ({"stall_s": float("inf")}, r"^Reading\.stall_s: .*finite"),
        ({"thread": 1}, r"^unknown key 'Reading\.thread'\. Did you mean 'threads'\?"),
    ],
)
def test_settings_that_break_a_rule_are_refused(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(RecipeError, match=rule):
        Reading(**settings)


def test_null_is_the_default() -> None:
    assert Reading.model_validate({"prefetch_bytes": None, "threads": None, "stall_s": None}) == Reading()
    assert Reading().prefetch_bytes == 256 << 20 and Reading().threads >= 4


def test_what_is_written_leaves_the_default_to_the_machine_that_reads() -> None:
    reading = Reading(threads=3, stall_s=30.0)
    written = reading.model_dump(mode="json")
    assert written == {"prefetch_bytes": None, "threads": 3, "stall_s": 30.0}
    again = Reading.model_validate(written)
    assert again == reading and again.model_dump(mode="json") == written
