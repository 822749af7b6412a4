"""Tests of the selection of audio for calibration and evaluation by the languages of a model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.checkpoints import CHECKPOINTS
from quantize import parent_run
from quantize.audio_sets import (
    BUNDLED_EVALUATION_MODELS,
    Clip,
    calibration_audio,
    evaluation_audio,
    filter_by_language,
    probe_clips,
    real_folder,
    real_utterances,
    uses_bundled_evaluation,
)
from quantize.errors import CalibrationError
from quantize.package import Plan, find_audio
from quantize.parent_run import CALIBRATION_SECONDS, pack, segment_probes
from quantize.recipe import load_recipe
from runtime.errors import OptionError
from runtime.evaluation import Utterance
from runtime.evaluation.languages import language_name
from runtime.model.manifest import Language

RUSSIAN, MANDARIN, FRENCH = Language("Russian", "ru"), Language("Chinese", "zh"), Language("French", "fr")
TINY, REAL = "qwen3-asr-tiny", "gigaam-v3-ctc"
# Languages of the published models of every family, as their manifests name them.
FAMILIES = {
    "qwen3-asr-0.6b": [
        Language(language_name(code) or code, code) for code in ("zh", "en", "yue", "ar", "fr", "es", "ru", "it")
    ],
    "whisper-base": [
        Language(language_name(code) or code, code) for code in ("en", "es", "fr", "it", "ru", "zh", "cy", "sw")
    ],
    "whisper-base.en": [Language("English", "en")],
    "parakeet-tdt-0.6b-v3": [
        Language(language_name(code) or code, code) for code in ("bg", "de", "en", "es", "fr", "it", "ru")
    ],
    "parakeet-ctc-1.1b": [Language("English", "en")],
    "gigaam-v3-ctc": [RUSSIAN],
}
FIVE = {"English", "French", "Italian", "Russian", "Spanish"}


def utterances_in(*languages: str | None) -> list[Utterance]:
    return [Utterance(Path(f"{index}.wav"), "text", language) for index, language in enumerate(languages)]


def test_language_may_be_a_name_code_or_locale() -> None:
    utterances = utterances_in("Russian", "ru", "ru-RU", "English", None, "cmn_hans_cn", "zh")
    assert [utterance.audio.stem for utterance in filter_by_language(utterances, [RUSSIAN])] == [
        "0",
        "1",
        "2",
        "4",
    ]  # one has no language
    assert [utterance.audio.stem for utterance in filter_by_language(utterances, [MANDARIN])] == ["4", "5", "6"]
    assert filter_by_language(utterances, []) == utterances


@pytest.mark.parametrize(("model", "languages"), FAMILIES.items(), ids=FAMILIES)
def test_recordings_of_people_for_every_family(model: str, languages: list[Language]) -> None:
    """Eight recordings of each language that the model knows evaluate it, and four others calibrate it."""
    audio = find_audio(Plan(load_recipe("int8")), model, languages)
    known = FIVE & {language.name for language in languages}
    assert Counter(each.language for each in audio.evaluation) == dict.fromkeys(known, 8)
    assert Counter(clip.language for clip in audio.calibration) == dict.fromkeys(known, 4)
    assert not {clip.path for clip in audio.calibration} & {each.audio for each in audio.evaluation}
    listed = ", ".join(sorted(known))
    assert audio.evaluation_name == f"{8 * len(known)} bundled recordings of people ({listed})"
    assert audio.calibration_name == f"{4 * len(known)} bundled recordings of people ({listed})"


def test_splits_are_those_of_the_index() -> None:
    index = {entry["file"]: entry["split"] for entry in json.loads((real_folder() / "index.json").read_text("utf-8"))}
    splits: list[Any] = ["calibration", "evaluation"]
    found = {each.audio.name: split for split in splits for each in real_utterances(split)}
    assert found == index


def test_model_without_a_bundled_language() -> None:
    """Graphs are compared alone, and the manifest says why; recordings in other languages still calibrate."""
    audio = find_audio(Plan(load_recipe("int8")), "someone/chinese", [MANDARIN])
    assert audio.evaluation == []
    assert audio.evaluation_name.startswith("graphs alone: the model knows none of the languages")
    assert "(English, French, Italian, Russian, Spanish); --eval" in audio.evaluation_name
    assert {clip.language for clip in audio.calibration} == FIVE
    assert len(probe_clips([], "someone/chinese", [MANDARIN])) == 3


def test_graphs_alone_on_request() -> None:
    audio = find_audio(Plan(load_recipe("fp16"), graphs_only=True), REAL, [RUSSIAN])
    assert (audio.calibration, audio.calibration_name, audio.evaluation) == ([], None, [])
    assert audio.evaluation_name == "graphs alone: --no-eval was given"
    with pytest.raises(OptionError, match="--eval and --no-eval"):
        find_audio(Plan(load_recipe("fp16"), evaluation=real_folder(), graphs_only=True), REAL)


def test_synthetic_speech_is_for_the_small_models() -> None:
    """Without a synthetic clip in a language of a small model, clips in all languages are used."""
    assert {checkpoint.name for checkpoint in CHECKPOINTS.values() if checkpoint.bundled} <= BUNDLED_EVALUATION_MODELS
    assert uses_bundled_evaluation(TINY)
    assert uses_bundled_evaluation(f"{TINY}-int8")
    assert not uses_bundled_evaluation("qwen3-asr-tinier")
    assert {clip.path.stem[:2] for clip in calibration_audio(None, TINY, [RUSSIAN])[0]} == {"ru"}
    clips, name = calibration_audio(None, TINY, [FRENCH])
    assert ({clip.path.stem[:2] for clip in clips}, name) == ({"en", "ru", "zh"}, "bundled samples")
    assert {clip.stem[:2] for clip in probe_clips([], TINY, [MANDARIN])} == {"zh"}
    assert {clip.stem[:2] for clip in probe_clips([], TINY, [FRENCH])} == {"en", "ru", "zh"}
    audio = find_audio(Plan(load_recipe("int8")), TINY, [RUSSIAN])
    assert [utterance.language for utterance in audio.evaluation] == ["Russian"] * 20
    assert find_audio(Plan(load_recipe("int8")), TINY).evaluation_name == "60 utterances of the bundled set"
    with pytest.raises(CalibrationError, match=r"60 utterances .*\(French\)"):
        evaluation_audio(None, TINY, [FRENCH])


def test_graphs_are_compared_on_evaluation_audio() -> None:
    given = utterances_in("Russian", "Russian")
    assert [clip.name for clip in probe_clips(given, REAL, [RUSSIAN])] == ["0.wav", "1.wav"]
    evaluated = {each.audio for each in real_utterances("evaluation")}
    assert set(probe_clips(real_utterances("evaluation"), REAL, [])) < evaluated
    assert set(probe_clips([], REAL, [RUSSIAN])) < {path for path in evaluated if path.name.startswith("ru-")}


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ([], []),
        ([("en", 3)], [[3]]),
        ([("en", 3), ("en", 4), ("en", 5)], [[3, 4], [5]]),  # 10 s at most
        ([("en", 3), ("fr", 4), ("fr", 5), ("en", 1)], [[3], [4, 5], [1]]),  # one language each
        ([(None, 3), (None, 4)], [[3, 4]]),
        ([("en", 40)], [[10]]),
        ([("en", 40)] * 32, [[5, 5]] * 16),  # a share of the total each
    ],
)
def test_clips_are_packed(
    clips: list[tuple[str | None, int]], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments hold the clips in order, and no more than their length and the total allow."""
    rate = 10
    paths = [Clip(Path(str(number)), language) for number, (language, _) in enumerate(clips)]

    def load_audio(path: Path, *_: Any) -> Any:
        return np.full(rate * clips[int(path.name)][1], int(path.name), np.float32)

    monkeypatch.setattr(parent_run, "load_audio", load_audio)
    segments = pack(paths, rate, 10)
    assert [[len(list(part)) // rate for part in runs(segment)] for segment in segments] == expected
    assert sum(map(len, segments)) <= CALIBRATION_SECONDS * rate


def runs(samples: Any) -> list[Any]:
    """Split where the value changes."""
    return np.split(samples, np.flatnonzero(np.diff(samples)) + 1)


def test_segments_are_transcribed_together() -> None:
    """Results may come in any order; each segment gets the probes of its own text."""
    taken: list[int] = []

    def run(next_job: Any) -> Any:
        jobs = list(iter(next_job, None))
        taken.append(len(jobs))
        for job in reversed(jobs):
            yield job.key, SimpleNamespace(tokens=[len(job.samples)])

    engine: Any = SimpleNamespace(run=run, probes=lambda samples, tokens, options: [(len(samples), tokens)])
    probes: Any = segment_probes(engine, [np.zeros(3, np.float32), np.zeros(5, np.float32)])
    assert probes == [[(3, [3])], [(5, [5])]]
    assert taken == [2]
    assert segment_probes(engine, []) == []
