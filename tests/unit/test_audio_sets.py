"""Speech that is quantized with: of what there is, that which a model speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoints import CHECKPOINTS
from quantize.audio_sets import EVALUATED, calibration_clips, evaluation_utterances, is_evaluated, probe_clips, spoken
from quantize.errors import CalibrationError
from quantize.package import Plan, find_audio
from quantize.recipe import load_recipe
from runtime.evaluation import Utterance
from runtime.model.manifest import Language

RUSSIAN, MANDARIN, FRENCH = Language("Russian", "ru"), Language("Chinese", "zh"), Language("French", "fr")


def said_in(*languages: str | None) -> list[Utterance]:
    return [Utterance(Path(f"{index}.wav"), "text", language) for index, language in enumerate(languages)]


def test_names_codes_and_locales_of_a_language_are_the_same() -> None:
    heard = said_in("Russian", "ru", "ru-RU", "English", None, "cmn_hans_cn", "zh")
    assert [each.audio.stem for each in spoken(heard, [RUSSIAN])] == ["0", "1", "2", "4"]  # one does not say
    assert [each.audio.stem for each in spoken(heard, [MANDARIN])] == ["4", "5", "6"]
    assert spoken(heard, []) == heard


def test_the_bundled_speech_of_a_model() -> None:
    """A language of which none comes along is calibrated with what there is: any speech moves activations."""
    assert {clip.stem[:2] for clip in calibration_clips(None, [RUSSIAN])} == {"ru"}
    assert {clip.stem[:2] for clip in calibration_clips(None, [FRENCH])} == {"en", "ru", "zh"}
    assert len(calibration_clips(None, [])) == 6
    assert {clip.stem[:2] for clip in probe_clips([], [MANDARIN])} == {"zh"}
    assert {clip.stem[:2] for clip in probe_clips([], [FRENCH])} == {"en", "ru", "zh"}
    assert [clip.name for clip in probe_clips(said_in("Russian", "Russian"), [RUSSIAN])] == ["0.wav", "1.wav"]


def test_the_evaluation_set_is_for_models_trained_on_it_in_their_languages() -> None:
    assert {checkpoint.name for checkpoint in CHECKPOINTS.values() if checkpoint.bundled} <= EVALUATED
    assert is_evaluated("qwen3-asr-tiny")
    assert is_evaluated("qwen3-asr-tiny-int8")
    assert not is_evaluated("qwen3-asr-tinier")
    plan = Plan(load_recipe("int8"))
    assert find_audio(plan, "gigaam-v3-ctc", [RUSSIAN])[1] == []
    _, utterances = find_audio(plan, "qwen3-asr-tiny", [RUSSIAN])
    assert [utterance.language for utterance in utterances] == ["Russian"] * 20
    assert len(find_audio(plan, "qwen3-asr-tiny")[1]) == 60
    with pytest.raises(CalibrationError, match=r"none of its 60 utterances is in a language of the model \(French\)"):
        evaluation_utterances(None, [FRENCH])
