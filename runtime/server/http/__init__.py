"""HTTP layer: application, middleware, connections, uploads, errors and the web page."""
