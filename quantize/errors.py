"""Errors of quantization and of writing artifacts. Each message is one sentence; the CLI exits with code 2."""

from __future__ import annotations

from runtime.errors import AsrError


class RecipeError(AsrError, ValueError):
    """A recipe cannot be read, contradicts itself, or does not fit the artifact."""


class CalibrationError(AsrError, ValueError):
    """Calibration or evaluation audio is missing or cannot be read."""


class QuantizationError(AsrError, ValueError):
    """The artifact cannot be quantized with these options, for example because it is already quantized."""


class GateError(AsrError, ArithmeticError):
    """The quantized artifact differs from its parent by more than the recipe allows."""


class OutputError(AsrError, OSError):
    """The artifact cannot be written to the requested path."""
