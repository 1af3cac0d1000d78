"""A student learns from a cache in a plain PyTorch loop, and goes on from where it was saved.

python -m recipes.loops.plain_loop CACHE_URL --checkpoint student.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.loops.student import mean_loss, student
from storage import Stream, StreamDataset, open_rows


def train(url: str, epochs: int, checkpoint: Path | None = None, batch_size: int = 64) -> torch.nn.Module:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = open_rows(url)
    batches = StreamDataset(Stream(rows, batch_size=batch_size))
    model = student(rows).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        batches.load_state_dict(saved["stream"])
    for epoch in range(epochs):
        loss = torch.zeros(())
        for batch in batches:  # to the end of the epoch; the next `for` goes on with the next one
            batch = batch.to(device, non_blocking=True)
            loss = mean_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.4f}")
        if checkpoint is not None:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": batches.state_dict()}
            torch.save(state, checkpoint)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoint", type=Path)
    asked = parser.parse_args()
    train(asked.url, asked.epochs, asked.checkpoint)
