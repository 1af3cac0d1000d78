"""What people read holds no secret; what a cache seals stays whole, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from storage.base.errors import RecipeError
from storage.base.redact import redact, refuse_secrets

HARMLESS = [
    "https://host/rows.parquet?partition_key=2024",
    "s3://bucket/rows?sort_key=a&primary_key=b&keyspace=c&tokenizer=gpt2&key=7&monkey=1",
    "https://host/rows?max_token=3&next_token=4&token_count=5&passwords=no&version=3",
    "abfss://container@account.dfs.core.windows.net/rows",
    "sftp://user@host/rows",
    "hf://datasets/user/repo@revision/rows.parquet",
    "https://host/a@b.parquet",
    "s3://bucket/partition_key=2024/rows.parquet",
    "the unknown token=<pad> of the model",
]

SECRET = [
    ("s3://key:hunter2@bucket/x", "s3://***@bucket/x"),
    ("simplecache::https://:hunter2@host/x", "simplecache::https://***@host/x"),
    ("https://hunter2@host/x", "https://***@host/x"),
    ("redis://host/x?password=hunter2&partition_key=3", "redis://host/x?password=***&partition_key=3"),
    ("https://host/x#access_token=hunter2", "https://host/x#access_token=***"),
    ("AccountName=a;AccountKey=hunter2==;EndpointSuffix=c", "AccountName=a;AccountKey=***;EndpointSuffix=c"),
    ("host=db password=hunter2 dbname=x", "host=db password=*** dbname=x"),
    *(
        (f"https://host/x?a=1&{name}=hunter2", f"https://host/x?a=1&{name}=***")
        for name in [
            *("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "X-Goog-Credential"),
            *("sig", "signature", "token", "access_token", "id_token", "sas_token", "api_key", "apikey", "x-api-key"),
            *("access_key", "secret_key", "AWSAccessKeyId", "aws_secret_access_key", "secret", "client_secret"),
            *("password", "passwd", "pwd", "PASSWORD"),
        ]
    ),
]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_only_named_like_a_secret_stays(text: str) -> None:
    assert redact(text) == text
    refuse_secrets({"parquet": text}, "source")


@pytest.mark.parametrize("text, shown", SECRET)
def test_a_secret_is_hidden_and_is_not_sealed(text: str, shown: str) -> None:
    assert redact([{"uri": text}]) == [{"uri": shown}]
    assert redact(shown) == shown
    with pytest.raises(RecipeError, match=r"^source\.parquet holds a password, a token or a key \(") as caught:
        refuse_secrets({"parquet": text}, "source")
    assert "hunter2" not in str(caught.value) and "environment variables" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["password", "api_key", "apiKey", "client_secret", "AWS_SECRET_ACCESS_KEY", "hf_token"]
)
def test_an_argument_named_like_a_secret_is_one(name: str) -> None:
    arguments = {"storage": [{name: "hunter2"}]}
    assert redact(arguments) == {"storage": [{name: "***"}]}
    with pytest.raises(RecipeError, match=rf"^teacher\.storage\.{name} holds"):
        refuse_secrets(arguments, "teacher")


@pytest.mark.parametrize(
    "arguments",
    [
        {"token": "<eos>", "pad_token": "<pad>", "signature": "(x, y) -> z", "partition_key": "a" * 40},
        {"password": None, "secret": "", "api_key": 3, "password_file": "/run/secrets/p", "token_env": "HF_TOKEN"},
    ],
)
def test_an_argument_that_holds_no_secret_stays(arguments: dict[str, Any]) -> None:
    assert redact(arguments) == arguments
    refuse_secrets(arguments, "teacher")


def test_a_long_token_is_a_secret() -> None:
    assert redact({"token": "hf_" + "a" * 30}) == {"token": "***"}
