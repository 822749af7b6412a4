"""Select the audio for calibration, graph comparison and evaluation: bundled or given, in the model's languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from quantize.errors import CalibrationError
from runtime.audio import AUDIO_SUFFIXES
from runtime.evaluation import Utterance, load_utterances
from runtime.evaluation.languages import language_name
from runtime.model.manifest import Language

T = TypeVar("T")

#: Models that are evaluated on the bundled set: they were trained on its kind of synthetic speech. For other models the
#: set is not meaningful.
BUNDLED_EVALUATION_MODELS = frozenset({"qwen3-asr-tiny", "whisper-turbo-tiny", "parakeet-tdt-tiny", "gigaam-v3-tiny"})
#: Clips for calibration, and clips on which graphs are compared. More clips change the third digit of errors.
CALIBRATION_CLIPS, PROBE_CLIPS = 6, 3


def samples_folder() -> Path:
    """Return the folder of bundled recordings (WAV) with ``index.json``.

    It is ``speech`` beside this module in an installed package, and ``tests/data`` in a source tree.
    """
    package = Path(__file__).resolve().parent
    installed = package / "speech"
    return installed if installed.is_dir() else package.parent / "tests" / "data"


def evaluation_folder() -> Path:
    """Return the folder of the bundled evaluation set: recordings that no bundled model was trained on."""
    return samples_folder() / "evaluation"


def real_folder() -> Path:
    """Return the folder of the bundled recordings of people: twelve in each of five languages, with ``index.json``."""
    return samples_folder() / "real"


def uses_bundled_evaluation(model: str) -> bool:
    """Return whether the model of that name, or the one it was quantized from, is evaluated on the bundled set."""
    return any(model == name or model.startswith(f"{name}-") for name in BUNDLED_EVALUATION_MODELS)


def filter_by_language(utterances: Sequence[Utterance], languages: Sequence[Language]) -> list[Utterance]:
    """Return the utterances in one of ``languages`` and those of unknown language; all if ``languages`` is empty."""
    names = {language_name(language.name) or language.name for language in languages}
    return [
        utterance
        for utterance in utterances
        if not names or utterance.language is None or language_name(utterance.language) in names
    ]


def evaluation_utterances(folder: Path | None, languages: Sequence[Language]) -> list[Utterance]:
    """Load the evaluation utterances of ``folder``, or the bundled ones, that are in one of ``languages``.

    Raises:
        CalibrationError: No utterance is in one of ``languages``.
        AsrError: :func:`runtime.evaluation.load_utterances` cannot load the folder.
    """
    utterances = load_utterances(folder or evaluation_folder())
    selected = filter_by_language(utterances, languages)
    if not selected:
        raise CalibrationError(
            f"{folder or evaluation_folder()}: none of its {len(utterances)} utterances is in a language of the model "
            f"({', '.join(language.name for language in languages)}); give another folder"
        )
    return selected


def probe_clips(utterances: Sequence[Utterance], languages: Sequence[Language]) -> list[Path]:
    """Return the recordings on which graphs are compared: some of ``utterances``, or bundled ones if it is empty."""
    if not utterances:
        bundled = load_utterances(evaluation_folder())
        utterances = filter_by_language(bundled, languages) or bundled
    return _spread([utterance.audio for utterance in utterances], PROBE_CLIPS)


def calibration_clips(folder: Path | None, languages: Sequence[Language]) -> list[Path]:
    """Return the recordings for calibration.

    They are audio files of ``folder``, which is searched recursively without hidden files and folders. Without a folder
    they are bundled recordings in one of ``languages``, or in any language if none matches.

    Raises:
        CalibrationError: ``folder`` does not exist or cannot be read.
        CalibrationError: ``folder`` has no audio files.
    """
    if folder is None:
        bundled = load_utterances(samples_folder())
        utterances = filter_by_language(bundled, languages) or bundled
        return _spread([utterance.audio for utterance in utterances], CALIBRATION_CLIPS)
    try:
        paths = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in AUDIO_SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    except OSError as error:
        raise CalibrationError(f"{folder}: the calibration audio cannot be read ({error.strerror})") from None
    if not folder.is_dir():
        raise CalibrationError(f"{folder}: no such folder of calibration audio")
    if not paths:
        raise CalibrationError(f"{folder}: has no audio files for calibration ({', '.join(sorted(AUDIO_SUFFIXES))})")
    return _spread(paths, CALIBRATION_CLIPS)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly spread."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
