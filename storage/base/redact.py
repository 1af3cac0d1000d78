"""Passwords, tokens and keys in values: hidden from what people read, and refused where a value is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from storage.base.errors import RecipeError


def redact(value: Any) -> Any:
    """The same value without its passwords, tokens and keys; for what people read: output, logs, MLflow.

    A secret is the `user:password` of a URL, a user alone where the scheme is http(s), a parameter of a URL or a
    connection string that is named like a secret (`X-Amz-Signature`, `sig`, `api_key`, `password`, ...),
    and the text at such a key of a mapping. Other names that end alike (`partition_key`, `tokenizer`) are none.

    >>> redact({"uri": "postgresql://bob:hunter2@db/mlflow", "password": "hunter2"})
    {'uri': 'postgresql://***@db/mlflow', 'password': '***'}
    >>> redact("https://host/rows.parquet?partition_key=3&X-Amz-Signature=9f31")
    'https://host/rows.parquet?partition_key=3&X-Amz-Signature=***'
    """
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret_entry(key, inner) else redact(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _PARAMETER.sub(_hide_parameter, _USER.sub(f"{HIDDEN}@", value))


def secrets(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Where a value holds secrets: the dotted place of each, below `place`, and the text there, redacted."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if _is_secret_entry(key, inner):
                yield f"{place}.{key}", HIDDEN
            else:
                yield from secrets(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from secrets(inner, place)
    elif isinstance(value, str) and redact(value) != value:
        yield place, redact(value)


def refuse_secrets(value: Any, place: str) -> None:
    """Raises RecipeError when a value that is going to be sealed into a cache holds a secret."""
    for where, text in secrets(value, place):
        raise RecipeError(
            f"{where} holds a password, a token or a key ({text}).",
            "It would be sealed into the cache, where it could neither be hidden nor removed.",
            "Leave it out, and give the credentials to the machines: a role, or environment variables.",
        )


HIDDEN = "***"


# abfss://container@account and sftp://user@host name no secret; a user alone in a URL of http is mostly a token.
_USER = re.compile(r"(?<=://)[^\s/?#@:]*:[^\s/?#]*@|(?:(?<=http://)|(?<=https://))[^\s/?#]+@")


_PARAMETER = re.compile(r"((?:^|[?&;#\s])([\w.-]+)=)([^&;\s'\"]+)")


# Endings and whole names, in lower case, without what separates words.
_ENDINGS = (
    *("signature", "credential", "credentials", "password", "passwd", "passphrase", "secret"),
    *(f"{kind}token" for kind in ("access", "security", "session", "refresh", "auth", "bearer", "api", "sas")),
    *(f"{kind}key" for kind in ("api", "access", "secret", "private", "account", "subscription", "signing")),
    *("accesskeyid", "accessid", "keypairid"),
)


_NAMES = ("token", "idtoken", "hftoken", "sig", "pwd")


# These are also the names of what is no secret (a special token, a function's signature), whose texts are short.
_AMBIGUOUS = ("token", "idtoken", "sig", "signature", "credential", "credentials", "accessid")


_LEAST_CHARACTERS = 16


def _is_secret_name(name: str) -> bool:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return plain in _NAMES or plain.endswith(_ENDINGS)


def _is_secret_entry(key: Any, value: Any) -> bool:
    """Whether a mapping holds a secret at this key, and not yet a hidden one."""
    if not isinstance(key, str) or not isinstance(value, str) or value in ("", HIDDEN) or not _is_secret_name(key):
        return False
    if re.sub(r"[^a-z0-9]", "", key.lower()) in _AMBIGUOUS:
        return len(value) >= _LEAST_CHARACTERS and not re.search(r"\s", value)
    return True


def _hide_parameter(found: re.Match[str]) -> str:
    prefix, name, _ = found.groups()
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    # Outside of a URL or a connection string `token=...` may be any sentence.
    if not _is_secret_name(name) or (prefix[0] not in "?&;#" and plain in _AMBIGUOUS):
        return found.group()
    return f"{prefix}{HIDDEN}"
