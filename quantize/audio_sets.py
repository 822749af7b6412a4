"""Select the audio for calibration, graph comparison and evaluation: bundled or given, in the model's languages.

Two sets are bundled. The recordings of people (``real``, five languages) evaluate and calibrate every model that knows
one of their languages, with different recordings for each. The synthetic speech is for the small bundled models, which
were trained on its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from quantize.errors import CalibrationError
from runtime.audio import AUDIO_SUFFIXES
from runtime.evaluation import Utterance, load_utterances
from runtime.evaluation.languages import language_name
from runtime.model.manifest import Language

T = TypeVar("T")
Split = Literal["calibration", "evaluation"]

#: Models that are evaluated and calibrated on the bundled synthetic speech: they were trained on its kind and know no
#: other.
BUNDLED_EVALUATION_MODELS = frozenset({"qwen3-asr-tiny", "whisper-turbo-tiny", "parakeet-tdt-tiny", "gigaam-v3-tiny"})
#: Largest number of clips for calibration, and number of clips on which graphs are compared. More change the third
#: digit of errors.
CALIBRATION_CLIPS, PROBE_CLIPS = 20, 3


class Clip(NamedTuple):
    """A recording for calibration, and its language if it is known."""

    path: Path
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """Audio of one quantization.

    Attributes:
        calibration: Recordings for calibration; empty if the recipe needs none.
        calibration_name: Description for the manifest; None if the recipe needs none.
        evaluation: Utterances for the gate; empty if graphs alone are compared.
        evaluation_name: Description for the manifest, or why there are no utterances.
    """

    calibration: list[Clip]
    calibration_name: str | None
    evaluation: list[Utterance]
    evaluation_name: str


class _Entry(msgspec.Struct):
    """The fields of an index that divide the recordings."""

    file: str
    split: Split


def samples_folder() -> Path:
    """Return the folder of bundled recordings (WAV) with ``index.json``.

    It is ``speech`` beside this module in an installed package, and ``tests/data`` in a source tree.
    """
    package = Path(__file__).resolve().parent
    installed = package / "speech"
    return installed if installed.is_dir() else package.parent / "tests" / "data"


def evaluation_folder() -> Path:
    """Return the folder of the bundled synthetic evaluation set: speech that no bundled model was trained on."""
    return samples_folder() / "evaluation"


def real_folder() -> Path:
    """Return the folder of the bundled recordings of people: twelve in each of five languages, with ``index.json``."""
    return samples_folder() / "real"


def uses_bundled_evaluation(model: str) -> bool:
    """Return whether the model of that name, or the one it was quantized from, has the bundled synthetic speech."""
    return any(model == name or model.startswith(f"{name}-") for name in BUNDLED_EVALUATION_MODELS)


def filter_by_language(utterances: Sequence[Utterance], languages: Sequence[Language]) -> list[Utterance]:
    """Return the utterances in one of ``languages`` and those of unknown language; all if ``languages`` is empty."""
    names = {language_name(language.name) or language.name for language in languages}
    return [
        utterance
        for utterance in utterances
        if not names or utterance.language is None or language_name(utterance.language) in names
    ]


def real_utterances(split: Split) -> list[Utterance]:
    """Return the bundled recordings of people for calibration or for evaluation, sorted by language and name."""
    folder = real_folder()
    entries = msgspec.json.decode((folder / "index.json").read_bytes(), type=list[_Entry])
    chosen = {folder / entry.file for entry in entries if entry.split == split}
    return [utterance for utterance in load_utterances(folder) if utterance.audio in chosen]


def evaluation_audio(folder: Path | None, model: str, languages: Sequence[Language]) -> tuple[list[Utterance], str]:
    """Find the evaluation utterances in one of ``languages``, and describe them for the manifest.

    Args:
        folder: Data set; by default a bundled set.
        model: Name of the model, which decides between the bundled sets.
        languages: Languages of the model; empty if they are not known.

    Returns:
        Utterances and their description. Only for the recordings of people there may be no utterance; the description
        then says why.

    Raises:
        CalibrationError: No utterance of ``folder`` or of the synthetic set is in one of ``languages``.
        AsrError: :func:`runtime.evaluation.load_utterances` cannot load the folder.
    """
    if folder is None and not uses_bundled_evaluation(model):
        recordings = real_utterances("evaluation")
        selected = filter_by_language(recordings, languages)
        if not selected:
            return [], (
                f"graphs alone: the model knows none of the languages of the bundled recordings "
                f"({_language_list(recordings)}); --eval takes a folder of others"
            )
        return selected, f"{len(selected)} bundled recordings of people ({_language_list(selected)})"
    utterances = load_utterances(folder or evaluation_folder())
    selected = filter_by_language(utterances, languages)
    if not selected:
        raise CalibrationError(
            f"{folder or evaluation_folder()}: none of its {len(utterances)} utterances is in a language of the model "
            f"({', '.join(language.name for language in languages)}); give another folder"
        )
    return selected, f"{len(selected)} utterances of {folder.name if folder else 'the bundled set'}"


def _language_list(utterances: Sequence[Utterance]) -> str:
    return ", ".join(sorted({utterance.language or "" for utterance in utterances}))


def probe_clips(utterances: Sequence[Utterance], model: str, languages: Sequence[Language]) -> list[Path]:
    """Return the recordings on which graphs are compared: some of ``utterances``, or bundled ones if it is empty."""
    if not utterances:
        bundled = bundled_utterances(model, "evaluation")
        utterances = filter_by_language(bundled, languages) or bundled
    return _spread([utterance.audio for utterance in utterances], PROBE_CLIPS)


def bundled_utterances(model: str, split: Split) -> list[Utterance]:
    """Return the bundled utterances for the model of that name, in all languages."""
    if not uses_bundled_evaluation(model):
        return real_utterances(split)
    return load_utterances(samples_folder() if split == "calibration" else evaluation_folder())


def calibration_audio(folder: Path | None, model: str, languages: Sequence[Language]) -> tuple[list[Clip], str]:
    """Find the recordings for calibration, and describe them for the manifest.

    They are audio files of ``folder``, which is searched recursively without hidden files and folders. Without a folder
    they are bundled recordings in one of ``languages``, or in any language if none matches.

    Raises:
        CalibrationError: ``folder`` does not exist or cannot be read.
        CalibrationError: ``folder`` has no audio files.
    """
    if folder is None:
        bundled = bundled_utterances(model, "calibration")
        utterances = filter_by_language(bundled, languages) or bundled
        clips = _spread([Clip(each.audio, each.language) for each in utterances], CALIBRATION_CLIPS)
        if uses_bundled_evaluation(model):
            return clips, "bundled samples"
        return clips, f"{len(clips)} bundled recordings of people ({_language_list(utterances)})"
    return _spread([Clip(path) for path in _audio_files(folder)], CALIBRATION_CLIPS), folder.name


def _audio_files(folder: Path) -> list[Path]:
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
    return paths


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, evenly spread."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
