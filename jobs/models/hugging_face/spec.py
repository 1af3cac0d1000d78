"""A model in Hugging Face's form: its digest, the shape of its logits, which inputs it takes. Needs no torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from jobs.models.hugging_face import inputs, padding
from jobs.models.hugging_face.architectures import is_language_model
from jobs.models.hugging_face.hub import fetched
from jobs.models.hugging_face.model_files import ADAPTER_FILES, adapter_folder, sha256_of_file, weights_files
from jobs.models.hugging_face.sample_table import MASK, SampleTable
from jobs.models.hugging_face.vocabulary import refuse_other_vocabulary
from jobs.models.model_spec import CONFIG_FILE, PRECISION, read_config
from jobs.models.weights import INDEX_FILE, WEIGHTS_FILE
from storage.base.digest import sha256_of
from storage.base.errors import ModelError, RecipeError, SourceError
from storage.objectstore.folder import Folder
from storage.samples import tensor_columns
from storage.samples.samples import input_names
from storage.sources.packing.packed_source import INPUT_IDS, POSITION_IDS
from storage.sources.packing.tokenizer import TOKENIZER_FILE, TokenizerFile


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
            "config": sha256_of_file(self.folder / CONFIG_FILE),
            "index": sha256_of_file(self.folder / INDEX_FILE) if len(self._weights_sha256) > 1 else None,
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
        return weights_files(self.folder, lambda: self.architecture)

    def counted_files(self) -> list[str]:
        """The names of the files in the folder that its key counts, and that alone are read by loading."""
        files = self.weights_files()
        return [CONFIG_FILE, *files, *([INDEX_FILE] if files != [WEIGHTS_FILE] else [])]

    @functools.cached_property
    def adapter_folder(self) -> Path | None:
        """The adapter's folder on this machine; None without one. Raises ModelError for one that lacks its files."""
        return None if self.adapter is None else adapter_folder(self.adapter)

    @functools.cached_property
    def _adapter_sha256(self) -> dict[str, str]:
        folder = self.adapter_folder
        assert folder is not None
        return {name: sha256_of_file(folder / name) for name in ADAPTER_FILES}

    def notes(self) -> list[str]:
        """What lies in the folder and is not used, in a sentence each."""
        if self.adapter is not None or not (self.folder / ADAPTER_FILES[0]).exists():
            return []
        return [
            f"'{self.folder}' holds an adapter beside the model ({ADAPTER_FILES[0]}). It is not used. If the weights "
            f"are not merged with it yet, name it: teacher.adapter={self.folder}"
        ]

    def refuse_source(self, source: Any) -> None:
        """Raises UsageError for a source whose tokenizer has another vocabulary. source: any; most have none."""
        theirs: TokenizerFile | None = getattr(source, "tokenizer", None)
        if theirs is not None:
            mine = self.tokenizer
            classes = self.classes if mine is None and self.is_language_model else None
            refuse_other_vocabulary(theirs, mine, self._name, classes)

    def refuse_rows(self, samples: pa.Table, where: str) -> None:
        """Raises SourceError for samples that the model cannot take."""
        rows = SampleTable(samples, where)
        inputs.refuse_names(self.architecture, input_names(samples.schema), where, self.is_language_model)
        inputs.refuse_shapes(rows)
        if self.context is not None and _length(samples) > self.context:
            raise SourceError(
                f"The sequences of {where} have {_length(samples):,} tokens.",
                f"The teacher '{self._name}' takes {self.context:,} (max_position_embeddings).",
                "Lower source.pack.sequence_length.",
            )
        inputs.refuse_values(rows, inputs.token_types(self.config), self.context)
        if self.is_language_model:
            inputs.refuse_own_tokens(rows)
            inputs.refuse_mask_of_packed({name: rows.array(name) for name in (MASK, POSITION_IDS)}, where)
        pads = padding.padding_ids(self.config, self.tokenizer)
        ends = padding.end_ids(self.config, self.tokenizer)
        padding.refuse_padding(rows, pads, ends, self.is_language_model)
        size = self.classes if self.is_language_model else self._number("vocab_size")
        if size is not None:
            inputs.refuse_token_ids(rows, size)

    @property
    def _name(self) -> str:
        return self.hub or str(self.path)

    @functools.cached_property
    def _weights_sha256(self) -> dict[str, str]:
        return {name: sha256_of_file(self.folder / name) for name in self.weights_files()}

    def _number(self, *keys: str) -> int | None:
        # Models of text and images have the language model's numbers in a config of its own.
        text = self.config.get("text_config")
        configs = [self.config, *([text] if isinstance(text, dict) else [])]
        return next((config[key] for config in configs for key in keys if isinstance(config.get(key), int)), None)


def _length(samples: pa.Table) -> int:
    return tensor_columns.form(samples.schema.field(INPUT_IDS))[1][0]
