"""A family in two modules, as CONTRIBUTING.md describes: one for export, one for the runtime."""
