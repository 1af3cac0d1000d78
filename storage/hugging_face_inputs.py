"""Whether rows are what a transformers model takes: inputs by name, ids, masks and padding, known without its weights.

Legend: R rows of L tokens.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage import tensors
from storage.errors import SourceError
from storage.samples import LABEL, SAMPLE_ID
from storage.sources.packed import INPUT_IDS, POSITION_IDS
from storage.targets import IGNORED
from storage.tokenizers import TokenizerFile

Array = np.ndarray[Any, Any]

MASK, TYPES = "attention_mask", "token_type_ids"

# What every model of the two kinds takes; others are looked up in the class's forward.
_USUAL = (INPUT_IDS, MASK)
# Parameters of forward that are no columns of a row: what a caller asks for, and what stands for the token ids.
_NOT_DATA = (
    *("self", "labels", "past_key_values", "inputs_embeds", "encoder_outputs", "cache_params", "head_mask"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("cache", "cache_position", "logits_to_keep", "num_logits_to_keep"),
)


@dataclass(frozen=True)
class Rows:
    """Samples as arrays, for messages with their ids. where: the file that they are from."""

    samples: pa.Table
    where: str

    def array(self, name: str) -> Array | None:
        """A column [R, ...]; None where there is none."""
        if name not in self.samples.schema.names:
            return None
        return tensors.unpack(self.samples.column(name), self.samples.schema.field(name))

    def sample(self, row: int) -> str:
        return f"The sample '{self.samples.column(SAMPLE_ID)[int(row)].as_py()}' (in {self.where})"

    def first(self, where_R: Any) -> str:
        """The first sample for which something is true, [R] bool."""
        return self.sample(int(np.flatnonzero(where_R)[0]))


def forward_names(architecture: str) -> list[str]:
    """The inputs that a class of transformers takes, by the signature of its forward; the usual ones without it."""
    try:
        import transformers

        forward = getattr(transformers, architecture).forward
    except (ImportError, AttributeError):
        return [*_USUAL, POSITION_IDS, TYPES]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(forward).parameters.values()
    return [one.name for one in parameters if one.kind not in kinds and one.name not in _NOT_DATA]


def refuse_names(architecture: str, names: list[str], where: str, language_model: bool) -> None:
    """Raises SourceError for inputs that the model's forward does not take."""
    if "labels" in names:
        raise SourceError(
            f"{where} has the input 'labels'.",
            "Labels are no input of a teacher.",
            "Name the column as the label: source.columns.label=labels. The label of position t is token t + 1.",
        )
    if INPUT_IDS in names and all(name in (*_USUAL, *([POSITION_IDS] if language_model else [])) for name in names):
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


def refuse_shapes(rows: Rows) -> None:
    """Raises SourceError where token ids, masks, positions and types are no integers [R, L] of one L."""
    length = None
    for name in (INPUT_IDS, MASK, POSITION_IDS, TYPES):
        if name not in rows.samples.schema.names:
            continue
        field = rows.samples.schema.field(name)
        kinds = "iub" if name == MASK else "iu"
        shape = tensors.form(field)[1] if tensors.is_tensor(field) else ()
        if len(shape) != 1 or tensors.form(field)[0].kind not in kinds:
            raise SourceError(
                f"{rows.where}: {name} is {tensors.described(pa.schema([field]))}.",
                f"{'It is a list of token ids' if name == INPUT_IDS else 'It is a list of integers'}, of one length in "
                "all rows.",
            )
        length = shape[0] if length is None else length
        if shape[0] != length:
            raise SourceError(
                f"{rows.where}: {name} has {shape[0]} values a row, {INPUT_IDS} {length}.", "Each token has one."
            )


def refuse_values(rows: Rows, types: int | None) -> None:
    """Raises SourceError for a mask of other values than 0 and 1, and for types that the model does not know."""
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
    types_RL = rows.array(TYPES)
    if types_RL is not None and types is not None:
        odd_R = ((types_RL < 0) | (types_RL >= types)).any(axis=1)
        if odd_R.any():
            raise SourceError(
                f"{rows.first(odd_R)} has {TYPES} from {types_RL.min()} to {types_RL.max()}.",
                f"The teacher knows the types 0 to {types - 1} (type_vocab_size).",
            )


