"""A recipe with everything in it found, digested and planned, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from jobs.models.hugging_face import HuggingFaceSpec
from jobs.recipe import recipe_digest
from storage.base.digest import sha256_of
from storage.base.redact import refuse_secrets
from storage.cache.commits import committed_keys
from storage.cache.keys import cache_key
from storage.cache.lineage import cache_lineage
from storage.encodings import Encoding
from storage.format.shard import row_bytes
from storage.objectstore.folder import Folder
from storage.samples.described_columns import described_columns
from storage.sources import make_source
from teacher_infer.planning.cache_miss import CacheMiss, explain_miss
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.plan import Plan, Span, added_fields, make_plan
from teacher_infer.planning.positions import positions_of
from teacher_infer.planning.span_size import idle_warning, size_warnings
from teacher_infer.teachers import Spec, answer_shape, build_without_weights, resolve, spec_settings


@dataclass(frozen=True)
class Part:
    """One cache of a job: its name, its source and the plan over it.

    key_parts: what its shard keys count beside the spans. columns: which columns of the source are inputs, and the
    rest of `samples.described_columns`. notes: on the source's files. miss: why nothing can be reused, where another
    cache was near.
    """

    name: str
    source: dict[str, Any]
    key_parts: KeyParts
    plan: Plan
    missing: list[Span]
    columns: dict[str, Any]
    notes: list[str]
    miss: CacheMiss | None = None

    @property
    def counts(self) -> dict[str, int]:
        total = len(self.plan.spans)
        return {"total": total, "reused": total - len(self.missing), "computed": len(self.missing)}

    def answer(self) -> dict[str, Any]:
        key = cache_key([span.shard_key for span in self.plan.spans])
        facts = {"name": self.name, "cache_key": key, "spans": self.counts, "positions": self.plan.positions}
        if self.plan.skipped_documents:
            facts["skipped_documents"] = self.plan.skipped_documents
        return facts if self.miss is None else {**facts, "miss": asdict(self.miss)}


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything in it found, digested and planned; nothing has run."""

    recipe: TeacherRecipe
    store: Folder
    spec: Spec
    key_parts: KeyParts
    weights_sha256: str | None
    encoding: Encoding
    parts: tuple[Part, ...]

    @property
    def teacher_digest(self) -> str:
        return self.key_parts.teacher

    @property
    def notes(self) -> list[str]:
        """What lies beside the teacher and is not used, and which files of the sources are."""
        of_sources = dict.fromkeys(note for part in self.parts for note in part.notes)
        return [*(self.spec.notes() if isinstance(self.spec, HuggingFaceSpec) else []), *of_sources]


def prepare(recipe: TeacherRecipe, store: Folder) -> Prepared:
    """Resolve the teacher, digest the sources and plan. Raises UsageError of every kind."""
    _refuse_secrets(recipe)
    encoding, spec = recipe.targets.make(), recipe.teacher.spec()
    refuse_secrets(spec.lineage(), "teacher")
    spec = resolve(spec, recipe.teacher.dtype)
    teacher = spec.key_parts(recipe.teacher.dtype, build_without_weights(spec, recipe.seed))
    key_parts = KeyParts.of(sha256_of(teacher), encoding, recipe.seed, inputs=recipe.inputs)
    key_parts = replace(key_parts, teacher_parts=teacher)
    parts = [_part(recipe.name, recipe.source.settings(), recipe.span_rows, key_parts, store, spec)]
    if recipe.held_out is not None:
        held_out = recipe.held_out
        second = _part(held_out.name, held_out.source.settings(), recipe.span_rows, key_parts, store, spec)
        # Rows that both hold are labelled for the first, and reused by the second.
        first = {span.shard_key for span in parts[0].missing}
        parts.append(replace(second, missing=[span for span in second.missing if span.shard_key not in first]))
    return Prepared(recipe, store, spec, key_parts, spec.weights_sha256(), encoding, tuple(parts))


def _refuse_secrets(recipe: TeacherRecipe) -> None:
    """Raises RecipeError when what is sealed into a cache would hold a secret."""
    refuse_secrets(recipe.source.settings(), "source")
    refuse_secrets(recipe.teacher.model_dump(), "teacher")
    if recipe.held_out is not None:
        refuse_secrets(recipe.held_out.source.settings(), "held_out.source")


