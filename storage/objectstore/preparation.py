"""A folder made ready for a job: it is there, and can be written."""

from __future__ import annotations

import uuid

from storage.base.errors import StoreError
from storage.objectstore.client_errors import in_words
from storage.objectstore.filesystem import is_there, open_filesystem
from storage.objectstore.folder import Folder


def prepare_folder(folder: Folder) -> None:
    """Make the folder and prove that it can be written. Raises StoreError."""
    if not folder.is_local and folder.protocol != "memory":
        _refuse_missing_bucket(folder.url)
    probe = f"tmp/probe-{uuid.uuid4().hex}"
    try:
        folder.create(probe, b"")
        folder.remove(probe)
    except (StoreError, OSError) as error:
        reason = error.__cause__ if isinstance(error, StoreError) and error.__cause__ else error
        raise StoreError(
            f"{folder.url} cannot be written: {getattr(reason, 'strerror', None) or reason}.",
            "A job needs a folder that it may write.",
            "Choose another store, or mend its permissions or this machine's credentials.",
        ) from None


def _refuse_missing_bucket(url: str) -> None:
    fs, root = open_filesystem(url)
    bucket = root.partition("/")[0]
    with in_words(url):
        if is_there(fs, bucket):
            return
    raise StoreError(
        f"There is no bucket '{bucket}' for {url}, or it may not be looked into.",
        "A store's bucket is there before a job writes to it.",
        "Make the bucket, or mend the URL, the endpoint or the credentials.",
    )
