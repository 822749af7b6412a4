"""Quantization methods; each rewrites nodes of a graph."""
