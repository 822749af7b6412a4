"""From files and streams to segments for an engine, and back to transcripts."""
