"""A cache or a source as an endless stream of batches, in an order that one integer resumes."""

from storage.stream.batches import Batch, Stream, scan
from storage.stream.cached import CacheRows
from storage.stream.groups import RowGroups, head, read_group
from storage.stream.joined import JoinedRows
from storage.stream.opening import cache_of, filter_of, open_rows
from storage.stream.plain import plain_table
from storage.stream.reader import Reading
from storage.stream.selected import Selected
from storage.stream.sourced import SourceRows

__all__ = [
    "Batch",
    "CacheRows",
    "JoinedRows",
    "Reading",
    "RowGroups",
    "Selected",
    "SourceRows",
    "Stream",
    "cache_of",
    "filter_of",
    "head",
    "open_rows",
    "plain_table",
    "read_group",
    "scan",
]
