"""The runtime's command line, one module for each command; :mod:`runtime.cli.app` registers them."""
