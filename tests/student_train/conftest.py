"""Small models in an importable module, small sources and the caches that a toy teacher leaves, for the student."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.models.model_spec import ModelSpec
from storage.cache.lineage import cache_lineage
from storage.cache.seal import seal
from storage.encodings import make_encoding
from storage.objectstore.folder import Folder
from storage.samples.samples import Inputs
from storage.sources import make_source
from student_train.training.config import StudentRecipe
from teacher_infer.labelling.label import Work, label_span
from teacher_infer.planning.key_parts import KeyParts
from teacher_infer.planning.plan import make_plan
from teacher_infer.teachers.module import ModuleTeacher

FEATURES, CLASSES = 4, 3

NETS = '''
"""A toy teacher and toy students of 4 numbers and a few classes."""

import threading

import torch
from torch import nn


class Teacher(nn.Module):
    def __init__(self, classes):
        super().__init__()
        grid = torch.arange(4 * classes, dtype=torch.float32).reshape(4, classes)
        self.register_buffer("weight", 2 * torch.sin(3 * grid + 1))

    def forward(self, x):
        return x @ self.weight


class Breaks(nn.Module):
    """Gives NaN from its `at`-th training step on."""

    def __init__(self, at):
        super().__init__()
        self.linear, self.at, self.seen = nn.Linear(4, 3), at, 0

    def forward(self, x):
        self.seen += self.training
        return self.linear(x) * (float("nan") if self.seen >= self.at else 1.0)


class Language(nn.Module):
    """The next token from this one and its place; fused: its head's weight, its embedding too, is given away."""

    def __init__(self, vocabulary, fused):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, 8), nn.Embedding(16, 8)
        self.linear, self.fused = nn.Linear(8, 8), fused

    def forward(self, input_ids, position_ids):
        from student_train.losses import Unprojected

        hidden = torch.tanh(self.linear(self.tokens(input_ids) + self.places(position_ids)))
        given = Unprojected(hidden, self.tokens.weight)
        return given if self.fused else given.hidden @ given.weight.t()


def language(vocabulary=13, fused=True):
    return Language(vocabulary, fused)


def pooled(vocabulary=13):
    """One answer a sequence."""
    class Pooled(Language):
        def forward(self, input_ids, position_ids):
            return super().forward(input_ids, position_ids)[:, 0]

    return Pooled(vocabulary, False)


def teacher(classes=3):
    return Teacher(classes)


def student(classes=3, hidden=8):
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def tied(classes=3):
    """Two layers with one weight."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, classes))
    net[2].weight = net[0].weight
    return net


def noisy(classes=3):
    """Dropout draws random numbers, batch norm keeps buffers: a resumed run must get both right."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes))


def breaks(at=3):
    return Breaks(at)


class Remembers(nn.Module):
    """Keeps a table of its first call, and a buffer that every call moves, as an observer of ranges does."""

    def __init__(self, lock):
        super().__init__()
        self.linear, self.drop, self.table = nn.Linear(4, 3), nn.Dropout(0.5), None
        self.register_buffer("calls", torch.zeros(()))
        self.lock = threading.Lock() if lock else None

    def forward(self, x):
        self.calls += 1
        if self.table is None:
            self.table = torch.linspace(1, 2, 3, device=x.device) * len(x)
        return self.linear(self.drop(x)) * self.table


def remembers(lock=False):
    return Remembers(lock)


def choosy():
    class Choosy(nn.Module):
        def forward(self, x):
            raise ValueError("four numbers are too few")

    return Choosy()


def pair(classes=3):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    return Pair()
'''

_numbers = itertools.count()


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that has the factories of NETS; a new name each time, as modules stay imported."""
    name = f"student_train_nets_{next(_numbers)}"
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{name}.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(folder))
    return name


@pytest.fixture
def write_source(tmp_path: Path) -> Any:
    """write_source(file, rows, seed=, labels=): a Parquet file of [4] float32 inputs `x`; labels: None leaves them out.

    Without `labels` a row's label is the class of its largest input among the first three.
    """

    def write(file: str, rows: int, *, seed: int = 0, labels: list[int] | str | None = "largest") -> str:
        x = np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)
        columns = {
            "sample_id": pa.array([f"s{index}" for index in range(rows)]),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), FEATURES),
        }
        if labels is not None:
            columns["label"] = pa.array(x[:, :CLASSES].argmax(axis=1) if labels == "largest" else labels, pa.int64())
        path = tmp_path / file
        pq.write_table(pa.table(columns), path)
        return str(path)

    return write


@pytest.fixture
def make_cache(tmp_path: Path, nets: str, write_source: Any) -> Any:
    """make_cache(name, rows=, ...): the URL of a sealed cache that the toy teacher left in a store.

    Its source is `name`.parquet in tmp_path.
    """

    def make(
        name: str = "toy",
        rows: int = 37,
        *,
        classes: int = CLASSES,
        temperature: float = 2.0,
        inputs: Inputs = "stored",
        dtype: str = "float16",
        **source: Any,
    ) -> str:
        parquet = make_source({"parquet": write_source(f"{name}.parquet", rows, **source)})
        spec = ModelSpec(f"{nets}:teacher", {"classes": classes})
        teacher = ModuleTeacher(spec, dtype="float32", seed=0, device="cpu")
        encoding = make_encoding("dense", {"temperature": temperature, "dtype": dtype})
        digest = spec.digest("float32")
        # Spans shorter than the source: a cache of several shards.
        plan = make_plan(parquet, 16, KeyParts.of(digest, encoding, 0, inputs=inputs))
        store = Folder(str(tmp_path / "store"))
        work = Work(store, parquet, encoding, digest, 8, inputs=inputs)
        shards = [label_span(work, teacher, span).commit for span in plan.spans]
        facts = {"digest": digest, "factory": spec.factory, "arguments": spec.arguments, "weights_sha256": None}
        lineage = cache_lineage(teacher=facts, source=parquet.to_dict(), targets=encoding.to_dict(), recipe_digest="")
        seal(store, name, shards, lineage)
        return f"{store.url}/{name}"

    return make


@pytest.fixture
def make_recipe(nets: str, tmp_path: Path) -> Any:
    """make_recipe(**keys): a student's recipe, short and quiet unless the keys say otherwise."""

    def make(**keys: Any) -> StudentRecipe:
        factory, arguments = keys.pop("factory", "student"), keys.pop("arguments", {})
        usual: dict[str, Any] = {
            "name": "toy",
            "student": {"factory": factory if ":" in factory else f"{nets}:{factory}", "arguments": arguments},
            "optimizer": {"name": "adamw", "lr": 0.02},
            "steps": 20,
            "batch_size": 8,
            "output": str(tmp_path / "models"),
            "tracking": {"uri": False},
        }
        return StudentRecipe.model_validate({**usual, **keys})

    return make


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One thread, and an order worked out for few places at once: thousands of epochs of a tiny cache take seconds."""
    monkeypatch.setattr("storage.stream.batch_producer.PLACES_AHEAD", 64)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
