"""Documents of any other source, tokenised and packed into rows of one length, with their boundaries kept.

A file's documents are packed in blocks of `block_documents`, each on its own, and a block counts as a file. So a
span is read without tokenising what lies before it, and documents that are appended change the last block only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from storage.base.errors import SourceError
from storage.base.names import nearest
from storage.samples import tensor_columns
from storage.samples.columns import LABEL, SAMPLE_ID, Columns
from storage.samples.pieces import concat_samples, file_ranges, piece_ranges
from storage.samples.samples import SourceFile, as_samples, sample_ids
from storage.sources.packing.blocks import Block, Blocks
from storage.sources.packing.documents import refuse_empty, token_documents
from storage.sources.packing.pack import Pack
from storage.sources.packing.packed_labels import (
    ATTENTION_MASK,
    label_column,
    refuse_padding,
    targets_of,
    unaligned,
)
from storage.sources.packing.packed_rows import PackedRows, count_rows, insert_tokens, packed_rows
from storage.sources.packing.tokenizer import TokenizerFile

INPUT_IDS, POSITION_IDS = "input_ids", "position_ids"


class Documents(Protocol):
    """What a source of documents offers besides what every source does."""

    @property
    def columns(self) -> Columns: ...

    def files(self) -> Sequence[SourceFile]: ...

    def raw(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        """Rows [start, stop) of one file as they are; the columns that were asked for, where they are there."""
        ...

    def stamp(self, file: SourceFile) -> Any:
        """Something that changes with the file, so that what was read of it can be kept."""
        ...

    def place_of(self, file: SourceFile) -> str:
        """The file's name inside the source, which stays when all of it is moved."""
        ...

    def notes(self) -> list[str]: ...

    def column_names(self, file: SourceFile) -> Sequence[str]:
        """All columns of a file, those that are not used among them."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PackedSource:
    """Rows input_ids, position_ids and label, each [sequence_length]; see `packing.PackedRows`.

    A row's id is `<the document that it begins in>:<the token of it>`. Without an id column a document's is
    `<its file>:<its row>`.
    """

    documents: Documents
    pack: Pack
    _blocks: Blocks = field(default_factory=Blocks, init=False, repr=False, compare=False)
    _tokenizers: list[TokenizerFile] = field(default_factory=list[TokenizerFile], init=False, repr=False, compare=False)

    @property
    def columns(self) -> Columns:
        """Those of the packed rows; `documents.columns` are those of the documents."""
        return Columns()

    def files(self) -> Sequence[SourceFile]:
        """Every block as a file. Tokenises all documents, since nothing else tells how many rows they become.

        Raises SourceError where documents were skipped, and none is left.
        """
        blocks: list[SourceFile] = []
        for file, start, stop in file_ranges(self.documents.files(), self.pack.block_documents):
            block = self._block(file, start, stop)
            rows = count_rows(len(block.tokens_N), self.pack.sequence_length)
            blocks.append(SourceFile(f"{file.name}#{start}-{stop}", rows, block.skipped))
        skipped = sum(block.skipped_documents for block in blocks)
        if skipped and not any(block.rows for block in blocks):
            raise SourceError(
                f"All {skipped:,} documents in the column '{self.pack.column}' are empty, and were skipped.",
                "At least one document has tokens.",
                "Name the column of documents in source.pack.column.",
            )
        return tuple(blocks)

    def read(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        return concat_samples(self.pieces(file, start, stop), file.name)

    def pieces(self, file: SourceFile, start: int, stop: int) -> Iterator[pa.Table]:
        for first, last in piece_ranges(start, stop, 3 * 4 * self.pack.sequence_length):
            yield self._samples(file, first, last)

    def _samples(self, file: SourceFile, start: int, stop: int) -> pa.Table:
        block = self._block_of(file)
        rows = self._rows(block, start, stop)
        table = {
            SAMPLE_ID: (pa.field(SAMPLE_ID, pa.string()), _row_ids(block, rows)),
            INPUT_IDS: self._tensor(INPUT_IDS, rows.input_ids_RL),
            POSITION_IDS: self._tensor(POSITION_IDS, rows.position_ids_RL),
            LABEL: self._tensor(LABEL, rows.label_RL),
        }
        schema = pa.schema([made for made, _ in table.values()])
        return as_samples(pa.table([array for _, array in table.values()], schema=schema), self.columns, file.name)

    def ids(self, file: SourceFile) -> pa.ChunkedArray:
        block = self._block_of(file)
        rows = count_rows(len(block.tokens_N), self.pack.sequence_length)
        return pa.chunked_array([_row_ids(block, self._rows(block, 0, rows))])

    def left_out(self) -> dict[str, str]:
        used = {self.pack.column, self.documents.columns.sample_id}
        left_out: dict[str, str] = {}
        for file in self.documents.files():
            names = self.documents.column_names(file)
            label = label_column(names, self.documents.columns, self.pack.column, file.name)
            left_out |= {name: f"pack takes '{self.pack.column}' alone" for name in names if name not in {*used, label}}
        return left_out

    def notes(self) -> list[str]:
        return self.documents.notes()

    def preprocessing(self) -> dict[str, Any] | None:
        """Where text is tokenised, with the special tokens that the post-processor adds."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return None
        before, after = tokenizer.special_tokens if self.pack.special_tokens is not False else ([], [])
        return {
            "tokenizer": tokenizer.sha256,
            "special_tokens": {"before": before, "after": after},
            "begin_token": self.pack.begin_token,
            "end_token": self.pack.end_token,
        }

    @property
    def tokenizer(self) -> TokenizerFile | None:
        """Read once. Raises SourceError when it is not there."""
        if self.pack.tokenizer is not None and not self._tokenizers:
            tokenizer = TokenizerFile.read(self.pack.tokenizer)
            if self.pack.special_tokens is None:
                tokenizer.check_config(self.pack.begin_token is not None, self.pack.end_token is not None)
            self._tokenizers.append(tokenizer)
        return self._tokenizers[0] if self._tokenizers else None

    def to_dict(self) -> dict[str, Any]:
        inner = self.documents.to_dict()
        columns = {"sample_id": self.documents.columns.sample_id, "label": self.documents.columns.label}
        return {**inner, "columns": columns, "pack": self.pack.model_dump()}

    def _tensor(self, name: str, values_RL: np.ndarray[Any, Any]) -> tuple[pa.Field, pa.Array]:
        meaning = "label" if name == LABEL else "input"
        shape = (self.pack.sequence_length,)
        return tensor_columns.tensor_field(name, values_RL.dtype, shape, meaning), tensor_columns.pack(values_RL)

    def _rows(self, block: Block, start: int, stop: int) -> PackedRows:
        padding = self._id_of("end_token") or 0
        length = self.pack.sequence_length
        return packed_rows(block.tokens_N, block.starts_D, length, start, stop, padding, block.targets_N)

    def _block_of(self, file: SourceFile) -> Block:
        name, _, places = file.name.rpartition("#")
        start, _, stop = places.partition("-")
        return self._block(SourceFile(name, int(stop)), int(start), int(stop))

    def _block(self, file: SourceFile, start: int, stop: int) -> Block:
        key = (file.name, self.documents.stamp(file), start, stop)
        return self._blocks.get(key, lambda: self._make(file, start, stop))

    def _make(self, file: SourceFile, start: int, stop: int) -> Block:
        table = self.documents.raw(file, start, stop)
        if table.num_rows < stop - start:
            raise SourceError(f"{file.name} ends before row {stop:,}.", "It had more a moment ago.")
        names = self._names(table, file, start)
        column = self.pack.column
        if column not in table.column_names:
            raise SourceError(
                f"{file.name} has no column '{column}' (asked for as source.pack.column).",
                f"Its columns are: {', '.join(table.column_names)}.{nearest(column, table.column_names)}",
            )
        documents = table.column(column).combine_chunks()
        tokenizer = self.tokenizer
        special_tokens = self.pack.special_tokens is not False
        given = token_documents(documents, names, tokenizer, special_tokens, f"'{column}' of {file.name}")
        if self.pack.empty_documents == "error":
            refuse_empty(given, documents, f"'{column}' of {file.name}")
        if tokenizer is None and ATTENTION_MASK in table.column_names and column != ATTENTION_MASK:
            refuse_padding(table.column(ATTENTION_MASK).combine_chunks(), names, column, file.name)
        targets_N = None
        label = label_column(table.column_names, self.documents.columns, column, file.name)
        if label is not None:
            if tokenizer is not None:
                raise unaligned(label, file.name)
            targets_N = targets_of(table.column(label).combine_chunks(), label, given, file.name)
        kept = given.without_empty(given.lengths_D > 0)
        begin, end = self._id_of("begin_token"), self._id_of("end_token")
        tokens_N, lengths_D, inserted_N = insert_tokens(kept.ids_N, kept.lengths_D, begin, end)
        if targets_N is not None:
            targets_N, given_N = tokens_N.copy(), targets_N
            targets_N[~inserted_N] = given_N
        starts_D, skipped = np.cumsum(lengths_D) - lengths_D, len(names) - len(kept.names)
        return Block(kept.names, tokens_N.astype(np.int32, copy=False), starts_D, targets_N, skipped)

    def _names(self, table: pa.Table, file: SourceFile, start: int) -> list[str]:
        columns = self.documents.columns
        # The usual name may be missing; one that was asked for may not.
        if columns.sample_id == SAMPLE_ID and SAMPLE_ID not in table.column_names:
            place = self.documents.place_of(file)
            return [f"{place}:{row}" for row in range(start, start + table.num_rows)]
        return [str(name) for name in sample_ids(table, columns, file.name).to_pylist()]

    def _id_of(self, setting: Literal["begin_token", "end_token"]) -> int | None:
        token, tokenizer = getattr(self.pack, setting), self.tokenizer
        if isinstance(token, str) and tokenizer is not None:
            return tokenizer.id_of(token, f"source.pack.{setting}")
        return token if isinstance(token, int) else None


def _row_ids(block: Block, rows: PackedRows) -> pa.Array:
    places = zip(rows.document_R.tolist(), rows.offset_R.tolist(), strict=True)
    return pa.array([f"{block.ids[document]}:{offset}" for document, offset in places], pa.string())
