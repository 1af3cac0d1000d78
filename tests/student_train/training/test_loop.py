"""The training loop as an ordinary function: it learns, resumes bit for bit, refuses what is foreign, and counts."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from jobs.recipe import read_recipe
from storage.analysis import class_marginals
from storage.base.errors import JobError, ModelError, RecipeError, SourceError, UsageError, VerificationError
from storage.cache.open import open_cache
from storage.encodings.targets import with_mask
from storage.format.rows import DecodedRows
from storage.rows.cache_rows import CacheRows
from storage.rows.open import open_rows
from storage.rows.plain_table import plain_table
from storage.rows.reading import Reading
from storage.stream.scan import scan
from storage.stream.stream import Stream
from storage.stream.torch_dataset import StreamDataset, TorchBatch
from storage.stream.torch_tensors import to_torch
from student_train.losses.forward_kl import kl_divergence
from student_train.training import checkpoint, loop
from student_train.training.config import OptimizerSection, StudentRecipe
from student_train.training.data import make_batches, open_data
from student_train.training.fit import check_fit, check_labels
from student_train.training.journal import Point
from student_train.training.loop import Outcome, Place, train
from student_train.training.optimizer import learning_rate, make_optimizer
from student_train.training.step import step_seed
from teacher_infer.planning.config import TeacherRecipe
from tests.student_train.sequences import SequenceRows

ROOT = Path(__file__).parents[3]


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in outcome.model.state_dict().items()}


def series(points: list[Point], name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric."""
    return [(step, value) for metric, value, step, _ in points if metric == name]


