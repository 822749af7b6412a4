"""Speech to quantize with: what comes along, and what of it and of the user's own is in a model's languages."""

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

#: Models that the bundled evaluation set is for: those trained on this synthetic speech. On others it says nothing.
EVALUATED = frozenset({"qwen3-asr-tiny", "whisper-turbo-tiny", "parakeet-tdt-tiny", "gigaam-v3-tiny"})
#: Clips that are calibrated with, and clips on which graphs are compared: more change the third digit.
CALIBRATION_CLIPS, PROBE_CLIPS = 6, 3


def samples_folder() -> Path:
    """The sample recordings (wav) with ``index.json``: beside this module when installed, else in the tests."""
    package = Path(__file__).resolve().parent
    installed = package / "speech"
    return installed if installed.is_dir() else package.parent / "tests" / "data"


def evaluation_folder() -> Path:
    """The held-out recordings of the small checkpoints."""
    return samples_folder() / "evaluation"


def is_evaluated(model: str) -> bool:
    """Whether the bundled evaluation set is for the model of that name."""
    return any(model == name or model.startswith(f"{name}-") for name in EVALUATED)


def spoken(utterances: Sequence[Utterance], languages: Sequence[Language]) -> list[Utterance]:
    """Those that are in one of ``languages``, or do not say in which they are; all when none is given."""
    names = {language_name(language.name) or language.name for language in languages}
    return [
        utterance
        for utterance in utterances
        if not names or utterance.language is None or language_name(utterance.language) in names
    ]


def evaluation_utterances(folder: Path | None, languages: Sequence[Language]) -> list[Utterance]:
    """The gate's utterances: of ``folder``, or the bundled ones.

    Raises:
        CalibrationError: none is in one of ``languages``.
        The evaluation's errors: see :func:`runtime.evaluation.load_utterances`.
    """
    utterances = load_utterances(folder or evaluation_folder())
    found = spoken(utterances, languages)
    if not found:
        raise CalibrationError(
            f"{folder or evaluation_folder()}: none of its {len(utterances)} utterances is in a language of the model "
            f"({', '.join(language.name for language in languages)}); give another folder"
        )
    return found


def probe_clips(utterances: Sequence[Utterance], languages: Sequence[Language]) -> list[Path]:
    """Recordings on which graphs are compared: of the gate's utterances, or bundled."""
    if not utterances:
        bundled = load_utterances(evaluation_folder())
        utterances = spoken(bundled, languages) or bundled
    return _spread([utterance.audio for utterance in utterances], PROBE_CLIPS)


def calibration_clips(folder: Path | None, languages: Sequence[Language]) -> list[Path]:
    """Recordings to calibrate with: of ``folder``, or bundled ones in one of ``languages`` if there are any.

    Raises:
        CalibrationError: no such folder, or nothing to hear in it.
    """
    if folder is None:
        bundled = load_utterances(samples_folder())
        return _spread([utterance.audio for utterance in spoken(bundled, languages) or bundled], CALIBRATION_CLIPS)
    try:
        found = sorted(
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
    if not found:
        raise CalibrationError(f"{folder}: holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))}) to calibrate with")
    return _spread(found, CALIBRATION_CLIPS)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
