"""What a pool decides, told with numbers: no Ray, no clock."""

from __future__ import annotations

from typing import Any

import pytest

from storage.base.errors import JobError
from storage.samples.samples import SourceFile
from teacher_infer.labelling.pool import SPANS_IN_FLIGHT, Pool, Task
from teacher_infer.planning.config import RaySection
from teacher_infer.planning.plan import Span


def tasks(count: int) -> list[Task]:
    file = SourceFile("rows", 10 * count)
    return [Task(0, Span(file, 10 * i, 10 * i + 10, f"digest {i}", f"key {i}")) for i in range(count)]


def pool_of(count: int, **settings: Any) -> Pool:
    return Pool(tasks(count), RaySection.model_validate({"actors": {"max": 2}, **settings}), lambda failures: 0.0)


def hired(pool: Pool) -> list[int]:
    """Hire what the pool wants, all of them placed and ready."""
    numbers = pool.hire(0.0)
    for number in numbers:
        pool.note_placed(number)
        pool.note_ready(number)
    return numbers


def given(pool: Pool, number: int) -> list[Task]:
    found = []
    while (task := pool.give(number, 0.0)) is not None:
        found.append(task)
    return found


def names(found: list[Task]) -> list[str]:
    return [task.span.shard_key for task in found]


def test_no_more_actors_are_asked_for_than_there_is_work() -> None:
    assert pool_of(5).hire(0.0) == [0, 1]
    assert pool_of(1).hire(0.0) == [0]
    assert pool_of(0).hire(0.0) == []
    assert pool_of(50, actors=4).hire(0.0) == [0, 1, 2, 3]


def test_an_actor_has_two_spans_at_most_and_only_once_it_is_ready() -> None:
    pool = pool_of(5)
    first, second = pool.hire(0.0)
    pool.note_placed(first)
    assert pool.give(first, 0.0) is None
    pool.note_ready(first)
    assert names(given(pool, first)) == ["key 0", "key 1"]
    assert SPANS_IN_FLIGHT == 2
    pool.note_ready(second)
    assert names(given(pool, second)) == ["key 2", "key 3"]
    assert not pool.over


def test_every_span_is_given_once_and_then_it_is_over() -> None:
    pool, seen = pool_of(7), []
    actors = hired(pool)
    while not pool.over:
        for number in actors:
            for task in given(pool, number):
                seen.append(task.span.shard_key)
                pool.done(number, task)
    assert seen == [f"key {i}" for i in range(7)]


def test_actors_are_let_go_once_no_span_is_left_to_give_them() -> None:
    pool = pool_of(3)
    first, second = hired(pool)
    a = given(pool, first)
    [b] = given(pool, second)
    assert pool.release() == []
    pool.done(second, b)
    assert pool.release() == [second]
    assert pool.hire(0.0) == []
    pool.done(first, a[0])
    assert pool.release() == []
    pool.done(first, a[1])
    assert (pool.release(), pool.over) == ([first], True)


def test_a_lost_actors_spans_are_the_next_to_be_given_and_another_one_is_hired() -> None:
    pool = pool_of(9)
    first, second = hired(pool)
    given(pool, first)
    given(pool, second)
    pool.lost(first, preempted=False, reason="it died", now=0.0)
    [third] = hired(pool)
    assert third not in (first, second)
    [first_suspect] = given(pool, third)
    assert first_suspect.span.shard_key == "key 0"
    pool.done(third, first_suspect)
    [second_suspect] = given(pool, third)
    assert second_suspect.span.shard_key == "key 1"
    pool.done(third, second_suspect)
    assert names(given(pool, third)) == ["key 4", "key 5"]


@pytest.mark.parametrize("poison", [0, 1, 31, 98, 99])
@pytest.mark.parametrize("actors", [1, 2, 16])
def test_a_span_that_kills_while_it_is_read_is_found_wherever_it_lies(actors: int, poison: int) -> None:
    """It kills its actor as soon as it is given, though another span is with the teacher."""
    pool, deaths, committed = pool_of(100, actors=actors, max_crashes=3), 0, set[str]()
    busy: dict[int, list[Task]] = {}
    with pytest.raises(JobError, match=rf"4 actors died over rows\[{10 * poison}:{10 * poison + 10}\]"):
        while not pool.over:
            for number in hired(pool):
                busy[number] = []
            for number in list(busy):
                busy[number] += given(pool, number)
                if any(task.span.shard_key == f"key {poison}" for task in busy[number]):
                    del busy[number]
                    deaths += 1
                    pool.lost(number, preempted=False, reason="", now=0.0)
                elif busy[number]:
                    task = busy[number].pop(0)
                    committed.add(task.span.shard_key)
                    pool.done(number, task)
    assert deaths <= 5
    assert f"key {poison}" not in committed


