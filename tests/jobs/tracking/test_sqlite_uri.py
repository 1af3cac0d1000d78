"""SQLite URIs name the file that was meant, whatever characters its path has."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import sqlalchemy

from jobs.tracking.sqlite_uri import lost_options, sqlite_path, sqlite_uri
from storage.base.errors import RecipeError


@pytest.mark.parametrize(
    "name", ["plain", "a b #1 100% ä&+:@'", *(f"x{mark}y" for mark in "?%#&+ =;:@'\"[]*~\\"), "%41"]
)
def test_sqlalchemy_reads_back_the_path_that_was_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    uri = sqlite_uri(path)
    assert sqlite_path(uri) == path
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table t (x int)"))
    engine.dispose()
    assert [found.relative_to(tmp_path) for found in tmp_path.rglob("*.db")] == [path.relative_to(tmp_path)]


def test_most_paths_are_written_as_they_are() -> None:
    """Older versions of SQLAlchemy decode nothing, and MLflow makes the folders of such a URI as it reads them."""
    harmless = "".join(set(string.printable) - {"?", "/", "%"}) + "äß"
    assert sqlite_uri(f"/{harmless}/x.db") == f"sqlite:////{harmless}/x.db"
    assert sqlite_uri("/100% #1/x.db") == "sqlite:////100% #1/x.db"
    assert sqlite_uri("/a?b/x.db") == "sqlite+pysqlite:////a%3Fb/x.db"
    assert sqlite_uri("x.db") == f"sqlite:///{Path.cwd()}/x.db"


def test_what_sqlalchemy_cannot_name_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "jobs.tracking.sqlite_uri.sqlite_path", lambda uri: Path(uri.removeprefix("sqlite+pysqlite:///"))
    )
    assert sqlite_uri("/100%/x.db")
    with pytest.raises(RecipeError, match=r"'/a\?b/x\.db' has a '\?'.* before version 2\.1\. Install sqlalchemy>=2\.1"):
        sqlite_uri("/a?b/x.db")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///runs/x.db", "runs/x.db"),
        ("sqlite:////x.db?timeout=20", "/x.db"),
        ("sqlite:///file:/a%2520b/x.db?mode=rwc&uri=true", "/a b/x.db"),
        ("sqlite:///:memory:", None),
        ("sqlite:////a/my:memory:notes/x.db", "/a/my:memory:notes/x.db"),
        ("sqlite://", None),
        ("http://host:5000", None),
        ("postgresql://host/x", None),
    ],
)
def test_which_file_a_tracker_is(uri: str, path: str | None) -> None:
    assert sqlite_path(uri) == (None if path is None else Path(path))


def test_a_question_mark_that_begins_no_options_is_noticed() -> None:
    assert lost_options("sqlite:////a?b/x.db") and lost_options("sqlite:////a?b/x.db?timeout=20")
    assert not lost_options("sqlite:////a%3Fb/x.db?timeout=20")
    assert not lost_options("http://host/?x")
