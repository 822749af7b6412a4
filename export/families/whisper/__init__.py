"""Export of Whisper checkpoints."""
