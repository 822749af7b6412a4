"""Export of Parakeet checkpoints."""
