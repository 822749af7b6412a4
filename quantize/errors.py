"""Errors of quantization and of writing artifacts: one sentence each, exit code 2 on the command line."""

from __future__ import annotations

from runtime.errors import AsrError


class RecipeError(AsrError, ValueError):
    """A recipe that cannot be read, contradicts itself, or does not fit the artifact."""


class CalibrationError(AsrError, ValueError):
    """Calibration or evaluation audio that is missing or cannot be read."""


class QuantizationError(AsrError, ValueError):
    """The artifact cannot be quantized as asked: it is quantized already, say."""


class GateError(AsrError, ArithmeticError):
    """The result is farther from its parent than the recipe allows."""


class OutputError(AsrError, OSError):
    """The artifact cannot be written where it was asked for."""
