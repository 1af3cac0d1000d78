"""A tokenizer.json: the vocabulary that it holds, its digest, and text as token ids."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from storage.errors import ModelError, SourceError
from storage.filesystems import in_words, open_filesystem
from storage.folder import open_url
from storage.names import nearest

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerFile:
    """where: its URL, for people; data: its bytes, which its digest is of."""

    where: str
    data: bytes = field(repr=False)

    @staticmethod
    def read(url: str) -> TokenizerFile:
        """The file at a URL, or the tokenizer.json of the folder there. Raises SourceError."""
        try:
            fs, path = open_filesystem(url)
            with in_words(url):
                where = f"{url.rstrip('/')}/{TOKENIZER_FILE}" if fs.isdir(path) else url
            with open_url(where) as file:
                return TokenizerFile(where, file.read())
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
        """Every token's id, those that were added among them. Raises ModelError for a file that is none."""
        try:
            facts = json.loads(self.data)
            tokens: Any = facts["model"]["vocab"]
            # A unigram model's tokens stand in a list, each with its score.
            known = dict(tokens) if isinstance(tokens, dict) else {token: at for at, (token, _) in enumerate(tokens)}
            known |= {added["content"]: added["id"] for added in facts.get("added_tokens") or []}
            if not all(isinstance(at, int) for at in known.values()):
                raise TypeError("an id is no number")
            return known
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"'{self.where}' is no tokenizer ({type(error).__name__}: {error}).",
                f"A {TOKENIZER_FILE} holds model.vocab and added_tokens.",
            ) from None

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.vocabulary.values(), default=-1) + 1

    def id_of(self, token: str, key: str) -> int:
        """Raises SourceError, with the recipe's key that named it, for a token that is none."""
        found = self.vocabulary.get(token)
        if found is None:
            added = [word for word in self.vocabulary if word.startswith("<")]
            raise SourceError(f"{key} is '{token}', which is no token of {self.where}.{nearest(token, added)}")
        return found

    def encode(self, texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """The ids of each text, int32; nothing is added, cut off or filled up, whatever the file would have done."""
        return [
            np.array(found.ids, np.int32) for found in self._made.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def text_of(self, token: int) -> str:
        """A token as text; one of a few bytes of a longer character is shown as such."""
        return self._made.decode([token], skip_special_tokens=False)

    @functools.cached_property
    def _made(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise SourceError(
                "Text is tokenised by the package tokenizers, which is not installed.",
                remedy="Install it with: pip install 'stillhouse[lm]'",
            ) from None
        try:
            made = Tokenizer.from_buffer(self.data)
        except Exception as error:
            raise SourceError(f"'{self.where}' is no {TOKENIZER_FILE}: {error}.") from None
        made.no_truncation()
        made.no_padding()
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "data": self.data}  # what is made of them is made again