class Keeper:
    """An observer that keeps every point, and every checkpoint in a folder of its own if it was given one."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.told: list[Point] = []
        self.checkpoints: list[int] = []

    def at(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{step}"

    def points(self, points: list[Point]) -> None:
        self.told += points

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        self.checkpoints.append(step)
        if self.folder is not None:
            save(self.at(step))


def observed(recipe: StudentRecipe, **settings: Any) -> tuple[Outcome, list[Point]]:
    """What a run came to, and all that it told."""
    kept = Keeper()
    return train(recipe, Place(), observer=kept, **settings), kept.told


# Learning.


def test_a_student_learns_from_a_cache(make_cache: Any, make_recipe: Any) -> None:
    cache = make_cache(rows=100)
    losses = {"forward_kl": {"temperature": 2.0}}
    outcome, told = observed(make_recipe(cache=cache, evaluate=cache, steps=300, losses=losses, log_every=1))
    kl = [value for _, value in series(told, "train/loss_forward_kl")]
    assert sum(kl[-10:]) < 0.05 * sum(kl[:10])
    assert outcome.eval["kl_to_teacher"] < 0.02
    assert outcome.eval["agreement_top1"] > 0.95
    assert outcome.eval.keys() >= {"accuracy", "ece", "teacher_accuracy", "teacher_ece"}


def test_a_recipe_without_a_cache_learns_from_labels(write_source: Any, make_recipe: Any) -> None:
    source = {"parquet": write_source("data.parquet", 100)}
    outcome, told = observed(make_recipe(source=source, evaluate=source, steps=300, log_every=1))
    losses = [value for _, value in series(told, "train/loss_cross_entropy")]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    assert outcome.eval["accuracy"] > 0.95
    assert outcome.eval.keys() == {"accuracy", "cross_entropy", "ece"}


def test_a_worker_that_reads_other_rows_than_the_driver_is_refused(write_source: Any, make_recipe: Any) -> None:
    recipe = make_recipe(source={"parquet": write_source("data.parquet", 60)}, steps=2)
    digest = open_data(recipe).digest
    write_source("data.parquet", 61)
    with pytest.raises(VerificationError, match=rf"has the digest .*The driver read {digest[:16]}\."):
        train(recipe, Place(), expected=[digest, None])


def test_a_recipe_may_mix_the_teacher_with_labels(make_cache: Any, make_recipe: Any) -> None:
    losses = {"forward_kl": {"temperature": 3.0, "weight": 0.5}, "cross_entropy": {"weight": 0.25}}
    _, told = observed(make_recipe(cache=make_cache(), losses=losses, steps=1))
    (total,), (soft,), (hard,) = (
        series(told, f"train/{name}") for name in ("loss", "loss_forward_kl", "loss_cross_entropy")
    )
    assert total[1] == pytest.approx(0.5 * 9 * soft[1] + 0.25 * hard[1], rel=1e-5)


def test_the_outcome_says_what_was_trained(make_cache: Any, make_recipe: Any) -> None:
    recipe = make_recipe(cache=make_cache(), arguments={"hidden": 5})
    outcome = train(recipe, Place())
    assert outcome.parameters == 4 * 5 + 5 + 5 * 3 + 3
    assert (outcome.resumed_from, outcome.eval) == (0, {})


def test_the_same_recipe_trains_the_same_weights(make_cache: Any, make_recipe: Any) -> None:
    recipe = make_recipe(cache=make_cache(), factory="noisy")
    one, two = train(recipe, Place()), train(recipe, Place())
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (
            {"name": "sgd", "momentum": 0.5, "weight_decay": 0.1},
            lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.5, weight_decay=0.1),
        ),
        (
            {"name": "adamw", "weight_decay": 0.2},
            lambda parameters: torch.optim.AdamW(parameters, lr=0.3, weight_decay=0.2),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_steps_are_the_optimizers_on_the_mean_loss(
    settings: dict[str, Any], make: Any, make_cache: Any, make_recipe: Any
) -> None:
    """A whole cache as one batch: the order has no say, and three steps can be written down."""
    recipe = make_recipe(
        cache=make_cache(rows=20),
        optimizer={**settings, "lr": 0.3, "schedule": "constant"},
        steps=3,
        batch_size=20,
        losses={"forward_kl": {"weight": 3.0}},
    )
    found = weights(train(recipe, Place()))

    batches = [to_torch(rows) for rows in scan(CacheRows(open_cache(recipe.cache.url)), 20)]
    x = torch.cat([rows.inputs["x"] for rows in batches])
    # The cache was kept at a temperature of 2, and the loss asks for 1.
    log_p = torch.cat([torch.log_softmax(2 * rows.targets.logits_PV.float(), dim=1) for rows in batches])
    model = recipe.student.spec().build(0)
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        log_q = torch.log_softmax(model(x), dim=1)
        (3.0 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(found, dict(model.state_dict()), rtol=1e-4, atol=1e-5)


# Some rows of a cache, and inputs by reference.


def fed(recipe: StudentRecipe, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[Outcome, list[str]]:
    """What a run came to, and the ids of the rows that it learned from."""
    ids: list[str] = []

    def check(rows: DecodedRows, classes: int) -> None:
        ids.extend(rows.sample_id)
        check_labels(rows, classes)

    with monkeypatch.context() as patched:
        patched.setattr("student_train.training.step.check_labels", check)
        return train(recipe, Place(), **settings), ids


def test_a_filter_chooses_what_is_learned_from_and_what_is_held_out(
    make_cache: Any, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_cache(rows=100)
    where = "soft_entropy < 0.5 and soft_top1 == label"
    table = plain_table(open_cache(url)).to_pydict()
    columns = zip(table["sample_id"], table["label"], table["soft_entropy"], table["soft_top1"], strict=True)
    chosen = {i for i, label, entropy, top1 in columns if entropy < 0.5 and top1 == label}
    assert 8 < len(chosen) < 92
    outcome, ids = fed(make_recipe(cache={"url": url, "where": where}, batch_size=5, steps=len(chosen)), monkeypatch)
    assert Counter(ids) == dict.fromkeys(chosen, 5)
    assert outcome.data_digest == open_rows(url, where=where).digest != open_cache(url).digest
    held_out = {"url": url, "where": "soft_top1 == label"}
    assert train(make_recipe(cache=url, evaluate=held_out, steps=1), Place()).eval["teacher_accuracy"] == 1.0


def test_inputs_by_reference_train_the_weights_of_stored_ones(
    make_cache: Any, make_recipe: Any, tmp_path: Path
) -> None:
    inputs = {"parquet": str(tmp_path / "toy.parquet")}
    one = train(make_recipe(cache=(stored := make_cache()), evaluate=stored), Place())
    url = make_cache(inputs="referenced")
    section = {"url": url, "inputs": inputs}
    two = train(make_recipe(cache=section, evaluate=section), Place())
    assert url == stored and one.data_digest != two.data_digest == open_cache(url).digest
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=0)
    assert one.eval == two.eval


def test_inputs_that_changed_train_nobody(make_cache: Any, make_recipe: Any, write_source: Any) -> None:
    url = make_cache(inputs="referenced")
    other = write_source("other.parquet", 37, seed=1)
    with pytest.raises(VerificationError, match=r"The sample 's\d+' in row \d+ of .*other.parquet has inputs"):
        train(make_recipe(cache={"url": url, "inputs": {"parquet": other}}), Place())
    with pytest.raises(RecipeError, match=r"by reference, and no source of them.*toy\.parquet.*cache\.inputs"):
        train(make_recipe(cache=url), Place())


def test_the_order_and_the_reading_are_the_recipes(
    make_cache: Any, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Stream] = []

    def stream(*arguments: Any, **settings: Any) -> Stream:
        made.append(Stream(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr("student_train.training.data.Stream", stream)
    cache = make_cache()
    train(make_recipe(cache=cache, steps=1, order={"lanes": 2, "window": 5}, reading={"threads": 3}), Place())
    train(make_recipe(cache=cache, steps=1, order={"lanes": 3}), Place())
    train(make_recipe(cache=cache, steps=1), Place())
    assert [(one.order.lanes, one.order.window) for one in made] == [(2, 5), (3, made[1].order.window), (1, 37)]
    assert [one.reading for one in made] == [Reading(threads=3), Reading(), Reading()]


# The public batch path.


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> list[StreamDataset]:
    """The data sets that the trainer makes."""
    made: list[StreamDataset] = []

    def make(*arguments: Any, **settings: Any) -> StreamDataset:
        made.append(StreamDataset(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr("student_train.training.data.StreamDataset", make)
    return made


def test_the_trainer_moves_each_batch_of_a_data_set_without_waiting(
    make_cache: Any, make_recipe: Any, datasets: list[StreamDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[int, Any, bool]] = []
    really = TorchBatch.to

    def to(batch: TorchBatch, device: Any, non_blocking: bool = False) -> TorchBatch:
        # Taken after this batch and before the next one: the state that a checkpoint of this step gets.
        assert datasets[0].state_dict() == datasets[0].state_dict(after=batch)
        moved.append((batch.first, device, non_blocking))
        return really(batch, device, non_blocking)

    monkeypatch.setattr(TorchBatch, "to", to)
    train(make_recipe(cache=make_cache(), steps=6, batch_size=8), Place())
    # 37 rows: the fifth batch lies in two epochs.
    assert moved == [(first, "cpu", True) for first in range(0, 48, 8)]
    assert len(datasets) == 1 and datasets[0].state_dict()["place"] == 48


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_batches_are_pinned_for_a_gpu_alone(device: str, pinned: bool, make_cache: Any, make_recipe: Any) -> None:
    recipe = make_recipe(cache=make_cache())
    assert make_batches(recipe, open_data(recipe), 0, Place(device=device)).pin is pinned


def test_a_data_set_goes_on_from_a_checkpoint_of_the_trainer(
    make_cache: Any, make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, recipe = Keeper(tmp_path), make_recipe(cache=make_cache(), steps=9, checkpoint_every=3, seed=4)
    ids = fed(recipe, monkeypatch, observer=kept)[1]
    model = recipe.student.spec().build(0)
    state = checkpoint.restore(
        kept.at(3),
        model,
        make_optimizer(recipe.optimizer, model),
        recipe_digest=recipe.digest(),
        data_digest=open_data(recipe).digest,
    )
    batches = StreamDataset(Stream(open_data(recipe), batch_size=8, seed=4))
    batches.load_state_dict(state.stream)
    assert [name for batch in islice(batches.endless(), 6) for name in batch.sample_id] == ids[3 * 8 :]
    batches.close()


def test_a_run_that_ends_or_fails_leaves_no_threads_that_read(
    make_cache: Any, make_recipe: Any, datasets: list[StreamDataset]
) -> None:
    cache = make_cache()
    train(make_recipe(cache=cache, steps=2), Place())
    with pytest.raises(JobError, match="nan"):
        train(make_recipe(cache=cache, factory="breaks", log_every=1), Place())
    assert [batches.stream._run for batches in datasets] == [None, None]


# Resuming.


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one_bit_for_bit(
    optimizer: str, make_cache: Any, make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(
        cache=make_cache(rows=37),
        factory="noisy",
        optimizer={"name": optimizer, "lr": 0.05, "warmup_steps": 4},
        steps=13,
        batch_size=7,
        checkpoint_every=1,
        seed=3,
    )
    kept = Keeper(tmp_path)
    unbroken = weights(train(recipe, Place(), observer=kept))
    # The first step, both sides of the seam between two epochs (37 / 7 = 5.3), the last but one, and the end.
    for step in (1, 5, 6, 12, 13):
        torch.manual_seed(step)  # what the process drew before must not matter
        outcome = train(recipe, Place(), restored=kept.at(step))
        assert outcome.resumed_from == step
        torch.testing.assert_close(weights(outcome), unbroken, rtol=0, atol=0)


def test_dropout_has_a_say_in_what_is_resumed(make_cache: Any, make_recipe: Any, monkeypatch: Any) -> None:
    """Otherwise the test above would prove nothing about random numbers."""
    recipe = make_recipe(cache=make_cache(), factory="noisy", steps=3)
    before = weights(train(recipe, Place()))
    monkeypatch.setattr(
        "student_train.training.step.step_seed", lambda seed, step, rank: step_seed(seed + 1, step, rank)
    )
    after = weights(train(recipe, Place()))
    assert not all(torch.equal(after[name], value) for name, value in before.items())


def test_random_numbers_differ_between_steps_ranks_and_seeds() -> None:
    drawn = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(drawn) == 3 * 50 * 4
    assert all(0 <= value < 2**63 for value in drawn)


@pytest.mark.parametrize("at", [3, 6])
def test_a_resumed_run_tells_what_the_unbroken_one_told_after_its_checkpoint(
    at: int, make_cache: Any, make_recipe: Any, tmp_path: Path
) -> None:
    """Also when the checkpoint lies inside a log window."""
    recipe = make_recipe(cache=make_cache(), steps=8, log_every=2, checkpoint_every=3)
    kept = Keeper(tmp_path)
    train(recipe, Place(), observer=kept)
    _, told = observed(recipe, restored=kept.at(at))
    unbroken = series(kept.told, "train/loss")
    assert [step for step, _ in unbroken] == [2, 3, 4, 6, 8]
    assert series(told, "train/loss") == [(step, value) for step, value in unbroken if step > at]


@pytest.mark.parametrize(
    "change",
    [{"optimizer": {"name": "adamw", "lr": 0.03}}, {"seed": 1}, {"batch_size": 9}, {"steps": 21}],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_recipe_is_refused(
    change: dict[str, Any], make_cache: Any, make_recipe: Any, tmp_path: Path
) -> None:
    cache, kept = make_cache(), Keeper(tmp_path)
    train(make_recipe(cache=cache, checkpoint_every=5), Place(), observer=kept)
    with pytest.raises(VerificationError, match="another recipe"):
        train(make_recipe(cache=cache, checkpoint_every=5, **change), Place(), restored=kept.at(5))


def test_a_checkpoint_of_another_cache_is_refused(make_cache: Any, make_recipe: Any, tmp_path: Path) -> None:
    kept = Keeper(tmp_path)
    train(make_recipe(cache=make_cache("one"), checkpoint_every=5), Place(), observer=kept)
    with pytest.raises(VerificationError, match="another data"):
        train(make_recipe(cache=make_cache("two", seed=9), checkpoint_every=5), Place(), restored=kept.at(5))


def test_a_checkpoint_of_other_rows_of_the_cache_is_refused(make_cache: Any, make_recipe: Any, tmp_path: Path) -> None:
    cache, kept = make_cache(), Keeper(tmp_path)
    train(make_recipe(cache={"url": cache, "where": "label < 2"}, steps=2), Place(), observer=kept)
    for other in (cache, {"url": cache, "where": "label <= 1"}):
        with pytest.raises(VerificationError, match="data"):
            train(make_recipe(cache=other, steps=2), Place(), restored=kept.at(2))
    outcome = train(make_recipe(cache={"url": cache, "where": "(label<2)"}, steps=2), Place(), restored=kept.at(2))
    assert outcome.resumed_from == 2


def test_where_a_cache_lies_does_not_make_a_checkpoint_foreign(
    make_cache: Any, make_recipe: Any, tmp_path: Path
) -> None:
    cache, kept = make_cache(), Keeper(tmp_path)
    train(make_recipe(cache=cache, checkpoint_every=5), Place(), observer=kept)
    moved = tmp_path / "moved"
    (tmp_path / "store").rename(moved)
    recipe = make_recipe(cache=str(moved / "toy"), checkpoint_every=5, resume="never", output=str(tmp_path / "other"))
    assert train(recipe, Place(), restored=kept.at(5)).resumed_from == 5


# What does not fit, said before anything is trained.


def test_a_student_of_other_classes_is_refused(make_cache: Any, make_recipe: Any) -> None:
    with pytest.raises(UsageError, match=r"was written for 3 classes, this student has 5.*number of classes") as caught:
        train(make_recipe(cache=make_cache(), arguments={"classes": 5}), Place())
    assert caught.value.exit_code == 2


def test_a_student_that_takes_other_inputs_is_refused(make_cache: Any, make_recipe: Any) -> None:
    arguments = {"in_features": 9, "out_features": 3}
    with pytest.raises(UsageError, match=r"does not take the inputs .*x \[4\] torch.float32"):
        train(make_recipe(cache=make_cache(), factory="torch.nn:Linear", arguments=arguments), Place())


def test_whatever_a_student_says_of_its_inputs_is_told_in_a_sentence(make_cache: Any, make_recipe: Any) -> None:
    with pytest.raises(UsageError, match=r"does not take the inputs .*ValueError: four numbers are too few\."):
        train(make_recipe(cache=make_cache(), factory="choosy"), Place())


def test_a_student_that_gives_no_logits_is_refused(make_cache: Any, make_recipe: Any) -> None:
    with pytest.raises(UsageError, match=r"gave tuple.*logits"):
        train(make_recipe(cache=make_cache(), factory="pair"), Place())


def test_a_factory_that_refuses_its_arguments_is_named(make_cache: Any, make_recipe: Any) -> None:
    with pytest.raises(ModelError, match=r"student refused its arguments.*clases.*classes"):
        train(make_recipe(cache=make_cache(), arguments={"clases": 3}), Place())


@pytest.mark.parametrize("kind", ["cache", "source"])
def test_a_loss_of_labels_needs_labels(kind: str, make_cache: Any, write_source: Any, make_recipe: Any) -> None:
    data = (
        {"cache": make_cache(labels=None), "losses": {"forward_kl": {}, "cross_entropy": {}}}
        if kind == "cache"
        else {"source": {"parquet": write_source("data.parquet", 10, labels=None)}}
    )
    with pytest.raises(UsageError, match=r"has no labels.*cross_entropy needs them"):
        train(make_recipe(**data), Place())


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_outside_the_classes_is_an_error_that_names_the_sample(
    label: int, write_source: Any, make_recipe: Any
) -> None:
    source = {"parquet": write_source("data.parquet", 8, labels=[0, 1, 2, 0, 1, label, 0, 1])}
    sentence = rf"The sample 's5' has the label {label}\. The model has the classes 0 to 2\."
    with pytest.raises(SourceError, match=sentence) as caught:
        train(make_recipe(source=source, steps=1, batch_size=8), Place())
    assert caught.value.exit_code == 2


def test_a_run_has_one_seed(make_cache: Any, make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match="one seed"):
        train(make_recipe(cache="nowhere", seed=[0, 1]), Place())


# What is not a number.


@pytest.mark.parametrize(("log_every", "named"), [(1, 3), (4, 4), (50, 6)])
def test_a_loss_that_is_not_a_number_ends_the_run_where_it_is_logged(
    log_every: int, named: int, make_cache: Any, make_recipe: Any
) -> None:
    recipe = make_recipe(
        cache=make_cache(), factory="breaks", arguments={"at": 3}, steps=6, log_every=log_every, checkpoint_every=100
    )
    with pytest.raises(JobError, match=f"train/loss is nan at step {named}.*Lower optimizer.lr"):
        train(recipe, Place())


def test_a_rate_that_is_far_too_high_ends_as_an_error(make_cache: Any, make_recipe: Any) -> None:
    recipe = make_recipe(cache=make_cache(), optimizer={"name": "sgd", "lr": 1e30}, log_every=1)
    with pytest.raises(JobError, match=r"at step \d"):
        train(recipe, Place())


# The learning rate.


def rates(steps: int, **settings: Any) -> list[float]:
    section = OptimizerSection(lr=2.0, **settings)
    return [learning_rate(section, step, steps) for step in range(steps)]


def test_learning_rates_by_hand() -> None:
    root = math.sqrt(0.5)
    cosine = [2.0, 1 + root, 1.0, 1 - root]
    assert rates(4) == pytest.approx(cosine)
    assert rates(8, warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, *cosine])
    assert rates(3, schedule="constant") == [2.0] * 3
    assert rates(5, schedule="constant", warmup_steps=2) == [1.0, 2.0, 2.0, 2.0, 2.0]
    assert rates(3, warmup_steps=8) == pytest.approx([0.25, 0.5, 0.75])


def test_the_rate_that_is_logged_is_the_one_that_was_used(make_cache: Any, make_recipe: Any) -> None:
    optimizer = {"lr": 2.0, "name": "sgd", "warmup_steps": 4}
    # Its weight is 0, so that no rate does harm.
    recipe = make_recipe(
        cache=make_cache(), steps=8, log_every=1, optimizer=optimizer, losses={"forward_kl": {"weight": 0}}
    )
    found = series(observed(recipe)[1], "train/lr")
    assert found == list(enumerate(rates(8, warmup_steps=4), 1))


# Metrics.


def test_there_is_a_point_every_log_every_steps_and_one_at_the_end(make_cache: Any, make_recipe: Any) -> None:
    _, told = observed(make_recipe(cache=make_cache(), steps=10, log_every=4))
    names = {"train/loss", "train/loss_forward_kl", "train/lr", "train/samples_per_s"}
    assert {name for name, *_ in told} == names
    for name in names:
        assert [step for step, _ in series(told, name)] == [4, 8, 10]
    assert all(math.isfinite(value) and stamp > 1_700_000_000_000 for _, value, _, stamp in told)


def test_a_point_is_the_mean_over_the_steps_since_the_last_one(make_cache: Any, make_recipe: Any) -> None:
    cache = make_cache()
    each = [value for _, value in series(observed(make_recipe(cache=cache, log_every=1))[1], "train/loss")]
    few = series(observed(make_recipe(cache=cache, log_every=8))[1], "train/loss")
    expected = [sum(each[:8]) / 8, sum(each[8:16]) / 8, sum(each[16:]) / 4]
    assert few == [(step, pytest.approx(value, rel=1e-5)) for step, value in zip([8, 16, 20], expected, strict=True)]


def test_a_checkpoint_is_made_every_so_often_and_at_the_end(make_cache: Any, make_recipe: Any) -> None:
    kept = Keeper()
    train(make_recipe(cache=make_cache(), steps=10, checkpoint_every=4), Place(), observer=kept)
    assert kept.checkpoints == [4, 8, 10]


def test_weights_that_a_last_step_broke_are_no_checkpoint(make_cache: Any, make_recipe: Any) -> None:
    kept = Keeper()
    recipe = make_recipe(
        cache=make_cache(),
        steps=1,
        optimizer={"name": "sgd", "lr": 1e36, "schedule": "constant"},
        losses={"forward_kl": {"weight": 1e6}},
    )
    with pytest.raises(JobError, match=r"is not finite after step 1\."):
        train(recipe, Place(), observer=kept)
    assert kept.checkpoints == []


@pytest.mark.parametrize("fault", ["classes", "label"])
def test_held_out_rows_that_do_not_fit_are_told_of(
    fault: str, make_cache: Any, write_source: Any, make_recipe: Any, tmp_path: Path
) -> None:
    """Other classes before anything is trained; a label when its row is met."""
    held_out: Any = {"parquet": write_source("held-out.parquet", 10)}
    if fault == "classes":
        held_out = make_cache("other", classes=5)
    if fault == "label":
        held_out = {"parquet": write_source("held-out.parquet", 10, labels=[0] * 9 + [7])}
    kept = Keeper()
    with pytest.raises((UsageError, SourceError), match=r"written for 5 classes|has the label 7"):
        train(make_recipe(cache=make_cache(), evaluate=held_out, steps=2), Place(), observer=kept)
    assert kept.checkpoints == ([2] if fault == "label" else [])


# The same start.


def test_two_recipes_of_one_seed_and_model_start_alike(make_cache: Any, write_source: Any, make_recipe: Any) -> None:
    student = make_recipe(cache=make_cache(), steps=1)
    baseline = make_recipe(source={"parquet": write_source("data.parquet", 10)}, steps=2, batch_size=3, name="labels")
    other = make_recipe(cache=student.cache, steps=1, seed=1)
    wider = make_recipe(cache=student.cache, steps=1, arguments={"hidden": 9})
    one, two, three, four = (train(recipe, Place()).init_digest for recipe in (student, baseline, other, wider))
    assert one == two
    assert len({one, three, four}) == 3


def test_a_recipe_may_start_from_weights(make_cache: Any, make_recipe: Any, tmp_path: Path) -> None:
    cache, kept = make_cache(), Keeper(tmp_path)
    first = make_recipe(cache=cache, steps=3)
    trained = weights(train(first, Place(), observer=kept))
    student = first.student.model_dump() | {"weights": str(kept.at(3) / checkpoint.MODEL)}
    # A rate that moves nothing shows where it started.
    again = make_recipe(cache=cache, student=student, steps=1, optimizer={"name": "sgd", "lr": 1e-12})
    torch.testing.assert_close(weights(train(again, Place())), trained)


# The recipes of the repository.

DIGITS = sorted((ROOT / "recipes" / "digits").glob("*.yaml"))


def test_the_digits_have_a_teacher_a_cache_a_student_and_a_baseline() -> None:
    assert {path.stem for path in DIGITS} >= {"teacher", "cache", "student", "baseline"}


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_the_recipes_of_the_digits_are_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if "targets" in yaml.safe_load(path.read_text()):
        read_recipe(str(path), [], TeacherRecipe).targets.make()
        return
    recipe = read_recipe(str(path), [], StudentRecipe)
    model = recipe.student.spec().build(0).eval()
    assert model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


# Two ranks.

RANK = """
import sys
import torch
import torch.distributed as dist
from datetime import timedelta
from pathlib import Path
from safetensors.torch import save_file
from jobs.recipe import read_recipe
from student_train.training.config import StudentRecipe
from student_train.training.loop import Place, train

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
# A file and not a port: two runs of the tests on one machine cannot meet.
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=60)
)
outcome = train(read_recipe(str(folder / "recipe.yaml"), [], StudentRecipe), Place(rank, world))
save_file({name: value.clone() for name, value in outcome.model.state_dict().items()}, folder / f"rank-{rank}")
assert bool(outcome.eval) == (rank == 0), outcome.eval
# Together: gloo's threads abort a process that leaves while the other still talks to it.
dist.barrier()
dist.destroy_process_group()
"""


def together(recipe: StudentRecipe, folder: Path, prelude: str = "") -> list[dict[str, torch.Tensor]]:
    """The weights of two ranks that trained a recipe; prelude: what each does first."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "modules")]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", prelude + RANK, str(folder), str(rank), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)
    return [load_file(folder / f"rank-{rank}") for rank in range(2)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_ranks_train_the_weights_of_one(make_cache: Any, make_recipe: Any, tmp_path: Path) -> None:
    """A batch of 7 rows, of which the ranks take 3 and 4: DDP's average must still be the batch's mean."""
    cache = make_cache()
    optimizer = {"name": "sgd", "lr": 0.2, "warmup_steps": 3}
    recipe = make_recipe(cache=cache, evaluate=cache, batch_size=7, steps=15, optimizer=optimizer)
    alone = weights(train(recipe, Place()))
    untrained = recipe.student.spec().build(0).state_dict()
    zero, one = together(recipe, tmp_path)
    torch.testing.assert_close(zero, one, rtol=0, atol=0)
    torch.testing.assert_close(zero, alone, rtol=1e-5, atol=1e-5)
    # So far did they come that the agreement says something.
    assert max(float((alone[name] - untrained[name]).abs().max()) for name in alone) > 0.05


SEQUENCES = """
from student_train.training import loop
from tests.student_train.sequences import SequenceRows
loop.open_data = lambda recipe: SequenceRows(20)
loop.open_evaluation = lambda recipe: SequenceRows(9, seed=1)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_ranks_share_masked_sequences_and_a_head_used_outside_the_model(
    make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks hold other numbers of positions that count, and the weight of the head is the embedding's too."""
    losses = {"forward_kl": {"temperature": 2.0}, "cross_entropy": {"weight": 0.5}}
    optimizer = {"name": "sgd", "lr": 0.5, "warmup_steps": 3}
    recipe = make_recipe(cache="unread", factory="language", losses=losses, optimizer=optimizer, batch_size=3)
    monkeypatch.setattr(loop, "open_data", lambda recipe: SequenceRows(20))
    alone = weights(train(recipe, Place()))
    untrained = recipe.student.spec().build(0).state_dict()
    zero, one = together(recipe, tmp_path, SEQUENCES)
    torch.testing.assert_close(zero, one, rtol=0, atol=0)
    torch.testing.assert_close(zero, alone, rtol=1e-5, atol=1e-5)
    assert float((alone["tokens.weight"] - untrained["tokens.weight"]).abs().max()) > 0.05


# Sequences.


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch, make_recipe: Any) -> Any:
    """sequences(data, held_out=None, **keys): a recipe whose data lie in memory."""

    def make(data: Any, held_out: Any = None, **keys: Any) -> StudentRecipe:
        monkeypatch.setattr(loop, "open_data", lambda recipe: data)
        monkeypatch.setattr(loop, "open_evaluation", lambda recipe: held_out)
        return make_recipe(**{"cache": "unread", "factory": "language", **keys})

    return make


