"""The command line, one module a command. :mod:`runtime.__main__` puts them together."""
