"""A loaded teacher that labels spans: what a teacher's actor does, with no Ray in it."""

from __future__ import annotations

import socket
import threading
from typing import Any

from storage.base.digest import sha256_of
from storage.base.errors import RecipeError, StoreError, VerificationError
from storage.encodings import make_encoding
from storage.objectstore.folder import Folder
from storage.objectstore.staging import remove_dead_stages
from storage.sources import make_source
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.labelling.watch import Advance, Step
from teacher_infer.planning.key_parts import differences
from teacher_infer.planning.plan import Span
from teacher_infer.teachers import build_without_weights, make_spec, make_teacher


class Worker:
    """Labels spans, two at a time, from two threads: one is with the teacher, the other one read or written.

    settings: plain values, see `prepare.actor_settings`. Only commit records leave it.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings, self._turn = settings, threading.Lock()
        self._reports, self._rows, self._doing = 0, dict[str, int](), dict[str, Step]()

    def load(self, gpus: int) -> None:
        """Load the teacher. Raises StoreError, RecipeError, VerificationError, and what loading raises."""
        settings, here = self._settings, socket.gethostname()
        store = Folder(settings["store"], settings["keeps_create"])
        remove_dead_stages()
        if not store.exists(settings["marker"]):
            raise StoreError(
                f"The machine {here} does not see the store {store.url} that the job began on.",
                "Every machine of the job reads and writes the same store.",
                "Name a shared folder or an object store.",
            )
        spec = make_spec(settings["spec"])
        planned = settings["teacher_parts"]
        try:
            model = build_without_weights(spec, settings["seed"])
            found = spec.key_parts(settings["dtype"], model)
        except RecipeError as error:
            raise RecipeError(
                f"On the machine {here}: {error}",
                remedy="Ship the module with the job's working directory, or install it on every machine.",
            ) from None
        if found != planned:
            raise VerificationError(
                f"The teacher {spec.lineage()['factory']} on {here} has the digest {sha256_of(found)[:16]}; other than "
                f"planned: {', '.join(differences(planned, found))}.",
                f"The job was planned with {sha256_of(planned)[:16]}.",
                "Its weights or its code changed, or this machine has others; run the recipe again. Where the factory "
                "makes its weights itself, it makes the same ones each time (torch.manual_seed is set before).",
            )
        targets = dict(settings["targets"])
        encoding = make_encoding(targets.pop("encoding"), targets)
        self._teacher = make_teacher(spec, dtype=settings["dtype"], seed=settings["seed"], gpus=gpus, model=model)
        common = (encoding, sha256_of(planned), settings["batch_size"], settings["max_bad_samples"])
        kept = {"inputs": settings["inputs"], "compression": settings["compression"]}
        self._works = [
            Work(store, make_source(source), *common, settings["keeps_create"], **kept, key=key)
            for source, key in zip(settings["sources"], settings["keys"], strict=True)
        ]

    def label(self, part: int, span: Span) -> dict[str, Any]:
        import torch

        # A setting of the calling thread, of which this actor has several.
        torch.set_num_threads(max(1, int(self._settings["cpus"])))
        key = span.shard_key

        def report(rows: int, step: Step) -> None:
            self._reports += 1
            self._rows[key], self._doing[key] = rows, step

        try:
            labelled = label_span(self._works[part], self._teacher, span, self._turn, report)
        finally:
            self._rows.pop(key, None)
            self._doing.pop(key, None)
        return {
            "commit": labelled.commit.to_dict(),
            "computed": labelled.computed,
            "seconds": vars(labelled.seconds),
        }

    def progress(self) -> Advance:
        """How far it is."""
        # Of two spans one is with the teacher, whose batches end sooner than files are read or written.
        step: Step = "label" if "label" in self._doing.values() else "move"
        return Advance(self._reports, step, dict(self._rows))
