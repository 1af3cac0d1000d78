"""A model's folder from Hugging Face's hub, fetched once to this machine."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from jobs.models.model_spec import CONFIG_FILE
from jobs.models.weights import INDEX_FILE, WEIGHTS_FILE
from storage.base.errors import ModelError
from storage.sources.packing.tokenizer import TOKENIZER_FILE

log = logging.getLogger("stillhouse.hub")


def fetched(hub: str, revision: str) -> Path:
    """The folder of a model at a commit. Raises ModelError where it can be had neither here nor there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            "Models are fetched from the hub by the package huggingface_hub, which is not installed.",
            remedy="Install it with: pip install 'stillhouse[lm]'",
        ) from None
    wanted = [CONFIG_FILE, WEIGHTS_FILE, "*.safetensors", INDEX_FILE, TOKENIZER_FILE]
    here = None
    try:
        # A commit stays what it is, so what was fetched once is not asked for again.
        found = Path(snapshot_download(hub, revision=revision, allow_patterns=wanted, local_files_only=True))
        here = found if _is_whole(found) else None
    except Exception as error:
        log.debug("%s at %s is not on this machine: %s", hub, revision, error)
    # Who fetched the weights alone may have left the tokenizer, which says how much of the head is meant.
    if here is not None and (here / TOKENIZER_FILE).exists():
        return here
    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=wanted))
    except Exception as error:
        if here is not None:
            log.warning(
                "The hub was not reached, and '%s' on this machine has no %s: all of its head is taken for classes.",
                hub,
                TOKENIZER_FILE,
            )
            return here
        raise ModelError(
            f"The model '{hub}' at {revision[:12]} cannot be had from the hub ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}).",
            "teacher.hub and teacher.revision name a model and a commit on huggingface.co, which this machine reaches.",
            "Without a network, copy the model's folder (config.json, *.safetensors, tokenizer.json) to this machine "
            "and name it in teacher.path, in place of hub and revision.",
        ) from None


def _is_whole(folder: Path) -> bool:
    """False for a folder that was fetched in part."""
    names = [CONFIG_FILE, WEIGHTS_FILE]
    if (folder / INDEX_FILE).exists():
        names = [CONFIG_FILE, *json.loads((folder / INDEX_FILE).read_bytes())["weight_map"].values()]
    return all((folder / name).exists() for name in names)
