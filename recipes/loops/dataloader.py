"""The same loop through a PyTorch DataLoader, for code that wants one; any number of workers gives the same batches.

python -m recipes.loops.dataloader CACHE_URL --workers 2
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.utils.data import DataLoader

from recipes.loops.student import mean_loss, student
from storage import Stream, StreamDataset, open_rows


def train(
    url: str, epochs: int, workers: int = 0, state: dict[str, Any] | None = None, batch_size: int = 64
) -> tuple[torch.nn.Module, dict[str, Any] | None]:
    """The model, and the stream's state after the last batch; state: where to go on."""
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    rows = open_rows(url)
    dataset = StreamDataset(Stream(rows, batch_size=batch_size))
    if state is not None:
        dataset.load_state_dict(state)
    # A batch comes whole: nothing is left to collate, shuffle or sample. Without workers the stream's threads read.
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0, pin_memory=gpu and workers > 0
    )
    model = student(rows).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        loss = torch.zeros(())
        for batch in loader:
            on_device = batch.to(device, non_blocking=True)
            loss = mean_loss(model, on_device)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # Workers are ahead of this batch: so a state says which one it is after.
            state = dataset.state_dict(after=batch)
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.4f}")
    return model, state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    asked = parser.parse_args()
    train(asked.url, asked.epochs, asked.workers)
