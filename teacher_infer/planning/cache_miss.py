"""Why a plan found nothing to reuse: the nearest cache of the store, and what differs from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from storage.base.errors import NoCache
from storage.cache.catalog import list_caches
from storage.objectstore.folder import Folder
from teacher_infer.planning.key_parts import differences


@dataclass(frozen=True)
class CacheMiss:
    """nearest: a cache's name@key8. differs: the parts of its key that are others (see `key_parts`)."""

    nearest: str
    differs: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.differs) - 5} more" if len(self.differs) > 5 else ""
        return f"nothing to reuse; of the nearest cache {self.nearest} differs: {', '.join(self.differs[:5])}{more}"


def explain_miss(
    store: Folder, name: str, source: dict[str, Any], parts: dict[str, Any], span_rows: int
) -> CacheMiss | None:
    """The nearest cache of the same name or source; None where there is none that keeps the parts of its key.

    parts: `KeyParts.to_dict` of the plan. Where all parts are equal, the rows differ, or how they are cut into spans.
    """
    try:
        caches, _ = list_caches(store)
    except NoCache:
        return None
    found: list[tuple[int, str, CacheMiss]] = []
    for cache in caches:
        lineage = cache["lineage"]
        theirs = lineage.get("key")
        near = cache["name"] == name or lineage.get("source") == source
        if theirs is None or "derived_from" in lineage or not near:
            continue
        differs = differences(theirs, parts)
        cut = lineage.get("span_rows")
        if cut != span_rows:
            differs.append(f"span_rows: {cut} -> {span_rows}")
        label = f"{cache['name'] or 'unnamed'}@{cache['cache_key'][:8]}"
        found.append((len(differs), label, CacheMiss(label, differs or ["source rows"])))
    return min(found, key=lambda one: one[:2])[2] if found else None
