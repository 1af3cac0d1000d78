"""A student on several processes: each rank reads its part of every batch, and the gradient is the whole batch's.

torchrun --standalone --nproc-per-node 2 -m recipes.loops.torchrun CACHE_URL
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from recipes.loops.student import mean_loss, student
from storage import Stream, StreamDataset, open_rows, world


def train(url: str, steps: int, device: str = "cpu", batch_size: int = 64) -> torch.nn.Module:
    rows = open_rows(url)
    stream = Stream(rows, batch_size=batch_size, **world())  # batch_size: of all ranks together
    model = student(rows).to(device)
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, batch in enumerate(itertools.islice(StreamDataset(stream).endless(), steps), 1):
        batch = batch.to(device, non_blocking=True)
        # DDP averages over ranks whatever their share of the batch; so the gradient is that of the batch's mean.
        loss = mean_loss(wrapped, batch, stream.share.world)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not stream.share.rank and (step % 10 == 0 or step == steps):
            print(f"step {step} of {steps}: loss of this rank's part {loss.item():.4f}")
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    local = f"cuda:{dist.get_node_local_rank()}" if gpu else "cpu"
    trained = train(asked.url, asked.steps, local, asked.batch_size)
    if asked.save is not None and dist.get_rank() == 0:
        save_file(trained.state_dict(), asked.save)
    dist.destroy_process_group()
