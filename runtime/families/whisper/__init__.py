"""Whisper in the runtime: cross-attention decoder, timestamp rules, guards, long form."""
