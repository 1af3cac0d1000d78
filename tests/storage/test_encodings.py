"""What every encoding promises, over the table of them, and the exact bytes of each."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage import tensors
from storage.digest import canonical_json
from storage.encodings import ENCODINGS, Encoding, make_encoding
from storage.errors import RecipeError

# Each member in the settings that it is tried in; a new member is tested by being listed in ENCODINGS and here.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "dense": [{}, {"temperature": 4.0}, {"dtype": "float32"}, {"temperature": 0.5, "dtype": "float32"}],
}
MEMBERS = [(name, settings) for name in ENCODINGS for settings in SETTINGS.get(name, [{}])]
members = pytest.mark.parametrize("name, settings", MEMBERS)


def soft(rows: int = 9, classes: int = 6) -> np.ndarray[Any, Any]:
    """Softened, centred logits [P, V] over many magnitudes, the maximum of each position at 0."""
    signs = np.random.default_rng(3).normal(size=(rows, classes))
    logits_PV = (signs * 10.0 ** np.arange(-4, rows - 4)[:, None] / 4).astype(np.float32)
    return logits_PV - logits_PV.max(axis=1, keepdims=True)


def columns_of(encoding: Encoding, soft_PV: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    fields = encoding.fields(soft_PV.shape[1])
    arrays = encoding.encode(soft_PV)
    return {f.name: tensors.unpack(array, f) for f, array in zip(fields, arrays, strict=True)}


def test_every_encoding_is_tried_here() -> None:
    assert set(SETTINGS) == set(ENCODINGS)


@members
def test_what_was_encoded_fits_the_fields(name: str, settings: dict[str, Any]) -> None:
    encoding = make_encoding(name, settings)
    for rows in (0, 1, 9):
        fields, arrays = encoding.fields(6), encoding.encode(soft(rows))
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
        encoding.temperature = 2.0  # type: ignore[misc]


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
    with pytest.raises(
        RecipeError, match=rf"targets\.temprature is no setting of '{name}'.*Did you mean 'temperature'"
    ):
        make_encoding(name, {"temprature": 2.0})


@members
def test_two_temperatures_have_one_key(name: str, settings: dict[str, Any]) -> None:
    one, other = (make_encoding(name, {**settings, "temperature": t}) for t in (1.0, 7.0))
    assert one.key() == other.key()
    assert one.to_dict() != other.to_dict()


@pytest.mark.parametrize("odd, hint", [("dnese", "Did you mean 'dense'"), ("qqq", "The encodings are: dense")])
def test_an_odd_encoding_is_refused_with_the_nearest_one(odd: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=rf"^targets\.encoding is '{odd}'\..*{hint}"):
        make_encoding(odd, {})


# dense


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dense_in_float16_is_right_to_eleven_bits(temperature: float) -> None:
    soft_PV = soft()
    back = make_encoding("dense", {"temperature": temperature}).decode(columns_of(make_encoding("dense", {}), soft_PV))
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
    back = encoding.decode(columns_of(encoding, soft()))
    assert back.logits_PV.dtype == np.float32
    np.testing.assert_array_equal(back.logits_PV, soft())


@pytest.mark.parametrize("low", [-65504.0, -65519.0, -65520.0, -1e6, -3e38, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dense_clamps_what_float16_cannot_hold(low: float, dtype: str) -> None:
    encoding = make_encoding("dense", {})
    back = encoding.decode(columns_of(encoding, np.array([[0.0, low, -1.5]], dtype)))
    np.testing.assert_array_equal(back.logits_PV, np.array([[0.0, -65504.0, -1.5]], np.float16))


def test_dense_has_these_bytes() -> None:
    encoding = make_encoding("dense", {"temperature": 2.0})
    (field,) = encoding.fields(3)
    assert (field.name, field.type, field.nullable) == ("soft_logits", pa.binary(6), False)
    assert field.metadata == {
        b"dtype": b"float16",
        b"shape": b"[3]",
        b"meaning": b"teacher logits / temperature, minus their maximum",
    }
    (array,) = encoding.encode(np.array([[0.0, -1.0, -1e9], [-0.1, 0.0, -2.5]], np.float32))
    assert array.to_pylist() == [b"\x00\x00\x00\xbc\xff\xfb", b"\x66\xae\x00\x00\x00\xc1"]
    (wide,) = make_encoding("dense", {"dtype": "float32"}).encode(np.array([[0.0, -1.0]], np.float64))
    assert wide.to_pylist() == [b"\x00\x00\x00\x00\x00\x00\x80\xbf"]
    assert canonical_json(encoding.key()) == b'{"dtype":"float16","encoding":"dense"}'
    assert canonical_json(encoding.to_dict()) == b'{"dtype":"float16","encoding":"dense","temperature":2.0}'


def test_a_temperature_written_as_an_integer_is_the_same_temperature() -> None:
    assert (
        make_encoding("dense", {"temperature": 2}).to_dict() == make_encoding("dense", {"temperature": 2.0}).to_dict()
    )


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "4", None, [1.0]])
def test_dense_refuses_a_temperature_that_is_none(temperature: Any) -> None:
    with pytest.raises(RecipeError, match=r"^targets\.temperature is .*\. It is a number above 0\."):
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
    targets = encoding.decode(columns_of(encoding, soft_PV - soft_PV.max(axis=1, keepdims=True)))
    served = softmax(targets.logits_PV.astype(np.float64) * targets.temperature_P[:, None] / serve)
    np.testing.assert_allclose(served, softmax(logits_PV / serve), rtol=0.02 / serve, atol=1e-6)
