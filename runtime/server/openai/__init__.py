"""Endpoints and response formats of OpenAI's audio API."""
