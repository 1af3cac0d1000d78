"""Chosen rows: exactly those for which the expression holds, each once an epoch, for every world and after a resume."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from storage.base.digest import range_digest, sha256_of
from storage.base.errors import RecipeError, VerificationError
from storage.cache.cache import Cache
from storage.objectstore.folder import Folder
from storage.rows import selected_rows as selections
from storage.rows.cache_rows import CacheRows
from storage.rows.row_groups import first_rows, read_group
from storage.rows.selected_rows import Selected, parse
from storage.stream.scan import scan
from storage.stream.stream import Stream
from tests.storage.stream.caches import entropy_of, put_cache, top1_of, watch
from tests.storage.stream.fakes import batches, by_place, ids, ids_of, values

SHARDS = [range(11), range(11, 14), range(14, 23), range(23, 60)]
N = 60
ORDERS: list[dict[str, Any]] = [{}, {"lanes": 2, "window": 5}, {"lanes": 4, "window": 3}, {"lanes": 3, "window": 7}]

Rule = Callable[[int, int, float, int], bool]
EXPRESSIONS: dict[str, Rule] = {
    "soft_entropy < 2.0 and soft_top1 == label": lambda i, label, h, top: h < 2 and top == label,
    "label in [1, 2]": lambda i, label, h, top: label in (1, 2),
    "label not in (0, -1)": lambda i, label, h, top: label != 0,
    "1 < label <= 3 or not soft_entropy >= 1": lambda i, label, h, top: 1 < label <= 3 or h < 1,
    "(label + soft_top1) * 2 - 1 >= 8 / 2": lambda i, label, h, top: (label + top) * 2 - 1 >= 4,
    "-sample_id <= -57": lambda i, label, h, top: i >= 57,
    "sample_id == 12": lambda i, label, h, top: i == 12,
    "label in [1, '2', 0.5 + 2.5]": lambda i, label, h, top: label in (1, 3),
    "(label == 1) == (soft_top1 < 2)": lambda i, label, h, top: (label == 1) == (top < 2),
    "soft_top1 != label": lambda i, label, h, top: top != label,
    "soft_entropy >= 0": lambda i, label, h, top: True,
}


def chosen(rule: Rule) -> list[int]:
    at = np.arange(N)
    columns = at.tolist(), (at % 5).tolist(), entropy_of(at).tolist(), top1_of(at).tolist()
    return [row[0] for row in zip(*columns, strict=True) if rule(*row)]


@pytest.fixture
def cache(local: Folder) -> Cache:
    return put_cache(local, SHARDS)


# The expression


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("label==1", "label == 1"),
        (" (soft_entropy<2.0)and(label in[1,2]) ", "soft_entropy < 2.0 and label in [1, 2]"),
        ("label\t== 1", "label == 1"),
        ('sample_id == "a\'b"', 'sample_id == "a\'b"'),
        ("(label\n == 1)", "label == 1"),
    ],
)
def test_an_expression_is_always_written_the_same(text: str, canonical: str) -> None:
    assert parse(text)[0] == canonical == parse(canonical)[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be read"),
        ("label =", "cannot be read"),
        ("label = 1", "cannot be read: .*== for equal"),
        ("label == 1; label", "cannot be read"),
        ("@label == 1", "cannot be read"),
        ("label == @other", "cannot be read"),
        ("label @ 2 == 1", "'label @ 2' is not allowed"),
        ("abs(label) == 1", r"'abs\(label\)' is not allowed"),
        ("__import__('os').system('true') == 0", r"'__import__\('os'\).system\('true'\)' is not allowed"),
        ("label.real == 1", "'label.real' is not allowed"),
        ("label.to_csv('a') == 1", r"'label.to_csv\('a'\)' is not allowed"),
        ("label in ['x'.join]", "''x'.join' is not allowed"),
        ("label in [print()]", r"'label in \[print\(\)\]' is not allowed"),
        ("label[0] == 1", r"'label\[0\]' is not allowed"),
        ("(label == 1) & (soft_top1 == 1)", r"'\(label == 1\) & \(soft_top1 == 1\)' is not allowed"),
        ("~(label == 1)", r"'~\(label == 1\)' is not allowed"),
        ("label is 1", "'label is 1' is not allowed"),
        ("label if soft_top1 else label", "'label if soft_top1 else label' is not allowed"),
        ("(label := 1) == 1", r"'\(label := 1\)' is not allowed"),
        ("[i for i in label] == 1", r"'\[i for i in label\]' is not allowed"),
        ("lambda: label", "'lambda: label' is not allowed"),
        ("f'{label}' == 'a'", "'f'{label}'' is not allowed"),
        ("label ** 2 == 1", r"'label \*\* 2' is not allowed"),
        ("+label == 1", r"'\+label' is not allowed"),
        ("label % 2 == 1", "'label % 2' is not allowed"),
        ("label == None", "'None' is not allowed"),
        ("label == b'a'", "'b'a'' is not allowed"),
        ("label == 2j", "'2j' is not allowed"),
        ("label == ...", "'...' is not allowed"),
        ("label == [1, 2]", r"'\[1, 2\]' is not allowed"),
        ("[1] + label == 1", r"'\[1\]' is not allowed"),
        ("[1, 2] in label", r"'\[1, 2\] in label' is not allowed"),
        ("label in 1", "'label in 1' is not allowed"),
        ("label in soft_top1", "'label in soft_top1' is not allowed"),
        ("1 in label", "'1 in label' is not allowed"),
        ("label in [1, [2]]", r"'\[2\]' is not allowed"),
        ("label in [soft_top1]", r"'label in \[soft_top1\]' is not allowed"),
        ("label", "'label' is not true or false"),
        ("label + 1", "'label \\+ 1' is not true or false"),
        ("label and soft_top1 == 1", "'label and soft_top1 == 1' is not allowed"),
        ("not soft_entropy", "'not soft_entropy' is not allowed"),
        ("1 < 2", "'1 < 2' names no column"),
        # Those that pandas accepts, and works out otherwise than Python.
        ("label == 1 or not 3 > 1", "'3 > 1' names no column"),
        ("label == 1 or not True", "'not True' is not allowed"),
        ("-(label == 1) == -1", r"'-\(label == 1\)' is not allowed"),
        ("(label == 1) + (label == 1) == 2", r"'\(label == 1\) \+ \(label == 1\)' is not allowed"),
        ("(not label) == -1", "'not label' is not allowed"),
        ("(label and soft_top1) == 1", "'label and soft_top1' is not allowed"),
        ("True", "'True' is not true or false for a row"),
    ],
)
def test_what_is_no_filter_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence) as refused:
        parse(text)
    assert "as in: soft_entropy < 2.0 and soft_top1 == label" in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["not " * 1500 + "label == 1", "+".join(["label"] * 3000) + " == 1", "label == " + "9" * 5000, "label == '\0'"],
)
def test_an_expression_that_python_cannot_read_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(RecipeError, match="cannot be read: "):
        parse(text)


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("lable == 1", "no plain column 'lable'. Did you mean 'label'. Rows are chosen by: sample_id, label, soft_ent"),
        ("soft_logits == 1", "no plain column 'soft_logits'"),
        ("index == 1", "no plain column 'index'"),
        ("label == 7", "'label == 7' holds for none of the 60 rows"),
        ("label in []", "holds for none of the 60 rows"),
        ("sample_id < 'a'", "cannot be worked out .*sample_id is int64"),
    ],
)
def test_what_a_cache_cannot_be_filtered_by_is_refused_in_a_sentence(cache: Cache, where: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Selected(CacheRows(cache), where)


# The rows


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_exactly_the_rows_for_which_it_holds_are_given(cache: Cache, where: str) -> None:
    groups, wanted = Selected(CacheRows(cache), where), chosen(EXPRESSIONS[where])
    assert int(groups.rows.sum()) == len(wanted)
    found = list(scan(groups, 7))
    assert [int(i) for rows in found for i in rows.sample_id] == wanted
    whole = {int(i): row for rows in scan(CacheRows(cache), 7) for i, row in by_id(rows).items()}
    for rows in found:
        assert by_id(rows) == {int(i): whole[int(i)] for i in rows.sample_id}
    assert first_rows(groups, 2).sample_id.tolist() == wanted[: len(first_rows(groups, 2))]


def by_id(rows: Any) -> dict[int, list[Any]]:
    columns = [column for _, column in values(rows)]
    return {int(row[0]): list(row) for row in zip(*columns, strict=True)}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("where", ["label in [1, 2]", "soft_entropy < 1", "sample_id >= 50"])
def test_every_chosen_row_comes_once_an_epoch(cache: Cache, where: str, order: dict[str, Any]) -> None:
    groups, wanted = Selected(CacheRows(cache), where), chosen(EXPRESSIONS.get(where) or by_text(where))
    stream = Stream(groups, batch_size=7, seed=3, **order)
    epochs = 7  # whole batches of seven end where the seventh epoch does
    told = ids(stream, epochs * len(wanted) // 7)
    assert Counter(told) == dict.fromkeys(wanted, epochs)
    for epoch in range(epochs):
        assert sorted(told[epoch * len(wanted) : (epoch + 1) * len(wanted)]) == wanted


def by_text(where: str) -> Rule:
    return {
        "soft_entropy < 1": lambda i, label, h, top: h < 1,
        "sample_id >= 50": lambda i, label, h, top: i >= 50,
    }[where]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("batch_size", [4, 9])
def test_every_world_sees_the_same_batches(cache: Cache, order: dict[str, Any], batch_size: int) -> None:
    groups = Selected(CacheRows(cache), "label in [1, 2]")

    def batches_of(world: int) -> list[dict[int, list[Any]]]:
        told = []
        for rank in range(world):
            stream = Stream(groups, batch_size=batch_size, seed=5, rank=rank, world=world, **order)
            told.append(batches(stream, 14))
            stream.close()
        return [by_place(parts) for parts in zip(*told, strict=True)]

    whole = batches_of(1)
    assert [len(batch) for batch in whole] == [batch_size] * 14
    for world in (2, 3, 4):
        assert batches_of(world) == whole


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_it_goes_on_in_the_middle_of_an_epoch(cache: Cache, order: dict[str, Any]) -> None:
    where = "soft_top1 != label"
    whole = Stream(Selected(CacheRows(cache), where), batch_size=5, seed=1, **order)
    told = batches(whole, 25)
    for after in (1, 4, 13):
        again = Stream(Selected(CacheRows(cache), where.replace(" ", "  ")), batch_size=5, seed=1, **order)
        again.load_state_dict(whole.state_dict(after=told[after - 1]))
        rest = batches(again, 25 - after)
        assert [values(batch.rows) for batch in rest] == [values(batch.rows) for batch in told[after:]]
        again.close()
    whole.close()


def test_a_state_of_other_rows_is_refused(cache: Cache) -> None:
    rows = CacheRows(cache)
    all_rows, some, others = rows, Selected(rows, "label < 3"), Selected(rows, "label <= 2")
    assert some.rows.tolist() == others.rows.tolist(), "the same rows, said in another way"
    streams = [Stream(groups, batch_size=4, lanes=1, window=8) for groups in (all_rows, some, others)]
    states = [stream.state_dict() for stream in streams]
    for mine, stream in enumerate(streams):
        for other, state in enumerate(states):
            if mine == other:
                stream.load_state_dict(state)
                continue
            with pytest.raises(VerificationError, match="digest"):
                stream.load_state_dict(state)


def test_the_digest_is_the_expressions_and_the_caches(cache: Cache) -> None:
    one, same = Selected(CacheRows(cache), "label<3"), Selected(CacheRows(cache, ["targets"]), "(label < 3)")
    kept = np.flatnonzero(np.concatenate([read_group(CacheRows(cache), g).label for g in range(len(one.rows))]) < 3)
    assert one.digest == same.digest == sha256_of(["where", cache.digest, "label < 3", range_digest(kept.tobytes())])
    assert one.where == f"{cache.url} where label < 3" and one.cache is cache


def test_row_groups_without_chosen_rows_are_not_read(cache: Cache) -> None:
    groups = Selected(CacheRows(cache), "sample_id == 12 or sample_id >= 55")
    some = np.flatnonzero(groups.rows)
    assert 0 < len(some) < len(groups.rows)
    assert groups.sizes[some].tolist() == CacheRows(cache).sizes[some].tolist()
    assert not np.delete(groups.sizes, some).any()
    reads = watch(cache.store)
    assert Counter(ids(Stream(groups, batch_size=3), 2)) == dict.fromkeys([12, *range(55, 60)], 1)
    assert len({(path, start) for path, start, _ in reads.rows}) == len(some)


def test_ids_may_be_text(local: Folder) -> None:
    cache = put_cache(local, SHARDS, texts=True)
    groups = Selected(CacheRows(cache), "sample_id in ['s7', 's21', 'none']")
    assert [i for rows in scan(groups, 5) for i in rows.sample_id] == ["s7", "s21"]
    groups = Selected(CacheRows(cache), "sample_id == 's58' or label == 1 and sample_id > 's5'")
    assert [i for rows in scan(groups, 5) for i in rows.sample_id] == ["s6", "s51", "s56", "s58"]


def test_in_another_process_nothing_is_worked_out_again(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Selected(CacheRows(cache), "label == 4")
    sent = pickle.dumps(groups)
    monkeypatch.setattr(selections, "_holds", None)
    there = pickle.loads(sent)
    assert ids_of(batches(Stream(there, batch_size=4), 9)) == ids_of(batches(Stream(groups, batch_size=4), 9))
    assert (there.digest, there.expression, there.cache.digest) == (groups.digest, "label == 4", cache.digest)
