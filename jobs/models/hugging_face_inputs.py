"""Whether rows are what a transformers model takes: inputs by name, ids, masks and padding, known without its weights.

Legend: R rows of L tokens.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.base.errors import SourceError
from storage.encodings.targets import IGNORED
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, SAMPLE_ID
from storage.sources.packing.packed_source import INPUT_IDS, POSITION_IDS
from storage.sources.packing.tokenizer import TokenizerFile

Array = np.ndarray[Any, Any]

MASK, TYPES = "attention_mask", "token_type_ids"

# What every model of the two kinds takes; others are looked up in the class's forward.
_USUAL = (INPUT_IDS, MASK)
# Parameters of forward that are no columns of a row: what a caller asks for, and what stands for the token ids.
_NOT_DATA = (
    *("self", "labels", "past_key_values", "inputs_embeds", "encoder_outputs", "cache_params", "head_mask"),
    *("decoder_head_mask", "cross_attn_head_mask", "decoder_inputs_embeds", "mems", "use_mems"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("cache", "cache_position", "logits_to_keep", "num_logits_to_keep"),
)


@dataclass(frozen=True)
class SampleTable:
    """Samples as arrays, for messages with their ids. where: the file that they are from."""

    samples: pa.Table
    where: str

    def array(self, name: str) -> Array | None:
        """A column [R, ...]; None where there is none."""
        if name not in self.samples.schema.names:
            return None
        return tensor_columns.unpack(self.samples.column(name), self.samples.schema.field(name))

    def sample(self, row: int) -> str:
        return f"The sample '{self.samples.column(SAMPLE_ID)[int(row)].as_py()}' (in {self.where})"

    def first(self, where_R: Any) -> str:
        """The first sample for which something is true, [R] bool."""
        return self.sample(int(np.flatnonzero(where_R)[0]))


@functools.cache
def forward_names(architecture: str) -> tuple[str, ...]:
    """The inputs that a class of transformers takes, by the signature of its forward; the usual ones without it."""
    try:
        import transformers

        forward = getattr(transformers, architecture).forward
    except (ImportError, AttributeError):
        return (*_USUAL, POSITION_IDS, TYPES)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(forward).parameters.values()
    return tuple(one.name for one in parameters if one.kind not in kinds and one.name not in _NOT_DATA)


def refuse_names(architecture: str, names: list[str], where: str, language_model: bool) -> None:
    """Raises SourceError for inputs that the model's forward does not take."""
    if "labels" in names:
        raise SourceError(
            f"{where} has the input 'labels'.",
            "Labels are no input of a teacher.",
            "Name the column as the label: source.columns.label=labels. The label of position t is token t + 1.",
        )
    if INPUT_IDS in names and all(name in _USUAL for name in names):
        return
    known = forward_names(architecture)
    unknown = [name for name in names if name not in known]
    if unknown or INPUT_IDS not in names:
        raise SourceError(
            f"{where} has the inputs {', '.join(names)}"
            + (f"; {architecture} takes no '{unknown[0]}'." if unknown else f", and no {INPUT_IDS}."),
            f"It takes {', '.join(known)}, by name.",
            "Rename the columns, or choose them with source.columns.inputs"
            + (", or pack documents with source.pack." if language_model else "."),
        )


def refuse_shapes(rows: SampleTable) -> None:
    """Raises SourceError where token ids, masks, positions and types are no integers [R, L] of one L."""
    length = None
    for name in (INPUT_IDS, MASK, POSITION_IDS, TYPES):
        if name not in rows.samples.schema.names:
            continue
        field = rows.samples.schema.field(name)
        kinds = "iub" if name == MASK else "iu"
        shape = tensor_columns.form(field)[1] if tensor_columns.is_tensor(field) else ()
        if len(shape) != 1 or tensor_columns.form(field)[0].kind not in kinds:
            raise SourceError(
                f"{rows.where}: {name} is {tensor_columns.described(pa.schema([field]))}.",
                f"{'It is a list of token ids' if name == INPUT_IDS else 'It is a list of integers'}, of one length in "
                "all rows.",
            )
        length = shape[0] if length is None else length
        if shape[0] != length:
            raise SourceError(
                f"{rows.where}: {name} has {shape[0]} values a row, {INPUT_IDS} {length}.", "Each token has one."
            )