def holds_several(position_ids_RL: Array) -> Array:
    """[R] whether a row holds two documents; padding, of which every token begins anew, is none."""
    begins = np.diff(position_ids_RL, axis=1, prepend=position_ids_RL[:, :1] - 1) != 1
    return (begins[:, :-1] & (position_ids_RL[:, 1:] == 1)).any(axis=1)


def refuse_mask_of_packed(inputs: Mapping[str, Array | None], where: str) -> None:
    """Raises SourceError for an attention_mask beside position_ids of several documents."""
    mask_RL, positions_RL = inputs.get(MASK), inputs.get(POSITION_IDS)
    if mask_RL is not None and positions_RL is not None and holds_several(positions_RL).any():
        raise SourceError(
            f"{where} has {MASK} beside {POSITION_IDS} of several documents in a row.",
            "transformers keeps packed documents apart only where it is given no mask.",
            f"Leave {MASK} out with source.columns.inputs; give positions of the padding the label {IGNORED}.",
        )


def refuse_padding(rows: Rows, pad: int | None, ends: tuple[int, ...], language_model: bool) -> None:
    """Raises SourceError for padding that the model would take for tokens, or that students would learn from.

    pad: the id of padding. ends: ids that end a text; where padding is one of them a single one is no padding.
    """
    mask_RL, label_RL = rows.array(MASK), rows.array(LABEL)
    if label_RL is not None and label_RL.ndim != 2:
        label_RL = None
    if mask_RL is not None:
        if language_model:
            _refuse_learnt(rows, mask_RL == 0, label_RL, f"{MASK} 0")
        return
    ids_RL = rows.array(INPUT_IDS)
    if pad is None or ids_RL is None or not ids_RL.size:
        return
    is_pad_RL = ids_RL == pad
    least = 2 if pad in ends else 1
    leading_RL = np.logical_and.accumulate(is_pad_RL, axis=1)
    trailing_RL = np.logical_and.accumulate(is_pad_RL[:, ::-1], axis=1)[:, ::-1]
    leading_RL &= leading_RL.sum(axis=1, keepdims=True) >= least
    trailing_RL &= trailing_RL.sum(axis=1, keepdims=True) >= least
    ahead_R = leading_RL.any(axis=1) & (rows.array(POSITION_IDS) is None)
    padded_R = ahead_R if language_model else (leading_RL | trailing_RL).any(axis=1)
    if padded_R.any():
        raise SourceError(
            f"{rows.first(padded_R)} {'begins' if language_model else 'begins or ends'} with the padding id {pad}, and "
            f"there is no {MASK}.",
            "Without a mask the teacher takes padding for tokens, and gives other answers.",
            f"Add the column {MASK}: 1 at tokens, 0 at padding.",
        )
    if language_model:
        _refuse_learnt(rows, leading_RL | trailing_RL, label_RL, f"the padding id {pad}")


def _refuse_learnt(rows: Rows, padding_RL: Array, label_RL: Array | None, sign: str) -> None:
    """Raises SourceError where a position of the padding has a target."""
    learnt_R = (padding_RL if label_RL is None else padding_RL & (label_RL != IGNORED)).any(axis=1)
    if learnt_R.any():
        raise SourceError(
            f"{rows.first(learnt_R)} has padding ({sign}) with "
            f"{'no labels' if label_RL is None else 'labels other than ' + str(IGNORED)}.",
            "Students would learn from what the teacher says of padding.",
            f"Give the label {IGNORED} at those positions (the label of position t is token t + 1).",
        )


def padding_id(config: dict[str, Any], tokenizer: TokenizerFile | None) -> int | None:
    """The id of padding, by a model's config or its tokenizer.json."""
    pad = config.get("pad_token_id")
    if not isinstance(pad, int) and tokenizer is not None:
        try:
            pad = (json.loads(tokenizer.data).get("padding") or {}).get("pad_id")
        except (ValueError, AttributeError):
            pad = None
    return pad if isinstance(pad, int) and pad >= 0 else None


def end_ids(config: dict[str, Any]) -> tuple[int, ...]:
    """The ids that end a text, by a model's config."""
    ends = config.get("eos_token_id")
    return tuple(one for one in (ends if isinstance(ends, list) else [ends]) if isinstance(one, int))
