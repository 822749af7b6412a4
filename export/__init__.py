"""Export of speech recognition checkpoints to ONNX artifacts."""

from __future__ import annotations

import runtime  # noqa: F401  (import first: it configures how ONNX Runtime is imported)
