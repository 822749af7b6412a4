"""Live audio over a WebSocket, in the shapes of OpenAI's realtime API."""
