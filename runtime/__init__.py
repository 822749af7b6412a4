"""Speech recognition with ONNX Runtime, without torch and transformers.

from runtime import Transcriber

transcriber = Transcriber.from_artifact("artifacts/qwen3-asr-0.6b")
transcript = transcriber.transcribe("talk.wav", language="en", context="Sara, Jon")
print(transcript.text)
"""

from __future__ import annotations

# isort: off
import runtime.host.interrupts  # first: an interrupt of what follows is one sentence

# isort: on
import importlib
from typing import TYPE_CHECKING, Any

import runtime.telemetry  # noqa: F401 (must come before the first import of ONNX Runtime)
from runtime.errors import AsrError
from runtime.version import __version__

if TYPE_CHECKING:
    from runtime.model.artifact import Artifact, open_artifact
    from runtime.model.manifest import Manifest
    from runtime.results import Segment, Transcript
    from runtime.transcriber import Outcome, Request, Transcriber

# Imported when they are used: the commands start with this package, and an interrupt should find them ready early.
_MODULES = {
    "Artifact": "runtime.model.artifact",
    "Manifest": "runtime.model.manifest",
    "Outcome": "runtime.transcriber",
    "Request": "runtime.transcriber",
    "Segment": "runtime.results",
    "Transcriber": "runtime.transcriber",
    "Transcript": "runtime.results",
    "open_artifact": "runtime.model.artifact",
}

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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
