"""Recognition of real recordings by all recipes and by other packages with the same weights: ``docs/accuracy.md``."""
