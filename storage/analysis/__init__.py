"""What is computed from caches: derived caches, statistics and previews."""
