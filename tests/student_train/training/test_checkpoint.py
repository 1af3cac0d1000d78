"""A checkpoint comes back as it was saved, holds no pickle, and is refused by a run that it does not belong to."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from storage.base.errors import VerificationError
from student_train.training.checkpoint import MODEL, OPTIMIZER, STATE, State, read_state, refuse_foreign, restore, save

MINE = {"recipe_digest": "a" * 64, "data_digest": "b" * 64}
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def state(step: int = 3) -> State:
    stream = {"place": 24, "digest": "b" * 64, "order": {"version": "v", "seed": 0, "window": 9}}
    return State(step, MINE["recipe_digest"], MINE["data_digest"], stream)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.linspace(-1, step + 1, 15).reshape(5, 3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_saved_comes_back(kind: str, tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    stepped(model, optimizer)
    save(tmp_path / "new" / "folder", model, optimizer, state())

    other = net()
    again = OPTIMIZERS[kind](other.parameters())
    assert restore(tmp_path / "new" / "folder", other, again, **MINE) == state()
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    # Only a step shows that the moments came back, too.
    for one, its_optimizer in ((model, optimizer), (other, again)):
        stepped(one, its_optimizer)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_before_the_first_step_has_no_moments_and_comes_back(tmp_path: Path) -> None:
    model = net()
    save(tmp_path, model, OPTIMIZERS["adamw"](model.parameters()), state(0))
    other = net()
    assert restore(tmp_path, other, OPTIMIZERS["adamw"](other.parameters()), **MINE).step == 0
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_only_safetensors_and_json(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    stepped(model, optimizer)
    save(tmp_path, model, optimizer, state())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([MODEL, OPTIMIZER, STATE])
    assert load_file(tmp_path / MODEL).keys() == model.state_dict().keys()
    assert set(load_file(tmp_path / OPTIMIZER)) == {
        f"{index}.{part}" for index in range(6) for part in ("step", "exp_avg", "exp_avg_sq")
    }
    assert json.loads((tmp_path / STATE).read_text()).keys() == asdict(state()).keys()


def test_the_learning_rate_and_other_settings_stay_those_of_the_optimizer_at_hand(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    stepped(model, optimizer)
    save(tmp_path, model, optimizer, state())
    again = torch.optim.AdamW(model.parameters(), lr=0.7, weight_decay=0.3)
    restore(tmp_path, model, again, **MINE)
    assert (again.param_groups[0]["lr"], again.param_groups[0]["weight_decay"]) == (0.7, 0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_weights_and_moments_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Linear(3, 2).to(dtype)

    model = make()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    model(torch.ones(1, 3, dtype=dtype)).sum().backward()
    optimizer.step()
    save(tmp_path, model, optimizer, state())
    other = make()
    again = OPTIMIZERS["momentum"](other.parameters())
    restore(tmp_path, other, again, **MINE)
    assert other.weight.dtype == dtype
    assert {value["momentum_buffer"].dtype for value in again.state.values()} == {dtype}


def test_shared_weights_are_saved_and_shared_again(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    model, other = make(), make()
    save(tmp_path, model, OPTIMIZERS["plain"](model.parameters()), state())
    restore(tmp_path, other, OPTIMIZERS["plain"](other.parameters()), **MINE)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert other[1].weight is other[0].weight


@pytest.mark.parametrize(("name", "word"), [("recipe_digest", "recipe"), ("data_digest", "data")])
def test_a_checkpoint_of_another_recipe_or_other_data_is_refused_and_loads_nothing(
    name: str, word: str, tmp_path: Path
) -> None:
    model = net()
    save(tmp_path, model, OPTIMIZERS["plain"](model.parameters()), state())
    other = net()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(VerificationError, match=f"another {word} .*{MINE[name][:8]}.*cccccccc.*resume=never"):
        restore(tmp_path, other, OPTIMIZERS["plain"](other.parameters()), **{**MINE, name: "c" * 64})
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_a_state_reads_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path, net(), OPTIMIZERS["plain"](net().parameters()), state())
    assert read_state(tmp_path) == state()


def test_a_digest_that_is_not_there_is_foreign() -> None:
    refuse_foreign({"data_digest": "x", "more": 1}, {"data_digest": "x"}, "a folder")
    with pytest.raises(VerificationError, match="a folder belongs to a run of another evaluation"):
        refuse_foreign({"data_digest": "x"}, {"data_digest": "x", "evaluation_digest": "y"}, "a folder")


def test_tied_weights_are_saved_apart_and_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save(tmp_path, model, OPTIMIZERS["plain"](model.parameters()), state())
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other[1].weight = other[0].weight
    restore(tmp_path, other, OPTIMIZERS["plain"](other.parameters()), **MINE)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
