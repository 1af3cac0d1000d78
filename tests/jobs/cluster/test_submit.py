"""`submit`, at a real head that asks for a token: run, refused, left, stopped, taken up again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.cache.open import open_cache
from tests.jobs.conftest import TOKEN, LiveHead, ended

# They need a head of their own; test_submission, test_follow and test_head show the parts without one.
pytestmark = pytest.mark.slow

FOLLOW = "ray job logs {} --follow --address {}"
# (exit code, the JSON answer or None, what was said) of a command.
Ended = tuple[int, Any, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submit")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Callable[..., dict[str, Any]]:
    def recipe(name: str, **replaced: Any) -> dict[str, Any]:
        return {
            "name": name,
            "store": f"{folder}/store",
            "source": {"function": "stillhouse_toys:rows", "arguments": {"count": 40}},
            "teacher": {"factory": "stillhouse_toys:linear", "dtype": "float32", "batch_size": 10},
            "targets": {"encoding": "dense", "temperature": 2.0},
            "span_rows": 10,
            "tracking": {"uri": False},
            **replaced,
        }

    return recipe


@pytest.fixture(scope="module")
def submitted(head: LiveHead, teacher: Callable[..., dict[str, Any]], folder: Path) -> dict[str, Ended]:
    """What commands came to that submitted their recipes at the same time, by the recipes' names."""
    faulty = teacher("faulty")
    faulty["teacher"]["weights"] = "/nowhere/weights.safetensors"
    student = {
        "name": "pupil",
        "source": {"function": "stillhouse_toys:rows"},
        "student": {"factory": "stillhouse_toys:linear"},
        "optimizer": {"lr": 0.05},
        "steps": 4,
        "batch_size": 8,
        "output": f"{folder}/models",
        "tracking": {"uri": False},
    }
    # --address is taken, not the variables that Ray itself would rather follow.
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:9", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    at = ("--address", head.address)
    # All of them first: each command ships the whole folder.
    pupil, shown, broken = (head.write(**recipe) for recipe in (student, teacher("shown"), faulty))
    started = {
        "pupil": head.start("student_train", pupil, "--no-wait", RAY_ADDRESS=head.address),
        "shown": head.start("teacher_infer", shown, "span_rows=20", *at, **elsewhere),
        "faulty": head.start("teacher_infer", broken, *at),
    }
    return {name: ended(process) for name, process in started.items()}


def test_a_recipe_is_run_by_the_cluster_and_its_log_is_shown(
    head: LiveHead, submitted: dict[str, Ended], folder: Path
) -> None:
    code, answer, said = submitted["shown"]
    assert code == 0, said
    assert answer.keys() == {"submission_id", "address", "status", "message", "driver_exit_code"}
    assert (answer["status"], answer["driver_exit_code"], answer["address"]) == ("SUCCEEDED", 0, head.address)
    submission_id = answer["submission_id"]
    assert submission_id.startswith("teacher-shown-") and len(submission_id) == len("teacher-shown-") + 12
    command = "python -m stillhouse_commands teacher-infer shown.yaml span_rows=20"
    assert f"Submitting {submission_id} to {head.address}: {command}" in said
    assert said.count("plan shown@") == 1 and said.count("sealed shown@") == 1
    assert open_cache(f"{folder}/store/shown").positions == 40
    assert head.ask(submission_id)["metadata"]["recipe_digest"].startswith(submission_id[-12:])


def test_a_job_that_cannot_be_done_as_it_was_asked_says_so_here(submitted: dict[str, Ended]) -> None:
    code, answer, said = submitted["faulty"]
    assert (code, answer["status"], answer["driver_exit_code"]) == (2, "FAILED", 2)
    assert answer["message"] == "Job entrypoint command failed with exit code 2"
    assert said.count("The weights '/nowhere/weights.safetensors' are not there.") == 1


def test_a_student_is_submitted_without_waiting(head: LiveHead, submitted: dict[str, Ended], folder: Path) -> None:
    code, answer, said = submitted["pupil"]
    assert (code, answer["status"]) == (0, "PENDING")
    submission_id = answer["submission_id"]
    assert submission_id.startswith("student-pupil-") and FOLLOW.format(submission_id, head.address) in said
    assert head.ask(submission_id)["entrypoint"] == "python -m stillhouse_commands student-train pupil.yaml"
    head.wait_for(submission_id, "SUCCEEDED", "FAILED")
    assert head.ask(submission_id)["status"] == "SUCCEEDED"
    assert (folder / "models" / "pupil" / "seed-0" / "result.json").exists()


