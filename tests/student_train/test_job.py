"""Which attempts of a training run are made again: decided in the driver, and met on Ray."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from jobs.failures import classification
from storage.base.errors import JobError, RecipeError, StoreLost
from student_train import job, ray_train
from student_train.__main__ import main
from student_train.run.attempts import train_in_attempts, translate
from student_train.run.run_folder import begin
from student_train.training.config import RaySection


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "FIRST_DELAY_S", 0.0)


def fit(answers: list[Any], stopped: threading.Event | None = None, **ray: Any) -> Any:
    """`train_in_attempts` where each attempt ends with the next of these answers."""
    recipe: Any = SimpleNamespace(name="toy", seed=3, ray=RaySection.model_validate(ray))
    return train_in_attempts(recipe, lambda: answers.pop(0), stopped or threading.Event())


def test_an_attempt_that_failed_for_a_passing_reason_is_made_again(
    quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [StoreLost("no answer"), ConnectionResetError("x"), {"steps": 3}]
    assert fit(answers) == {"steps": 3}
    first, second = caplog.messages
    assert first == "toy, seed 3: attempt 2 begins in 0 s. no answer"
    assert second.startswith("toy, seed 3: attempt 3 begins in 0 s. Training failed: ")


def test_before_another_attempt_there_is_a_pause_that_an_interrupt_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification.random, "uniform", lambda low, high: high)
    waited = list[float]()
    stopped: Any = SimpleNamespace(is_set=lambda: False, wait=waited.append)
    assert fit([StoreLost("x"), StoreLost("x"), {"steps": 3}], stopped) == {"steps": 3}
    assert waited == [2.0, 4.0]


def test_once_its_budget_is_spent_the_last_error_ends_the_run(quick: None) -> None:
    answers: list[Any] = [StoreLost("first"), StoreLost("second"), {"steps": 3}]
    with pytest.raises(StoreLost, match="second"):
        fit(answers, max_failures=1)
    assert len(answers) == 1


def test_a_final_error_ends_the_run_at_once() -> None:
    answers: list[Any] = [JobError("NaN"), {"steps": 3}]
    with pytest.raises(JobError):
        fit(answers)
    assert len(answers) == 1


def test_after_an_interrupt_no_attempt_begins() -> None:
    stopped, answers = threading.Event(), [StoreLost("no answer"), {"steps": 3}]
    stopped.set()
    with pytest.raises(KeyboardInterrupt):
        fit(answers, stopped)
    assert len(answers) == 2


def test_an_interrupt_between_attempts_ends_the_run() -> None:
    stopped, made = threading.Event(), list[int]()

    def attempt() -> Any:
        made.append(1)
        stopped.set()
        return StoreLost("no answer")

    recipe: Any = SimpleNamespace(name="toy", seed=3, ray=RaySection())
    with pytest.raises(KeyboardInterrupt):
        train_in_attempts(recipe, attempt, stopped)
    assert len(made) == 1


def test_an_attempt_leaves_no_handler_of_interrupts_behind(
    monkeypatch: pytest.MonkeyPatch, make_cache: Any, make_recipe: Any
) -> None:
    """Ray Train's own handler stops nothing once its workers are gone."""
    before = signal.getsignal(signal.SIGINT)

    class Trainer:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self) -> Any:
            signal.signal(signal.SIGINT, lambda *_: None)
            return SimpleNamespace(return_value={"steps": 3})

    monkeypatch.setattr(job, "LeanTrainer", Trainer)
    [run] = begin(make_recipe(cache=make_cache()))
    assert job._attempt(run, SimpleNamespace(uri=None, run_id=None)) == {"steps": 3}  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) == before
    run.release()


def test_ray_trains_own_retries_are_off() -> None:
    config = ray_train.no_retries()
    assert (config.max_failures, config.controller_failure_limit) == (0, 0)
    assert getattr(config, "max_preemption_failures", 0) == 0