def test_a_span_that_takes_its_node_along_is_put_last_and_ends_the_job_at_last() -> None:
    pool, given_first, deaths, actor = pool_of(30, actors=1), list[str](), 0, 0
    with pytest.raises(
        JobError, match=r"21 nodes went away in a row while they worked on rows\[0:10\]\. The last: gone"
    ):
        while not pool.over:
            new = hired(pool)
            actor = new[0] if new else actor
            found = given(pool, actor)
            given_first.append(found[0].span.shard_key)
            if any(task.span.shard_key == "key 0" for task in found):
                deaths += 1
                pool.lost(actor, preempted=True, reason="gone", now=0.0)
            else:
                for task in found:
                    pool.done(actor, task)
    assert deaths == 21 and given_first.index("key 2") == 3
    assert set(given_first[-17:]) == {"key 0"}


def test_many_actors_that_one_machine_takes_at_once_are_no_row() -> None:
    pool = pool_of(100, actors=16, max_crashes=3)
    actors = hired(pool)
    for number in actors:
        given(pool, number)
    for number in actors[:8]:
        pool.lost(number, preempted=False, reason="the kernel made room", now=0.0)
    assert pool.crashes == 8


def test_a_span_over_which_actors_die_ends_the_job_though_others_are_committed() -> None:
    pool = pool_of(50, max_crashes=2)
    actor, other = hired(pool)
    for death in range(3):
        # After the first death each of the two that were flying is given alone.
        assert names(given(pool, actor)) == (["key 0", "key 1"] if death == 0 else ["key 0"])
        for task in given(pool, other):
            pool.done(other, task)
        if death < 2:
            pool.lost(actor, preempted=False, reason="out of memory", now=0.0)
            [actor] = hired(pool)
    with pytest.raises(JobError, match=r"3 actors died over rows\[0:10\]\. The last one: out of memory .*is 2\. What"):
        pool.lost(actor, preempted=False, reason="out of memory", now=0.0)
    assert pool.crashes == 3


def test_actors_that_die_before_any_span_end_the_job() -> None:
    pool = pool_of(5, actors=1, max_crashes=1)
    pool.lost(pool.hire(0.0)[0], preempted=False, reason="it cannot start", now=0.0)
    with pytest.raises(
        JobError, match=r"2 actors died in a row, with nothing committed between\. The last one: it can"
    ):
        pool.lost(pool.hire(0.0)[0], preempted=False, reason="it cannot start", now=0.0)


def test_a_committed_span_between_two_crashes_forgives_them() -> None:
    pool = pool_of(50, actors=1, max_crashes=1)
    for _ in range(10):
        [actor] = hired(pool)
        task = given(pool, actor)[0]
        pool.done(actor, task)
        pool.lost(actor, preempted=False, reason="now and then", now=0.0)
    assert pool.crashes == 10


def test_lost_nodes_have_a_budget_of_their_own() -> None:
    pool = pool_of(5, actors=1, max_crashes=0, max_preemptions=2)
    for _ in range(2):
        [actor] = hired(pool)
        given(pool, actor)
        pool.lost(actor, preempted=True, reason="spot", now=0.0)
    assert (pool.crashes, pool.preemptions) == (0, 2)
    [actor] = hired(pool)
    assert names(given(pool, actor)) == ["key 0", "key 1"]
    with pytest.raises(
        JobError, match=r"3 actors were lost with their nodes\. The last one: spot ray\.max_preemptions"
    ):
        pool.lost(actor, preempted=True, reason="spot", now=0.0)


def test_preemptions_do_not_eat_the_budget_for_crashes() -> None:
    pool = pool_of(5, actors=1, max_crashes=1)
    for preempted in (True, False, True, True):
        [actor] = hired(pool)
        given(pool, actor)
        pool.lost(actor, preempted=preempted, reason="", now=0.0)
    assert (pool.crashes, pool.preemptions) == (1, 3)


