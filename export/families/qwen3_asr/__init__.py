"""Export of Qwen3-ASR checkpoints."""
