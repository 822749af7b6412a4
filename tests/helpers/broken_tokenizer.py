"""Copies of artifacts with another tokenizer file, recorded in their manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from runtime.host.files import sha256_file
from runtime.model.manifest import MANIFEST


def with_tokenizer(artifact: Path, folder: Path, data: bytes) -> Path:
    """Copy ``artifact`` to ``folder`` with ``data`` as ``tokenizer.json``, as if it had been exported with it."""
    shutil.copytree(artifact, folder)
    path = folder / "tokenizer.json"
    path.write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][path.name] |= {"size": path.stat().st_size, "sha256": sha256_file(path)}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder
