"""Errors that the exporter raises: one sentence each, exit code 2 on the command line."""

from __future__ import annotations

from runtime.errors import AsrError


class CheckpointNotFoundError(AsrError, FileNotFoundError):
    """A checkpoint folder or file is missing, or it is not cached and the hub cannot be reached."""


class CheckpointInvalidError(AsrError, ValueError):
    """A checkpoint cannot be read, contradicts itself, or has a geometry that is not supported."""


class ParityError(AsrError, ArithmeticError):
    """A graph differs from the reference implementation by more than its tolerance."""
