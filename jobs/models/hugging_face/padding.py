"""Whether rows mark their padding: in the attention mask, and in the labels.

Legend: R rows of L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jobs.models.hugging_face.sample_table import MASK, Array, SampleTable
from storage.base.errors import SourceError
from storage.encodings.targets import IGNORED
from storage.samples.samples import LABEL
from storage.sources.packing.packed_source import INPUT_IDS, POSITION_IDS
from storage.sources.packing.tokenizer import TokenizerFile


def refuse_padding(rows: SampleTable, pads: tuple[int, ...], ends: tuple[int, ...], language_model: bool) -> None:
    """Raises SourceError for padding that the model would take for tokens, or that students would learn from.

    pads: the ids of padding. ends: ids that begin or end a text; where padding is one of them, the one next to the
    text is no padding.
    """
    mask_RL, label_RL = rows.array(MASK), rows.array(LABEL)
    if label_RL is not None and label_RL.ndim != 2:
        label_RL = None
    ids_RL = rows.array(INPUT_IDS)
    assert ids_RL is not None
    if language_model and label_RL is not None and label_RL.shape != ids_RL.shape:
        raise SourceError(
            f"{rows.where}: the label has {label_RL.shape[1]} values a row, {INPUT_IDS} {ids_RL.shape[1]}.",
            "Each token has one: the label of position t is token t + 1, or -100.",
        )
    if mask_RL is not None and language_model:
        _refuse_learnt(rows, mask_RL == 0, label_RL, f"{MASK} 0")
    leading_RL, trailing_RL = _unmasked_padding(ids_RL, mask_RL, pads, ends)
    if language_model and mask_RL is None:
        leading_RL &= ~_apart(leading_RL, rows.array(POSITION_IDS))[:, None]
    read_RL = leading_RL if language_model else leading_RL | trailing_RL
    padded_R = read_RL.any(axis=1)
    if padded_R.any():
        row, at = (int(n) for n in np.argwhere(read_RL)[0])
        raise SourceError(
            f"{rows.sample(row)} {'begins' if language_model else 'begins or ends'} with the padding id "
            f"{ids_RL[row, at]}, and {f'there is no {MASK}' if mask_RL is None else f'its {MASK} is 1 there'}.",
            "Without a mask the teacher takes padding for tokens, and gives other answers.",
            f"{'Add the column' if mask_RL is None else 'Correct the column'} {MASK}: 1 at tokens, 0 at padding.",
        )
    if language_model:
        _refuse_learnt(rows, trailing_RL, label_RL, f"the padding id {', '.join(map(str, pads))}")
        _refuse_targets(rows, trailing_RL if mask_RL is None else mask_RL == 0, label_RL, ends)


def _unmasked_padding(
    ids_RL: Array, mask_RL: Array | None, pads: tuple[int, ...], ends: tuple[int, ...]
) -> tuple[Array, Array]:
    """[R, L] bool each: the padding at the beginnings and the ends of rows that no mask covers.

    Beside a mask a single id of padding may be a token that is meant; two are not.
    """
    seen_RL = np.ones(ids_RL.shape, bool) if mask_RL is None else mask_RL.astype(bool)
    outside_RL = np.isin(ids_RL, pads) | ~seen_RL
    end_RL = np.isin(ids_RL, ends)
    runs: list[Array] = []
    for step in (1, -1):  # rows from the left, and from the right
        run_RL = np.logical_and.accumulate(outside_RL[:, ::step], axis=1)
        further_RL = np.pad(run_RL[:, 1:], ((0, 0), (0, 1)))
        padding_RL = run_RL & (further_RL | ~end_RL[:, ::step]) & seen_RL[:, ::step]
        if mask_RL is not None:
            padding_RL &= padding_RL.sum(axis=1, keepdims=True) > 1
        runs.append(padding_RL[:, ::step])
    return runs[0].copy(), runs[1].copy()


def _apart(leading_RL: Array, position_ids_RL: Array | None) -> Array:
    """[R] whether the first token after the padding at a row's beginning begins a document of its own."""
    rows, length = leading_RL.shape
    if position_ids_RL is None or length < 2:
        return np.zeros(rows, bool)
    last_R = np.clip(leading_RL.sum(axis=1) - 1, 0, length - 2)
    at = np.arange(rows)
    return position_ids_RL[at, last_R + 1] != position_ids_RL[at, last_R] + 1


def _refuse_learnt(rows: SampleTable, padding_RL: Array, label_RL: Array | None, sign: str) -> None:
    """Raises SourceError where a position of the padding has a target."""
    learnt_R = (padding_RL if label_RL is None else padding_RL & (label_RL != IGNORED)).any(axis=1)
    if learnt_R.any():
        raise SourceError(
            f"{rows.first(learnt_R)} has padding ({sign}) with "
            f"{'no labels' if label_RL is None else 'labels other than ' + str(IGNORED)}.",
            "Students would learn from what the teacher says of padding.",
            f"Give the label {IGNORED} at those positions (the label of position t is token t + 1).",
        )


def _refuse_targets(rows: SampleTable, padding_RL: Array, label_RL: Array | None, ends: tuple[int, ...]) -> None:
    """Raises SourceError where the last token of a text has the padding after it as its label.

    An end of text is a label that is meant, also where it is the padding.
    """
    ids_RL = rows.array(INPUT_IDS)
    if label_RL is None or ids_RL is None:
        return
    label_Rl, next_Rl = label_RL[:, :-1], ids_RL[:, 1:]
    odd_Rl = padding_RL[:, 1:] & (label_Rl == next_Rl) & ~np.isin(label_Rl, ends)
    if odd_Rl.any():
        row, at = (int(n) for n in np.argwhere(odd_Rl)[0])
        raise SourceError(
            f"{rows.sample(row)} has the padding id {next_Rl[row, at]} as the label of position {at}.",
            "Students would learn to predict padding.",
            f"Give the label {IGNORED} to the token before padding, too (the label of position t is token t + 1).",
        )


def padding_ids(config: Mapping[str, Any], tokenizer: TokenizerFile | None) -> tuple[int, ...]:
    """The ids of padding: of a model's config, and of its tokenizer, which pads the rows."""
    padding = None if tokenizer is None else tokenizer.padding_id
    return _sorted_ids({config.get("pad_token_id"), _tokenizer_id(tokenizer, "pad_token"), padding})


def end_ids(config: Mapping[str, Any], tokenizer: TokenizerFile | None) -> tuple[int, ...]:
    """The ids that begin or end a text, of a model's config and of its tokenizer."""
    ids = {_tokenizer_id(tokenizer, "bos_token"), _tokenizer_id(tokenizer, "eos_token")}
    for key in ("bos_token_id", "eos_token_id"):
        named = config.get(key)
        ids.update(named if isinstance(named, list) else [named])
    return _sorted_ids(ids)


def _tokenizer_id(tokenizer: TokenizerFile | None, key: str) -> int | None:
    """The id of a token that tokenizer_config.json names; None where it names none of the vocabulary."""
    if tokenizer is None or tokenizer.config is None:
        return None
    try:
        token: Any = json.loads(tokenizer.config).get(key)
    except (ValueError, AttributeError):
        return None
    token = token.get("content") if isinstance(token, dict) else token
    return tokenizer.vocabulary.get(token) if isinstance(token, str) else None


def _sorted_ids(ids: Iterable[Any]) -> tuple[int, ...]:
    return tuple(sorted(one for one in ids if isinstance(one, int) and one >= 0))
