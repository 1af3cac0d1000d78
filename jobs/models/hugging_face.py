"""Models in Hugging Face's form: a folder of config.json, safetensors and tokenizer.json, or an id on the hub.

Everything but the answers is known from here, without torch: the digest, the shape, what the model cannot take.
"""

from __future__ import annotations

import functools
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from jobs.models import hugging_face_inputs as given
from jobs.models.architectures import is_language_model
from jobs.models.hub import fetched
from jobs.models.model_spec import ADAPTER_CONFIG, CONFIG_FILE, PRECISION, SAVE_ANEW, read_config
from jobs.models.weight_names import few
from jobs.models.weights import INDEX_FILE, OTHER_WEIGHTS, WEIGHTS_FILE, read_weight_map
from storage.base.digest import sha256_file, sha256_of
from storage.base.errors import Mismatch, ModelError, RecipeError, SourceError
from storage.encodings.targets import IGNORED
from storage.objectstore.folder import Folder
from storage.samples import tensor_columns
from storage.samples.samples import LABEL, SAMPLE_ID, input_names
from storage.sources.packing.packed_source import INPUT_IDS, POSITION_IDS
from storage.sources.packing.tokenizer import TOKENIZER_FILE, TokenizerFile

# What PEFT's save_pretrained writes.
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors")


