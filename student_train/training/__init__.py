"""The training loop and what it needs: data, steps, checks, evaluation, checkpoints and metrics."""
