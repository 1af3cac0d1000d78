"""Which actors hang, decided from numbers: no Ray, no clock."""

from __future__ import annotations

from teacher_infer.labelling.watch import Watch


def hanging(watch: Watch, now: float) -> list[int]:
    return [hang.number for hang in watch.hanging(now)]


def test_until_a_step_has_ended_the_timeout_holds() -> None:
    watch = Watch(60.0)
    watch.began(0, "load", 0.0)
    watch.began(1, "label", 30.0)
    assert hanging(watch, 60.0) == []
    assert hanging(watch, 60.1) == [0]
    assert hanging(watch, 90.1) == [0, 1]


def test_then_twenty_times_the_longest_step_so_far_is_allowed_and_a_sixth_of_the_timeout_at_least() -> None:
    watch = Watch(60.0)
    watch.began(0, "label", 0.0)
    watch.progressed(0, 0.1)
    assert hanging(watch, 10.1) == []
    assert hanging(watch, 10.2) == [0]
    watch.progressed(0, 5.1)
    assert hanging(watch, 105.1) == []
    assert hanging(watch, 105.2) == [0]
    # Another actor's step is measured by the same.
    watch.began(1, "label", 105.2)
    assert hanging(watch, 205.2) == [0]
    assert hanging(watch, 205.3) == [0, 1]


def test_loading_and_labelling_are_measured_apart() -> None:
    watch = Watch(60.0)
    watch.began(0, "load", 0.0)
    watch.progressed(0, 50.0)
    watch.ended(0)
    watch.began(0, "label", 50.0)
    assert hanging(watch, 110.0) == []
    assert hanging(watch, 110.1) == [0]


def test_an_actor_without_a_span_or_that_is_gone_does_not_hang() -> None:
    watch = Watch(60.0)
    watch.began(0, "label", 0.0)
    assert watch.watches(0)
    watch.ended(0)
    watch.ended(0)
    watch.progressed(0, 1.0)
    assert not watch.watches(0) and hanging(watch, 1e6) == []


def test_without_a_timeout_nothing_hangs() -> None:
    watch = Watch(None)
    watch.began(0, "label", 0.0)
    assert hanging(watch, 1e9) == []


def test_a_hang_says_how_long_and_which_setting_allows_more() -> None:
    watch = Watch(60.0)
    watch.began(0, "load", 0.0)
    watch.began(1, "label", 0.0)
    first, second = map(str, watch.hanging(61.0))
    assert first == "It did not load its teacher for 61 s, where 60 are allowed (ray.hang_timeout_s)."
    assert second == "It finished no batch for 61 s, where 60 are allowed (ray.hang_timeout_s)."


def test_only_batches_may_be_allowed_less_than_the_timeout() -> None:
    """Reading and writing depend on a span's size, loading on what the machine has read before."""
    watch = Watch(60.0)
    for number, step in enumerate(("load", "move", "label")):
        watch.began(number, step, 0.0)  # type: ignore[arg-type]
        watch.progressed(number, 0.1)
    assert hanging(watch, 10.2) == [2]
    assert hanging(watch, 60.1) == [2]
    assert hanging(watch, 60.2) == [0, 1, 2]


def test_a_step_is_followed_by_one_of_another_kind() -> None:
    watch = Watch(60.0)
    watch.began(0, "move", 0.0)
    watch.progressed(0, 3.0, "label")
    [hang] = watch.hanging(70.0)
    assert hang.step == "label" and hang.allowed == 60.0


def test_while_the_driver_stood_still_nothing_hangs() -> None:
    watch = Watch(60.0)
    watch.began(0, "label", 0.0)
    watch.pause(1000.0)
    assert hanging(watch, 1060.0) == []
    assert hanging(watch, 1060.1) == [0]
    watch.progressed(0, 1002.0)
    assert hanging(watch, 1002.0 + 40.0) == [] and hanging(watch, 1002.0 + 40.1) == [0]
