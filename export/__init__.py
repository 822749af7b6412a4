from __future__ import annotations

import runtime  # noqa: F401 (first: it says how ONNX Runtime is to be imported)
