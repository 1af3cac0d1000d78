"""Where MLflow is, as a recipe says it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from jobs.tracking.sqlite_uri import lost_options, sqlite_uri
from storage.base.settings import Section


class TrackingSection(Section):
    """Where MLflow is.

    uri: None takes MLFLOW_TRACKING_URI, or SQLite at ./runs/mlflow.db; off (or no, none, false) tracks nothing.
    """

    uri: str | Literal[False] | None = None
    experiment: str = "stillhouse"
    register_as: str | None = Field(default=None, description="Register the trained model under this name.")

    @field_validator("uri")
    @classmethod
    def _off_is_false(cls, uri: str | Literal[False] | None) -> str | Literal[False] | None:
        word = uri.lower() if isinstance(uri, str) else ""
        if word in ("off", "no", "none", "false"):
            return False
        if word in ("on", "yes", "true"):
            raise ValueError("is no URI; leave it out for MLFLOW_TRACKING_URI or the default, or write off")
        if isinstance(uri, str) and lost_options(uri):
            raise ValueError("ends for SQLite at the '?', after which it has options; write %3F for one in a path")
        return uri

    def resolved_uri(self) -> str | None:
        if self.uri is False:
            return None
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_database()


def default_database() -> str:
    return sqlite_uri(Path.cwd() / "runs" / "mlflow.db")
