"""Labelling spans: a worker, its answers, and the pool that hands out spans."""
