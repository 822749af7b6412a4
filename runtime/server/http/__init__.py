"""HTTP layer: middleware, connections, uploads, errors and the web page."""
