"""Benchmark of a model, comparison of execution providers, and their reports."""
