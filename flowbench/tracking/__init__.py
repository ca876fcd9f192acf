"""Recorded runs: the only package that imports MLflow."""