@pytest.mark.parametrize("kind", ["topk", "dense"])
def test_a_student_of_sequences_learns_by_hidden_states_as_by_logits(kind: str, sequences: Any) -> None:
    data = SequenceRows(12, kind)
    losses = {"forward_kl": {"temperature": 2.0}, "cross_entropy": {"weight": 0.1}}
    outcomes = [
        observed(sequences(data, data, arguments={"fused": fused}, losses=losses, steps=60)) for fused in (True, False)
    ]
    (fused, told), (naive, _) = outcomes
    torch.testing.assert_close(weights(fused), weights(naive), rtol=1e-3, atol=1e-4)
    assert fused.eval == pytest.approx(naive.eval, rel=1e-3)
    assert fused.eval.keys() >= {"kl_to_teacher", "agreement_top1", "ece", "teacher_ece", "teacher_cross_entropy"}
    untrained, _ = observed(sequences(data, data, steps=1, optimizer={"lr": 1e-9}))
    assert fused.eval["kl_to_teacher"] < 0.9 * untrained.eval["kl_to_teacher"]
    assert {name for name, *_ in told} >= {"train/loss_forward_kl", "train/loss_cross_entropy"}


@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_of_sequences_is_the_mean_over_positions_that_count(masked: bool, sequences: Any) -> None:
    """One step on all rows: gradients and what is told are those of a mean written down."""
    data = SequenceRows(6, masked=masked)
    recipe = sequences(
        data,
        batch_size=6,
        steps=1,
        losses={"cross_entropy": {}},
        optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"},
    )
    outcome, told = observed(recipe)
    model, rows = recipe.student.spec().build(0), to_torch(data.whole())
    hidden, weight, _ = model(*rows.inputs.values())
    loss = torch.nn.functional.cross_entropy((hidden @ weight.t()).flatten(0, 1), rows.label.flatten().long())
    loss.backward()
    assert series(told, "train/loss") == [(1, pytest.approx(loss.item(), rel=1e-6))]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights(outcome)[name], (parameter - parameter.grad).detach())


