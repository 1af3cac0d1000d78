"""The rows of a cache for which an expression over its plain columns holds."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from storage.base.digest import range_digest, sha256_of
from storage.base.errors import RecipeError
from storage.cache.cache import Cache
from storage.format.rows import Rows
from storage.rows.cache_rows import CacheRows
from storage.rows.joined_rows import JoinedRows
from storage.rows.plain_table import plain_table
from storage.rows.row_groups import Arrays, Column, Ints

# Nothing here can call, look into an object or name what is no column.
_ALLOWED = (
    *(ast.Expression, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple),
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub),
    *(ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.In, ast.NotIn),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div),
)
_FORM = (
    "It is made of column names, numbers, texts, comparisons (== for equal), `in [...]`, `and`, `or`, `not`, + - * / "
    "and parentheses, as in: soft_entropy < 2.0 and soft_top1 == label."
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

    def rows_of(self, group_B: Ints, columns: Arrays) -> Rows:
        return self._groups.rows_of(group_B, columns)


def parse(where: str) -> tuple[str, list[str]]:
    """An expression as it is always written, and the columns that it names. Raises RecipeError for any other text.

    >>> parse("soft_entropy<2.0 and(soft_top1 == label)")
    ('soft_entropy < 2.0 and soft_top1 == label', ['label', 'soft_entropy', 'soft_top1'])
    """
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise RecipeError(f"The filter '{where}' cannot be read: {why}.", _FORM) from None
    fault = next(_faults(tree), None)
    if fault is not None:
        raise RecipeError(f"The filter '{where}' has {fault}.", _FORM)
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    if not names:
        raise RecipeError(f"The filter '{where}' names no column, so that it holds for all rows or for none.", _FORM)
    return ast.unparse(tree), names


def _faults(tree: ast.Expression) -> Iterator[str]:
    """What a filter may not have, in words."""
    lists: list[ast.AST] = []
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            yield f"a part that is not allowed there ({type(node).__name__})"
        elif isinstance(node, ast.Constant) and not isinstance(node.value, bool | int | float | str):
            yield f"the value {node.value!r}"
        elif isinstance(node, ast.Compare):
            for sign, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(sign, ast.In | ast.NotIn):
                    if not isinstance(right, ast.List | ast.Tuple) or not _is_of_one_kind(right.elts):
                        yield f"'{ast.unparse(right)}' after in, which is no list of numbers or of texts"
                    lists.append(right)
        elif isinstance(node, ast.List | ast.Tuple) and node not in lists:
            yield f"the list {ast.unparse(node)}, which does not follow in"


def _is_of_one_kind(values: Collection[ast.expr]) -> bool:
    """Whether these are numbers, or texts. pandas would make texts of numbers beside texts."""
    plain = [v.operand if isinstance(v, ast.UnaryOp) and isinstance(v.op, ast.USub) else v for v in values]
    kinds = {isinstance(v.value, str) if isinstance(v, ast.Constant) else None for v in plain}
    return len(kinds) <= 1 and None not in kinds


def _holds(cache: Cache, expression: str, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[N] whether the expression holds for each row of a cache, in stored order."""
    frame = plain_table(cache, names).to_pandas()
    try:
        # Always the same engine: another, where it is installed, may round otherwise.
        answer = frame.eval(expression, engine="python", parser="pandas")
    except Exception as error:
        kinds = ", ".join(f"{name} is {frame[name].dtype}" for name in names)
        raise RecipeError(
            f"The filter '{expression}' cannot be worked out ({error}); {kinds}.", "Likes are compared with likes."
        ) from None
    if getattr(answer, "dtype", None) != np.bool_ or len(answer) != len(frame):
        raise RecipeError(
            f"The filter '{expression}' gives {getattr(answer, 'dtype', type(answer).__name__)} for a row.",
            "It says yes or no of each row, as a comparison does.",
        )
    return answer.to_numpy()
