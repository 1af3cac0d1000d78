"""A teacher that Hugging Face's transformers loads: a causal language model, or a classifier of sequences."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.models.hugging_face.inputs import forward_names, holds_several, refuse_mask_of_packed, refuse_names
from jobs.models.hugging_face.sample_table import MASK, Array
from storage.base.errors import JobError, ModelError, SourceError
from storage.sources.packing.packed_source import INPUT_IDS, POSITION_IDS
from teacher_infer.teachers.loading import load

# How far the logits of a document that follows another in its row may be from its own, in parts of their spread: four
# times as far as those of the first one are, which nothing but rounding moves, within these bounds. Of SmolLM2-135M
# rounding is 4e-6 in float32, 0.008 in float16 and 0.06 in bfloat16; with attention across documents it is 1.6.
_ALLOWED = {"float32": (1e-3, 1e-3), "float16": (5e-3, 5e-2), "bfloat16": (1e-2, 0.25)}
_ROUNDINGS = 4


class TransformersTeacher:
    """The model in eval mode and an explicit dtype, from safetensors only, without code of its folder.

    Documents that are packed into one row are told apart by position_ids, which begin at 0 with each. Whether a model
    keeps them apart is tried when it is loaded. device: cpu, cuda, or auto, which lays it over all that this process
    sees.
    """

    def __init__(self, spec: HuggingFaceSpec, *, dtype: str, seed: int, device: str) -> None:
        import torch

        self._torch, self._spec, self._dtype = torch, spec, dtype
        self._model = load(spec, dtype, device)
        self._device = _head_device(self._model, spec)
        self._vocabulary = spec.classes if spec.is_language_model else _vocabulary(self._model)
        takes = inspect.signature(type(self._model).forward).parameters
        self._options = {"use_cache": False} if spec.is_language_model or "use_cache" in takes else {}
        self._leak, self._allowed = 0.0, 0.0
        try:
            if not spec.is_language_model:
                self._refuse_single_rows()
            else:
                if POSITION_IDS in forward_names(spec.architecture):
                    self._leak, self._allowed = self._probe()
                self._refuse_foresight()
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ModelError(
                f"{spec.architecture} does not take token ids alone ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}).",
                "A teacher answers rows of token ids, in batches of several rows.",
                "Set pad_token_id in its config.json." if "pad" in str(error).lower() else "Take another teacher.",
            ) from error

    def logits(self, inputs: dict[str, Array] | list[Array]) -> Any:
        """As `Teacher.logits`; a list holds the token ids alone."""
        torch, spec = self._torch, self._spec
        inputs = inputs if isinstance(inputs, dict) else {INPUT_IDS: inputs[0]}
        ids, positions = inputs[INPUT_IDS], inputs.get(POSITION_IDS)
        # forward would take a name that it does not know, and leave it out.
        refuse_names(spec.architecture, list(inputs), "A batch", spec.is_language_model)
        self._refuse_ids(ids)
        if spec.is_language_model:
            refuse_mask_of_packed(inputs, "A batch")
            self._refuse_padding_ahead(inputs)
        several = spec.is_language_model and positions is not None and bool(holds_several(positions).any())
        if several and self._leak > self._allowed:
            raise JobError(
                f"{spec.architecture} lets one packed document see another: its logits differ by {self._leak:.2g} of "
                "their spread from those of the document alone.",
                f"Up to {self._allowed:.2g} may be {self._dtype}'s rounding.",
                "Give it rows of a single document each, or another teacher.",
            )
        with torch.inference_mode():
            logits = self._ask(inputs)[..., : spec.classes]
        expected = (*ids.shape, spec.classes) if spec.is_language_model else (len(ids), spec.classes)
        if tuple(logits.shape) != expected:
            raise JobError(
                f"{spec.architecture} gave logits {list(logits.shape)}.", f"Its config says {list(expected)}."
            )
        return logits

    def answer_shape(self, example: pa.Table) -> tuple[int, ...] | None:
        return self._spec.answer_shape(example)

    def _ask(self, inputs: dict[str, Array]) -> Any:
        given = {name: self._tensor(array) for name, array in inputs.items()}
        return self._model(**given, **self._options).logits

    def _refuse_ids(self, ids: np.ndarray[Any, Any]) -> None:
        """On a GPU a foreign id would end the process's use of the device."""
        known = self._vocabulary
        if known is not None and ids.size and (ids.min() < 0 or ids.max() >= known):
            raise SourceError(
                f"The samples have token ids from {ids.min()} to {ids.max()}.",
                f"The teacher's vocabulary has the ids 0 to {known - 1:,}.",
                "Tokenise with the teacher's own tokenizer.",
            )

    def _probe(self) -> tuple[float, float]:
        """How far the logits of packed documents are from their own, in parts of their spread, and how far they may."""
        torch, context = self._torch, self._spec.context or 16
        lengths = (max(1, min(9, context // 2)), max(1, min(7, context // 2)))
        draw = np.random.default_rng(0)
        documents = [draw.integers(0, self._spec.classes, length) for length in lengths]
        orders = (0, 1), (1, 0)  # as two rows of a batch
        with torch.inference_mode():
            alone = [self._ask({INPUT_IDS: document[None]})[0] for document in documents]
            ids = np.stack([np.concatenate([documents[at] for at in order]) for order in orders])
            places = np.stack([np.concatenate([np.arange(lengths[at]) for at in order]) for order in orders])
            packed = self._ask({INPUT_IDS: ids, POSITION_IDS: places})
            firsts, seconds = [0.0], [0.0]
            for row, (first, second) in zip(packed, orders, strict=True):
                firsts.append(self._distance(row[: lengths[first]], alone[first]))
                seconds.append(self._distance(row[lengths[first] :], alone[second]))
        least, most = _ALLOWED[self._dtype]
        return max(*firsts, *seconds), min(max(least, _ROUNDINGS * max(firsts)), most)

    def _refuse_padding_ahead(self, inputs: dict[str, Array]) -> None:
        """Raises JobError for padding before the text where the model counts it as positions, as GPT-2 does."""
        mask_RL = inputs.get(MASK)
        if mask_RL is None or POSITION_IDS in inputs or mask_RL[:, 0].all():
            return
        moved, allowed = self._moved_by_padding
        if moved > allowed:
            raise JobError(
                f"{self._spec.architecture} counts padding before a text as positions: it moves the logits by "
                f"{moved:.2g} of their spread.",
                f"Up to {allowed:.2g} may be {self._dtype}'s rounding.",
                f"Put the padding after the text, or add {POSITION_IDS}: 0, 1, ... from the first token on.",
            )

    @functools.cached_property
    def _moved_by_padding(self) -> tuple[float, float]:
        """How far padding before a text moves its logits, in parts of their spread, and how far rounding may.

        Padding after the text moves a causal model's logits by rounding alone.
        """
        context = self._spec.context or 64
        length = max(1, min(9, context // 2))
        padding = max(1, min(32, context - length))
        text = np.random.default_rng(2).integers(0, self._spec.classes, length)
        filler, zeros, ones = np.zeros(padding, np.int64), np.zeros(padding, np.int64), np.ones(length, np.int64)
        with self._torch.inference_mode():
            alone = self._ask({INPUT_IDS: text[None]})[0]
            ids = np.stack([np.concatenate([filler, text]), np.concatenate([text, filler])])
            before, after = self._ask({INPUT_IDS: ids, MASK: np.stack([np.r_[zeros, ones], np.r_[ones, zeros]])})
        rounding = self._distance(after[:length], alone)
        least, most = _ALLOWED[self._dtype]
        return self._distance(before[padding:], alone), min(max(least, _ROUNDINGS * rounding), most)

    def _refuse_foresight(self) -> None:
        """Raises ModelError for a model that reads on: the target of a position would be known to its inputs."""
        length = max(2, min(16, self._spec.context or 16))
        first, *others = np.random.default_rng(1).integers(0, self._spec.classes, 1 + 2 * (length - 1)).tolist()
        halves = others[: length - 1], others[length - 1 :]
        with self._torch.inference_mode():
            one, two = (self._ask({INPUT_IDS: np.array([[first, *half]])})[0, :1] for half in halves)
            moved = self._distance(one, two)
        # Experts that other tokens share round otherwise; what a model sees moves it by far more.
        if moved > _ALLOWED[self._dtype][1]:
            raise ModelError(
                f"{self._spec.architecture} sees the tokens that follow: others move the logits before them by "
                f"{moved:.2g} of their spread.",
                "The logits of a causal language model at position t know the tokens up to t.",
                "Set is_decoder in config.json where the model was trained as a decoder, or take another teacher.",
            )

    def _refuse_single_rows(self) -> None:
        """Raises ValueError for a classifier that finds no padding, and so takes no batch."""
        config, length = self._model.config, max(2, min(16, self._spec.context or 16))
        special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")}
        text = next(token for token in range(len(special) + 1) if token not in special)
        ids = np.full((2, length), text, np.int64)
        end = getattr(config, "eos_token_id", None)
        if isinstance(end, int):
            ids[:, -1] = end  # where encoder-decoders look for the sequence's answer
        with self._torch.inference_mode():
            self._ask({INPUT_IDS: ids})

    def _distance(self, found: Any, own: Any) -> float:
        found, own = (logits[:, : self._spec.classes].float() for logits in (found, own))
        return float((found - own).square().mean().sqrt() / own.std().clamp_min(1e-12))

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        if array.dtype.kind == "f":
            values = self._torch.from_numpy(np.array(array))
            return values.to(device=self._device, dtype=getattr(self._torch, self._dtype))
        return self._torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)


def _head_device(model: Any, spec: HuggingFaceSpec) -> Any:
    """Where the logits are made. Inputs begin there, too: accelerate brings an answer back to its inputs' device."""
    head = model.get_output_embeddings() if spec.is_language_model else None
    weight = getattr(head, "weight", None)
    return next(model.parameters()).device if weight is None else weight.device


def _vocabulary(model: Any) -> int | None:
    """How many token ids a model has embeddings of; None where it embeds any, as by their hash."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:
        return None
    weight = getattr(embeddings, "weight", None)
    return None if weight is None else len(weight)
