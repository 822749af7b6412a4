"""Tests of the selection of audio for calibration and evaluation by the languages of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoints import CHECKPOINTS
from quantize.audio_sets import (
    BUNDLED_EVALUATION_MODELS,
    calibration_clips,
    evaluation_utterances,
    filter_by_language,
    probe_clips,
    uses_bundled_evaluation,
)
from quantize.errors import CalibrationError
from quantize.package import Plan, find_audio
from quantize.recipe import load_recipe
from runtime.evaluation import Utterance
from runtime.model.manifest import Language

RUSSIAN, MANDARIN, FRENCH = Language("Russian", "ru"), Language("Chinese", "zh"), Language("French", "fr")


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


def test_bundled_clips_for_the_languages_of_a_model() -> None:
    """Without a bundled clip in a language of the model, clips in all languages are used."""
    assert {clip.stem[:2] for clip in calibration_clips(None, [RUSSIAN])} == {"ru"}
    assert {clip.stem[:2] for clip in calibration_clips(None, [FRENCH])} == {"en", "ru", "zh"}
    assert len(calibration_clips(None, [])) == 6
    assert {clip.stem[:2] for clip in probe_clips([], [MANDARIN])} == {"zh"}
    assert {clip.stem[:2] for clip in probe_clips([], [FRENCH])} == {"en", "ru", "zh"}
    assert [clip.name for clip in probe_clips(utterances_in("Russian", "Russian"), [RUSSIAN])] == ["0.wav", "1.wav"]


def test_bundled_evaluation_set_is_for_bundled_models_in_their_languages() -> None:
    assert {checkpoint.name for checkpoint in CHECKPOINTS.values() if checkpoint.bundled} <= BUNDLED_EVALUATION_MODELS
    assert uses_bundled_evaluation("qwen3-asr-tiny")
    assert uses_bundled_evaluation("qwen3-asr-tiny-int8")
    assert not uses_bundled_evaluation("qwen3-asr-tinier")
    plan = Plan(load_recipe("int8"))
    assert find_audio(plan, "gigaam-v3-ctc", [RUSSIAN])[1] == []
    _, utterances = find_audio(plan, "qwen3-asr-tiny", [RUSSIAN])
    assert [utterance.language for utterance in utterances] == ["Russian"] * 20
    assert len(find_audio(plan, "qwen3-asr-tiny")[1]) == 60
    with pytest.raises(CalibrationError, match=r"60 utterances .*\(French\)"):
        evaluation_utterances(None, [FRENCH])
