"""The rows of a cache that keeps its inputs by reference, joined with the inputs of the source, each row checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from storage.base.errors import CorruptShard, RecipeError, SourceError, UsageError, VerificationError
from storage.format.rows import DecodedRows
from storage.rows.cache_rows import CacheRows
from storage.rows.row_groups import Arrays, Column, Ints
from storage.samples import tensor_columns
from storage.samples.inputs_digest import inputs_digests
from storage.samples.samples import INPUTS_XXH3, SAMPLE_ID, SourceFile, input_names
from storage.sources import Source, place_of

# So many rows between two that are wanted are read along: of a sample that was quarantined the teacher left no row.
GAP = 32

_REMEDY = "Restore the source as the teacher read it, or run the teacher's recipe on it as it is now."


class JoinedRows:
    """A cache's rows with the inputs that a source has for their ids, which are those that the teacher saw.

    Same rows, order and digest as the cache's alone. The source may lie in other files by now, in another
    order, and hold more samples; rows that the teacher read one after another are fastest read so again.
    """

    def __init__(self, groups: CacheRows, source: Source) -> None:
        """Reads the ids of the whole source. Raises RecipeError, UsageError, SourceError."""
        self.cache = cache = groups.cache
        if cache.inputs:
            raise RecipeError(
                f"The cache {cache.url} holds its inputs ({', '.join(cache.inputs)}), and a source of inputs is named.",
                "A source is joined to a cache that keeps its inputs by reference.",
                "Leave the source out.",
            )
        self._groups = CacheRows(cache, groups.parts - {"inputs"}, (INPUTS_XXH3,))
        kept = {column.name: column for column in self._groups.columns}
        if INPUTS_XXH3 not in kept:
            raise CorruptShard(f"The cache {cache.url} has neither inputs nor their digests ({INPUTS_XXH3}).")
        self._source = source
        self._places = _Places(source)
        if self._places.is_text != (kept[SAMPLE_ID].dtype is None):
            found, expected = ("texts", "integers") if self._places.is_text else ("integers", "texts")
            raise UsageError(
                f"The sample ids of {told(source)} are {found}, those of the cache {cache.url} {expected}.",
                "A row's inputs are found by its id.",
                "Name the source that the cache was made from.",
            )
        sample = source.read(self._places.files[0], 0, 1)
        self._inputs = _inputs_of(sample.schema)
        self.rows = self.sizes = self._groups.rows
        self.digest, self.where, self.notes = cache.digest, cache.url, source.notes()
        self.columns: Sequence[Column] = (
            *(column for column in kept.values() if column.name != INPUTS_XXH3),
            *self._inputs,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A source may hold what it read; in another process it reads again.
        source: Any = self._source
        return {**self.__dict__, "_source": dataclasses.replace(source)}

    def name_of(self, group: int) -> str:
        return self._groups.name_of(group)

    def loaded_rows(self, group_B: Ints, row_B: Ints) -> Ints:
        return row_B

    def rows_of(self, group_B: Ints, columns: Arrays) -> DecodedRows:
        rows = self._groups.rows_of(group_B, columns)
        return DecodedRows(rows.sample_id, {c.name: columns[c.name] for c in self._inputs}, rows.label, rows.targets)

    def load(self, group: int, out: Arrays) -> Arrays:
        """Raises VerificationError for rows whose inputs are not those of the cache, and what a cache's rows raise."""
        digests_P = np.empty((int(self.sizes[group]), 16), np.uint8)
        texts = self._groups.load(group, {**out, INPUTS_XXH3: digests_P})
        ids_P = texts[SAMPLE_ID] if SAMPLE_ID in texts else out[SAMPLE_ID]
        at_P = self._places.find(ids_P)
        absent = np.flatnonzero(at_P < 0)
        if len(absent):
            raise VerificationError(
                f"{told(self._source)} lacks {len(absent):,} of the {len(at_P):,} samples of {self.name_of(group)}; "
                f"the first is '{ids_P[absent[0]]}'.",
                f"The cache {self.cache.url} keeps their inputs by reference.",
                _REMEDY,
            )
        for file, first, places, rows in self._places.runs(at_P):
            table = self._read(file, first, first + int(rows[-1]) + 1)
            self._check(table, file, first, rows, ids_P[places], digests_P[places])
            for name in [column.name for column in self._inputs]:
                out[name][places] = tensor_columns.unpack(table.column(name), table.schema.field(name))[rows]
        return texts

    def _read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        try:
            return self._source.read(file, start, stop)
        except SourceError as error:
            raise VerificationError(
                f"Rows {start:,} to {stop:,} of {file.name} cannot be read, and the ids could. {error}",
                "",
                _REMEDY,
            ) from error

    def _check(
        self, table: pa.Table, file: SourceFile, first: int, rows_P: Ints, ids_P: np.ndarray, digests_P: np.ndarray
    ) -> None:
        """Raises VerificationError unless rows of a table, read from `first` on, have these ids and input digests."""
        if table.num_rows <= rows_P[-1]:
            raise VerificationError(
                f"{file.name} ends before row {first + rows_P[-1]:,}.", f"It had {file.rows:,} rows.", _REMEDY
            )
        found_P = tensor_columns.unpack(table.column(SAMPLE_ID), table.schema.field(SAMPLE_ID))[rows_P]
        moved = np.flatnonzero(found_P != ids_P)
        if len(moved):
            at = int(moved[0])
            raise VerificationError(
                f"Row {first + rows_P[at]:,} of {file.name} is the sample '{found_P[at]}'.",
                f"It was '{ids_P[at]}' when the ids were read.",
                "Leave a source alone while a stream reads it, and begin again.",
            )
        inputs = _inputs_of(table.schema)
        digests = inputs_digests(table).view(np.uint8).reshape(-1, 16)[rows_P]
        other = np.flatnonzero((digests != digests_P).any(axis=1))
        if len(other):
            at = int(other[0])
            raise VerificationError(
                f"The sample '{ids_P[at]}' in row {first + rows_P[at]:,} of {file.name} has inputs ({_shown(inputs)}) "
                f"with the digest {digests[at].tobytes().hex()[:16]}.",
                f"The teacher of {self.cache.url} saw {digests_P[at].tobytes().hex()[:16]}.",
                f"{_REMEDY} Another choice or order of the columns (columns.inputs) is another input, too.",
            )
        if inputs != self._inputs:
            raise VerificationError(
                f"{file.name} has inputs ({_shown(inputs)}).",
                f"{self._places.files[0].name} has ({_shown(self._inputs)}).",
                _REMEDY,
            )


