"""Decoding loops: from logits to token ids. They know nothing about files or sessions."""
