"""Artifacts: manifest, verification, tokenizer."""
