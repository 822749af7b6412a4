"""Live transcription over WebSocket, compatible with OpenAI's realtime transcription sessions."""
