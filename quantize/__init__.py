"""Quantization of ONNX artifacts by recipes: graph editing, calibration, methods and the accuracy gate."""

from __future__ import annotations

import runtime  # noqa: F401 (first: it disables the telemetry of ONNX Runtime before that is imported)
