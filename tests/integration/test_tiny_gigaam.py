"""The bundled small GigaAM: text, word times, and the tokens of the torch module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoints import CheckpointFolder
from export.families.gigaam.exporter import GigaAM
from quantize.audio_sets import evaluation_folder, filter_by_language
from runtime import Request, Transcriber
from runtime.audio import load_audio
from runtime.evaluation import Utterance, load_utterances
from runtime.model.manifest import Language
from tests.conftest import DATA
from tests.unit.test_htk_log_mel import reference
from tools.tiny.evaluate import error_rate
from tools.tiny.gigaam.__main__ import CHECKPOINT, NAME
from tools.tiny.through_runtime import exported, in_order, words_of
from tools.tiny.word_times import start_errors

pytestmark = pytest.mark.slow

RATE = 16_000


@pytest.fixture(scope="module")
def transcriber() -> Iterator[Transcriber]:
    """Open the exported checkpoint without voice activity detection, so that the model gets all audio."""
    with exported(NAME, CHECKPOINT) as artifact:
        yield Transcriber.from_artifact(artifact, vad=False)


@pytest.fixture(scope="module")
def utterances() -> list[Utterance]:
    return filter_by_language(load_utterances(evaluation_folder()), [Language("Russian", "ru")])


def test_error_rate_and_word_order(transcriber: Transcriber, utterances: list[Utterance]) -> None:
    assert len(utterances) == 20
    transcripts = in_order(transcriber, [Request(utterance.audio) for utterance in utterances])
    assert error_rate("ru", [each.text for each in utterances], [each.text for each in transcripts]) < 0.08
    for transcript in transcripts:
        words = words_of(transcript)
        assert " ".join(word.text for word in words) == transcript.text
        starts = [word.start for word in words]
        assert starts == sorted(starts)
        assert all(0 <= word.start <= word.end <= transcript.duration + 0.1 for word in words)


def test_word_starts_match_the_true_ones(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    # This family takes no context, which some spellings need.
    russian = [sample for sample in samples if sample["language"] == "Russian" and not sample["context"]]
    transcripts = in_order(transcriber, [Request(DATA / sample["file"]) for sample in russian])
    errors = []
    for sample, transcript in zip(russian, transcripts, strict=True):
        errors += start_errors(words_of(transcript), [(word["start"], word["word"]) for word in sample["words"]])
    assert len(errors) > 20
    assert np.abs(errors).mean() < 0.05


@torch.no_grad()
def test_tokens_equal_those_of_the_module(transcriber: Transcriber, utterances: list[Utterance]) -> None:
    """From samples on, in batches, with trained weights."""
    module = GigaAM(CheckpointFolder(CHECKPOINT, "x", None))
    transcripts = in_order(transcriber, [Request(utterance.audio) for utterance in utterances])
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        features = torch.from_numpy(reference(load_audio(utterance.audio, RATE)))
        rows, _ = module.model(features[None], torch.tensor([features.shape[1]]))
        best = torch.unique_consecutive(rows[0].argmax(-1))
        expected = best[best != module.parameters["blank_id"]].tolist()
        assert [token for segment in transcript.segments for token in segment.tokens] == expected
        assert len(expected) > 5
