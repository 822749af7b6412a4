"""Speech recognition with ONNX Runtime, without torch and transformers.

from runtime import Transcriber

transcriber = Transcriber.from_artifact("artifacts/qwen3-asr-0.6b")
transcript = transcriber.transcribe("talk.wav", language="en", context="Sara, Jon")
print(transcript.text)
"""

from __future__ import annotations

import runtime.telemetry  # noqa: F401 (must come before the first import of ONNX Runtime)
from runtime.errors import AsrError
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import Manifest
from runtime.results import Segment, Transcript
from runtime.transcriber import Outcome, Request, Transcriber
from runtime.version import __version__

__all__ = [
    "Artifact",
    "AsrError",
    "Manifest",
    "Outcome",
    "Request",
    "Segment",
    "Transcriber",
    "Transcript",
    "__version__",
    "open_artifact",
]
