"""HTTP: application, limits, uploads, errors, the page."""
