"""How many rows a span has by default, and what is said of a span's size in a plan."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from storage.format.shard import row_bytes

# A span's inputs and soft targets take at most so much before compression, so that shard files have 128 to 512 MB.
SPAN_BYTES = 512 << 20

# What soft targets are taken to cost a position: about topk with k = 32. It is the same for every encoding, so that
# another encoding has the same spans.
POSITION_BYTES = 128

# Of small rows, so that not too much of them is computed again when a span fails.
MOST_ROWS = 65536

# Far from the default: spans that are too large for memory and files, or so small that each one's own cost counts.
_LARGE_BYTES, _SMALL_BYTES, _MANY_SPANS = 4 * SPAN_BYTES, 1 << 20, 1000


def default_span_rows(samples: pa.Schema, positions: int) -> int:
    """The rows of a span where a recipe names none: a power of two, from 1 to MOST_ROWS.

    A function of the columns' types and shapes and of the positions of a row, and of nothing else: so neither
    appended rows nor another encoding move a span.
    """
    rows = SPAN_BYTES // (row_bytes(samples) + positions * POSITION_BYTES)
    return 1 << (min(max(rows, 1), MOST_ROWS).bit_length() - 1)


def size_warnings(
    span: dict[str, Any], span_rows: int, spans: int, rows: int, row_in_memory: int, packed: bool = False
) -> list[str]:
    """What is wrong with the size of spans, in sentences.

    span: rows and bytes of the largest one, before compression, None where they are not known. span_rows: of the
    recipe, or by default. spans, rows: of the whole source. row_in_memory: bytes of a sample with its inputs. packed:
    whether rows are packed from blocks of documents, which spans do not cross.
    """
    warnings: list[str] = []
    size = max(span["bytes"] or 0, span["rows"] * row_in_memory)
    row = size / span["rows"]
    if size > _LARGE_BYTES and span["rows"] > 1:
        fitting = 1 << (max(1, int(SPAN_BYTES / row)).bit_length() - 1)
        warnings.append(
            f"A span takes about {size / 1e9:,.1f} GB. It is one file, computed again as a whole when it fails, and an "
            f"actor has the inputs of two in memory. Set span_rows to about {fitting:,}."
        )
    mean = rows / spans
    if spans > _MANY_SPANS and mean * row < _SMALL_BYTES:
        files = "Raise source.pack.block_documents." if packed else "Write the source in fewer, larger files."
        advice = "Raise span_rows." if mean > span_rows / 2 else files
        warnings.append(
            f"There are {spans:,} spans, of {mean:,.1f} rows and {mean * row / 1e6:,.2f} MB on average, and each is a "
            f"file and a commit of its own. {advice}"
        )
    return warnings


def idle_warning(spans: int, rows: int, actors: int, batch_size: int) -> str | None:
    """Says that there are fewer spans than actors, where each could have a batch. rows: of the spans together."""
    if spans >= actors or rows < batch_size * actors:
        return None
    fitting = max(batch_size, rows // (2 * actors))
    return (
        f"There {'is 1 span' if spans == 1 else f'are {spans:,} spans'} for up to {actors:,} actors, and one actor "
        f"computes a span. Set span_rows to about {fitting:,}, so that every actor has work."
    )
