"""Layouts of Whisper checkpoints: transformers, CTranslate2 and OpenAI. They are told apart by their weight files."""

from __future__ import annotations

from export.checkpoints import CheckpointFolder
from export.errors import CheckpointNotFoundError
from export.families.whisper.layouts.base import Layout
from export.families.whisper.layouts.ctranslate2 import CTranslate2Layout
from export.families.whisper.layouts.openai import OpenAILayout
from export.families.whisper.layouts.transformers import TransformersLayout
from export.file_names import CTRANSLATE2, PT

__all__ = ["Layout", "find_layout", "recognizes"]


def find_layout(folder: CheckpointFolder) -> type[Layout]:
    """Find the layout of a checkpoint by its weight file; that of transformers if there is none.

    Raises:
        CheckpointInvalidError: there are several weight files without an index.
    """
    try:
        file = folder.weight_files()[0]
    except CheckpointNotFoundError:
        return TransformersLayout  # it names the files that are missing
    if file.name == CTRANSLATE2:
        return CTranslate2Layout
    return OpenAILayout if file.suffix == PT else TransformersLayout


def recognizes(folder: CheckpointFolder) -> bool:
    """Whether a folder without ``model_type`` has the files of a Whisper checkpoint of CTranslate2 or OpenAI.

    Raises:
        CheckpointInvalidError: there are several weight files without an index.
    """
    return find_layout(folder) is not TransformersLayout
