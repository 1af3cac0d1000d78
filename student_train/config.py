"""What a student's recipe may say; the same one describes teachers and baselines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from storage.errors import RecipeError
from storage.models import ModelSpec
from storage.names import NAME_PATTERN, nearest
from storage.recipes import JsonDict, Location, Section, SourceSection, TrackingSection, recipe_digest
from student_train.losses import LOSSES


class ModelSection(Section):
    """The model to train: a factory with arguments; weights, if any, are what it starts from."""

    factory: str
    arguments: JsonDict = Field(default_factory=dict)
    weights: Location | None = None

    def spec(self) -> ModelSpec:
        return ModelSpec(self.factory, self.arguments, self.weights)


class LossSection(Section):
    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)


class OptimizerSection(Section):
    """lr is the peak: it rises over warmup_steps, then stays or falls along half a cosine to 0."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)


class RaySection(Section):
    """Workers of one run, what each takes and on nodes of which labels, and how many runs go on at the same time.

    num_cpus: the logical CPUs of an embedded Ray, where RAY_ADDRESS names no cluster.
    """

    workers: int = Field(default=1, gt=0)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    max_failures: int = Field(default=3, ge=0)
    concurrent_runs: int = Field(default=1, gt=0)
    start_timeout_s: float = Field(default=600.0, gt=0)
    label_selector: dict[str, str] = Field(default_factory=dict)
    num_cpus: int | None = Field(default=None, gt=0)


# What does not change a trained weight, and what counts by content instead (see `runs.begin`).
_PLACES = ("cache", "source", "evaluate", "output", "resume", "ray", "tracking", "checkpoint_every", "log_every")


class StudentRecipe(Section):
    name: str = Field(pattern=NAME_PATTERN)
    role: Literal["teacher", "student", "baseline"] | None = None
    cache: Location | None = None
    source: SourceSection | None = None
    student: ModelSection
    losses: dict[str, LossSection] = Field(default_factory=dict)
    optimizer: OptimizerSection
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    evaluate: Location | SourceSection | None = None
    checkpoint_every: int = Field(default=1000, gt=0)
    log_every: int = Field(default=50, gt=0)
    resume: Literal["auto", "never"] = "auto"
    output: Location = Field(default="./runs/models", validate_default=True)
    ray: RaySection = RaySection()
    tracking: TrackingSection = TrackingSection()
    seed: int | list[int] = 0

    @field_validator("losses")
    @classmethod
    def _known_losses(cls, losses: dict[str, LossSection]) -> dict[str, LossSection]:
        for name, section in losses.items():
            if name not in LOSSES:
                raise ValueError(f"unknown loss '{name}';{nearest(name, LOSSES)} the losses are {', '.join(LOSSES)}")
            if "temperature" in section.model_fields_set and LOSSES[name].needs != "targets":
                raise ValueError(f"{name} takes no temperature")
        return losses

    @field_validator("output", "cache")
    @classmethod
    def _seen_by_workers(cls, url: str | None) -> str | None:
        if url is not None and url.startswith("memory:"):
            raise ValueError("memory:// is one process's own, and Ray's workers are others")
        return url

    @field_validator("seed")
    @classmethod
    def _distinct_seeds(cls, seed: int | list[int]) -> int | list[int]:
        if not all(0 <= one < 2**63 for one in (seed if isinstance(seed, list) else [seed])):
            raise ValueError("a seed lies between 0 and 2^63 - 1")
        if isinstance(seed, list) and (not seed or len(set(seed)) < len(seed)):
            raise ValueError("seeds are distinct, and there is at least one")
        return seed

    @model_validator(mode="after")
    def _data_for_the_losses(self) -> StudentRecipe:
        if (self.cache is None) == (self.source is None):
            raise ValueError("name exactly one of cache (to learn from a teacher) and source (to learn from labels)")
        soft = [name for name in self.loss_sections() if LOSSES[name].needs == "targets"]
        if self.cache is None and soft:
            raise ValueError(f"{', '.join(soft)} needs soft targets; name a cache")
        if self.batch_size < self.ray.workers:
            raise ValueError(f"batch_size {self.batch_size} is less than the {self.ray.workers} workers")
        return self

    def loss_sections(self) -> dict[str, LossSection]:
        """The losses, or the usual one where none is named: forward_kl of a cache, cross_entropy of labels."""
        return self.losses or {"forward_kl" if self.cache is not None else "cross_entropy": LossSection()}

    def seeds(self) -> list[int]:
        return self.seed if isinstance(self.seed, list) else [self.seed]

    def for_seed(self, seed: int) -> StudentRecipe:
        return self.model_copy(update={"seed": seed})

    def role_name(self) -> str:
        return self.role or ("student" if self.cache is not None else "baseline")

    def digest(self) -> str:
        """What a checkpoint must agree with: how the model is trained, not where or on what machines.

        What it is trained and evaluated on, and the weights it starts from, count by content, with
        digests of their own.
        """
        return self._digest(_PLACES)

    def family(self) -> str:
        """The digest of the recipe without its seed: runs that differ in nothing else belong together."""
        return self._digest((*_PLACES, "seed"))

    def _digest(self, without: tuple[str, ...]) -> str:
        student = self.student.model_copy(update={"weights": None})
        return recipe_digest(self.model_copy(update={"student": student}), without=without)

    def run_folder(self) -> str:
        if isinstance(self.seed, list):
            raise RecipeError("A run has one seed.")
        return f"{self.output}/{self.name}/seed-{self.seed}"