def test_a_tail_spread_as_the_teachers_mean_takes_it_from_the_cache(
    sequences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    really = class_marginals.unigram
    monkeypatch.setattr(class_marginals, "unigram", lambda groups: asked.append(groups) or really(groups))
    data, losses = SequenceRows(12), {"forward_kl": {"tail": "unigram"}}
    spread = train(sequences(data, losses=losses), Place())
    assert asked == [data]
    merged = train(sequences(data), Place())
    assert asked == [data]
    assert not torch.equal(weights(spread)["tokens.weight"], weights(merged)["tokens.weight"])


@pytest.mark.parametrize(
    ("keys", "kind", "error", "sentence"),
    [
        ({"arguments": {"vocabulary": 15}}, "topk", UsageError, r"for 13 tokens, this student has 15\. .*tokenizer"),
        ({"arguments": {"vocabulary": 15, "fused": False}}, "dense", UsageError, r"for 13 tokens, this student has 15"),
        ({"factory": "pooled"}, "topk", UsageError, r"gives logits for positions \[1\] where .* have \[1, 6\]"),
        (
            {"losses": {"forward_kl": {"temperature": 3.0}}},
            "topk",
            RecipeError,
            r"temperature 3 is not in the grid.*kept for: 0.5, 1, 2, 8",
        ),
        (
            {"losses": {"forward_kl": {"tail": "bucket"}}},
            "dense",
            RecipeError,
            r"forward_kl was given the tail 'bucket', and dense targets have no tail.*Leave tail out",
        ),
    ],
)
def test_what_targets_cannot_serve_is_refused_before_anything_is_trained(
    keys: dict[str, Any], kind: str, error: type[Exception], sentence: str, sequences: Any
) -> None:
    data = SequenceRows(4, kind)
    recipe = sequences(data, **keys)
    with pytest.raises(error, match=sentence):
        check_fit(recipe.student.spec().build(0), data, "cpu", recipe.loss_sections())
    with pytest.raises(error, match=sentence):
        train(recipe, Place())


def test_a_token_outside_the_vocabulary_is_named_with_its_place(sequences: Any) -> None:
    data = SequenceRows(4)
    data._arrays["label"][2, 3] = 13
    with pytest.raises(SourceError, match=r"sample '2' has the label 13 at position 3.*classes 0 to 12; -100 means"):
        train(sequences(data, batch_size=4), Place())


def test_a_batch_in_which_nothing_counts_moves_nothing_and_is_no_error(sequences: Any) -> None:
    data = SequenceRows(4)
    data._arrays["label"][:] = -100
    optimizer = {"name": "sgd", "lr": 1.0, "weight_decay": 0.0}
    outcome, told = observed(sequences(data, steps=2, optimizer=optimizer))
    untrained = sequences(data).student.spec().build(0).state_dict()
    torch.testing.assert_close(weights(outcome), dict(untrained), rtol=0, atol=0)
    assert series(told, "train/loss") == [(2, 0.0)]


def test_the_power_of_the_temperature_applies_with_and_without_a_hard_loss(make_cache: Any, make_recipe: Any) -> None:
    """A hard loss of weight 0 beside a soft one changes neither the weights nor what is reported."""
    cache, optimizer = make_cache(), {"name": "sgd", "lr": 0.05, "momentum": 0.0}
    alone, beside = (
        observed(make_recipe(cache=cache, optimizer=optimizer, losses={"forward_kl": {"temperature": 4.0}, **more}))
        for more in ({}, {"cross_entropy": {"weight": 0.0}})
    )
    torch.testing.assert_close(weights(alone[0]), weights(beside[0]), rtol=1e-5, atol=1e-6)
    for name in ("train/loss", "train/loss_forward_kl"):
        [(_, one)], [(_, other)] = series(alone[1], name), series(beside[1], name)
        assert one == pytest.approx(other, rel=1e-5)


def test_the_divergence_is_reported_without_the_power_and_the_objective_with_it(
    make_cache: Any, make_recipe: Any
) -> None:
    recipe = make_recipe(
        cache=make_cache(), losses={"forward_kl": {"weight": 0.5, "temperature": 4.0}}, steps=3, log_every=1
    )
    _, told = observed(recipe)
    reported, objective = (series(told, f"train/{name}") for name in ("loss_forward_kl", "loss"))
    assert [value for _, value in objective] == pytest.approx([0.5 * 16 * value for _, value in reported])
    model = recipe.student.spec().build(0)
    stream = Stream(open_data(recipe), batch_size=8)
    first = to_torch(next(iter(stream)).rows)
    divergence = kl_divergence(model(first.inputs["x"]), first.targets, temperature=4.0)  # type: ignore[arg-type]
    stream.close()
    assert reported[0] == (1, pytest.approx(float(divergence.mean().detach()), rel=1e-5))


def test_what_is_reported_at_temperature_1_is_what_evaluation_reports(make_cache: Any, make_recipe: Any) -> None:
    """A step over the whole cache with a rate of 0: training's divergence is evaluation's."""
    cache = make_cache(rows=32)
    for encoding in ({}, {"cross_entropy": {"weight": 0.3}}):
        recipe = make_recipe(
            cache=cache,
            evaluate=cache,
            losses={"forward_kl": {}, **encoding},
            steps=1,
            batch_size=32,
            optimizer={"name": "sgd", "lr": 1e-12},
        )
        outcome, told = observed(recipe)
        [(_, reported)] = series(told, "train/loss_forward_kl")
        assert reported == pytest.approx(outcome.eval["kl_to_teacher"], rel=1e-5)


def test_samples_without_a_label_count_for_the_teacher_and_not_for_the_labels(sequences: Any) -> None:
    """Half of the rows have the label -100: soft losses are means over all, cross entropy over the labelled half."""

    class Half(SequenceRows):
        """Each sequence's first position alone, as a classified sample."""

        def rows_of(self, group_B: Any, columns: Any) -> DecodedRows:
            rows = super().rows_of(group_B, columns)
            assert rows.targets is not None and rows.label is not None
            label = np.where(rows.sample_id.astype(int) % 2 == 0, rows.label.max(axis=1), -100)
            targets = with_mask(rows.targets.each(lambda array: array[:, 0]), label)
            return DecodedRows(rows.sample_id, rows.inputs, label, targets)

    data = Half(8, masked=False)
    losses = {"forward_kl": {"temperature": 2.0}, "cross_entropy": {"weight": 0.3}}
    nets = sequences(data).student.factory.partition(":")[0]
    recipe = sequences(
        data, losses=losses, steps=1, batch_size=8, optimizer={"name": "sgd", "lr": 1e-12}, factory=f"{nets}:pooled"
    )
    _, told = observed(recipe)
    rows = to_torch(data.whole())
    logits = recipe.student.spec().build(0)(**rows.inputs)
    soft_P = kl_divergence(logits, rows.targets, temperature=2.0)  # type: ignore[arg-type]
    hard = torch.nn.functional.cross_entropy(logits, rows.label.long())  # type: ignore[arg-type]
    assert (soft_P > 0).all()
    [(_, soft)] = series(told, "train/loss_forward_kl")
    [(_, found)] = series(told, "train/loss_cross_entropy")
    [(_, loss)] = series(told, "train/loss")
    assert soft == pytest.approx(float(soft_P.mean().detach()), rel=1e-5)
    assert found == pytest.approx(float(hard.detach()), rel=1e-5)
    assert loss == pytest.approx(4 * soft + 0.3 * found, rel=1e-5)


def test_inputs_go_by_name_into_a_student(make_recipe: Any, tmp_path: Path) -> None:
    """Columns in another order than the arguments of forward; one that forward does not take is refused."""
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(32, 4)).astype(np.float32), rng.uniform(1, 9, size=(32, 4)).astype(np.float32)
    columns = {"sample_id": list(range(32)), "scale": list(scale), "x": list(x), "label": (x.argmax(axis=1) % 3)}
    pq.write_table(pa.table(columns), tmp_path / "two.parquet")
    source = {"parquet": str(tmp_path / "two.parquet")}
    module = tmp_path / "modules"
    name = next(module.glob("student_train_nets_*.py")).stem
    with open(module / f"{name}.py", "a") as file:
        file.write(
            "\n\ndef scaled():\n"
            "    class Scaled(nn.Module):\n"
            "        def __init__(self):\n"
            "            super().__init__()\n"
            "            self.linear = nn.Linear(4, 3)\n\n"
            "        def forward(self, x, scale=None):\n"
            "            assert x.min() < 0 and (scale is None or scale.min() >= 1)\n"
            "            return self.linear(x if scale is None else x / scale)\n\n"
            "    return Scaled()\n"
        )
    recipe = make_recipe(source=source, factory="scaled", steps=2)
    train(recipe, Place())
    odd = make_recipe(source={**source, "columns": {"inputs": ["x", "label"], "label": False}}, factory="scaled")
    with pytest.raises((UsageError, SourceError), match="label"):
        train(odd, Place())


