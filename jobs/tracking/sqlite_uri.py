"""URIs of SQLite databases, as SQLAlchemy and MLflow read them, for paths with any characters."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from storage.base.errors import RecipeError

_SCHEME = re.compile(r"sqlite(\+\w+)?:///")


def sqlite_uri(path: str | Path) -> str:
    """The URI of a database file; its path is made absolute.

    Raises RecipeError where the installed SQLAlchemy (before 2.1) has no URI for the path.
    """
    path = os.path.abspath(path)
    # SQLAlchemy cuts at '?' and then decodes %XX. Nothing else is encoded: older versions decode nothing.
    encoded = re.sub("%(?=[0-9A-Fa-f]{2})", "%25", path).replace("?", "%3F")
    if encoded == path:
        return f"sqlite:///{path}"
    # With the driver's name: of 'sqlite:///' MLflow makes the folders itself, without decoding them.
    uri = f"sqlite+pysqlite:///{encoded}"
    if sqlite_path(uri) != Path(path):
        raise RecipeError(
            f"The database's path '{path}' has a '?', or a '%' before two hex digits.",
            "SQLAlchemy has no URI for such a path before version 2.1.",
            "Install sqlalchemy>=2.1, or set tracking.uri or MLFLOW_TRACKING_URI to another path or a server.",
        )
    return uri


def sqlite_path(uri: str) -> Path | None:
    """The database file that a URI names; None for another kind of tracker and for a database in memory."""
    if not _SCHEME.match(uri):
        return None
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    name = url.database or ":memory:"
    if name.startswith("file:") and url.query.get("uri") == "true":
        # Such a name is a URI of SQLite's own.
        name = unquote(name.removeprefix("file:").partition("?")[0].partition("#")[0])
    return None if name in (":memory:", "file::memory:") or name.endswith("/:memory:") else Path(name)


def lost_options(uri: str) -> bool:
    """Whether a SQLite URI has a '?' that begins no options: a path that SQLAlchemy would cut there."""
    return bool(_SCHEME.match(uri)) and "?" in uri and "=" not in uri.partition("?")[2].partition("/")[0]
