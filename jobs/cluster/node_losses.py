"""How an actor was lost: by its own end, or with its node."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

# How long the end of an actor that cannot be reached is waited for.
_DOUBT_S = 3.0


class Losses:
    """Judges lost actors one after the other."""

    def __init__(self) -> None:
        self._last_doubt = float("-inf")

    def took_its_node(self, error: RayError, actor: Any, node: str | None) -> bool:
        """Whether an actor was preempted, or its node died or cannot be reached; otherwise its process died.

        Of a process that died its node tells at once. Of a node that died nobody does: until Ray misses
        it, the actor is only unavailable. Where many go at the same time only the first is waited for long.
        """
        asked = False
        deadline = time.monotonic() + (_DOUBT_S if time.monotonic() - self._last_doubt > 10 * _DOUBT_S else 0.0)
        # Ray marks the losses that its autoscaler announced, and says the others in its sentence only.
        while not (getattr(error, "preempted", False) or "its node has died" in str(error)):
            if node is not None and not any(seen["NodeID"] == node and seen["Alive"] for seen in ray.nodes()):
                return True
            if not isinstance(error, ActorUnavailableError):
                return False
            if asked and time.monotonic() > deadline:
                self._last_doubt = time.monotonic()
                return True
            asked = True
            try:
                ray.get(actor.where.remote(), timeout=0.3)
            except RayError as later:
                error = later if isinstance(later, RayActorError) else error
            time.sleep(0.1)
        return True
