"""The training loop and what it needs: checks, evaluation, checkpoints and metrics."""
