"""Export of GigaAM checkpoints."""
