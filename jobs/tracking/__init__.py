"""Lineage and metrics in MLflow."""
