"""Whether the tokenizer of a source has the vocabulary of a model."""

from __future__ import annotations

from storage.base.errors import UsageError
from storage.sources.packing.tokenizer import TokenizerFile


def refuse_other_vocabulary(theirs: TokenizerFile, mine: TokenizerFile | None, name: str, classes: int | None) -> None:
    """Raises UsageError for a source's tokenizer with another vocabulary than the model's.

    mine: the model's; None where it has none. name: the model's, for the message. classes: of a language model.
    """
    if mine is None:
        if classes is not None and theirs.size > classes:
            raise UsageError(
                f"The tokenizer {theirs.where} has {theirs.size:,} tokens.",
                f"The teacher '{name}' has a vocabulary of {classes:,}.",
                "Name the teacher's own tokenizer in source.pack.tokenizer.",
            )
        return
    if mine.sha256 == theirs.sha256 or mine.vocabulary == theirs.vocabulary:
        return
    word = min(
        (w for w in {**mine.vocabulary, **theirs.vocabulary} if mine.vocabulary.get(w) != theirs.vocabulary.get(w)),
        key=lambda w: (mine.vocabulary.get(w, 1 << 40), w),
    )
    raise UsageError(
        f"The tokenizer {theirs.where} has another vocabulary ({theirs.size:,} tokens; '{word}' is "
        f"{theirs.vocabulary.get(word, 'none')}).",
        f"The teacher's own in '{name}' has {mine.size:,} tokens, and '{word}' is {mine.vocabulary.get(word, 'none')}.",
        "Name the teacher's own tokenizer in source.pack.tokenizer.",
    )
