"""A built model is known by every number in it, and by its modules' classes and settings."""

from __future__ import annotations

import enum
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.models.built_model import parameters_digest, structure_digest
from storage.base.errors import ModelError

ROOT = Path(__file__).resolve().parents[3]


class Numbers(nn.Module):
    """A module with each kind of number that a module can hold; the one of `kind` is `to`."""

    def __init__(self, kind: str = "", to: float = 0.0) -> None:
        super().__init__()

        def of(mine: str) -> torch.Tensor:
            return torch.full((2,), to if kind == mine else 0.0)

        self.weight = nn.Parameter(of("parameter"))
        self.register_buffer("kept", of("buffer"))
        self.register_buffer("left", of("non-persistent buffer"), persistent=False)
        self.register_buffer("sparse", of("sparse buffer").to_sparse())
        self.register_buffer("spectrum", torch.complex(of("complex buffer"), torch.zeros(2)).conj())
        self.plain, self._private = of("plain tensor"), of("private tensor")
        self.array = of("array").numpy()
        self.big_endian = of("big-endian array").numpy().astype(">f8")
        self.several = [of("in a list"), (of("in a tuple"), {"deep": of("in a mapping")})]


KINDS = [
    *("parameter", "buffer", "non-persistent buffer", "sparse buffer", "complex buffer", "plain tensor"),
    *("private tensor", "array", "big-endian array", "in a list", "in a tuple", "in a mapping"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_counts(kind: str) -> None:
    assert parameters_digest(Numbers()) == parameters_digest(Numbers(kind, 0.0))
    assert parameters_digest(Numbers()) != parameters_digest(Numbers(kind, 1.0))
    assert structure_digest(Numbers()) == structure_digest(Numbers(kind, 1.0))


def test_dtype_and_shape_count() -> None:
    one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    other.load_state_dict(one.state_dict())
    assert parameters_digest(one) == parameters_digest(other) != parameters_digest(other.half())
    assert parameters_digest(nn.ParameterList([torch.zeros(2, 3)])) != parameters_digest(
        nn.ParameterList([torch.zeros(3, 2)])
    )


@pytest.mark.parametrize(
    ("model", "said"), [(lambda: nn.LazyLinear(3), "lazy"), (lambda: nn.Linear(2, 2, device="meta"), "meta")]
)
def test_numbers_that_are_not_there_yet_are_refused(model: Any, said: str) -> None:
    with pytest.raises(ModelError, match=rf"has no values yet \({said}\)\..*Build it with its values"):
        parameters_digest(model())


class Kind(enum.Enum):
    ONE, TWO = 1, 2


def scaled(x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
    return x * by


class Settings(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.inner = settings.pop("inner", nn.GELU())
        for name, value in settings.items():
            setattr(self, name, value)


class Config:
    """As a config of transformers."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def to_dict(self) -> dict[str, Any]:
        return {"_name_or_path": str(id(self)), "transformers_version": "any", **self.settings}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"inner": nn.GELU()}, {"inner": nn.ReLU()}),
        ({"inner": nn.LayerNorm(2, eps=1e-5)}, {"inner": nn.LayerNorm(2, eps=1e-6)}),
        ({"scale": 1.0}, {"scale": 2.0}),
        ({"scale": float("nan")}, {"scale": float("inf")}),
        ({"_scale": 1.0}, {"_scale": 2.0}),
        ({"sizes": [1, (2, {"a": 3})]}, {"sizes": [1, (2, {"a": 4})]}),
        ({"names": {"a", "b"}}, {"names": {"a", "c"}}),
        ({"act": torch.nn.functional.gelu}, {"act": torch.nn.functional.relu}),
        ({"act": functools.partial(scaled, by=1.0)}, {"act": functools.partial(scaled, by=2.0)}),
        ({"kind": Kind.ONE}, {"kind": Kind.TWO}),
        ({"dtype": torch.float32}, {"dtype": torch.float16}),
        ({"config": Config(hidden_act="gelu")}, {"config": Config(hidden_act="relu")}),
        ({"mode": "mean"}, {"mode": "cls"}),
    ],
)
def test_classes_and_settings_count(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert structure_digest(Settings(**one)) == structure_digest(Settings(**one))
    assert structure_digest(Settings(**one)) != structure_digest(Settings(**other))


def test_places_and_addresses_do_not_count() -> None:
    one = Settings(folder="/data/one", thing=object(), config=Config(a=1))
    assert structure_digest(one) == structure_digest(Settings(folder="/other", thing=object(), config=Config(a=1)))


def test_a_setting_that_holds_itself_ends() -> None:
    loop: list[Any] = [torch.zeros(1)]
    loop.append(loop)
    assert structure_digest(Settings(loop=loop)) and parameters_digest(Settings(loop=loop))


def test_another_process_has_the_same_digests() -> None:
    text = (
        "from tests.jobs.models.test_built_model import *\n"
        "model = Settings(names={'a', 'b', 'c'}, config=Config(a=1), act=scaled)\n"
        "print(structure_digest(model), parameters_digest(Numbers()))"
    )
    run = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    # The classes of this file have another module's name there, so two such processes are compared.
    again = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == again.stdout and np.char.isalnum(run.stdout.split()).all()
