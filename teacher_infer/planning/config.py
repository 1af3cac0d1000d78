"""What a teacher's recipe may say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.models.model_spec import ModelSpec, read_config, spec_from_folder
from jobs.tracking.settings import TrackingSection
from storage.base.errors import RecipeError
from storage.base.names import NAME_PATTERN
from storage.base.settings import JsonDict, Section
from storage.encodings import ENCODINGS, Encoding, make_encoding
from storage.objectstore.location import Location
from storage.samples.samples import Inputs
from storage.sources.settings import SourceSection

Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"]


class TeacherSection(Section):
    """The teacher: a factory with arguments and weights; `path`, a model folder; or `hub`, a model of Hugging Face's.

    path: a folder that a training run wrote, or one in Hugging Face's form. factory beside path: that of the folder,
    which is so allowed to lie outside the working directory. revision: the commit of hub.
    vocabulary: how many classes a language model's padded head really has, where its tokenizer.json does not tell.
    adapter: the folder of a PEFT adapter, merged into a model of Hugging Face's form.
    attention: which implementation of attention a model of Hugging Face's form uses; transformers chooses without it.
    """

    factory: str | None = None
    arguments: JsonDict | None = None
    weights: Location | None = None
    path: Location | None = None
    hub: str | None = None
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    vocabulary: int | None = Field(default=None, gt=1)
    adapter: Location | None = None
    attention: Attention | None = None
    dtype: Literal["float32", "float16", "bfloat16"]
    batch_size: int = Field(gt=0)

    @model_validator(mode="after")
    def _one_form(self) -> TeacherSection:
        forms = [name for name in ("factory", "hub", "path") if getattr(self, name) is not None]
        if len(forms) != 1 and forms != ["factory", "path"]:
            raise ValueError("name exactly one of factory, hub and path")
        if (self.path is not None or self.hub is not None) and (self.arguments is not None or self.weights is not None):
            raise ValueError(f"{'path' if self.path else 'hub'} brings its own arguments and weights")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together; revision is a commit (40 hex digits), since branches move")
        if self.factory is not None and self.path is None and self.vocabulary is not None:
            raise ValueError("vocabulary belongs to a language model of path or hub")
        if forms == ["factory"] and self.adapter is not None:
            raise ValueError("adapter belongs to a model of path or hub")
        if forms == ["factory"] and self.attention is not None:
            raise ValueError("attention belongs to a model of path or hub; a factory chooses its own")
        return self

    def spec(self) -> ModelSpec | HuggingFaceSpec:
        """Raises ModelError, RecipeError."""
        settings = {"vocabulary": self.vocabulary, "adapter": self.adapter, "attention": self.attention}
        if self.hub is not None:
            return HuggingFaceSpec(hub=self.hub, revision=self.revision, **settings)
        if self.path is None:
            assert self.factory is not None
            return ModelSpec(self.factory, self.arguments or {}, self.weights)
        if "factory" not in read_config(self.path):
            if self.factory is not None:
                raise RecipeError(
                    f"teacher.factory is {self.factory}, and '{self.path}' is a model in Hugging Face's form.",
                    "Beside path, factory names that of a folder which a run wrote.",
                    "Leave factory out, or path.",
                )
            return HuggingFaceSpec(self.path, **settings)
        for name, value in settings.items():
            if value is not None:
                raise RecipeError(
                    f"teacher.{name} is {value}, and '{self.path}' is a model that a run wrote.",
                    f"teacher.{name} belongs to a model in Hugging Face's form.",
                    "Leave it out.",
                )
        return spec_from_folder(self.path, self.factory)


class TargetsSection(Section):
    """The encoding by name; every other key is one of its settings."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    encoding: str

    @classmethod
    def more_keys(cls) -> list[str]:
        return sorted({name for encoding in ENCODINGS.values() for name in encoding.__dataclass_fields__})

    def make(self) -> Encoding:
        return make_encoding(self.encoding, dict(self.model_extra or {}))


class HeldOutSection(Section):
    """A second source that the same job runs the teacher over and seals as a cache of its own."""

    name: str = Field(pattern=NAME_PATTERN)
    source: SourceSection


class ActorsSection(Section):
    """As many actors as there is room for, up to max; fewer than min for longer than the deadline fail the job."""

    min: int = Field(default=1, gt=0)
    max: int = Field(gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> ActorsSection:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class RaySection(Section):
    """The actors: how many, what each takes and on nodes of which labels, and what they may cost.

    actors: n, or min and max; n means from 1 to n. capacity_timeout_s: how long fewer than min may be
    placed. max_crashes: how often an actor may die over one span, and how many may die in a row with
    nothing committed between; an actor that went with its node counts against max_preemptions only.
    hang_timeout_s: how long an actor may load its teacher, label a batch, or read or write a part of a span before it
    is replaced; once such a step has been measured, 20 times the longest so far, and at least this (of a batch, a
    sixth of it). null: no limit.
    num_cpus: the logical CPUs of an embedded Ray, where RAY_ADDRESS names no cluster.
    """

    actors: ActorsSection = Field(default=ActorsSection(max=1), validate_default=True)
    cpus_per_actor: float = Field(default=1.0, gt=0)
    gpus_per_actor: float = Field(default=0.0, ge=0)
    label_selector: dict[str, str] = Field(default_factory=dict)
    max_crashes: int = Field(default=3, ge=0)
    max_preemptions: int = Field(default=1000, ge=0)
    capacity_timeout_s: float = Field(default=1800.0, gt=0)
    hang_timeout_s: float | None = Field(default=3600.0, gt=0)
    num_cpus: int | None = Field(default=None, gt=0)

    @field_validator("gpus_per_actor")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("above 1 it is a whole number, since Ray shares single GPUs only")
        return gpus

    @field_validator("actors", mode="before")
    @classmethod
    def _one_number(cls, actors: Any) -> Any:
        whole = isinstance(actors, int) and not isinstance(actors, bool)
        return {"max": actors} if whole else actors


class TeacherRecipe(Section):
    """A teacher's run over its sources.

    inputs: stored lays every sample's inputs into the shards. referenced leaves them where they are, for a
    source that is large and stays as it is; shards then hold a digest of each row's inputs, by which a
    student that reads the source beside the cache knows that it has what the teacher saw.
    compression: of the shards; it changes no key and nothing that is read. zstd saves room and requests;
    none is for fast local disks, which read quicker than a core can undo zstd.
    span_rows: rows a span; None for those that follow from the columns (`span_size.default_span_rows`).
    """

    name: str = Field(pattern=NAME_PATTERN)
    store: Location
    source: SourceSection
    held_out: HeldOutSection | None = None
    teacher: TeacherSection
    targets: TargetsSection
    inputs: Inputs = "stored"
    compression: Literal["zstd", "none"] = "zstd"
    span_rows: int | None = Field(default=None, gt=0)
    max_bad_samples: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    ray: RaySection = RaySection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _two_names(self) -> TeacherRecipe:
        if self.held_out is not None and self.held_out.name == self.name:
            raise ValueError(f"held_out.name is '{self.name}', the name of the cache that students learn from")
        return self
