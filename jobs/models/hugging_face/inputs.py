"""Whether a transformers model takes the inputs of rows: their names, shapes and values, known without its weights.

Legend: R rows of L tokens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.models.hugging_face.sample_table import MASK, TYPES, Array, SampleTable
from storage.base.errors import SourceError
from storage.encodings.targets import IGNORED
from storage.samples import tensor_columns
from storage.samples.samples import LABEL
from storage.sources.packing.packed_source import INPUT_IDS, POSITION_IDS

# What every model of the two kinds takes; others are looked up in the class's forward.
_USUAL = (INPUT_IDS, MASK)
# Parameters of forward that are no columns of a row: what a caller asks for, and what stands for the token ids.
_NOT_DATA = (
    *("self", "labels", "past_key_values", "inputs_embeds", "encoder_outputs", "cache_params", "head_mask"),
    *("decoder_head_mask", "cross_attn_head_mask", "decoder_inputs_embeds", "mems", "use_mems"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("cache", "cache_position", "logits_to_keep", "num_logits_to_keep"),
)


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


def refuse_own_tokens(rows: SampleTable) -> None:
    """Raises SourceError where every label is the very token that it lies at, as transformers' own trainer has them."""
    label_RL, ids_RL = rows.array(LABEL), rows.array(INPUT_IDS)
    if label_RL is None or ids_RL is None or label_RL.shape != ids_RL.shape:
        return
    counted_RL = label_RL != IGNORED
    # Of a row of one token again and again the next one is the same.
    varied = np.array([len(np.unique(row)) > 1 for row in ids_RL], bool)
    if (counted_RL[varied].sum() > 1) and (label_RL == ids_RL)[counted_RL].all():
        raise SourceError(
            f"{rows.where}: the labels are the tokens at their own positions.",
            "The label of position t is token t + 1, which the logits at t are about; -100 where there is none.",
            "Shift them by one, or leave them out and pack the documents with source.pack.",
        )


def refuse_token_ids(rows: SampleTable, size: int) -> None:
    """Raises SourceError for token ids outside a vocabulary of `size` tokens."""
    ids_RL = rows.array(INPUT_IDS)
    if ids_RL is None or not ids_RL.size or (ids_RL.min() >= 0 and ids_RL.max() < size):
        return
    row, at = (int(n) for n in np.argwhere((ids_RL < 0) | (ids_RL >= size))[0])
    raise SourceError(
        f"{rows.sample(row)} has the token id {ids_RL[row, at]}.",
        f"The teacher's vocabulary has the ids 0 to {size - 1:,}.",
        "Tokenise with the teacher's own tokenizer.",
    )
