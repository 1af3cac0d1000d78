"""One seed of a recipe on disk: what its folder holds, what an earlier attempt left there, and when it is finished."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save_file

from jobs.errors import FolderInUse
from jobs.models.model_spec import CONFIG_FILE, WEIGHTS_FILE
from storage.base.digest import sha256_file
from storage.base.errors import StillhouseError, StoreError
from storage.base.redact import redact
from storage.cache.lineage import software
from storage.objectstore.folder import Folder
from storage.objectstore.preparation import prepare_folder
from storage.rows.row_groups import RowGroups
from student_train.run.owner import Ownership, own, refuse_lost
from student_train.training.checkpoint import cpu_tensors, refuse_foreign
from student_train.training.config import StudentRecipe
from student_train.training.data import open_data, open_evaluation
from student_train.training.journal import METRICS, PROGRESS_FILE, TOLD_FILE, show_progress
from student_train.training.loop import Outcome

log = logging.getLogger("stillhouse.train")

RUN_FILE, RESULT_FILE, CHECKPOINTS = "run.json", "result.json", "checkpoints"

# The result first: without it a run is not finished, whatever else is left of it.
_WRITTEN = (RESULT_FILE, RUN_FILE, CONFIG_FILE, WEIGHTS_FILE, CHECKPOINTS, METRICS, TOLD_FILE, PROGRESS_FILE)


@dataclass(frozen=True)
class Run:
    """A run before it is trained; `left` is what an earlier attempt noted of itself, if there was one.

    ownership: of the folder; None where the run is finished and has nothing to write. replaced: the MLflow run of an
    attempt that this one begins anew.
    """

    recipe: StudentRecipe
    folder: Folder
    identity: dict[str, Any]
    left: dict[str, Any]
    data: RowGroups
    held_out: RowGroups | None
    ownership: Ownership | None = None
    replaced: str | None = None

    def release(self) -> None:
        """Let other processes have the folder; a second call does nothing."""
        if self.ownership is not None:
            self.ownership.release()

    @property
    def owner_id(self) -> str:
        assert self.ownership is not None, "a run that is trained has its folder"
        return self.ownership.id

    def check(self) -> None:
        """Raises JobError where another process has taken over the folder."""
        refuse_lost(self.folder, self.owner_id)

    def is_ours(self) -> bool:
        try:
            self.check()
        except (StillhouseError, OSError):
            return False
        return True

    @property
    def finished(self) -> bool:
        return self.folder.exists(RESULT_FILE)

    def note(self, run_id: str | None) -> None:
        """Say whose folder this is, before anything else is written to it."""
        facts = {**self.identity, "run_id": run_id, "recipe": redact(self.recipe.model_dump(mode="json"))}
        self.folder.write(RUN_FILE, json.dumps(facts, indent=1).encode())

    def result(self) -> dict[str, Any]:
        return json.loads(self.folder.read(RESULT_FILE))

    def finish(self, result: dict[str, Any]) -> None:
        """Written last: its existence means that the run is finished. `tracked` says whether MLflow knows."""
        show_progress(self.folder, self.recipe.steps, None)
        self.folder.write(RESULT_FILE, json.dumps(result, indent=1).encode())


def begin(recipe: StudentRecipe) -> list[Run]:
    """A run for each seed of a recipe; with resume=never, after what earlier attempts left was removed.

    Their folders are this process's until `Run.release`. Raises FolderInUse, with nothing removed, when one is another
    process's, and VerificationError when one belongs to another recipe, model or data.
    """
    output = Folder(recipe.output)
    if not output.is_local:
        raise StoreError(
            f"output is {output.url}.",
            "Models and checkpoints are written to folders; a cache may lie on an object store.",
            "Name a local folder that every machine of the job sees.",
        )
    prepare_folder(output)
    data, held_out = open_data(recipe), open_evaluation(recipe)
    for rows in (data, held_out):
        for note in getattr(rows, "notes", ()):
            log.info("%s", redact(note))
    identity = {
        # The factory's source and the weights to start from count by content, as the data do.
        "model_digest": recipe.student.spec().digest("float32"),
        "data_digest": data.digest,
        "evaluation_digest": None if held_out is None else held_out.digest,
    }
    ones = {one.run_folder(): one for one in map(recipe.for_seed, recipe.seeds())}
    owned: dict[str, Ownership | None] = {}
    with ExitStack() as unless_all_begin:
        # In one order whatever the seeds' is: of two jobs that share some seeds one gets them all.
        for url in sorted(ones):
            held = owned[url] = _own(ones[url], Folder(url))
            if held is not None:
                unless_all_begin.callback(held.release)
        runs: list[Run] = []
        for url, one in ones.items():
            folder, mine = Folder(url), {"recipe_digest": one.digest(), **identity}
            left = json.loads(folder.read(RUN_FILE)) if folder.exists(RUN_FILE) else {}
            replaced = None
            if one.resume == "never":
                left, replaced = {}, left.get("run_id")
                for name in _WRITTEN:
                    folder.remove(name)
            if left:
                refuse_foreign(left, mine, folder.url)
            runs.append(Run(one, folder, mine, left, data, held_out, owned[url], replaced))
        unless_all_begin.pop_all()
    return runs


def _own(one: StudentRecipe, folder: Folder) -> Ownership | None:
    if one.resume == "never" or not folder.exists(RESULT_FILE):
        return own(folder)
    if json.loads(folder.read(RESULT_FILE)).get("tracked") or one.tracking.uri is False:
        return None
    try:
        return own(folder)
    except FolderInUse:
        return None  # the other process logs what MLflow lacks


def keep_model(recipe: StudentRecipe, folder: Folder, outcome: Outcome) -> dict[str, Any]:
    """Write the model folder, and give the answer of one run."""
    staged = folder.stage()
    save_file(cpu_tensors(outcome.model.state_dict()), staged)
    with open(staged, "rb") as file:
        digest = sha256_file(file)
    folder.write(WEIGHTS_FILE, staged.read_bytes())
    staged.unlink()
    config = {"factory": recipe.student.factory, "arguments": recipe.student.arguments}
    folder.write(CONFIG_FILE, json.dumps(config, indent=1).encode())
    return {
        "name": recipe.name,
        "role": recipe.role_name(),
        "seed": recipe.seed,
        "model": folder.url,
        "eval": outcome.eval,
        "steps": recipe.steps,
        "parameters": outcome.parameters,
        "weights_sha256": digest,
        "init_digest": outcome.init_digest,
        "data_digest": outcome.data_digest,
        "resumed_from": outcome.resumed_from,
        "seconds": round(outcome.seconds, 3),
        "software": software(),
    }
