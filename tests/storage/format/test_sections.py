"""Which column belongs to which section of a row group, where the sections stop, and how a record says so."""

from __future__ import annotations

import pytest

from storage.base.errors import CorruptShard
from storage.format.sections import RowGroup, section_of, section_stops


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


def test_a_row_group_comes_back_from_its_facts() -> None:
    group = RowGroup(4, 9, 2, "whole", 4, "i", 6, "p", "t")
    facts = {"start": 4, "stop": 9, "rows": 2, "xxh3": "whole", "sections": [[4, "i"], [6, "p"], [9, "t"]]}
    assert group.to_dict() == facts and RowGroup.from_dict({**facts, "of a later version": 1}) == group
    with pytest.raises(ValueError, match="the last section stops at 8, and its row group at 9"):
        RowGroup.from_dict({**facts, "sections": [[4, "i"], [6, "p"], [8, "t"]]})


def test_a_part_is_the_smallest_range_that_holds_some_sections_with_a_digest_for_all_of_it() -> None:
    group = RowGroup(10, 90, 7, "whole", 40, "i", 50, "p", "t")
    assert group.part({"inputs"}) == group.part({"plain", "inputs"}) == (10, 50, [(40, "i"), (50, "p")])
    assert group.part({"targets"}) == (40, 90, [(50, "p"), (90, "t")])
    assert group.part({"targets", "inputs"}) == (10, 90, [(40, "i"), (50, "p"), (90, "t")])
    assert group.part(()) == group.part({"plain"}) == (40, 50, [(50, "p")])
