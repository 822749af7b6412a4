"""The exporter's errors. Like the runtime's: one sentence each, exit code 2 on the command line."""

from __future__ import annotations

from runtime.errors import AsrError


class CheckpointNotFoundError(AsrError, FileNotFoundError):
    """No such checkpoint folder, or the hub cannot be reached and the cache does not hold it."""


class CheckpointInvalidError(AsrError, ValueError):
    """Configuration and weights contradict each other, or a tensor is missing, left over or misshapen."""


class ParityError(AsrError, ArithmeticError):
    """A graph differs from the reference implementation by more than its tolerance."""