@pytest.mark.parametrize(("address", "for_one_machine"), [("local", True), ("10.0.0.1:6379", False)])
def test_settings_for_one_machine_are_not_made_for_a_cluster_or_over_the_users(
    monkeypatch: pytest.MonkeyPatch, make_cache: Any, make_recipe: Any, address: str, for_one_machine: bool
) -> None:
    kept = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7"}
    for name in job.ON_ONE_MACHINE:
        monkeypatch.setenv(name, kept.get(name, ""))
        if name not in kept:
            monkeypatch.delenv(name)  # and as it was when the test is over
    monkeypatch.setenv("RAY_ADDRESS", address)

    def connect(_: int | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "connect", connect)
    with pytest.raises(KeyboardInterrupt):
        job.run(make_recipe(cache=make_cache()))
    found = {name: os.environ[name] for name in job.ON_ONE_MACHINE if name in os.environ}
    assert found == ({**job.ON_ONE_MACHINE, **kept} if for_one_machine else kept)


@pytest.fixture
def labelled(toys: Path, tmp_path: Path, write_yaml: Callable[..., str]) -> Callable[..., str]:
    """A recipe that learns from the labels of the toys' source."""

    def make(student: dict[str, Any], source: dict[str, Any], **replaced: Any) -> str:
        return write_yaml(
            name="toy",
            source={"function": "stillhouse_toys:rows", "arguments": source},
            student={"factory": "stillhouse_toys:linear", "arguments": student},
            optimizer={"lr": 0.05},
            steps=4,
            batch_size=8,
            output=str(tmp_path / "models"),
            tracking={"uri": False},
            **replaced,
        )

    return make


@pytest.mark.slow
def test_a_worker_that_lost_its_source_is_started_again(
    one_ray: str, labelled: Callable[..., str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dropped = tmp_path / "dropped"
    code = main([labelled({}, {"drops": str(dropped), "driver": os.getpid()}), "--json"])
    said = capfd.readouterr().err
    assert code == 0, said
    assert "toy, seed 0: attempt 2 begins" in said and "Connection reset by peer" in said


@pytest.mark.parametrize("embedded", [False, True])
def test_a_run_starts_no_process_that_has_nothing_to_do(
    one_ray: str, labelled: Callable[..., str], monkeypatch: pytest.MonkeyPatch, embedded: bool
) -> None:
    monkeypatch.setattr(ray_train, "is_embedded", lambda: embedded)
    before = set(actors())
    assert main([labelled({}, {})]) == 0
    # All runs on a Ray share one coordinator, which the first run starts.
    names = [name for actor, name in actors().items() if actor not in before and "Coordinator" not in name]
    cleaner = [] if embedded else ["PlacementGroupCleaner"]
    assert sorted(names) == [*cleaner, "RayTrainWorker", "SynchronizationActor", "TrainController"]


def actors() -> dict[str, str]:
    """The class of each actor that the session's Ray has or had."""
    return {actor: facts["ActorClassName"] for actor, facts in ray._private.state.actors().items()}


def test_a_loss_that_is_no_number_is_met_once_however_many_workers(
    one_ray: str, labelled: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    code = main([labelled({"bad": 0.0}, {"count": 8}, ray={"workers": 2, "max_failures": 3})])
    said = capfd.readouterr().err
    assert code == 1
    assert "JobError: " in said and "attempt 2" not in said


def test_workers_that_an_embedded_ray_never_has_room_for_are_refused_at_once(
    one_ray: str, labelled: Callable[..., str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "is_embedded", lambda: True)
    code = main([labelled({}, {}, ray={"workers": 3})])
    said = capfd.readouterr().err
    assert code == 2
    assert (
        "RecipeError: ray: Each asks for 1 CPUs, 3 of them. The Ray that is embedded in this process has CPU 2" in said
    )


def test_workers_that_never_come_are_said_with_what_was_asked_and_what_there_is(
    one_ray: str, labelled: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    ray = {"label_selector": {"role": "nobody"}, "start_timeout_s": 0.5}
    code = main([labelled({}, {}, ray=ray)])
    said = capfd.readouterr().err
    assert code == 1
    assert (
        "JobError: 1 workers could not be placed within 0.5 s. Each asks for 1 CPUs on nodes with {'role': 'nobody'}; "
        "the cluster has CPU 2" in said
    )
    assert "attempt 2" not in said


def test_an_error_of_the_model_is_a_sentence() -> None:
    error = translate(ValueError("a model's own check"), SimpleNamespace())  # type: ignore[arg-type]
    assert type(error) is JobError and "Training failed: a model's own check" in str(error)
    assert translate(RecipeError("x"), SimpleNamespace()).args[0] == "x"  # type: ignore[arg-type]
