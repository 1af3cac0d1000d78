"""Where a cache came from: the record that is sealed into it before anything else is told."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from typing import Any


def software() -> dict[str, str]:
    """Versions that can move a result."""
    versions = {"python": platform.python_version()}
    for package in ("stillhouse", "torch", "transformers", "tokenizers", "ray", "pyarrow", "numpy", "mlflow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def cache_lineage(
    *, teacher: dict[str, Any], source: dict[str, Any], targets: dict[str, Any], recipe_digest: str
) -> dict[str, Any]:
    """The lineage of a cache.

    teacher: factory, arguments, weights URL, dtype and digest; source: what the recipe named;
    targets: encoding and its settings; recipe_digest: sha256 of the resolved recipe.
    """
    return {
        "teacher": teacher,
        "source": source,
        "targets": targets,
        "recipe_digest": recipe_digest,
        "software": software(),
        "sealed_at": _now(),
    }


def derived_lineage(parent: dict[str, Any], *, targets: dict[str, Any], derived_from: dict[str, Any]) -> dict[str, Any]:
    """The lineage of a cache that was worked out from another one: the same teacher and source, and the parent.

    derived_from: its cache_key, cache_digest, name and targets.
    """
    facts = {"targets": targets, "derived_from": derived_from, "software": software(), "sealed_at": _now()}
    return {**parent, **facts}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
