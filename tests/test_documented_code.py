"""Documented training code has the gradient of the project's own trainer, on images and on packed documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from recipes.loops import dataloader, plain_loop, torchrun
from recipes.loops.student import student
from storage.rows.open import open_rows
from student_train.training.config import StudentRecipe
from student_train.training.loop import Place, train
from tests.small_caches import CLASSES, LENGTH, TOKENS, image_cache, packed_cache

README = Path(__file__).resolve().parent.parent / "README.md"
BATCH = 9

Gradients = list[torch.Tensor]


@contextmanager
def gradients_of_the_first_step() -> Iterator[Gradients]:
    """The gradients with which the first optimizer step in the block is taken, in an order by shape."""
    found: Gradients = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not found:
            of = [p.grad for group in optimizer.param_groups for p in group["params"]]
            # A trainer may group parameters in its own way; within a shape the order stays.
            found.extend(sorted((grad.detach().clone() for grad in of), key=lambda grad: list(grad.shape)))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


@pytest.fixture(scope="module", params=["images", "packed documents"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    make = image_cache if request.param == "images" else packed_cache
    return make(tmp_path_factory.mktemp("documented"))


def expected(url: str, tmp_path: Path, temperature: float = 2.0) -> Gradients:
    """The first step's gradients in the project's trainer."""
    images = len(open_rows(url).columns) and "image" in {column.name for column in open_rows(url).columns}
    of_images = {
        "factory": "recipes.loops.student:Student",
        "arguments": {"features": 4, "classes": CLASSES},
    }
    of_tokens = {
        "factory": "recipes.loops.student:TokenStudent",
        "arguments": {"classes": TOKENS, "positions": LENGTH},
    }
    recipe = StudentRecipe.model_validate(
        {
            "name": "toy",
            "cache": url,
            "student": of_images if images else of_tokens,
            "losses": {"forward_kl": {"temperature": temperature}},
            "optimizer": {"lr": 0.001},
            "steps": 1,
            "batch_size": BATCH,
            "output": str(tmp_path),
        }
    )
    with gradients_of_the_first_step() as found:
        train(recipe, Place())
    return found


def same(found: Gradients, wanted: Gradients) -> None:
    assert [g.shape for g in found] == [g.shape for g in wanted] and any(g.any() for g in wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_some_positions_have_no_target(url: str) -> None:
    """Without any, the tests of this file would not tell a mask from none."""
    from storage.stream.scan import scan

    targets: Any = [rows.targets for rows in scan(open_rows(url), 64)]
    masks = np.concatenate([part.mask_P.ravel() for part in targets])
    packed = len(targets[0].lead) > 1
    assert masks.any() and masks.all() != packed
    if packed:
        ids = np.concatenate([part.ids_PK.reshape(-1, 5) for part in targets])
        assert not ids[~masks].any()


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def runnable(snippet: str, url: str) -> str:
    """A snippet with the test's cache and batch size in place of its own."""
    text = re.sub(r'open_rows\("s3://[^"]*"', f"open_rows({url!r}", snippet)
    return re.sub(r"batch_size=\d+", f"batch_size={BATCH}", text).replace("128", str(BATCH // 2))


@pytest.mark.parametrize("number", range(len(snippets())))
def test_a_snippet_of_the_readme_trains_as_the_trainer(url: str, number: int, tmp_path: Path) -> None:
    text = runnable(snippets()[number], url)
    assert url in text
    with gradients_of_the_first_step() as found:
        exec(compile(text, f"README.md, snippet {number}", "exec"), {"model": student(open_rows(url))})
    same(found, expected(url, tmp_path))


def _hugging_face(url: str, tmp_path: Path) -> None:
    from recipes.loops import hf_trainer

    settings: dict[str, Any] = {"disable_tqdm": True, "max_grad_norm": 0.0, "save_strategy": "no"}
    hf_trainer.train(url, str(tmp_path / "trainer"), 1, BATCH, **settings)


LOOPS: dict[str, Callable[[str, Path], Any]] = {
    "plain_loop": lambda url, _: plain_loop.train(url, 1, batch_size=BATCH),
    "dataloader": lambda url, _: dataloader.train(url, 1, batch_size=BATCH),
    "torchrun": lambda url, _: torchrun.train(url, 1, batch_size=BATCH),
    "hf_trainer": _hugging_face,
}


def test_every_loop_is_tried_here() -> None:
    files = {path.stem for path in (README.parent / "recipes" / "loops").glob("*.py")}
    assert files - {"__init__", "student"} == LOOPS.keys()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_has_the_gradient_of_the_trainer(url: str, loop: str, tmp_path: Path) -> None:
    with gradients_of_the_first_step() as found:
        LOOPS[loop](url, tmp_path)
    same(found, expected(url, tmp_path))
    other = expected(url, tmp_path, temperature=1.0)
    assert not all(torch.allclose(one, two, rtol=0, atol=1e-6) for one, two in zip(found, other, strict=True))
