"""Where, when and with what something was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

from runtime.bench.machine import describe

_TOOLS = ("onnxruntime", "onnx-ir", "numpy", "torch", "transformers")


def stamp() -> dict[str, Any]:
    """Machine, date and versions, as they are stored beside results."""
    machine = describe()
    return {
        "machine": f"{machine.cores} cores of {machine.processor}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | {tool: importlib.metadata.version(tool) for tool in _TOOLS},
    }


def measured(part: dict[str, Any]) -> str:
    """The same of a stored part, in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return f"Measured on {part['date']}, {part['machine']} (a shared virtual machine); {versions}."
