"""The shapes of OpenAI's transcription API."""
