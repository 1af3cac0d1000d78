"""What a teacher's recipe may say."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from storage.encodings import Encoding, make_encoding
from storage.models import ModelSpec, spec_from_folder
from storage.names import NAME_PATTERN
from storage.recipes import JsonDict, Location, Section, SourceSection, TrackingSection


class TeacherSection(Section):
    """The teacher: a factory with arguments and weights, or `path`, a model folder that a training run wrote."""

    factory: str | None = None
    arguments: JsonDict | None = None
    weights: Location | None = None
    path: Location | None = None
    dtype: Literal["float32", "float16", "bfloat16"]
    batch_size: int = Field(gt=0)

    @model_validator(mode="after")
    def _one_form(self) -> TeacherSection:
        if (self.factory is None) == (self.path is None):
            raise ValueError("name exactly one of factory and path")
        if self.path is not None and (self.arguments is not None or self.weights is not None):
            raise ValueError("path brings its own arguments and weights")
        return self

    def spec(self) -> ModelSpec:
        if self.path is not None:
            return spec_from_folder(self.path)
        assert self.factory is not None
        return ModelSpec(self.factory, self.arguments or {}, self.weights)


class TargetsSection(Section):
    """The encoding by name; every other key is one of its settings."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    encoding: str

    def make(self) -> Encoding:
        return make_encoding(self.encoding, dict(self.model_extra or {}))


class HeldOutSection(Section):
    """A second source that the same job runs the teacher over and seals as a cache of its own."""

    name: str = Field(pattern=NAME_PATTERN)
    source: SourceSection


class RaySection(Section):
    """The actors: how many, what each takes and on nodes of which labels, and how long to wait for the first.

    num_cpus: the logical CPUs of an embedded Ray, where RAY_ADDRESS names no cluster.
    """

    actors: int = Field(default=1, gt=0)
    cpus_per_actor: float = Field(default=1.0, gt=0)
    gpus_per_actor: float = Field(default=0.0, ge=0)
    label_selector: dict[str, str] = Field(default_factory=dict)
    max_restarts: int = Field(default=3, ge=0)
    capacity_timeout_s: float = Field(default=600.0, gt=0)
    num_cpus: int | None = Field(default=None, gt=0)


class TeacherRecipe(Section):
    name: str = Field(pattern=NAME_PATTERN)
    store: Location
    source: SourceSection
    held_out: HeldOutSection | None = None
    teacher: TeacherSection
    targets: TargetsSection
    span_rows: int = Field(default=65536, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    ray: RaySection = RaySection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _two_names(self) -> TeacherRecipe:
        if self.held_out is not None and self.held_out.name == self.name:
            raise ValueError(f"held_out.name is '{self.name}', the name of the cache that students learn from")
        return self
