"""Data at rest and how it is read: shards, commits, caches, the order of samples. No Ray in here."""