def _part(
    name: str, settings: dict[str, Any], span_rows: int | None, key_parts: KeyParts, store: Folder, spec: Spec
) -> Part:
    source, refuse = make_source(settings), None
    if isinstance(spec, HuggingFaceSpec):
        spec.refuse_source(source)
        refuse = spec.refuse_rows
    key_parts = replace(key_parts, preprocessing=source.preprocessing())
    plan = make_plan(source, span_rows, key_parts, refuse, partial(positions_of, spec))
    done = committed_keys(store, [span.shard_key for span in plan.spans])
    columns = described_columns(plan.example.schema, source.columns, source.left_out())
    if settings.get("pack") is not None:
        columns["preprocessing"] = key_parts.preprocessing
    missing = plan.missing(done)
    miss = None
    if len(missing) == len(plan.spans):
        miss = explain_miss(store, name, settings, key_parts.to_dict(), plan.span_rows)
    return Part(name, settings, key_parts, plan, missing, columns, source.notes(), miss)


def show_plan(prepared: Prepared) -> dict[str, Any]:
    """What a job would do: spans, positions, expected bytes before compression, and what it would reuse."""
    recipe = prepared.recipe
    answers: list[dict[str, Any]] = []
    for part in prepared.parts:
        shape = answer_shape(prepared.spec, part.plan.example, dtype=recipe.teacher.dtype, seed=recipe.seed)
        size = None if shape is None else part.plan.sample_bytes + part.plan.rows * _added(prepared, shape)
        forward = sum(span.rows for span in part.missing) * part.plan.positions_a_row
        classes = None if shape is None else shape[-1]
        packed = part.source.get("pack") is not None
        span, warnings = _span_facts(part.plan, None if size is None else size / part.plan.rows, packed)
        facts = {"forward_positions": forward, "expected_bytes": size, "classes": classes, "span": span}
        answers.append({**part.answer(), **facts, "warnings": warnings, **part.columns})
    missing = [span for part in prepared.parts for span in part.missing]
    if len(missing) == sum(len(part.plan.spans) for part in prepared.parts):  # other spans would cost nothing
        rows = sum(span.rows for span in missing)
        idle = idle_warning(len(missing), rows, recipe.ray.actors.max, recipe.teacher.batch_size)
        answers[0]["warnings"] += [] if idle is None else [idle]
    notes = {"notes": prepared.notes} if prepared.notes else {}
    return {"store": prepared.store.url, **notes, **nested(answers)}


def _span_facts(plan: Plan, row_stored: float | None, packed: bool) -> tuple[dict[str, Any], list[str]]:
    """The size of the largest span, and what is wrong with it. row_stored: bytes of a row in a shard, if known."""
    rows = max(span.rows for span in plan.spans)
    size = None if row_stored is None else round(rows * row_stored)
    facts = {"rows": rows, "bytes": size, "positions": rows * plan.positions_a_row}
    in_memory = row_bytes(plan.example.schema)
    return facts, size_warnings(facts, plan.span_rows, len(plan.spans), plan.rows, in_memory, packed)


def _added(prepared: Prepared, shape: tuple[int, ...]) -> int:
    """The bytes that a job adds to what is stored of each sample. shape: of one sample's logits."""
    *positions, classes = shape
    fields = [*added_fields(prepared.recipe.inputs, *positions), *prepared.encoding.fields(classes, *positions)]
    return sum(field.type.byte_width for field in fields)


def nested(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One answer for a recipe: the cache's own, the held-out one inside it."""
    return {**answers[0], **({"held_out": answers[1]} if len(answers) > 1 else {})}


def actor_settings(prepared: Prepared, marker: str) -> dict[str, Any]:
    """What an actor is made from: plain values, so that nothing of the driver travels. marker: a file in the store."""
    recipe = prepared.recipe
    return {
        "store": prepared.store.url,
        "keeps_create": prepared.store.keeps_create,
        "marker": marker,
        "spec": spec_settings(prepared.spec),
        "dtype": recipe.teacher.dtype,
        "seed": recipe.seed,
        "batch_size": recipe.teacher.batch_size,
        "max_bad_samples": recipe.max_bad_samples,
        "targets": prepared.encoding.to_dict(),
        "inputs": recipe.inputs,
        "compression": recipe.compression,
        "teacher_parts": prepared.key_parts.teacher_parts,
        "sources": [part.source for part in prepared.parts],
        "keys": [part.key_parts.to_dict() for part in prepared.parts],
        "cpus": recipe.ray.cpus_per_actor,
    }


def lineage_of(prepared: Prepared, part: Part) -> dict[str, Any]:
    """What is sealed into a part's cache of where it came from."""
    spec, recipe = prepared.spec, prepared.recipe
    teacher = {
        "digest": prepared.key_parts.teacher,
        **spec.lineage(),
        "weights_sha256": prepared.weights_sha256,
        "dtype": recipe.teacher.dtype,
    }
    lineage = cache_lineage(
        teacher=teacher,
        source=part.source,
        targets=prepared.encoding.to_dict(),
        recipe_digest=recipe_digest(recipe),
    )
    lineage |= {"key": part.key_parts.to_dict(), "span_rows": part.plan.span_rows}
    return {**lineage, "inputs": recipe.inputs} if recipe.inputs != "stored" else lineage
