"""A type that says the same in another form gives the same samples, whatever this process has imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from storage.base.errors import SourceError
from storage.samples import tensor_columns
from storage.samples.arrow_types import plain_table
from storage.samples.rows_digest import rows_digest
from storage.samples.samples import Columns, as_samples, sample_ids
from storage.sources import make_source

ROWS = 6
IDS = [f"s{n}" for n in range(ROWS)]
X = [[n, n + 1, n + 2] for n in range(ROWS)]
FLAT = [value for row in X for value in row]
LABELS = [n % 3 for n in range(ROWS)]


class Named(pa.ExtensionType):
    """An extension type over any storage, as datasets' Array2D and pandas' periods are."""

    def __init__(self, storage: pa.DataType, name: str = "test.named") -> None:
        super().__init__(storage, name)

    def __arrow_ext_serialize__(self) -> bytes:
        return b"facts"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Named:
        return cls(storage)


@pytest.fixture
def registered() -> Iterator[None]:
    pa.register_extension_type(Named(pa.null()))
    yield
    pa.unregister_extension_type("test.named")


def table_of(**columns: Any) -> pa.Table:
    made = {"sample_id": pa.array(IDS), "x": pa.array(X), "label": pa.array(LABELS)}
    return pa.table({**made, **columns})


def samples_of(table: pa.Table) -> pa.Table:
    return as_samples(table, Columns(), "a")


def as_extension(array: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(Named(array.type), array)


def as_unregistered(name: str, array: pa.Array, extension: str = "test.named", facts: str = "") -> pa.Field:
    return pa.field(name, array.type, metadata={"ARROW:extension:name": extension, "ARROW:extension:metadata": facts})


def views(kind: pa.DataType) -> pa.Array:
    return pa.array(X, kind)


OTHERS: dict[str, dict[str, Any]] = {
    "ids: dictionary": {"sample_id": pa.array(IDS).dictionary_encode()},
    "ids: views": {"sample_id": pa.array(IDS, pa.string_view())},
    "ids: large": {"sample_id": pa.array(IDS, pa.large_string())},
    "ids: run ends": {"sample_id": pc.run_end_encode(pa.array(IDS))},
    "ids: dictionary of large texts": {"sample_id": pa.array(IDS).cast(pa.large_string()).dictionary_encode()},
    "ids: extension": {"sample_id": as_extension(pa.array(IDS))},
    "labels: dictionary": {"label": pa.array(LABELS).dictionary_encode()},
    "labels: run ends": {"label": pc.run_end_encode(pa.array(LABELS))},
    "labels: extension": {"label": as_extension(pa.array(LABELS))},
    "labels: uint8": {"label": pa.array(LABELS, pa.uint8())},
    "inputs: views": {"x": views(pa.list_view(pa.int64()))},
    "inputs: large views": {"x": views(pa.large_list_view(pa.int64()))},
    "inputs: large lists": {"x": views(pa.large_list(pa.int64()))},
    "inputs: lists of dictionaries": {
        "x": pa.ListArray.from_arrays(
            pa.array(range(0, 3 * ROWS + 1, 3), pa.int32()), pa.array(FLAT).dictionary_encode()
        )
    },
    "inputs: lists of run ends": {"x": pa.FixedSizeListArray.from_arrays(pc.run_end_encode(pa.array(FLAT)), 3)},
    "inputs: extension": {"x": as_extension(pa.array(X))},
    "inputs: lists of an extension": {"x": pa.FixedSizeListArray.from_arrays(as_extension(pa.array(FLAT)), 3)},
    "inputs: tensors": {
        "x": pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int64(), [3]), pa.array(X, pa.list_(pa.int64(), 3))
        )
    },
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("cut", [slice(0, ROWS), slice(2, 5)])
def test_another_form_gives_the_same_samples(name: str, cut: slice) -> None:
    plain, other = (
        samples_of(table.slice(cut.start, cut.stop - cut.start)) for table in (table_of(), table_of(**OTHERS[name]))
    )
    assert other.schema.equals(plain.schema, check_metadata=True)
    assert other.equals(plain)
    assert rows_digest(other) == rows_digest(plain)


@pytest.mark.parametrize("name", [name for name in OTHERS if "run ends" not in name])
def test_another_form_is_the_same_from_a_file(name: str, tmp_path: Path, registered: None) -> None:
    pq.write_table(table_of(**OTHERS[name]), tmp_path / "a.parquet")
    source = make_source({"parquet": str(tmp_path)})
    [file] = source.files()
    found = rows_digest(source.read(file, 1, ROWS))
    assert found == rows_digest(samples_of(table_of()).slice(1))
    assert source.ids(file).to_pylist() == IDS
    # A new process has not registered the type.
    code = (
        "from storage.sources import make_source; from storage.samples.rows_digest import rows_digest\n"
        f"source = make_source({{'parquet': {str(tmp_path)!r}}}); [file] = source.files()\n"
        f"print(rows_digest(source.read(file, 1, {ROWS})))"
    )
    if "extension" in name:
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == found


def test_an_extension_of_which_only_the_metadata_are_there_is_the_same() -> None:
    table = table_of()
    arrays = [column.combine_chunks() for column in table.columns]
    fields = [as_unregistered(name, array) for name, array in zip(table.column_names, arrays, strict=True)]
    other = samples_of(pa.table(arrays, schema=pa.schema(fields)))
    assert other.schema.equals(samples_of(table).schema, check_metadata=True)
    assert rows_digest(other) == rows_digest(samples_of(table))


PERMUTATIONS: list[list[int] | None] = [None, [0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]]


@pytest.mark.parametrize("permutation", PERMUTATIONS)
@pytest.mark.parametrize("is_registered", [True, False])
def test_a_tensor_keeps_its_shape_and_permutation(permutation: list[int] | None, is_registered: bool) -> None:
    shape, rows = [2, 3, 4], 5
    storage = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(rows * 24, dtype=np.float32)), 24)
    kind = pa.fixed_shape_tensor(pa.float32(), shape, permutation=permutation)
    array = pa.ExtensionArray.from_storage(kind, storage)
    expected = array.to_numpy_ndarray()[1:4]
    field: Any = pa.field("x", kind)
    if not is_registered:
        facts = '{"shape": [2, 3, 4]' + (f', "permutation": {permutation}' if permutation else "") + "}"
        field, array = as_unregistered("x", storage, "arrow.fixed_shape_tensor", facts), storage
    table = pa.table([pa.array(range(rows)), array], schema=pa.schema([pa.field("sample_id", pa.int64()), field]))
    samples = samples_of(table.slice(1, 3))
    found = tensor_columns.unpack(samples.column("x"), samples.schema.field("x"))
    assert found.shape == expected.shape == (3, *[shape[at] for at in permutation or range(3)])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("permutation", [[2, 0, 1], [1, 2, 0]])
def test_a_permutation_with_two_meanings_is_refused(permutation: list[int]) -> None:
    kind = pa.fixed_shape_tensor(pa.int64(), [1, 1, 3], permutation=permutation)
    x = pa.ExtensionArray.from_storage(kind, pa.array(X, pa.list_(pa.int64(), 3)))
    with pytest.raises(SourceError, match=r"^Column 'x' holds tensors of shape \[1, 1, 3\] with the permutation"):
        samples_of(table_of(x=x))


def test_booleans_are_labels_of_0_and_1_and_inputs() -> None:
    values = [n % 2 == 0 for n in range(ROWS)]
    plain = samples_of(table_of(label=pa.array([int(value) for value in values])))
    bool8 = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([7 * value for value in values], pa.int8()))
    for label in (pa.array(values), bool8, pa.array(values).dictionary_encode()):
        assert samples_of(table_of(label=label)).equals(plain)
    positions = samples_of(table_of(label=pa.array([[value, True] for value in values])))
    label = tensor_columns.unpack(positions.column("label"), positions.schema.field("label"))
    assert label.dtype == np.int32 and label.tolist() == [[int(value), 1] for value in values]
    for x in (pa.array(values), bool8):
        samples = samples_of(table_of(x=x))
        assert tensor_columns.unpack(samples.column("x"), samples.schema.field("x")).tolist() == values
        assert rows_digest(samples) == rows_digest(samples_of(table_of(x=pa.array(values))))
    lists = samples_of(table_of(x=pa.array([[value, False] for value in values])))
    x = tensor_columns.unpack(lists.column("x"), lists.schema.field("x"))
    assert x.dtype == np.bool_ and x.tolist() == [[value, False] for value in values]


@pytest.mark.parametrize("column", ["sample_id", "label"])
@pytest.mark.parametrize("coded", [False, True])
def test_numbers_beyond_int64_are_refused_by_name(column: str, coded: bool) -> None:
    array: Any = pa.array([2**63 + n for n in range(ROWS)], pa.uint64())
    with pytest.raises(SourceError, match=rf"^a: the column '{column}' does not fit int64"):
        samples_of(table_of(**{column: array.dictionary_encode() if coded else array}))


def test_nulls_stay_nulls_in_every_form() -> None:
    ids = pa.array(["a", None, "a"])
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", None]))
    for array in (
        ids.dictionary_encode(),
        coded,
        ids.cast(pa.string_view()),
        pc.run_end_encode(ids),
        as_extension(ids),
    ):
        with pytest.raises(SourceError, match="of type string with 1 nulls"):
            as_samples(pa.table({"sample_id": array, "x": [1, 2, 3]}), Columns(), "a")
        with pytest.raises(SourceError, match="of type string with 1 nulls"):
            sample_ids(pa.table({"sample_id": array}), Columns(), "a")
    rows = [[1, 2], None, [3, 4]]
    kinds = [pa.list_view(pa.int64()), pa.large_list_view(pa.int64()), pa.list_(pa.dictionary(pa.int8(), pa.string()))]
    for kind in kinds[:2]:
        with pytest.raises(SourceError, match="Column 'x' holds 1 nulls"):
            as_samples(pa.table({"sample_id": [1, 2, 3], "x": pa.array(rows, kind)}), Columns(), "a")
    tensor = pa.fixed_shape_tensor(pa.int64(), [2, 1], permutation=[1, 0])
    x = pa.ExtensionArray.from_storage(tensor, pa.array(rows, pa.list_(pa.int64(), 2)))
    with pytest.raises(SourceError, match="Column 'x' holds 1 nulls"):
        as_samples(pa.table({"sample_id": [1, 2, 3], "x": x}), Columns(), "a")


def test_a_plain_table_is_itself_and_an_empty_one_has_plain_types() -> None:
    table = table_of()
    assert plain_table(table) is table
    other = pa.table({"a": pa.array(IDS).dictionary_encode(), "b": as_extension(pa.array(X))}).slice(0, 0)
    empty = pa.table([pa.chunked_array([], field.type) for field in other.schema], schema=other.schema)
    for made in (plain_table(other), plain_table(empty)):
        assert made.schema.types == [pa.string(), pa.list_(pa.int64())]


def test_texts_and_tokens_to_be_packed_may_have_any_form(tmp_path: Path) -> None:
    digests: list[str] = []
    documents = pa.array([[n, 3, 4] for n in range(ROWS)])
    for number, array in enumerate([documents, documents.cast(pa.large_list(pa.int64())), as_extension(documents)]):
        pq.write_table(pa.table({"tokens": array}), tmp_path / f"{number}.parquet")
        pack = {"column": "tokens", "sequence_length": 4}
        source = make_source({"parquet": str(tmp_path / f"{number}.parquet"), "pack": pack})
        [file] = source.files()
        table = source.read(file, 0, file.rows)
        digests.append(rows_digest(table.drop_columns(["sample_id"])))
    assert len(set(digests)) == 1
