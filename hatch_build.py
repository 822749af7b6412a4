"""Build hook of hatchling: put the bundled model into wheels.

``ASR_DEPLOY_BUNDLED_MODEL=no`` leaves it out. An editable install reads it from ``artifacts/`` and copies nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("artifacts") / "whisper-base-int8"
TARGET = "runtime/default_model"  # where runtime.model.bundled looks for it
VARIABLE = "ASR_DEPLOY_BUNDLED_MODEL"


class BundledModel(BuildHookInterface[Any]):
    """Adds the folder of the bundled model to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folder unless the install is editable or the environment leaves it out."""
        choice = os.environ.get(VARIABLE, "yes")
        if choice not in ("yes", "no"):
            self.app.abort(f"{VARIABLE} is {choice!r}; set it to yes or no")
        if version == "editable" or choice == "no":
            return
        folder = Path(self.root) / SOURCE
        if not (folder / "manifest.json").is_file():
            self.app.abort(
                f"{folder}: the bundled model is missing; run `make real-model`, or leave it out with {VARIABLE}=no"
            )
        build_data["force_include"][str(folder)] = TARGET
