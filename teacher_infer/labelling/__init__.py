"""Labelling spans: a worker, the writer of its shards, and the pool that hands out spans."""
