"""One step of training: forward, losses, backward and the optimiser's update."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from jobs.models.model_call import apply_model
from storage.base.digest import sha256_of
from storage.rows.row_groups import RowGroups
from storage.stream.torch_dataset import TorchBatch
from student_train.losses import LOSSES, factor, loss_parts, needed
from student_train.losses.positions import indices, mask_of
from student_train.training.config import LossSection, StudentRecipe
from student_train.training.count import Count
from student_train.training.fit import check_labels
from student_train.training.means import Means
from student_train.training.optimizer import learning_rate
from student_train.training.place import Place


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step's random numbers (dropout): a resumed run draws what an unbroken one would have."""
    return int(sha256_of([seed, step, rank])[:15], 16)


class TrainingStep:
    """Takes the steps of a run, one a call, and adds their losses to `means`.

    With more than one worker the gradients are averaged by DistributedDataParallel.
    """

    def __init__(
        self,
        recipe: StudentRecipe,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        data: RowGroups,
        classes: int,
        seed: int,
        place: Place,
    ) -> None:
        """classes: those of the model. data: what it learns from; read here where a loss needs the teacher's mean."""
        self._recipe, self._classes, self._seed, self._place = recipe, classes, seed, place
        self._optimizer = optimizer
        self._model = torch.nn.parallel.DistributedDataParallel(model) if place.world > 1 else model
        self._sections = recipe.loss_sections()
        self._unigram = _unigram(self._sections, data, place.device)
        self._factors = {name: factor(name, section) for name, section in self._sections.items()}
        self.means = Means(self._factors)

    def __call__(self, step: int, batch: TorchBatch) -> None:
        """Take step `step`, counted from 0. batch: this worker's part, on the CPU. Raises SourceError, UsageError."""
        place, optimizer = self._place, self._optimizer
        torch.manual_seed(step_seed(self._seed, step, place.rank))
        # From the masks on the CPU, so that a GPU is not waited for.
        at = indices(mask_of(batch.rows, needed(self._sections)))
        count = Count(batch, place.world, place.device)
        moved = batch.to(place.device, non_blocking=True)
        at = at if isinstance(at, slice) else at.to(place.device, non_blocking=True)
        output = apply_model(self._model, moved.inputs)
        check_labels(batch.rows, self._classes)
        parts = loss_parts(self._sections, output, moved.rows, at=at, unigram=self._unigram)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self._recipe.optimizer, step, self._recipe.steps)
        optimizer.zero_grad(set_to_none=True)
        # DDP averages over ranks whatever their share of the batch; the scale makes it the batch's mean.
        loss = torch.stack(
            [self._factors[name] * part.sum() * count.scale(LOSSES[name].needs) for name, part in parts.items()]
        ).sum()
        loss.backward()
        optimizer.step()
        self.means.add(parts, {name: count.of(LOSSES[name].needs) for name in parts}, batch.global_size)


def _unigram(sections: Mapping[str, LossSection], data: RowGroups, device: str) -> torch.Tensor | None:
    """The teacher's mean distribution [V], where a loss spreads a tail by it."""
    if all(section.tail != "unigram" for section in sections.values()):
        return None
    from storage.analysis.class_marginals import unigram

    return torch.as_tensor(unigram(data), device=device)
