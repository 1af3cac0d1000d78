"""Which failures pass, told from errors as Ray and torch raise them; and how long is waited between tries."""

from __future__ import annotations

import errno
import pickle
from typing import Any

import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayActorError, RaySystemError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal import exceptions as train
from ray.train.v2.api import exceptions as api

from jobs.errors import ClusterError, DeviceLost
from jobs.failures import classification
from jobs.failures.classification import Failure, Retries, classify, decisive, delay_s, portable
from storage.base.errors import CorruptShard, JobError, RecipeError, StoreFull, StoreLost

NODE_LOST, PROCESS_LOST, FINAL, PASSING = Failure


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def died(*, node: bool = False) -> RayActorError:
    """The error of a worker that died with its node, or of which only the process died."""
    return RayActorError(error_msg="The actor died because its node has died." if node else "It was killed by SIGKILL.")


def of_worker(error: BaseException) -> Exception:
    return train.UserExceptionWithTraceback(error, "Traceback ...")


def of_health_check(error: Exception) -> Exception:
    return train.WorkerHealthCheckFailedError("A worker health check failed.", error)


def of_group(*workers: Exception) -> WorkerGroupError:
    return WorkerGroupError("", dict(enumerate(workers)))


GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreLost("no answer"), PASSING),
        (DeviceLost("an assert"), PASSING),
        (ClusterError("no head"), PASSING),
        (ConnectionResetError("x"), PASSING),
        (TimeoutError("x"), PASSING),
        (OSError(errno.ESTALE, "Stale file handle"), PASSING),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), PASSING),
        (RuntimeError("NCCL communicator was aborted on rank 1"), PASSING),
        (GLOO, PASSING),
        (torch.distributed.DistNetworkError("The client socket has timed out"), PASSING),
        (caused_by(RuntimeError("cannot read"), ConnectionResetError("x")), PASSING),
        (JobError("NaN"), FINAL),
        (JobError("NaN"), FINAL),
        (RecipeError("x"), FINAL),
        (CorruptShard("x"), FINAL),
        (StoreFull("x"), FINAL),
        (OSError(errno.ENOSPC, "No space left"), FINAL),
        (OSError(errno.EACCES, "Permission denied"), FINAL),
        (ValueError("gloom"), FINAL),
        (ValueError("Connection reset by peer in row 7"), FINAL),
        (RuntimeError("CUDA error: device-side assert triggered"), FINAL),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), FINAL),
        (RuntimeError("Distributed package doesn't have NCCL built in"), FINAL),
        (RaySystemError("System error: cannot be unpickled"), FINAL),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FINAL),
        (torch.OutOfMemoryError("CUDA out of memory"), FINAL),
        (caused_by(RuntimeError("x"), torch.OutOfMemoryError("CUDA out of memory")), FINAL),
        (died(), PROCESS_LOST),
        (OutOfMemoryError("the node was low on memory"), PROCESS_LOST),
        (died(node=True), NODE_LOST),
    ],
)
def test_an_error_is_classified_bare_in_a_task_and_in_a_worker_group(error: Exception, kind: Failure) -> None:
    assert classify(error) is kind
    assert classify(of_group(of_worker(error))) is kind
    assert classify(of_group(of_health_check(error))) is kind
    assert classify(RayTaskError("label", "Traceback ...", error)) is kind
    assert classify(RayTaskError("label", "Traceback ...", error).as_instanceof_cause()) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ControllerError(train.WorkerGroupStartupTimeoutError(4)), FINAL),
        (ControllerError(train.WorkerGroupStartupFailedError("At least one failed to initialize.")), PROCESS_LOST),
        (
            ControllerError(caused_by(train.WorkerGroupStartupFailedError("x"), died(node=True))),  # type: ignore
            NODE_LOST,
        ),
        (ControllerError(train.CheckpointManagerInitializationError("corrupt")), FINAL),
        (ControllerError(died()), PROCESS_LOST),
        (of_group(train.WorkerHealthCheckTimeoutError("hangs")), PROCESS_LOST),
        (of_group(train.BroadcastCollectiveTimeoutError(1.0, [1], 1.0)), PASSING),
    ],
)
def test_errors_of_ray_train(error: Exception, kind: Failure) -> None:
    assert classify(error) is kind
    if kind is not NODE_LOST:  # a pickled error has no cause
        assert classify(pickle.loads(pickle.dumps(error))) is kind


