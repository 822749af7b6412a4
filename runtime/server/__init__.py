"""HTTP and WebSocket server for speech recognition, compatible with OpenAI's audio API."""
