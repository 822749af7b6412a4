"""Graph-level work on ONNX artifacts: saving, external data, and the recipes that make them smaller."""

from __future__ import annotations

import runtime  # noqa: F401 (first: it says how ONNX Runtime is to be imported)
