"""How row groups are read, as a recipe's `reading` says it."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, model_serializer, model_validator

from storage.base.settings import Section


class Reading(Section):
    """How row groups are read; no setting changes what is read.

    prefetch_bytes: how much of what is not needed yet is fetched, decoded. threads: how many row groups
    are fetched at a time; by default one a processor, from 4 to 16, since some wait for the store while
    others decode. stall_s: after how many seconds of waiting a row group is named in the log.
    """

    prefetch_bytes: int = Field(default=256 << 20, ge=0)
    threads: int = Field(default_factory=lambda: min(16, max(4, len(os.sched_getaffinity(0)))), gt=0)
    stall_s: float = Field(default=30.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        return {key: value for key, value in settings.items() if value is not None}

    @model_serializer(mode="wrap")
    def _written(self, write: Any) -> Any:
        # Defaults are those of the machine that reads, so they are not written, and no digest counts them.
        return {key: value if key in self.model_fields_set else None for key, value in write(self).items()}
