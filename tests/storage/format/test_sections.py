"""Which column belongs to which section of a row group, where the sections stop, and how a record says so."""

from __future__ import annotations

import pytest

from storage.base.errors import CorruptShard
from storage.format.sections import ByteRange, Section, section_of, section_stops


def test_a_column_belongs_to_one_section() -> None:
    targets = {"soft_logits", "soft_ids"}
    names = ["x", "soft_x", "sample_id", "label", "labels", "inputs_xxh3", "inputs", "soft_logits", "soft_ids", "soft"]
    sections = ["inputs", "plain", "plain", "plain", "inputs", "plain", "inputs", "targets", "targets", "inputs"]
    assert [section_of(name, targets) for name in names] == sections


def test_a_section_stops_where_its_last_column_does() -> None:
    assert section_stops([(4, 9), (9, 12), (12, 20)], ["inputs", "plain", "targets"]) == [9, 12, 20]
    assert section_stops([(4, 9), (9, 12)], ["plain", "plain"]) == [4, 12, 12]
    assert section_stops([(4, 9), (9, 12)], ["inputs", "inputs"]) == [12, 12, 12]


@pytest.mark.parametrize(
    "places, kinds",
    [
        ([(4, 9), (10, 12), (12, 20)], ["inputs", "plain", "targets"]),
        ([(4, 9), (9, 12), (12, 20)], ["plain", "inputs", "targets"]),
    ],
    ids=["a gap", "another order"],
)
def test_columns_that_do_not_lie_one_after_another_are_refused(places: list[tuple[int, int]], kinds: list[str]) -> None:
    with pytest.raises(CorruptShard, match="in the order inputs, plain, targets"):
        section_stops(places, kinds)


def test_a_range_comes_back_from_its_facts() -> None:
    footer = ByteRange(4, 9, 2, "whole")
    assert footer.to_dict() == {"start": 4, "stop": 9, "rows": 2, "xxh3": "whole"}
    assert ByteRange.from_dict(footer.to_dict()) == footer
    group = ByteRange(4, 9, 2, "whole", (Section(4, "i"), Section(6, "p"), Section(9, "t")))
    assert group.to_dict() == {**footer.to_dict(), "sections": [[4, "i"], [6, "p"], [9, "t"]]}
    assert ByteRange.group_from_dict(group.to_dict()) == group
