"""A tokenizer.json: the vocabulary that it holds, its digest, and text as token ids."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from storage.base.errors import SourceError
from storage.base.names import nearest
from storage.objectstore.client_errors import in_words
from storage.objectstore.filesystem import open_filesystem
from storage.objectstore.folder import open_url

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class TokenizerFile:
    """where: its URL, for people; data: its bytes, which its digest is of.

    config: the bytes of the tokenizer_config.json beside it, None where there is none.
    """

    where: str
    data: bytes = field(repr=False)
    config: bytes | None = field(default=None, repr=False)

    @staticmethod
    def read(url: str) -> TokenizerFile:
        """The file at a URL, or the tokenizer.json of the folder there. Raises SourceError."""
        try:
            fs, path = open_filesystem(url)
            with in_words(url):
                where = f"{url.rstrip('/')}/{TOKENIZER_FILE}" if fs.isdir(path) else url
            with open_url(where) as file:
                data = file.read()
            try:
                with open_url(f"{where.rpartition('/')[0] or '.'}/{CONFIG_FILE}") as file:
                    return TokenizerFile(where, data, file.read())
            except (FileNotFoundError, NotADirectoryError):
                return TokenizerFile(where, data)
        except (FileNotFoundError, NotADirectoryError):
            raise SourceError(
                f"There is no tokenizer at '{url}'.",
                f"A tokenizer is a {TOKENIZER_FILE}, or a folder that holds one.",
                "transformers writes it with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER); "
                "without source.pack.tokenizer, the column holds token ids.",
            ) from None
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(f"The tokenizer '{url}' cannot be read: {error}.") from None

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id, as `encode` gives it, those that were added among them. Raises SourceError."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.vocabulary.values(), default=-1) + 1

    def id_of(self, token: str, key: str) -> int:
        """Raises SourceError, with the recipe's key that named it, for a token that is none."""
        found = self.vocabulary.get(token)
        if found is None:
            added = sorted(word for word in self.vocabulary if word.startswith("<"))
            raise SourceError(f"{key} is '{token}', which is no token of {self.where}.{nearest(token, added)}")
        return found

    def encode(self, texts: Sequence[str], special_tokens: bool = True) -> list[np.ndarray[Any, Any]]:
        """The ids of each text, int32, neither truncated nor padded, whatever the file says.

        special_tokens: add those of the post-processor, but none where the text has the same token there already, as
        one that a chat template made. A text without tokens of its own has no ids either way.
        """
        before, after = map(len, self.special_tokens) if special_tokens else (0, 0)
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens)
        return [np.array(_without_doubles(one.ids, before, after), np.int32) for one in encodings]

    @functools.cached_property
    def special_tokens(self) -> tuple[list[str], list[str]]:
        """The tokens that the post-processor adds before and after a text."""
        made = self._tokenizer  # raises where the package is missing
        from tokenizers import Tokenizer, models

        word = Tokenizer(models.WordLevel({"x": 0}, unk_token="x")).encode("x")
        whole = made.post_process(word, None, True)
        at = whole.special_tokens_mask.index(0)
        tokens = [made.id_to_token(token) for token in whole.ids]
        return tokens[:at], tokens[at + 1 :]

    @functools.cached_property
    def padding_id(self) -> Any:
        """The id that the file pads with; None where it names none, or is no tokenizer.json."""
        try:
            return (json.loads(self.data).get("padding") or {}).get("pad_id")
        except (ValueError, AttributeError):
            return None

    def check_config(self, begins: bool, ends: bool) -> None:
        """Raises SourceError where tokenizer_config.json and the post-processor of tokenizer.json disagree.

        Versions of transformers differ in which of the two they follow. begins, ends: whether pack names a token of
        its own there, so that a token that the post-processor lacks is no disagreement.
        """
        try:
            config: Any = json.loads(self.config or b"{}")
        except ValueError:
            config = None
        if not isinstance(config, dict):
            raise SourceError(f"The {CONFIG_FILE} beside {self.where} is no JSON object.", "transformers writes one.")
        before, after = self.special_tokens
        for kind, named, added, key in (("bos", begins, before, "begin_token"), ("eos", ends, after, "end_token")):
            token: Any = config.get(f"{kind}_token")
            token = token.get("content") if isinstance(token, dict) else token
            wanted: Any = config.get(f"add_{kind}_token")
            if wanted is None or token is None or wanted == (token in added) or (wanted and named):
                continue
            adds = "adds" if token in added else "does not add"
            add = f", or source.pack.{key}='{token}' to add it" if wanted else ""
            raise SourceError(
                f"{CONFIG_FILE} says add_{kind}_token: {json.dumps(wanted)}, and the post-processor of {self.where} "
                f"{adds} '{token}'.",
                "The two agree, since versions of transformers differ in which they follow.",
                f"Set source.pack.special_tokens=true to follow the post-processor, or false to add none{add}.",
            )

    def text_of(self, token: int) -> str:
        """A token as text; one of a few bytes of a longer character is shown as such."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise SourceError(
                f"'{self.where}' is read by the package tokenizers, which is not installed.",
                remedy="Install it with: pip install 'stillhouse[lm]'",
            ) from None
        try:
            made = Tokenizer.from_buffer(self.data)
        except Exception as error:
            raise SourceError(
                f"'{self.where}' cannot be read by tokenizers {version('tokenizers')}: {error}.",
                f"It is a {TOKENIZER_FILE}.",
                "If a later version of tokenizers wrote it, install that one.",
            ) from None
        made.no_truncation()
        made.no_padding()
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "data": self.data, "config": self.config}  # what is made of them is made again


def _without_doubles(ids: list[int], before: int, after: int) -> list[int]:
    """A text's ids without the special tokens that it has itself. before, after: how many were added on each side.

    >>> [_without_doubles(ids, 1, 1) for ids in ([1, 5, 2], [1, 1, 5, 2, 2], [1, 1, 2], [1, 2])]
    [[1, 5, 2], [1, 5, 2], [1, 2], []]
    """
    own = len(ids) - before - after
    if own <= 0:
        return []
    head, text, tail = ids[:before], ids[before : before + own], ids[before + own :]
    if head and head[-1] == text[0]:
        head = head[:-1]
    if tail and tail[0] == text[-1]:
        tail = tail[1:]
    return [*head, *text, *tail]
