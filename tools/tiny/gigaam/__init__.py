"""The small GigaAM v3 CTC: its sizes, its training, and its files."""