@dataclass(frozen=True)
class HuggingFaceSpec:
    """A causal language model, or a classifier of sequences.

    path: its folder; or hub and revision, an id and a commit there. vocabulary: how many classes the head has that
    are none of its padding; None takes the tokens of the folder's tokenizer.json, and without one all of the head.
    adapter: the folder of a PEFT adapter that is merged into it; without one, none is. attention: the implementation of
    attention that it is loaded with; None takes the one that transformers chooses, which a job names before it counts
    the key.
    """

    kind: ClassVar[str] = "transformers"

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    vocabulary: int | None = None
    adapter: str | None = None
    attention: str | None = None

    def key_parts(self, dtype: str, model: Any = None) -> dict[str, Any]:
        """Everything that decides what it answers, readable: of each file that loading reads the sha256.

        Raises ModelError, RecipeError.
        """
        adapter = {} if self.adapter is None else {"adapter": self._adapter_sha256}
        # Other kernels give other bits. sdpa is left out, as it was when there was no choice.
        attention = {} if self.attention == "sdpa" else {"attention": self.attention}
        return {
            **adapter,
            **attention,
            "kind": self.kind,
            "config": _sha256(self.folder / CONFIG_FILE),
            "index": _sha256(self.folder / INDEX_FILE) if len(self._weights_sha256) > 1 else None,
            "weights": self._weights_sha256,
            "dtype": dtype,
            "precision": PRECISION[dtype],
            "classes": self.classes,
        }

    def digest(self, dtype: str) -> str:
        """sha256 of `key_parts`."""
        return sha256_of(self.key_parts(dtype))

    def weights_sha256(self) -> str:
        """sha256 of the weights file; of several, of their names and hashes."""
        hashes = self._weights_sha256
        return next(iter(hashes.values())) if len(hashes) == 1 else sha256_of(hashes)

    def lineage(self) -> dict[str, Any]:
        """What a cache says of its teacher, in the words that it has for a factory."""
        whence = {"hub": self.hub, "revision": self.revision} if self.hub else {}
        whence |= {"adapter": self.adapter} if self.adapter else {}
        whence |= {"attention": self.attention} if self.attention else {}
        return {
            "kind": self.kind,
            "factory": f"transformers:{self.architecture}",
            "arguments": {},
            "weights": f"hub:{self.hub}@{self.revision}" if self.hub else self.path,
            **whence,
            "vocabulary": self.classes,
        }

    @functools.cached_property
    def folder(self) -> Path:
        """The folder on this machine; what the hub has is fetched once. Raises ModelError."""
        if self.hub is not None:
            return fetched(self.hub, str(self.revision))
        assert self.path is not None
        folder = Folder(self.path)
        if not folder.is_local:
            raise ModelError(
                f"The model '{self.path}' lies on {folder.protocol}://.",
                "transformers loads folders of disks that this machine sees.",
                "Copy it to a shared folder, or name teacher.hub and teacher.revision.",
            )
        return Path(folder.url)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return read_config(str(self.folder))

    @functools.cached_property
    def architecture(self) -> str:
        """Its class in transformers. Raises ModelError for one that is no teacher."""
        names = self.config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        is_language_model(name, f"{CONFIG_FILE} in '{self.folder}'")
        return str(name)

    @property
    def is_language_model(self) -> bool:
        return is_language_model(self.architecture, f"{CONFIG_FILE} in '{self.folder}'")

    @functools.cached_property
    def tokenizer(self) -> TokenizerFile | None:
        path = self.folder / TOKENIZER_FILE
        return TokenizerFile.read(str(path)) if path.exists() else None

    @functools.cached_property
    def classes(self) -> int:
        """V: the columns of the head that are meant. Raises RecipeError, ModelError, SourceError."""
        if not self.is_language_model:
            if self.vocabulary is not None:
                raise RecipeError(f"teacher.vocabulary is {self.vocabulary}, and the teacher is a classifier.")
            return self._labels()
        head = self._number("vocab_size")
        if head is None:
            raise ModelError(f"{CONFIG_FILE} in '{self.folder}' names no vocab_size.", "A language model has one.")
        if self.vocabulary is not None:
            if self.vocabulary > head:
                raise RecipeError(
                    f"teacher.vocabulary is {self.vocabulary:,}.", f"The head of '{self.folder}' has {head:,} columns."
                )
            return self.vocabulary
        return head if self.tokenizer is None else min(head, self.tokenizer.size)

    def _labels(self) -> int:
        """How many classes a classifier tells apart. Raises ModelError for one whose answers are no distribution."""
        kind, names = self.config.get("problem_type"), self.config.get("id2label")
        if kind not in (None, "single_label_classification"):
            raise ModelError(
                f"{CONFIG_FILE} in '{self.folder}' has the problem_type {kind}.",
                "Soft targets are a softmax over classes of which one is right.",
            )
        labels = len(names) if isinstance(names, dict) else self.config.get("num_labels", 2)
        if not isinstance(labels, int) or labels < 2:
            raise ModelError(
                f"{CONFIG_FILE} in '{self.folder}' names {labels!r} labels.",
                "A classifier has two or more; the softmax of a single number is 1 whatever the teacher thinks.",
            )
        return labels

    @property
    def context(self) -> int | None:
        """How many tokens it takes; None where its config sets no limit."""
        return self._number("max_position_embeddings", "n_positions", "n_ctx")

    def answer_shape(self, example: pa.Table) -> tuple[int, ...]:
        """The shape of one row's logits, for samples like the example's."""
        if not self.is_language_model:
            return (self.classes,)
        return (_length(example), self.classes)

    def weights_files(self) -> list[str]:
        """The safetensors files, sorted. Raises ModelError when there are none, or not all."""
        try:
            names = {path.name for path in self.folder.iterdir()}
        except OSError as error:
            raise ModelError(f"The model folder '{self.folder}' cannot be read: {error.strerror}.") from None
        if WEIGHTS_FILE in names:
            return [WEIGHTS_FILE]
        if INDEX_FILE not in names:
            others = sorted(name for name in names if name.endswith(OTHER_WEIGHTS))
            found = f"has its weights in {few(others)}" if others else "has no weights"
            # The names that transformers itself reads.
            pickled = any(name.startswith("pytorch_model") and name.endswith(".bin") for name in others)
            raise ModelError(
                f"'{self.folder}' {found}.",
                f"Weights are safetensors ({WEIGHTS_FILE}, or several files with {INDEX_FILE}); pickles are not "
                "opened, since loading one runs its code, and GGUF is not read.",
                self._convert() if pickled else SAVE_ANEW,
            )
        index = (self.folder / INDEX_FILE).read_bytes()
        files = sorted(set(read_weight_map(index, f"{INDEX_FILE} in '{self.folder}'").values()))
        missing = [name for name in files if name not in names or not name.endswith(".safetensors")]
        if missing or not files:
            raise ModelError(
                f"'{self.folder}' lacks {few(missing) or 'every file of weights'}.",
                f"{INDEX_FILE} names {len(files)} safetensors files.",
                "Copy the whole folder.",
            )
        return files

    def counted_files(self) -> list[str]:
        """The names of the files in the folder that its key counts, and that alone are read by loading."""
        files = self.weights_files()
        return [CONFIG_FILE, *files, *([INDEX_FILE] if files != [WEIGHTS_FILE] else [])]

    @functools.cached_property
    def adapter_folder(self) -> Path | None:
        """The adapter's folder on this machine; None without one. Raises ModelError for one that lacks its files."""
        if self.adapter is None:
            return None
        folder = Folder(self.adapter)
        missing = [name for name in ADAPTER_FILES if not folder.is_local or not (Path(folder.url) / name).exists()]
        if missing:
            raise ModelError(
                f"The adapter '{self.adapter}' has no {few(missing)}.",
                f"teacher.adapter is a folder of this machine's disks that holds {' and '.join(ADAPTER_FILES)}.",
                "Save it with PeftModel.save_pretrained(FOLDER, safe_serialization=True).",
            )
        _refuse_adapter_config(Path(folder.url) / ADAPTER_FILES[0])
        return Path(folder.url)

    @functools.cached_property
    def _adapter_sha256(self) -> dict[str, str]:
        folder = self.adapter_folder
        assert folder is not None
        return {name: _sha256(folder / name) for name in ADAPTER_FILES}

    def notes(self) -> list[str]:
        """What lies in the folder and is not used, in a sentence each."""
        if self.adapter is not None or not (self.folder / ADAPTER_FILES[0]).exists():
            return []
        return [
            f"'{self.folder}' holds an adapter beside the model ({ADAPTER_FILES[0]}). It is not used. If the weights "
            f"are not merged with it yet, name it: teacher.adapter={self.folder}"
        ]

    def refuse_source(self, source: Any) -> None:
        """Raises Mismatch for a source whose tokenizer has another vocabulary. source: any; most have none."""
        theirs: TokenizerFile | None = getattr(source, "tokenizer", None)
        if theirs is None:
            return
        mine = self.tokenizer
        if mine is None:
            if theirs.size > self.classes and self.is_language_model:
                raise Mismatch(
                    f"The tokenizer {theirs.where} has {theirs.size:,} tokens.",
                    f"The teacher '{self._told}' has a vocabulary of {self.classes:,}.",
                    "Name the teacher's own tokenizer in source.pack.tokenizer.",
                )
            return
        if mine.sha256 == theirs.sha256 or mine.vocabulary == theirs.vocabulary:
            return
        word = min(
            (w for w in {**mine.vocabulary, **theirs.vocabulary} if mine.vocabulary.get(w) != theirs.vocabulary.get(w)),
            key=lambda w: (mine.vocabulary.get(w, 1 << 40), w),
        )
        raise Mismatch(
            f"The tokenizer {theirs.where} has another vocabulary ({theirs.size:,} tokens; '{word}' is "
            f"{theirs.vocabulary.get(word, 'none')}).",
            f"The teacher's own in '{self._told}' has {mine.size:,} tokens, and '{word}' is "
            f"{mine.vocabulary.get(word, 'none')}.",
            "Name the teacher's own tokenizer in source.pack.tokenizer.",
        )

    def refuse_rows(self, samples: pa.Table, where: str) -> None:
        """Raises SourceError for samples that the model cannot take."""
        rows = given.SampleTable(samples, where)
        given.refuse_names(self.architecture, input_names(samples.schema), where, self.is_language_model)
        given.refuse_shapes(rows)
        if self.context is not None and _length(samples) > self.context:
            raise SourceError(
                f"The sequences of {where} have {_length(samples):,} tokens.",
                f"The teacher '{self._told}' takes {self.context:,} (max_position_embeddings).",
                "Lower source.pack.sequence_length.",
            )
        given.refuse_values(rows, given.token_types(self.config), self.context)
        ids_PL = tensor_columns.unpack(samples.column(INPUT_IDS), samples.schema.field(INPUT_IDS))
        if self.is_language_model:
            _refuse_own_tokens(samples, ids_PL, where)
            given.refuse_mask_of_packed({name: rows.array(name) for name in (given.MASK, POSITION_IDS)}, where)
        pads = given.padding_ids(self.config, self.tokenizer)
        ends = given.end_ids(self.config, self.tokenizer)
        given.refuse_padding(rows, pads, ends, self.is_language_model)
        size = self.classes if self.is_language_model else self._number("vocab_size")
        if not ids_PL.size or size is None or (ids_PL.min() >= 0 and ids_PL.max() < size):
            return
        row, at = (int(n) for n in np.argwhere((ids_PL < 0) | (ids_PL >= size))[0])
        raise SourceError(
            f"The sample '{samples.column(SAMPLE_ID)[row].as_py()}' (in {where}) has the token id {ids_PL[row, at]}.",
            f"The teacher's vocabulary has the ids 0 to {size - 1:,}.",
            "Tokenise with the teacher's own tokenizer.",
        )

    def _convert(self) -> str:
        """How pickled weights are saved as safetensors."""
        source, target = str(self.folder), f"{self.folder}-safetensors"
        program = (
            f"import transformers; transformers.{self.architecture}.from_pretrained({json.dumps(source)})"
            f".save_pretrained({json.dumps(target)})"
        )
        return (
            f"Save it anew: python -c {shlex.quote(program)}, copy the tokenizer's files ({TOKENIZER_FILE}, "
            f"tokenizer_config.json) to {target}, and name that folder."
        )

    @property
    def _told(self) -> str:
        return self.hub or str(self.path)

    @functools.cached_property
    def _weights_sha256(self) -> dict[str, str]:
        return {name: _sha256(self.folder / name) for name in self.weights_files()}

    def _number(self, *keys: str) -> int | None:
        # Models of text and images have the language model's numbers in a config of its own.
        text = self.config.get("text_config")
        configs = [self.config, *([text] if isinstance(text, dict) else [])]
        return next((config[key] for config in configs for key in keys if isinstance(config.get(key), int)), None)


