"""The order of samples: pure functions of (row-group sizes, seed, index), with no cluster in them."""

from storage.order.sample_order import permute

__all__ = ["permute"]
