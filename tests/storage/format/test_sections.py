"""Which column belongs to which section of a row group, where the sections stop, and how a record says so."""

from __future__ import annotations

import pytest

from storage.format.sections import ByteRange, Section, section_of, section_stops


def test_a_column_belongs_to_one_section() -> None:
    targets = {"soft_logits", "soft_ids"}
    names = ["x", "soft_x", "sample_id", "label", "labels", "inputs_xxh3", "inputs", "soft_logits", "soft_ids", "soft"]
    sections = ["inputs", "plain", "plain", "plain", "inputs", "plain", "inputs", "targets", "targets", "inputs"]
    assert [section_of(name, targets) for name in names] == sections


def test_columns_that_do_not_lie_one_after_another_are_no_sections() -> None:
    kinds = ["inputs", "plain", "targets"]
    assert section_stops([(4, 9), (9, 12), (12, 20)], kinds) == [9, 12, 20]
    assert section_stops([(4, 9), (10, 12), (12, 20)], kinds) == []
    assert section_stops([(4, 9), (9, 12), (12, 20)], kinds[:2]) == []
    assert section_stops([(4, 9), (9, 12)], ["plain", "plain"]) == [4, 12, 12]
    assert section_stops([(4, 9), (9, 12)], ["inputs", "inputs"]) == [12, 12, 12]


@pytest.mark.parametrize("sections", [(), (Section(4, "i"), Section(6, "p"), Section(9, "t"))])
def test_a_range_comes_back_from_its_facts(sections: tuple[Section, ...]) -> None:
    group = ByteRange(4, 9, 2, "whole", sections)
    assert ByteRange.from_dict(group.to_dict()) == group
    facts = {"start": 4, "stop": 9, "rows": 2, "xxh3": "whole"}
    assert group.to_dict() == ({**facts, "sections": [[4, "i"], [6, "p"], [9, "t"]]} if sections else facts)