def test_modules_of_the_shipped_folder_do_not_take_the_place_of_ours(
    head: LiveHead, teacher: Callable[..., dict[str, Any]], shadowing: Path, folder: Path
) -> None:
    (shadowing / "recipe.yaml").write_text(yaml.safe_dump(teacher("shadowed")))
    command = [sys.executable, "-m", "stillhouse_commands", "teacher-infer", "submit", "recipe.yaml", "--json"]
    process = subprocess.Popen(
        [*command, "--address", head.address],
        cwd=shadowing,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    code, answer, said = ended(process)
    assert (code, answer and answer["status"]) == (0, "SUCCEEDED"), said
    assert open_cache(f"{folder}/store/shadowed").positions == 40


def test_one_at_a_time_stopped_taken_up_again_and_left(
    head: LiveHead, teacher: Any, slow: Callable[[], None], folder: Path
) -> None:
    file = head.write(**teacher("long", source={"function": "stillhouse_toys:rows", "arguments": {"count": 400}}))
    command = ("teacher_infer", file, "--address", head.address)
    followed = head.start(*command)
    while not (jobs := [one for one in head.ask("") if (one["submission_id"] or "").startswith("teacher-long-")]):
        assert followed.poll() is None
        time.sleep(0.2)
    first = jobs[0]["submission_id"]
    head.wait_for(first, "RUNNING")

    code, answer, said = head.submit(*command, "ray.actors=2")
    assert (code, answer) == (2, None)
    assert f"has a job of this recipe that has not ended, {first}." in said
    assert FOLLOW.format(first, head.address) in said

    head.ask(f"{first}/stop", "POST")
    code, answer, said = ended(followed)
    assert (code, answer["submission_id"], answer["status"]) == (1, first, "STOPPED")
    assert f"{first} was stopped before it was done." in said

    followed = head.start(*command)
    head.wait_for(f"{first}-2", "RUNNING")
    followed.send_signal(signal.SIGINT)
    code, answer, said = ended(followed)
    assert (code, answer["submission_id"], answer["status"]) == (130, f"{first}-2", "RUNNING")
    assert "the job goes on" in said and FOLLOW.format(f"{first}-2", head.address) in said
    slow()
    head.wait_for(f"{first}-2", "SUCCEEDED", "FAILED")
    assert head.ask(f"{first}-2")["status"] == "SUCCEEDED"
    assert open_cache(f"{folder}/store/long").positions == 400
    assert head.ask(first)["status"] == "STOPPED"


def test_a_token_that_is_wrong_or_missing_is_told_and_never_shown(head: LiveHead, teacher: Any, tmp_path: Path) -> None:
    file = head.write(**teacher("locked"))
    (tmp_path / "token").write_text(f"{TOKEN}-wrong")
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    missing = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    started = [
        head.start("teacher_infer", file, "--address", head.address, **environment)
        for environment in (wrong, missing, {"RAY_AUTH_MODE": "disabled"})
    ]
    for code, answer, said in map(ended, started):
        assert (code, answer) == (2, None)
        assert f"UsageError: The cluster at {head.address} was not entered: " in said
        assert "RAY_AUTH_MODE=token" in said and "RAY_AUTH_TOKEN_PATH" in said and "~/.ray/auth_token" in said
        assert len(said.splitlines()) == 1
    assert not [one for one in head.ask("") if (one["submission_id"] or "").startswith("teacher-locked-")]


def test_a_head_that_is_not_there_ends_in_a_sentence(head: LiveHead, teacher: Any) -> None:
    started = time.monotonic()
    file = head.write(**teacher("lonely"))
    code, answer, said = head.submit("teacher_infer", file, "--address", "http://127.0.0.1:9")
    assert (code, answer) == (1, None)
    assert "ClusterError: The head at http://127.0.0.1:9 cannot be reached." in said
    assert len(said.splitlines()) == 1 and time.monotonic() - started < 20
