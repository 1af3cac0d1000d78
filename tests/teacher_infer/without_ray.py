"""A teacher's recipe run to a sealed cache in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from storage.cache.cache import Cache
from storage.cache.seal import seal
from storage.objectstore.folder import Folder
from storage.objectstore.preparation import prepare_folder
from storage.sources import make_source
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.prepare import lineage_of, prepare
from teacher_infer.teachers import make_teacher


def labelled(recipe: dict[str, Any], spoil: Callable[[Any], Any] = lambda logits: logits) -> Cache:
    """A recipe's cache without Ray; `spoil` changes the teacher's answers on their way."""
    read = TeacherRecipe.model_validate(recipe)
    store = Folder(read.store)
    prepare_folder(store)
    prepared = prepare(read, store)
    [part] = prepared.parts
    teacher = make_teacher(prepared.spec, dtype=read.teacher.dtype, seed=read.seed)
    really = teacher.logits
    teacher.logits = lambda inputs: spoil(really(inputs))  # type: ignore[method-assign]
    work = Work(
        store,
        make_source(part.source),
        prepared.encoding,
        prepared.teacher_digest,
        4,
        inputs=read.inputs,
        key=part.key_parts.to_dict(),
    )
    commits = [label_span(work, teacher, span).commit for span in part.plan.spans]
    return seal(store, part.name, commits, lineage_of(prepared, part))