def _refuse_adapter_config(path: Path) -> None:
    """Raises ModelError for an adapter_config.json that is no JSON object, or that names a module to import."""
    try:
        config = json.loads(path.read_bytes())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"'{path}' is no JSON object.", "It has the settings of an adapter.", "Copy the whole folder.")
    # With megatron_config peft imports the module that megatron_core names, and older versions import any.
    if config.get("megatron_config"):
        raise ModelError(
            f"'{path}' sets megatron_config, with which peft imports the module '{config.get('megatron_core')}'.",
            "A name that is read from a file is never imported.",
            "Merge the adapter where it was trained: PeftModel.merge_and_unload().save_pretrained(FOLDER).",
        )


def _refuse_own_tokens(samples: pa.Table, ids_PL: np.ndarray[Any, Any], where: str) -> None:
    """Raises SourceError where every label is the very token that it lies at, as transformers' own trainer has them."""
    field = samples.schema.field(LABEL) if LABEL in samples.schema.names else None
    if field is None or not tensor_columns.is_tensor(field) or tensor_columns.form(field)[1] != ids_PL.shape[1:]:
        return
    label_PL = tensor_columns.unpack(samples.column(LABEL), field)
    counted_PL = label_PL != IGNORED
    # Of a row of one token again and again the next one is the same.
    varied = np.array([len(np.unique(row)) > 1 for row in ids_PL], bool)
    if (counted_PL[varied].sum() > 1) and (label_PL == ids_PL)[counted_PL].all():
        raise SourceError(
            f"{where}: the labels are the tokens at their own positions.",
            "The label of position t is token t + 1, which the logits at t are about; -100 where there is none.",
            "Shift them by one, or leave them out and pack the documents with source.pack.",
        )


def _length(samples: pa.Table) -> int:
    return tensor_columns.form(samples.schema.field(INPUT_IDS))[1][0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256_file(file)
