"""A temporary folder that holds some of another folder's files."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def links_to(folder: Path, names: Sequence[str]) -> Generator[str]:
    """A temporary folder of links to these files alone: so loading reads nothing that the key does not count.

    transformers applies an adapter that lies beside a model without being asked to.
    """
    with tempfile.TemporaryDirectory() as linked:
        for name in names:
            (Path(linked) / name).symlink_to((folder / name).absolute())
        yield linked
