"""Which files a source has, and their bytes."""
