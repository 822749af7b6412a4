"""What families share: the engine interface and its two kinds."""
