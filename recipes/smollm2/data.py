"""The standard library's Python source as documents, in a fixed split: text that every machine with Python has.

A permutation with a fixed seed of the files, sorted by name, made of this project's own integer arithmetic: of every
ten one is held out. What they say follows Python's version: the same version has the same files.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.order import permute

SPLITS, HELD_OUT_OF, SPLIT_SEED = ("train", "held_out"), 10, 20261127

# Tests, what is no part of the library itself, and what programs wrote: tables of encodings, pages of pydoc.
_LEFT_OUT = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "ensurepip"),
    *("encodings", "pydoc_data"),
}
# How Python was built on this machine, which the same version elsewhere was not.
_OF_THIS_MACHINE = "_sysconfig"


def documents(split: str, limit_bytes: int | None = None) -> pa.Table:
    """sample_id (the file's path inside the library) and text, in the order of the permutation.

    limit_bytes: so many bytes of text at most, in whole files, but one at least.
    """
    if split not in SPLITS:
        raise TypeError(f"split is '{split}', not one of {', '.join(SPLITS)}")
    library = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(library).as_posix() for path in library.rglob("*.py"))
    names = [name for name in names if not _LEFT_OUT.intersection(name.split("/")[:-1])]
    names = [name for name in names if not name.startswith(_OF_THIS_MACHINE)]
    order = permute(np.arange(len(names)), len(names), SPLIT_SEED).tolist()
    chosen = [names[at] for place, at in enumerate(order) if (place % HELD_OUT_OF == 0) == (split == "held_out")]
    ids, texts, size = list[str](), list[str](), 0
    for name, text in _read(library, chosen):
        size += len(text.encode())
        if limit_bytes is not None and texts and size > limit_bytes:
            break
        ids.append(name)
        texts.append(text)
    return pa.table({"sample_id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())})


def _read(library: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            text = (library / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield name, text
