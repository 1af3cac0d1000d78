"""What file systems and their clients raise, as errors of this project, in sentences."""

from __future__ import annotations

import errno
import socket
from collections.abc import Generator
from contextlib import contextmanager

from storage.base.errors import StoreError, StoreFull, StoreLost
from storage.base.redact import redact


@contextmanager
def in_words(url: str) -> Generator[None]:
    """Failures of a file system as sentences about `url`.

    StoreError: access was refused, or there are no credentials. StoreFull: no space. StoreLost: the
    client gave up on the server. What says that a file is there or is not there passes unchanged.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise
    except FileNotFoundError as error:
        cause = real_cause(error)
        if cause is None:
            raise
        raise _refused_or_lost(url, cause) from error
    except PermissionError as error:
        raise _refused(url, error.strerror or str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"{url} is full: {error.strerror}.",
                "What was committed stays.",
                "Make room (`stillhouse-store gc`, or another disk) and run the same command to go on.",
            ) from error
        known = isinstance(error, TimeoutError | ConnectionError | socket.gaierror) or _is_clients(error)
        if _status_of(error) is None and not known and error.errno not in NETWORK_ERRNO:
            raise
        raise _refused_or_lost(url, error) from error
    except Exception as error:
        if "Credentials" in type(error).__name__:
            raise StoreError(
                f"{url}: there are no credentials: {error}.",
                "An object store's client finds them in the environment, in a profile or in the machine's role.",
                "Set them for every machine of the job.",
            ) from error
        if not _is_clients(error):
            raise
        raise _refused_or_lost(url, error) from error


# Errors of the network that Python has no exception of its own for. ESTALE: a server of NFS lost the file's handle.
NETWORK_ERRNO = (
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.ENOTCONN,
    errno.ESTALE,
)


def real_cause(error: FileNotFoundError) -> Exception | None:
    """Why a file that may well be there could not be looked at; None where it is not there.

    fsspec's HTTP client raises FileNotFoundError for every failure of a request.
    """
    cause = error.__cause__
    if isinstance(cause, TimeoutError | ConnectionError | socket.gaierror):
        return cause
    if type(cause).__module__.partition(".")[0] != "aiohttp" or _status_of(error) in (404, 410):
        return None
    return cause if isinstance(cause, Exception) else None


# What botocore raises before it asks a server: of a bucket's name, a profile, a region.
_WRONG_SETTINGS = ("ParamValidationError", "ProfileNotFound", "NoRegionError", "ConfigParseError", "ConfigNotFound")


def unusable(url: str, error: Exception) -> StoreError:
    return StoreError(
        f"'{url}' cannot be used: {redact(' '.join(str(error).split()).rstrip('.'))}.",
        "It is a URL whose file system can reach it with the settings in this machine's environment.",
        "Mend the URL, or the endpoint, profile or region that the environment names.",
    )


def _refused(url: str, why: str) -> StoreError:
    return StoreError(
        f"{url}: access was refused: {why}.",
        "A store's files can be read, and by a job written, with the rights that this process has.",
        "Mend the permissions, or the credentials in this machine's environment.",
    )


def _refused_or_lost(url: str, error: Exception) -> StoreError | StoreLost:
    if isinstance(error, ValueError) or type(error).__name__ in _WRONG_SETTINGS:
        return unusable(url, error)
    if _status_of(error) in (401, 403):
        return _refused(url, redact(str(error).rstrip(".")))
    return _lost(url, error)


def _lost(url: str, error: Exception) -> StoreLost:
    return StoreLost(
        f"{url} did not answer as a store does: {redact(' '.join(str(error).split()).rstrip('.'))} "
        f"({type(error).__name__}).",
        "What was committed stays.",
        "Look after the server, or the endpoint in the environment, and run the same command to go on.",
    )


def is_taken(error: BaseException) -> bool:
    """Whether a conditional put was refused because the object is there (HTTP 412), however a client says so."""
    return isinstance(error, FileExistsError) or _status_of(error) in (412, "412", "PreconditionFailed")


def is_contested(error: BaseException) -> bool:
    """Whether a conditional put met another one at the same moment and may be tried again (HTTP 409)."""
    return _status_of(error) in (409, "409", "ConditionalRequestConflict")


def is_past_the_end(error: BaseException) -> bool:
    """Whether a range was refused because the file ends before it (HTTP 416)."""
    return _status_of(error) in (416, "416", "InvalidRange")


def _status_of(error: BaseException) -> int | str | None:
    """The HTTP status, or S3's name for it, behind what a client raised."""
    for seen in (error, error.__cause__):
        response = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return response["Error"].get("Code")
        for name in ("status", "code"):  # in this order: aiohttp warns of its own `code`
            code = getattr(seen, name, None)
            if isinstance(code, int):
                return code
    return None


def _is_clients(error: Exception) -> bool:
    clients = (
        "botocore",
        "aiobotocore",
        "aiohttp",
        "azure",
        "google",
        "gcsfs",
        "fsspec",
        "asyncio",
        "requests",
        "urllib3",
        "http",
        "ssl",
        "paramiko",
        "httpx",
        "httpx2",
        "huggingface_hub",
    )
    return type(error).__module__.partition(".")[0] in clients
