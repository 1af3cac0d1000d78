"""A student in Hugging Face's Trainer, fed by a stream; run it again and it goes on from the last checkpoint.

python -m recipes.loops.hf_trainer CACHE_URL OUTPUT (or torchrun --nproc-per-node 2 -m recipes.loops.hf_trainer ...)
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from recipes.loops.student import soft_loss, student
from storage import Stream, StreamDataset, Targets, TorchBatch, UsageError, VerificationError, open_rows, world
from student_train import count_positions


class KeepPlace(TrainerCallback):
    """Keeps the stream's state in the Trainer's own, which is in every checkpoint, and goes on from there."""

    def __init__(self, batches: StreamDataset) -> None:
        self.batches = batches

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.stateful_callbacks["stream"] = self.batches.state_dict()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step and "stream" not in state.stateful_callbacks:
            raise VerificationError("The checkpoint has no state of a stream.", "A DistillTrainer's has one.")
        if state.global_step:
            self.batches.load_state_dict(state.stateful_callbacks["stream"])


class DistillTrainer(Trainer):
    """A Trainer whose training data is a stream: it takes `max_steps`, and knows no epoch, sampler or collator.

    loss: (model, batch) to loss_P. Rows of a batch, and which rank takes which, are the stream's; batches are not
    prepared by accelerate, which would deal them to the ranks again.
    """

    # `compute_loss` divides by the positions of all batches of a step.
    loss_is_scaled_for_ga = True

    def __init__(self, *, stream: Stream, loss: Callable[[Any, TorchBatch], torch.Tensor], **settings: Any):
        super().__init__(**settings)
        ranks = {"rank": self.args.process_index, "world": self.args.world_size}
        if ranks != {"rank": stream.share.rank, "world": stream.share.world}:
            raise UsageError(
                f"The stream is one for {stream.share}, and the Trainer has {ranks}.",
                "Every process takes a part of its own.",
                "Make the TrainingArguments first, and then Stream(..., **world()).",
            )
        self.batches, self.loss = StreamDataset(stream), loss
        # The stream goes on by itself; no batch is to be read and thrown away.
        self.args.ignore_data_skip = True
        self.add_callback(KeepPlace(self.batches))

    def get_train_dataloader(self) -> Any:
        # Without a length, so that the Trainer does not look for the ends of epochs.
        return ({"batch": batch} for batch in self.batches.endless())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, count_positions(*(_targets(sample["batch"].to(device)) for sample in samples))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        batch: TorchBatch = inputs["batch"].to(self.args.device, non_blocking=True)
        count = count_positions(_targets(batch)) if num_items_in_batch is None else num_items_in_batch
        # DDP averages over ranks whatever their share of the batch; so the gradient is that of the mean.
        loss = self.loss(model, batch).sum() * self.args.world_size / count
        return (loss, {}) if return_outputs else loss


def _targets(batch: TorchBatch) -> Targets:
    assert batch.targets is not None
    return batch.targets


def train(url: str, output: str, steps: int, batch_size: int = 64, **settings: Any) -> DistillTrainer:
    """settings: more TrainingArguments."""
    arguments = TrainingArguments(
        output,
        max_steps=steps,
        per_device_train_batch_size=batch_size // world()["world"],
        report_to="none",
        # Ranks without a GPU are not ranks to the Trainer otherwise.
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )
    rows = open_rows(url)
    trainer = DistillTrainer(
        model=student(rows),
        args=arguments,
        stream=Stream(rows, batch_size=batch_size, **world()),
        loss=soft_loss,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output) if os.path.isdir(output) else None)
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("output")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-steps", type=int, default=50)
    asked = parser.parse_args()
    train(asked.url, asked.output, asked.steps, save_steps=asked.save_steps, logging_steps=10)
