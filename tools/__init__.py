"""Programs that make checkpoints, weights and generated pages; nothing here ships."""
