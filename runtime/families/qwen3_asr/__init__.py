"""Qwen3-ASR in the runtime: encoder windows, prompt with audio rows, decoder, live streams."""
