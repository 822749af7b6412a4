"""Find the bundled model, which is used where no model is given."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import ArtifactInvalidError, ArtifactNotFoundError
from runtime.model.manifest import MANIFEST, read_manifest

#: Name of the bundled model, OpenAI's Whisper base in int8: its folder in ``artifacts/`` of a source tree.
BUNDLED_MODEL = "whisper-base-int8"
_PACKAGE = Path(__file__).resolve().parent.parent


def default_model(package: Path = _PACKAGE) -> Path:
    """Return the folder of the bundled model.

    It is ``default_model`` in the installed package, and ``artifacts/whisper-base-int8`` in a source tree. Only the
    presence of its files is checked; :func:`runtime.model.artifact.open_artifact` compares their contents.

    Args:
        package: folder of the package ``runtime``.

    Raises:
        ArtifactNotFoundError: the folder or one of its files is missing.
        ArtifactInvalidError: its manifest is malformed or cannot be read.
    """
    tree = package.parent
    installed = package / "default_model"
    folder = installed if installed.is_dir() else tree / "artifacts" / BUNDLED_MODEL
    manifest = folder / MANIFEST
    try:
        names = [MANIFEST, *read_manifest(manifest).files] if manifest.is_file() else [MANIFEST]
    except OSError as error:
        raise ArtifactInvalidError(f"{manifest}: cannot be read ({error.strerror})") from None
    missing = next((folder / name for name in names if not (folder / name).is_file()), None)
    if missing is None:
        return folder
    if (tree / "Makefile").is_file():
        raise ArtifactNotFoundError(
            f"{missing}: the bundled model is missing or incomplete; run `make real-model` in {tree}, or give another "
            "model with --model DIR"
        )
    raise ArtifactNotFoundError("this installation has no bundled model; give the folder of a model with --model DIR")
