"""What every encoding promises, over the table of them, and the exact bytes of each."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.base.digest import canonical_json
from storage.base.errors import RecipeError
from storage.encodings import ENCODINGS, Encoding, make_encoding
from storage.encodings.dense import Dense, DenseTargets
from storage.encodings.targets import Targets
from storage.encodings.topk import TopK, TopKTargets
from storage.samples import tensor_columns

# Each member in the settings that it is tried in; a new member is tested by being listed in ENCODINGS and here.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "dense": [{}, {"temperature": 4.0}, {"dtype": "float32"}, {"temperature": 0.5, "dtype": "float32"}],
    "topk": [{"k": 3}, {"k": 1, "temperatures": [2.0, 0.5]}, {"k": 5, "temperatures": 4}],
}
MEMBERS = [(name, settings) for name in ENCODINGS for settings in SETTINGS.get(name, [{}])]
members = pytest.mark.parametrize("name, settings", MEMBERS)


def soft(rows: int = 9, classes: int = 6) -> np.ndarray[Any, Any]:
    """Softened, centred logits [P, V] over many magnitudes, the maximum of each position at 0."""
    signs = np.random.default_rng(3).normal(size=(rows, classes))
    logits_PV = (signs * 10.0 ** np.arange(-4, rows - 4)[:, None] / 4).astype(np.float32)
    return logits_PV - logits_PV.max(axis=1, keepdims=True)


def targets_of(encoding: Encoding, soft_PV: np.ndarray[Any, Any]) -> Targets:
    """Softened logits as an encoding takes them, of positions or of sequences of them."""
    if isinstance(encoding, Dense):
        return DenseTargets(soft_PV, None)
    assert isinstance(encoding, TopK)
    grid = encoding.temperatures
    l_PV = soft_PV.astype(np.float64)
    l_PV = l_PV - np.log(np.exp(l_PV).sum(axis=-1, keepdims=True))
    ids_PK = np.argsort(-l_PV, axis=-1, kind="stable")[..., : encoding.k]
    scalars = [np.stack([l_PV[..., 0] * (t + n) for t in grid], axis=-1) for n in range(3)]
    return TopKTargets(
        ids_PK, np.take_along_axis(l_PV, ids_PK, axis=-1), l_PV[..., -1], *scalars, grid, soft_PV.shape[-1]
    )


def columns_of(encoding: Encoding, soft_PV: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    fields = encoding.fields(soft_PV.shape[-1], soft_PV.shape[1] if soft_PV.ndim > 2 else None)
    arrays = encoding.encode(targets_of(encoding, soft_PV))
    return {f.name: tensor_columns.unpack(array, f) for f, array in zip(fields, arrays, strict=True)}


def test_every_encoding_is_tried_here() -> None:
    assert set(SETTINGS) == set(ENCODINGS)


@members
def test_what_was_encoded_fits_the_fields(name: str, settings: dict[str, Any]) -> None:
    encoding = make_encoding(name, settings)
    for rows, positions in ((0, None), (1, None), (9, None), (8, 4)):
        soft_RV = soft(rows) if positions is None else soft(rows).reshape(-1, positions, 6)
        fields, arrays = encoding.fields(6, positions), encoding.encode(targets_of(encoding, soft_RV))
        rows = len(soft_RV)
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
        batch.validate(full=True)
        assert batch.num_rows == rows
        assert all(field.name.startswith("soft_") for field in fields)
        assert not any(field.nullable for field in fields)


@members
def test_an_encoding_comes_back_from_what_it_says_of_itself(name: str, settings: dict[str, Any]) -> None:
    encoding = make_encoding(name, settings)
    facts = encoding.to_dict()
    canonical_json(facts)
    assert facts.pop("encoding") == name
    assert make_encoding(name, facts) == encoding


@members
def test_the_key_holds_settings_only_and_no_temperature_that_a_reader_can_undo(
    name: str, settings: dict[str, Any]
) -> None:
    key = make_encoding(name, settings).key()
    assert key["encoding"] == name
    assert "temperature" not in key
    assert key.items() <= make_encoding(name, settings).to_dict().items()


@members
def test_settings_do_not_change_once_they_are_made(name: str, settings: dict[str, Any]) -> None:
    encoding = make_encoding(name, settings)
    with pytest.raises(FrozenInstanceError):
        setattr(encoding, next(iter(settings), "temperature"), 2.0)


@members
def test_the_rows_of_a_batch_do_not_change_each_other(name: str, settings: dict[str, Any]) -> None:
    encoding = make_encoding(name, settings)
    whole = columns_of(encoding, soft())
    for at in range(9):
        alone = columns_of(encoding, soft()[at : at + 1])
        for column, values in alone.items():
            np.testing.assert_array_equal(values, whole[column][at : at + 1])


@members
def test_an_odd_setting_is_refused_with_the_nearest_one(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"targets\.temprature is no setting of '{name}'.*Did you mean 'temperature"):
        make_encoding(name, {"temprature": 2.0})


@members
def test_sequences_come_back_as_their_positions_do(name: str, settings: dict[str, Any]) -> None:
    encoding = make_encoding(name, settings)
    soft_PV = soft(8)
    rows = encoding.decode(columns_of(encoding, soft_PV.reshape(2, 4, 6)), 6)
    positions = encoding.decode(columns_of(encoding, soft_PV), 6)
    assert rows.classes == positions.classes == 6
    held: list[np.ndarray[Any, Any]] = []
    positions.each(held.append)
    rows.each(lambda array: np.testing.assert_array_equal(array.reshape(held[0].shape), held.pop(0)))
    held.clear()
    rows.flat().each(held.append)
    positions.each(lambda array: np.testing.assert_array_equal(array, held.pop(0)))
    assert not held


def test_two_temperatures_of_dense_have_one_key() -> None:
    one, other = (make_encoding("dense", {"temperature": t}) for t in (1.0, 7.0))
    assert one.key() == other.key()
    assert one.to_dict() != other.to_dict()


@pytest.mark.parametrize("odd, hint", [("dnese", "Did you mean 'dense'"), ("qqq", "The encodings are: dense, topk")])
def test_an_odd_encoding_is_refused_with_the_nearest_one(odd: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=rf"^targets\.encoding is '{odd}'\..*{hint}"):
        make_encoding(odd, {})


# dense


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dense_in_float16_is_right_to_eleven_bits(temperature: float) -> None:
    soft_PV = soft()
    back = make_encoding("dense", {"temperature": temperature}).decode(
        columns_of(make_encoding("dense", {}), soft_PV), 6
    )
    assert (back.logits_PV.dtype, back.classes) == (np.float16, 6)
    kept = soft_PV >= -65504
    error = np.abs(back.logits_PV.astype(np.float64) - soft_PV)
    # Below 2^-14 float16 has a fixed step, 2^-24.
    bound = np.maximum(np.abs(soft_PV) * 2.0**-11, 2.0**-25)
    assert kept.any() and (error <= bound)[kept].all()
    assert back.logits_PV.max() == 0
    np.testing.assert_array_equal(back.temperature_P, np.full(9, temperature, np.float32))
    assert back.temperature_P.dtype == np.float32


def test_dense_in_float32_is_exact() -> None:
    encoding = make_encoding("dense", {"dtype": "float32"})
    back = encoding.decode(columns_of(encoding, soft()), 6)
    assert back.logits_PV.dtype == np.float32
    np.testing.assert_array_equal(back.logits_PV, soft())


@pytest.mark.parametrize("low", [-65504.0, -65519.0, -65520.0, -1e6, -3e38])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dense_clamps_what_float16_cannot_hold(low: float, dtype: str) -> None:
    encoding = make_encoding("dense", {})
    back = encoding.decode(columns_of(encoding, np.array([[0.0, low, -1.5]], dtype)), 3)
    np.testing.assert_array_equal(back.logits_PV, np.array([[0.0, -65504.0, -1.5]], np.float16))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dense_keeps_minus_infinity_beside_finite_values(dtype: str) -> None:
    encoding = make_encoding("dense", {"dtype": dtype})
    back = encoding.decode(columns_of(encoding, np.array([[0.0, -np.inf, -1.5]], np.float32)), 3)
    np.testing.assert_array_equal(back.logits_PV, [[0.0, -np.inf, -1.5]])


def test_dense_has_these_bytes() -> None:
    encoding = make_encoding("dense", {"temperature": 2.0})
    (field,) = encoding.fields(3)
    assert (field.name, field.type, field.nullable) == ("soft_logits", pa.binary(6), False)
    assert field.metadata == {
        b"dtype": b"float16",
        b"shape": b"[3]",
        b"meaning": b"teacher logits / temperature, minus their maximum",
    }
    (array,) = encoding.encode(DenseTargets(np.array([[0.0, -1.0, -1e9], [-0.1, 0.0, -2.5]], np.float32), None))
    assert array.to_pylist() == [b"\x00\x00\x00\xbc\xff\xfb", b"\x66\xae\x00\x00\x00\xc1"]
    (wide,) = make_encoding("dense", {"dtype": "float32"}).encode(DenseTargets(np.array([[0.0, -1.0]]), None))
    assert wide.to_pylist() == [b"\x00\x00\x00\x00\x00\x00\x80\xbf"]
    assert canonical_json(encoding.key()) == b'{"dtype":"float16","encoding":"dense"}'
    assert canonical_json(encoding.to_dict()) == b'{"dtype":"float16","encoding":"dense","temperature":2.0}'


def test_a_temperature_written_as_an_integer_is_the_same_temperature() -> None:
    assert (
        make_encoding("dense", {"temperature": 2}).to_dict() == make_encoding("dense", {"temperature": 2.0}).to_dict()
    )


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), 10**400, 1e-38, True, "4", None, [1.0]])
def test_dense_refuses_a_temperature_that_is_none(temperature: Any) -> None:
    with pytest.raises(RecipeError, match=r"^targets\.temperature is .*\. It is a number from 0\.001 to 1000\."):
        make_encoding("dense", {"temperature": temperature})


@pytest.mark.parametrize("dtype", ["flaot16", "bfloat16", "int8", "", None])
def test_dense_refuses_another_dtype_and_names_those_it_knows(dtype: Any) -> None:
    with pytest.raises(RecipeError, match=r"^targets\.dtype is '.*'\. Dense logits are kept as float16 or float32\."):
        make_encoding("dense", {"dtype": dtype})


@pytest.mark.parametrize("serve", [0.5, 1.0, 2.0, 8.0])
def test_dense_serves_any_temperature_whatever_it_was_stored_at(serve: float) -> None:
    def softmax(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    logits_PV = np.random.default_rng(5).normal(size=(20, 10)) * 5
    encoding = make_encoding("dense", {"temperature": 4.0})
    soft_PV = logits_PV / 4.0
    targets = encoding.decode(columns_of(encoding, soft_PV - soft_PV.max(axis=1, keepdims=True)), 10)
    served = softmax(targets.logits_PV.astype(np.float64) * targets.temperature_P[:, None] / serve)
    np.testing.assert_allclose(served, softmax(logits_PV / serve), rtol=0.02 / serve, atol=1e-6)


# topk


def kept(classes: int, first_ids: list[int], lead: tuple[int, ...] = (2,)) -> TopKTargets:
    """Two positions by hand; of the second the label is unknown and the last below float16."""
    numbers: list[Any] = [
        [first_ids, [0, 1, 2]],
        [[-0.5, -1.0, -2.5], [0.0, -1e-5, -1e6]],
        [-1.0, np.nan],
        [[0.0, 0.25], [0.0, 0.5]],
        [[-1.5, -2.0], [-np.inf, -0.75]],
        [[1.0, 2.0], [0.0, 0.125]],
    ]
    arrays = [np.array(values) for values in numbers]
    return TopKTargets(*(a.reshape(*lead, *a.shape[1:]) for a in arrays), (1.0, 2.0), classes)


def stored(array: pa.Array) -> bytes:
    """A column's values as they lie in memory, whatever their type."""
    return bytes(array.buffers()[1])[: len(array) * array.type.bit_width // 8]


# -0.5, -1, -2.5 as float16 are b800, bc00, c100; -0.0, -168/2^24, -65504 are 8000, 80a8, fbff.
FIRST_LOG_PROBS, SECOND_LOG_PROBS = (b"\x00\x00\x00", b"\xb8\x04\x05"), (b"\x00\xa8\x57", b"\x80\x00\x7b")
LABELS = b"\x00\xbc\x00\x7e"
LOG_Z = b"\x00\x00\x00\x00\x00\x00\x80\x3e", b"\x00\x00\x00\x00\x00\x00\x00\x3f"
LOG_TAIL = b"\x00\x00\xc0\xbf\x00\x00\x00\xc0", b"\x00\x00\x80\xff\x00\x00\x40\xbf"
ENTROPIES = b"\x00\x00\x80\x3f\x00\x00\x00\x40", b"\x00\x00\x00\x00\x00\x00\x00\x3e"


@pytest.mark.parametrize(
    "classes, first_ids, ids",
    [
        (1000, [258, 3, 999], [b"\x02\x03\xe7\x01\x00\x03", b"\x00\x01\x02\x00\x00\x00"]),
        (1 << 16, [65535, 3, 256], [b"\xff\x03\x00\xff\x00\x01", b"\x00\x01\x02\x00\x00\x00"]),
        (
            (1 << 16) + 1,
            [65536, 3, 258],
            [b"\x00\x03\x02\x00\x00\x01\x01\x00\x00\x00\x00\x00", b"\x00\x01\x02" + bytes(9)],
        ),
        (
            1 << 25,
            [0x01020304, 3, 4],
            [b"\x04\x03\x04\x03\x00\x00\x02\x00\x00\x01\x00\x00", b"\x00\x01\x02" + bytes(9)],
        ),
    ],
)
def test_topk_has_these_bytes(classes: int, first_ids: list[int], ids: list[bytes]) -> None:
    encoding = make_encoding("topk", {"k": 3, "temperatures": [2]})
    fields = encoding.fields(classes)
    of = dict(zip([field.name for field in fields], encoding.encode(kept(classes, first_ids)), strict=True))
    assert list(of) == [
        *("soft_ids", "soft_log_probs", "soft_label_log_prob"),
        *("soft_log_z", "soft_log_tail", "soft_entropies"),
    ]
    assert [str(field.type) for field in fields] == [
        *(f"fixed_size_binary[{len(ids[0])}]", "fixed_size_binary[6]", "halffloat"),
        *["fixed_size_binary[8]"] * 3,
    ]
    forms = [(field.metadata.get(b"dtype"), field.metadata.get(b"shape")) for field in fields]
    assert forms == [
        (b"uint8", b"[2, 3]" if classes <= 1 << 16 else b"[4, 3]"),
        (b"uint8", b"[2, 3]"),
        (None, None),
        *[(b"float32", b"[2]")] * 3,
    ]
    assert of["soft_ids"].to_pylist() == ids
    assert of["soft_log_probs"].to_pylist() == [b"".join(FIRST_LOG_PROBS), b"".join(SECOND_LOG_PROBS)]
    assert stored(of["soft_label_log_prob"]) == LABELS
    assert of["soft_log_z"].to_pylist() == [*LOG_Z]
    assert of["soft_log_tail"].to_pylist() == [*LOG_TAIL]
    assert of["soft_entropies"].to_pylist() == [*ENTROPIES]
    expected = b'{"encoding":"topk","k":3,"temperatures":[1.0,2.0]}'
    assert canonical_json(encoding.key()) == canonical_json(encoding.to_dict()) == expected


def test_topk_of_a_sequence_has_these_bytes() -> None:
    encoding = make_encoding("topk", {"k": 3, "temperatures": [2]})
    fields, arrays = encoding.fields(1000, 2), encoding.encode(kept(1000, [258, 3, 999], (1, 2)))
    # A plane holds the bytes of all positions of the row.
    assert [array.to_pylist() for array in arrays] == [
        [b"\x02\x03\xe7\x00\x01\x02\x01\x00\x03\x00\x00\x00"],
        [FIRST_LOG_PROBS[0] + SECOND_LOG_PROBS[0] + FIRST_LOG_PROBS[1] + SECOND_LOG_PROBS[1]],
        [LABELS],
        [b"".join(LOG_Z)],
        [b"".join(LOG_TAIL)],
        [b"".join(ENTROPIES)],
    ]
    assert [field.metadata[b"shape"] for field in fields] == [b"[2, 2, 3]", b"[2, 2, 3]", b"[2]", *[b"[2, 2]"] * 3]
    assert [field.metadata[b"dtype"] for field in fields] == [*[b"uint8"] * 2, b"float16", *[b"float32"] * 3]


def test_topk_comes_back_from_its_bytes_as_float16_has_it() -> None:
    encoding = make_encoding("topk", {"k": 3, "temperatures": [2]})
    for classes, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
        given = kept(classes, [65535, 3, 256])
        columns = zip(encoding.fields(classes), encoding.encode(given), strict=True)
        back = encoding.decode({field.name: tensor_columns.unpack(array, field) for field, array in columns}, classes)
        assert isinstance(back, TopKTargets) and (back.ids_PK.dtype, back.log_probs_PK.dtype) == (dtype, np.float16)
        np.testing.assert_array_equal(back.ids_PK, given.ids_PK)
        expected = np.array([[-0.5, -1.0, -2.5], [-0.0, -168 / 2**24, -65504.0]], np.float16)
        np.testing.assert_array_equal(back.log_probs_PK.view(np.uint16), expected.view(np.uint16))
        np.testing.assert_array_equal(back.label_log_prob_P, np.array([-1.0, np.nan], np.float16))
        for found, right in (
            (back.log_z_PG, given.log_z_PG),
            (back.log_tail_PG, given.log_tail_PG),
            (back.entropy_PG, given.entropy_PG),
        ):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("low", [-65504.0, -65519.0, -65520.0, -1e6, -3e38])
def test_topk_clamps_what_float16_cannot_hold(low: float) -> None:
    encoding = make_encoding("topk", {"k": 2})
    one = np.zeros((1, 1), np.float32)
    targets = TopKTargets(np.array([[4, 1]]), np.array([[0.0, low]]), np.array([low]), one, one, one, (1.0,), 9)
    columns = zip(encoding.fields(9), encoding.encode(targets), strict=True)
    back = encoding.decode({field.name: tensor_columns.unpack(array, field) for field, array in columns}, 9)
    assert isinstance(back, TopKTargets)
    assert (back.log_probs_PK.tolist(), back.label_log_prob_P.tolist()) == ([[0.0, -65504.0]], [-65504.0])