@pytest.mark.parametrize("lock", [False, True])
def test_a_student_that_keeps_a_table_of_its_first_call_can_be_trained(
    make_cache: Any, make_recipe: Any, lock: bool
) -> None:
    """With a lock it cannot be copied, and the check of the data is its first call."""
    cache = make_cache()
    recipe = make_recipe(cache=cache, evaluate=cache, factory="remembers", arguments={"lock": lock}, steps=3)
    assert set(train(recipe, Place()).eval) > {"accuracy", "kl_to_teacher"}


def test_the_check_of_the_data_leaves_no_trace_in_the_trained_weights(
    make_cache: Any, make_recipe: Any, monkeypatch: Any
) -> None:
    cache = make_cache()
    recipe = make_recipe(cache=cache, evaluate=cache, factory="remembers", steps=3)
    checked = train(recipe, Place())
    monkeypatch.setattr(loop, "check_fit", lambda *_: 3)
    unchecked = train(recipe, Place())
    assert checked.eval == unchecked.eval
    for name, value in weights(checked).items():
        assert torch.equal(value, weights(unchecked)[name]), name
    # Three steps, and the one batch of the evaluation.
    assert weights(checked)["calls"] == 4


def test_a_student_with_one_logit_is_refused(make_recipe: Any, write_source: Any) -> None:
    recipe = make_recipe(source={"parquet": write_source("s.parquet", 16, labels=[0] * 16)}, arguments={"classes": 1})
    with pytest.raises(UsageError, match=r"logits for 1 class.*The softmax of a single number is 1"):
        train(recipe, Place())


def test_a_lack_of_memory_is_not_said_to_be_the_inputs_fault(
    make_cache: Any, make_recipe: Any, monkeypatch: Any
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("student_train.training.fit.apply_model", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        train(make_recipe(cache=make_cache()), Place())
