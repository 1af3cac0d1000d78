"""Samples as Arrow tables: their columns, tensors and digests."""
