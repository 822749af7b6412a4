"""Turn off ONNX Runtime's telemetry. Import this module before ``onnxruntime``.

ONNX Runtime's wheels report their use to Microsoft unless ``ORT_DISABLE_TELEMETRY`` is set before they are imported.
Set ``ORT_DISABLE_TELEMETRY=0`` to allow the reports.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