def refuse_values(rows: SampleTable, types: int | None, context: int | None) -> None:
    """Raises SourceError for masks, types and positions with values that the model has no meaning for.

    types: how many token types it has; None where it has any. context: how many positions it has; None as many as
    there are.
    """
    mask_RL = rows.array(MASK)
    if mask_RL is not None:
        odd_R = ~np.isin(mask_RL, (0, 1)).all(axis=1)
        if odd_R.any():
            raise SourceError(
                f"{rows.first(odd_R)} has other values than 0 and 1 in {MASK}.", "1 is a token, 0 padding."
            )
        empty_R = ~mask_RL.astype(bool).any(axis=1)
        if empty_R.any():
            raise SourceError(f"{rows.first(empty_R)} is padding alone: its {MASK} is 0.", "A row has a token.")
    _refuse_outside(rows, TYPES, types, "types")
    _refuse_outside(rows, POSITION_IDS, context, "positions")


def _refuse_outside(rows: SampleTable, name: str, size: int | None, noun: str) -> None:
    """Raises SourceError for values of a column below 0, or from size on."""
    values_RL = rows.array(name)
    if values_RL is None:
        return
    odd_RL = (values_RL < 0) if size is None else (values_RL < 0) | (values_RL >= size)
    if odd_RL.any():
        row, at = (int(n) for n in np.argwhere(odd_RL)[0])
        most = "and up" if size is None else f"to {size - 1:,}"
        raise SourceError(
            f"{rows.sample(row)} has the value {values_RL[row, at]} in {name}.",
            f"By its config.json the teacher has the {noun} 0 {most}.",
        )


def token_types(config: Mapping[str, Any]) -> int | None:
    """How many token types a model has; None where its forward takes any and has no embedding of them."""
    types = config.get("type_vocab_size")
    if isinstance(types, int):
        return types or None  # DeBERTa with 0 leaves them out
    # GPT-2 and CTRL look types up among the tokens.
    tokens = config.get("vocab_size")
    return tokens if isinstance(tokens, int) else None


def holds_several(position_ids_RL: Array, mask_RL: Array | None = None) -> Array:
    """[R] whether a row holds two documents; padding is none.

    Without a mask every token of padding begins anew; with one, positions where it is 0 do not matter.
    """
    if mask_RL is not None:
        real_RL = mask_RL.astype(bool)
        highest_RL = np.maximum.accumulate(np.where(real_RL, position_ids_RL, -1), axis=1)
        return np.any(real_RL[:, 1:] & (position_ids_RL[:, 1:] <= highest_RL[:, :-1]), axis=1)
    begins = np.diff(position_ids_RL, axis=1, prepend=position_ids_RL[:, :1] - 1) != 1
    return np.any(begins[:, :-1] & (position_ids_RL[:, 1:] == 1), axis=1)


def refuse_mask_of_packed(inputs: Mapping[str, Array | None], where: str) -> None:
    """Raises SourceError for an attention_mask beside position_ids of several documents."""
    mask_RL, positions_RL = inputs.get(MASK), inputs.get(POSITION_IDS)
    if mask_RL is not None and positions_RL is not None and holds_several(positions_RL, mask_RL).any():
        raise SourceError(
            f"{where} has {MASK} beside {POSITION_IDS} of several documents in a row.",
            "transformers keeps packed documents apart only where it is given no mask.",
            f"Leave {MASK} out with source.columns.inputs; give positions of the padding the label {IGNORED}.",
        )


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
