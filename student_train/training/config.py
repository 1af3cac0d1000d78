"""What a student's recipe may say; the same one describes teachers and baselines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_serializer, model_validator

from jobs.models.model_spec import ModelSpec
from jobs.recipe import recipe_digest
from jobs.tracking.settings import TrackingSection
from storage.base.digest import sha256_of
from storage.base.errors import RecipeError
from storage.base.names import NAME_PATTERN, nearest
from storage.base.settings import JsonDict, Section
from storage.objectstore.location import Location
from storage.rows.reading import Reading
from storage.rows.selected_rows import parse
from storage.sources.settings import SourceSection
from student_train.losses import LOSSES


class CacheSection(Section):
    """A cache's URL; alone, it is written without `url:`.

    inputs: where the inputs of a cache by reference are. where: which rows, by their plain columns.
    """

    url: Location
    inputs: SourceSection | None = None
    where: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"url": value}
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            raise ValueError(
                f"unknown key '{unknown[0]}';{nearest(str(unknown[0]), cls.model_fields)} "
                f"known here: {', '.join(cls.model_fields)}"
            )
        return value

    @model_serializer(mode="wrap")
    def _written(self, write: Any) -> Any:
        return self.url if self.inputs is None and self.where is None else write(self)

    @field_validator("url")
    @classmethod
    def _seen_by_workers(cls, url: str) -> str:
        return _refuse_memory(url)

    @field_validator("where")
    @classmethod
    def _expression(cls, where: str | None) -> str | None:
        try:
            if where is not None:
                parse(where)
        except RecipeError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return where


def _refuse_memory(url: str) -> str:
    if url.startswith("memory:"):
        raise ValueError("memory:// is one process's own, and Ray's workers are others")
    return url


def _section_of(value: Any) -> str:
    """Which section held-out data are meant to be: a URL, or a mapping with a key of CacheSection's, is a cache."""
    is_cache = isinstance(value, str | CacheSection)
    is_cache |= isinstance(value, dict) and not value.keys().isdisjoint(CacheSection.model_fields)
    return "CacheSection" if is_cache else "NoSection" if value is None else "SourceSection"


class ModelSection(Section):
    """The model to train: a factory with arguments; weights, if any, are what it starts from."""

    factory: str
    arguments: JsonDict = Field(default_factory=dict)
    weights: Location | None = None

    def spec(self) -> ModelSpec:
        return ModelSpec(self.factory, self.arguments, self.weights)


class LossSection(Section):
    """tail: what a sparse target's loss makes of the classes that were not kept (see `forward_kl`); None: the usual."""

    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    tail: Literal["bucket", "unigram", "renormalise", "none"] | None = None

    @model_serializer(mode="wrap")
    def _written(self, write: Any) -> Any:
        # As it was written, and digested, before there was a choice.
        return {key: value for key, value in write(self).items() if key != "tail" or value is not None}


class OptimizerSection(Section):
    """lr is the peak: it rises over warmup_steps, then stays or falls along half a cosine to 0."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)


class OrderSection(Section):
    """Into how many lanes the order cuts an epoch, and the rows of a lane that are mixed: see `storage.order`."""

    lanes: int | None = Field(default=None, gt=0)
    window: int | None = Field(default=None, gt=0)


class RaySection(Section):
    """Workers of one run, what each takes and on nodes of which labels, and how many runs go on at the same time.

    max_failures: how many attempts may fail for a reason that may pass (a store, a network, a device, a worker that
    died); each goes on from the last checkpoint. A node that was lost counts against max_preemptions only.
    start_timeout_s: how long workers may wait to be placed.
    num_cpus: the logical CPUs of an embedded Ray, where RAY_ADDRESS names no cluster.
    """

    workers: int = Field(default=1, gt=0)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    max_failures: int = Field(default=3, ge=0)
    max_preemptions: int = Field(default=1000, ge=0)
    concurrent_runs: int = Field(default=1, gt=0)
    start_timeout_s: float = Field(default=1800.0, gt=0)
    label_selector: dict[str, str] = Field(default_factory=dict)
    num_cpus: int | None = Field(default=None, gt=0)


# What does not change a trained weight, and what counts by content instead (see `runs.begin`).
_PLACES = (
    *("cache", "source", "evaluate", "output", "resume", "ray", "tracking", "reading"),
    *("checkpoint_every", "log_every"),
)


class StudentRecipe(Section):
    name: str = Field(pattern=NAME_PATTERN)
    role: Literal["teacher", "student", "baseline"] | None = None
    cache: CacheSection | None = None
    source: SourceSection | None = None
    student: ModelSection
    losses: dict[str, LossSection] = Field(default_factory=dict)
    optimizer: OptimizerSection
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    evaluate: (
        Annotated[SourceSection, Tag("SourceSection")]
        | Annotated[CacheSection, Tag("CacheSection")]
        | Annotated[None, Tag("NoSection")]
    ) = Field(default=None, discriminator=Discriminator(_section_of))
    order: OrderSection | None = None
    reading: Reading = Reading()
    checkpoint_every: int = Field(default=1000, gt=0)
    log_every: int = Field(default=50, gt=0)
    resume: Literal["auto", "never"] = "auto"
    output: Location = Field(default="./runs/models", validate_default=True)
    ray: RaySection = RaySection()
    tracking: TrackingSection = TrackingSection()
    seed: int | list[int] = 0

    @classmethod
    def more_keys(cls) -> list[str]:
        return [f"losses.{name}" for name in LOSSES]

    @field_validator("losses")
    @classmethod
    def _known_losses(cls, losses: dict[str, LossSection]) -> dict[str, LossSection]:
        for name, section in losses.items():
            if name not in LOSSES:
                raise ValueError(f"unknown loss '{name}';{nearest(name, LOSSES)} the losses are {', '.join(LOSSES)}")
            soft = [key for key in ("temperature", "tail") if key in section.model_fields_set]
            if soft and LOSSES[name].needs != "targets":
                raise ValueError(f"{name} takes no {soft[0]}")
        return losses

    @field_validator("output")
    @classmethod
    def _seen_by_workers(cls, url: str) -> str:
        return _refuse_memory(url)

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
        if self.order in (None, OrderSection()):
            # As it was before there was a choice.
            without = (*without, "order")
        digest = recipe_digest(self.model_copy(update={"student": student}), without=without)
        # Such a loss was once not multiplied by its power of T: a run that was trained so is another one.
        return sha256_of({"temperature_power": digest}) if self._scaled_alone() else digest

    def _scaled_alone(self) -> bool:
        """Whether soft losses at another temperature than 1 stand without a hard one."""
        losses = self.loss_sections()
        soft = [section for name, section in losses.items() if LOSSES[name].needs == "targets"]
        return len(soft) == len(losses) and any(section.temperature != 1 for section in soft)

    def run_folder(self) -> str:
        if isinstance(self.seed, list):
            raise RecipeError("A run has one seed.")
        return f"{self.output}/{self.name}/seed-{self.seed}"
