"""Sealed caches, the commits of their shards, and what keeps or removes them."""
