"""ONNX Runtime's wheels report their use to Microsoft unless this is set before it is imported; here it is set.

Whoever wants the reports sets ``ORT_DISABLE_TELEMETRY=0``.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
