"""What workers ask of a cluster, and what it has."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from storage.base.errors import RecipeError


def bundle(cpus: float, gpus: float) -> dict[str, float]:
    """What one worker takes, as Ray names it."""
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}


def asked_for(each: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """What each worker takes, in words."""
    where = f" on nodes with {dict(labels)}" if labels else ""
    return f"Each asks for {' and '.join(f'{count:g} {name}s' for name, count in each.items())}{where}"


def what_there_is() -> str:
    """The cluster's resources in words, without those that Ray makes up for its nodes."""
    found = {name: count for name, count in ray.cluster_resources().items() if ":" not in name}
    sizes = {"memory", "object_store_memory"}
    return ", ".join(
        f"{name} {count / 2**30:.0f} GiB" if name in sizes else f"{name} {count:g}"
        for name, count in sorted(found.items())
    )


def refuse_too_large(each: Mapping[str, float], workers: int = 1) -> None:
    """Raises RecipeError when so many workers never fit into the embedded Ray at hand, to which no node is added."""
    has = ray.cluster_resources()
    if any(count * workers > has.get(name, 0.0) for name, count in each.items()):
        raise RecipeError(
            f"ray: {asked_for(each, {})}{f', {workers} of them' if workers > 1 else ''}. "
            f"The Ray that is embedded in this process has {what_there_is()}.",
            "Workers fit into it, since no node is added to it.",
            "Ask for less under `ray`, or name a cluster in RAY_ADDRESS. ray.num_cpus sets how many CPUs it has.",
        )
