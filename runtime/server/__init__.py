"""Transcription as a service: HTTP and WebSocket in front of models that batch across everybody who asks."""
