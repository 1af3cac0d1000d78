"""The rows of a cache for which an expression over its plain columns holds."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np

from storage.base.digest import range_digest, sha256_of
from storage.base.errors import RecipeError
from storage.cache.cache import Cache
from storage.format.rows import DecodedRows
from storage.rows.cache_rows import CacheRows
from storage.rows.joined_rows import JoinedRows
from storage.rows.plain_table import plain_table
from storage.rows.row_groups import Arrays, Column, Ints

_FORM = (
    "A filter compares columns, numbers and texts (== for equal, !=, <, <=, >, >=, `in [...]`), computes with + - * /, "
    "and joins comparisons with `and`, `or`, `not` and parentheses, as in: soft_entropy < 2.0 and soft_top1 == label."
)


class Selected:
    """Rows of a cache, with its inputs or without: those for which `where` holds.

    The order of a stream over them is that of the kept rows alone. A row group is read whole where any of its
    rows is kept, and not at all where none is.
    """

    def __init__(self, groups: CacheRows | JoinedRows, where: str) -> None:
        """Raises RecipeError for an expression that is none, names other columns or keeps nothing."""
        self._groups = groups
        self.expression, names = parse(where)
        kept = np.flatnonzero(_holds(self.cache, self.expression, names))
        if not len(kept):
            raise RecipeError(
                f"'{self.expression}' holds for none of the {self.cache.samples:,} rows of {self.cache.url}.",
                "A filter keeps at least one row.",
                "Look at the columns with storage.stream.plain_table, and ask for less.",
            )
        # The kept rows by group, each as its number in the group: those of group g lie at [starts[g], starts[g + 1]).
        bounds = np.concatenate([[0], np.cumsum(groups.sizes)])
        self._starts = np.searchsorted(kept, bounds)
        self.rows: Ints = np.diff(self._starts)
        self._kept = (kept - np.repeat(bounds[:-1], self.rows)).astype(np.int32)
        self.sizes: Ints = np.where(self.rows > 0, groups.sizes, 0)
        # With the rows themselves: what evaluates an expression is another's, and may change its mind.
        self.digest = sha256_of(["where", self.cache.digest, self.expression, range_digest(kept.tobytes())])
        self.where = f"{groups.where} where {self.expression}"

    @property
    def cache(self) -> Cache:
        return self._groups.cache

    @property
    def columns(self) -> Sequence[Column]:
        return self._groups.columns

    def load(self, group: int, out: Arrays) -> Arrays:
        return self._groups.load(group, out)

    def name_of(self, group: int) -> str:
        return self._groups.name_of(group)

    def loaded_rows(self, group_B: Ints, row_B: Ints) -> Ints:
        return self._groups.loaded_rows(group_B, self._kept[self._starts[group_B] + row_B].astype(np.int64))

    def rows_of(self, group_B: Ints, columns: Arrays) -> DecodedRows:
        return self._groups.rows_of(group_B, columns)


def parse(where: str) -> tuple[str, list[str]]:
    """An expression as it is always written, and the columns that it names. Raises RecipeError for any other text.

    >>> parse("soft_entropy<2.0 and(soft_top1 == label)")
    ('soft_entropy < 2.0 and soft_top1 == label', ['label', 'soft_entropy', 'soft_top1'])
    """
    try:
        tree = ast.parse(where.strip(), mode="eval").body
        if not _is_condition(tree):
            raise ValueError(f"'{ast.unparse(tree)}' is not true or false for a row")
        return ast.unparse(tree), sorted(_names(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise RecipeError(f"The filter '{where}' cannot be read: {why}.", _FORM) from None


def _is_condition(node: ast.expr) -> bool:
    """Whether a part is true or false for a row; else it is a number or a text. Raises ValueError for any other part.

    `pandas.eval` accepts more. It calls methods of columns, such as `label.to_csv('a file')`. It disagrees with Python
    on `not 2 < 1 or label == 1`, `-(label == 1) == -1` and `(label and soft_top1) == 1`.
    """
    match node:
        case ast.Name() | ast.Constant(value=int() | float() | str()):
            return False
        case ast.UnaryOp(op=ast.USub(), operand=part) if not _is_condition(part):
            return False
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            if not _is_condition(left) and not _is_condition(right):
                return False
        case ast.BoolOp(values=parts) if all(_is_condition(part) for part in parts):
            return True
        case ast.UnaryOp(op=ast.Not(), operand=part) if _is_condition(part):
            return True
        case ast.Compare():
            for part in _operands(node):
                _is_condition(part)
            return True
        case _:
            pass
    raise ValueError(f"'{ast.unparse(node)}' is not allowed there")


def _operands(node: ast.Compare) -> list[ast.expr]:
    """What is compared, the values of lists after `in` too. Raises ValueError for other lists after `in`."""
    if not _names(node):
        raise ValueError(f"'{ast.unparse(node)}' names no column, so that it holds for all rows or for none")
    operands = [node.left]
    for sign, right in zip(node.ops, node.comparators, strict=True):
        match sign, right:
            case ((ast.In() | ast.NotIn()), (ast.List(elts=values) | ast.Tuple(elts=values))) if not _names(right):
                operands += values
            case ((ast.In() | ast.NotIn() | ast.Is() | ast.IsNot()), _):
                raise ValueError(f"'{ast.unparse(node)}' is not allowed there")
            case _:
                operands.append(right)
    return operands


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _holds(cache: Cache, expression: str, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[N] whether the expression holds for each row of a cache, in stored order."""
    frame = plain_table(cache, names).to_pandas()
    try:
        # Always the same engine: another, where it is installed, may round otherwise.
        return frame.eval(expression, engine="python", parser="pandas").to_numpy()
    except Exception as error:
        kinds = ", ".join(f"{name} is {frame[name].dtype}" for name in names)
        raise RecipeError(
            f"The filter '{expression}' cannot be worked out ({error}); {kinds}.", "Likes are compared with likes."
        ) from None
