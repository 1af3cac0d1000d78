"""How Ray Train is used here: settings for one machine, no retries of its own, no processes without work."""

from __future__ import annotations

import dataclasses
from typing import Any

from ray.train import FailureConfig
from ray.train.torch import TorchTrainer

from jobs.cluster.connect import is_embedded

# What is set for an embedded Ray, unless the user has set it.
ON_ONE_MACHINE = {
    # Ray Train looks at its workers every two seconds, which is most of a short run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A process of each run that asks whether the worker's node will be taken away. This machine is the only node.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Threads of OpenMP (GNU's, which torch has on Linux) wait for each other in a busy loop of this many rounds, by
    # default of 300,000: with other processes on the cores, a step of a small model took several times as long.
    "GOMP_SPINCOUNT": "3000",
}


class LeanTrainer(TorchTrainer):
    """Ray Train without the processes of each run that have nothing to do here."""

    def _create_default_callbacks(self) -> list[Any]:
        # A private method of Ray's: in a version without it, or without these callbacks, the processes are started.
        idle = {"DatasetsCallback"}  # hands out data sets of Ray's own
        if is_embedded():
            # Frees the workers' places after the controller died. It asks Ray's state API whether that is so, which an
            # embedded Ray does not serve, and the end of each run waits for it.
            idle.add("PlacementGroupCleanerCallback")
        return [callback for callback in super()._create_default_callbacks() if type(callback).__name__ not in idle]


def no_retries() -> FailureConfig:
    """Ray Train's own retries are off: it tries final errors again, at once, and counts starts that time out."""
    known = {field.name for field in dataclasses.fields(FailureConfig)}
    # Versions before 2.60 have no budget of its own for preemptions.
    preemptions: dict[str, Any] = {"max_preemption_failures": 0} if "max_preemption_failures" in known else {}
    return FailureConfig(max_failures=0, controller_failure_limit=0, **preemptions)