@pytest.mark.skipif(not hasattr(api, "PreemptionError"), reason="this version of Ray has no such error")
def test_a_preemption_that_ray_train_waited_for() -> None:
    from types import SimpleNamespace

    info: Any = SimpleNamespace(preempted_ranks=[1])
    assert classify(api.PreemptionError(info)) is NODE_LOST


def test_a_death_that_the_autoscaler_announced() -> None:
    assert classify(of_group(of_health_check(RayActorError(preempted=True)))) is NODE_LOST


@pytest.mark.parametrize(
    ("workers", "kind", "rank"),
    [
        # The others fail because of a lost one, in whatever way.
        ((of_worker(ValueError("collateral")), of_health_check(died(node=True))), NODE_LOST, 1),
        ((of_worker(GLOO), of_health_check(died())), PROCESS_LOST, 1),
        ((of_worker(GLOO), of_worker(JobError("NaN"))), FINAL, 1),
        ((of_worker(StoreLost("no answer")), of_worker(GLOO)), PASSING, 0),
    ],
)
def test_of_several_workers_the_one_that_decides(workers: tuple[Exception, ...], kind: Failure, rank: int) -> None:
    error = of_group(*workers)
    assert classify(error) is kind
    assert decisive(error) is workers[rank]


def test_delays_double_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification.random, "uniform", lambda low, high: high)
    assert [delay_s(count) for count in (1, 2, 3, 4, 5, 6, 50)] == [2, 4, 8, 16, 32, 60, 60]
    monkeypatch.setattr(classification.random, "uniform", lambda low, high: low)
    assert delay_s(1) == 1


def test_what_from_none_hides_decides_nothing() -> None:
    try:
        try:
            raise TimeoutError("x")
        except TimeoutError:
            raise ValueError("of the user's data") from None
    except ValueError as error:
        assert classify(error) is FINAL


class _Awkward(ValueError):
    """Cannot be unpickled."""

    def __init__(self, got: int, expected: int) -> None:
        super().__init__(f"{got} in place of {expected}")


def test_an_error_that_cannot_be_pickled_is_sent_as_one_of_the_same_kind() -> None:
    sent = portable(_Awkward(3, 4))
    assert str(sent) == "_Awkward: 3 in place of 4" and classify(sent) is FINAL
    passing = caused_by(_Awkward(3, 4), ConnectionResetError("x"))
    assert classify(portable(passing)) is PASSING  # type: ignore[arg-type]
    plain = ValueError("x")
    assert portable(plain) is plain


def test_after_a_long_attempt_the_pauses_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification.random, "uniform", lambda low, high: high)
    retries = Retries(9, 9)
    assert [retries.after(StoreLost("x"), seconds) for seconds in (1, 1, 1, 601, 1)] == [2, 4, 8, 2, 4]


def test_an_attempt_is_made_again_within_its_budget_and_never_after_a_final_error() -> None:
    retries = Retries(max_failures=2, max_preemptions=1)
    assert retries.after(StoreLost("no answer")) is not None
    assert retries.after(of_group(of_health_check(died(node=True)))) is not None
    assert retries.after(of_group(of_health_check(died()))) is not None
    assert retries.after(StoreLost("no answer")) is None
    assert Retries(9, 9).after(JobError("NaN")) is None
    assert Retries(9, 0).after(died(node=True)) is None
    assert Retries(0, 9).after(StoreLost("no answer")) is None
