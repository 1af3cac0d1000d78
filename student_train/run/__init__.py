"""A run on disk and in MLflow, its owner and its attempts."""