def test_a_span_whose_store_was_away_is_given_again_last() -> None:
    pool = pool_of(3, actors=1, max_crashes=1)
    [actor] = hired(pool)
    [a, b] = given(pool, actor)
    pool.failed(actor, a, "no answer", 0.0)
    pool.done(actor, b)
    assert names(given(pool, actor)) == ["key 2", "key 0"]
    with pytest.raises(JobError, match=r"rows\[0:10\] failed 2 times\. The last time: no answer"):
        pool.failed(actor, a, "no answer", 0.0)


def test_failures_wait_twice_as_long_each_time_before_the_next_try() -> None:
    pool = Pool(tasks(1), RaySection.model_validate({"max_crashes": 3}), lambda failures: 2.0**failures)
    [actor] = hired(pool)
    [task] = given(pool, actor)
    pool.failed(actor, task, "no answer", now=10.0)
    assert not pool.over and pool.release() == [] and pool.hire(10.0) == []
    assert pool.give(actor, 11.9) is None
    assert pool.give(actor, 12.0) == task
    pool.failed(actor, task, "no answer", now=20.0)
    assert pool.give(actor, 23.9) is None
    assert pool.give(actor, 24.0) == task
    pool.done(actor, task)
    assert pool.over


def test_after_a_crash_the_next_actor_waits_and_after_a_lost_node_it_does_not() -> None:
    pool = Pool(tasks(4), RaySection.model_validate({"max_crashes": 3}), lambda failures: 2.0**failures)
    [first] = hired(pool)
    given(pool, first)
    pool.lost(first, preempted=True, reason="spot", now=10.0)
    [second] = pool.hire(10.0)
    pool.lost(second, preempted=False, reason="it cannot start", now=10.0)
    assert pool.hire(11.9) == []
    [third] = pool.hire(12.0)
    pool.lost(third, preempted=False, reason="it cannot start", now=12.0)
    assert pool.hire(15.9) == []
    assert len(pool.hire(16.0)) == 1


def has() -> str:
    return "{'CPU': 2}"


def test_too_few_actors_for_too_long_end_the_job_with_what_was_asked_and_what_there_is() -> None:
    pool = pool_of(9, actors={"min": 2, "max": 4}, capacity_timeout_s=60, gpus_per_actor=1, label_selector={"a": "b"})
    pool.hire(0.0)
    pool.refuse_to_wait(100.0, has)
    pool.note_placed(0)
    pool.refuse_to_wait(160.0, has)
    with pytest.raises(JobError) as caught:
        pool.refuse_to_wait(160.1, has)
    assert str(caught.value).startswith(
        "Only 1 of at least 2 actors found room within 60 s. Each asks for 1 CPUs and 1 GPUs on nodes with "
        "{'a': 'b'}; the cluster has {'CPU': 2}. Ask for less"
    )


def test_the_deadline_begins_anew_whenever_there_are_enough() -> None:
    pool = pool_of(9, actors={"min": 2, "max": 2}, capacity_timeout_s=60)
    pool.hire(0.0)
    pool.refuse_to_wait(1.0, has)
    pool.note_placed(0)
    pool.note_placed(1)
    pool.refuse_to_wait(500.0, has)
    pool.lost(0, preempted=True, reason="", now=0.0)
    pool.hire(0.0)
    pool.refuse_to_wait(559.0, has)
    with pytest.raises(JobError, match="Only 1 of at least 2"):
        pool.refuse_to_wait(561.0, has)


def test_the_last_spans_need_no_more_actors_than_they_are() -> None:
    pool = pool_of(1, actors={"min": 4, "max": 8}, capacity_timeout_s=1)
    assert pool.hire(0.0) == [0]
    pool.note_placed(0)
    pool.refuse_to_wait(1.0, has)
    pool.refuse_to_wait(100.0, has)


@pytest.mark.parametrize(
    ("actors", "found"), [(3, (1, 3)), ({"max": 5}, (1, 5)), ({"min": 2, "max": 2}, (2, 2)), (None, (1, 1))]
)
def test_actors_are_a_number_or_min_and_max(actors: Any, found: tuple[int, int]) -> None:
    section = RaySection.model_validate({} if actors is None else {"actors": actors})
    assert (section.actors.min, section.actors.max) == found


@pytest.mark.parametrize("actors", [0, -1, True, {"min": 3, "max": 2}, {"min": 1}, "two", {"min": 0, "max": 1}])
def test_other_numbers_of_actors_are_refused(actors: Any) -> None:
    with pytest.raises(ValueError):
        RaySection.model_validate({"actors": actors})
