"""Machine, date and versions of a measurement."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

from runtime.bench.machine import describe

_PACKAGES = ("onnxruntime", "onnx-ir", "numpy", "torch", "transformers")


def stamp() -> dict[str, Any]:
    """Return machine, date (UTC) and versions as they are stored beside results."""
    machine = describe()
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {
        "machine": f"{machine.cores} cores of {machine.processor}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | versions,
    }


def measured(part: dict[str, Any]) -> str:
    """Return the stamp of a stored part as a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return f"Measured on {part['date']}, {part['machine']} (a shared virtual machine); {versions}."
