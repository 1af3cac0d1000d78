"""A cache by its URL: a store, and the name or the key of a cache in it."""

from __future__ import annotations

from storage.base.errors import NoCache
from storage.base.names import nearest
from storage.cache.cache import Cache, read_cache
from storage.objectstore.folder import Folder


def open_cache(url: str) -> Cache:
    """The cache at `<store>/caches/<key>`, `<store>/<name>` or `<store>/<name>@<the key's first digits>`.

    Raises NoCache when there is none or it is not sealed, CorruptShard when its index is damaged.
    """
    store, label = _split(url)
    if not store.exists():
        raise _not_found(url) or NoCache(f"There is no store at {store.url}.", _FORMS)
    name, _, start = label.partition("@")
    keys = store.names("caches")
    if start:
        near = [key for key in keys if key.startswith(start)]
        if len(near) != 1:
            raise NoCache(f"{len(near)} caches in {store.url} have a key that begins with '{start}'.", "One is needed.")
        return read_cache(store, near[0])
    if name in keys:
        return read_cache(store, name)
    try:
        return read_cache(store, store.read(f"names/{name}").decode().strip())
    except (FileNotFoundError, NotADirectoryError):
        names = store.names("names")
        raise _not_found(url) or NoCache(
            f"{store.url} has no cache named '{name}'.{nearest(name, names)}",
            f"Its names are: {', '.join(names) or '(none)'}. {_FORMS}",
            "Run the teacher's recipe to its end: it seals the cache.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise NoCache(f"'{url}' is no cache ({type(error).__name__}).", _FORMS) from None


def is_store(folder: Folder) -> bool:
    return folder.exists("commits") or folder.exists("caches")


def _not_found(url: str) -> NoCache | None:
    """Why a folder is no cache; None where there is no folder."""
    folder = Folder(url)
    if is_store(folder):
        names = ", ".join(folder.names("names")) or "(none yet)"
        return NoCache(f"{folder.url} is a store, not a cache.", f"Its caches are: {names}. {_FORMS}")
    if folder.exists():
        return NoCache(f"{folder.url} is no cache, and no store: it has neither commits nor caches.", _FORMS)
    return None


_FORMS = "A cache is named as STORE/NAME, STORE/NAME@KEY8 or STORE/caches/KEY."


def _split(url: str) -> tuple[Folder, str]:
    parent, _, last = url.rstrip("/").rpartition("/")
    if not last or not parent:
        raise NoCache(f"'{url}' names no cache.", _FORMS)
    for folder in ("caches", "names"):
        above, _, within = parent.rpartition("/")
        # A store may itself lie in a folder of that name: what is there decides.
        above = above or ("/" if parent.startswith("/") else ".")
        if within == folder and Folder(above).exists(f"{folder}/{last}"):
            return Folder(above), last
    return Folder(parent), last