def _inputs_of(samples: pa.Schema) -> tuple[Column, ...]:
    return tuple(Column.of(samples.field(name)) for name in input_names(samples))


def _shown(columns: Sequence[Column]) -> str:
    return ", ".join(f"{c.name} {c.dtype}{list(c.shape) if c.shape else ''}" for c in columns)


def told(source: Source) -> str:
    """A source for people: where it is."""
    facts = source.to_dict()
    return f"The source {place_of(facts)}"


class _Places:
    """Where each sample of a source lies, by its id: 16 bytes a sample whose id is an integer, 24 of a text."""

    def __init__(self, source: Source) -> None:
        self.files = [file for file in source.files() if file.rows]
        if not self.files:
            raise SourceError(f"{told(source)} is empty.", "There is at least one sample.")
        keys: list[np.ndarray[Any, Any]] = []
        kinds: set[bool] = set()
        for file in self.files:
            ids = source.ids(file)
            if len(ids) != file.rows:
                raise SourceError(f"{file.name} has {len(ids):,} rows.", f"It had {file.rows:,} a moment ago.")
            kinds.add(tensor_columns.is_text(ids.type))
            keys += [_keys(chunk.to_numpy(zero_copy_only=False)) for chunk in ids.chunks]
        if len(kinds) > 1:
            raise SourceError(f"{told(source)} has integers and texts as sample ids.", "All files have the same type.")
        self.is_text = kinds.pop()
        self._starts = np.concatenate([[0], np.cumsum([file.rows for file in self.files])])
        unsorted = np.concatenate(keys)
        del keys
        self._row = np.argsort(unsorted, kind="stable")
        self._key = unsorted[self._row]
        self._refuse_duplicates(source)

    def _refuse_duplicates(self, source: Source) -> None:
        again = np.flatnonzero(self._key[1:] == self._key[:-1])
        if not len(again):
            return
        [(one, row), (other, other_row)] = map(self._file_of, self._row[again[0] : again[0] + 2].tolist())
        raise SourceError(
            f"The sample id '{source.ids(one)[row].as_py()}' appears in row {row:,} of {one.name} and in row "
            f"{other_row:,} of {other.name}; so do {len(again) - 1:,} more.",
            "A sample id is unique in its source.",
        )

    def _file_of(self, at: int) -> tuple[SourceFile, int]:
        number = int(np.searchsorted(self._starts, at, side="right")) - 1
        return self.files[number], at - int(self._starts[number])

    def find(self, ids_P: np.ndarray[Any, Any]) -> Ints:
        """[P] the place of each sample, counted through all files; -1 for one that is not there."""
        keys = _keys(ids_P)
        near = np.minimum(np.searchsorted(self._key, keys), len(self._key) - 1)
        return np.where(self._key[near] == keys, self._row[near], -1)

    def runs(self, at_P: Ints) -> Iterator[tuple[SourceFile, int, Ints, Ints]]:
        """Places [P] as what is read at once: a file, the first row, which of P lie there, and where from it on."""
        ranked = np.argsort(at_P, kind="stable")
        at = at_P[ranked]
        number = np.searchsorted(self._starts, at, side="right") - 1
        cuts = np.flatnonzero((np.diff(at) > GAP) | (np.diff(number) > 0)) + 1
        for places, rows, file in zip(
            np.split(ranked, cuts), np.split(at, cuts), number[np.concatenate([[0], cuts])].tolist(), strict=True
        ):
            yield self.files[file], int(rows[0] - self._starts[file]), places, rows - rows[0]


def _keys(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ids as values of one width that numpy sorts: integers as they are, of a text its xxh3-128."""
    if ids.dtype != object:
        return ids
    return np.frombuffer(b"".join(xxhash.xxh3_128_digest(text.encode()) for text in ids), "S16")
