"""Benchmarks that anyone can repeat: what is compared takes turns in one process, run after run."""
