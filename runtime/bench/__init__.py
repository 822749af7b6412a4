"""How fast a model is on this machine: benchmark, comparison of providers, and their reports."""
