"""Paths and URLs that a user gives, made absolute."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from storage.objectstore.filesystem import is_url


def absolute(url: str) -> str:
    """A local path made absolute; a URL as it is."""
    return url if is_url(url) else os.path.abspath(os.path.expanduser(url))


def _located(url: str, info: ValidationInfo) -> str:
    if info.context == ON_CLUSTER:
        path = url.removeprefix("file://").removeprefix("local://")
        if not is_url(path) and not os.path.isabs(path):
            raise ValueError(
                "is a relative path, and on the cluster the job runs in another folder; "
                "give a URL, or an absolute path that every machine sees"
            )
        if url.startswith("memory:"):
            raise ValueError("memory:// is one process's own, and the cluster's are others")
    return absolute(url)


# What a validator is told of a recipe that another machine is going to read.
ON_CLUSTER = {"on_cluster": True}


# A path or URL in a recipe. Made absolute where it is read, because Ray's workers run in other folders.
Location = Annotated[str, AfterValidator(_located)]
