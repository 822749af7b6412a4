"""Running a model over a data set."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from runtime.errors import OptionError
from runtime.evaluation.dataset import Utterance
from runtime.evaluation.languages import language_name
from runtime.evaluation.metrics import PACKAGES, Score, score
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber


class Evaluation(msgspec.Struct, frozen=True):
    """Scores and how they came about.

    ``quantization`` is the model's recipe or ``float32``; ``language`` says whether the model was told it, or found it,
    or does neither (``implicit``: Parakeet, GigaAM). Processing
    is features, encoder and decoder, without reading the file; ``real_time_factor`` is processing / audio.
    """

    scores: list[Score]
    model: str
    quantization: str
    provider: str
    language: Literal["detected", "told", "implicit"]
    processing_seconds: float
    audio_seconds: float
    real_time_factor: float | None
    versions: dict[str, str]


def recognize(
    transcriber: Transcriber,
    utterances: Sequence[Utterance],
    *,
    language: str | None = None,
    own_language: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> list[Transcript]:
    """Transcribe every utterance, with its context if the model can use one.

    Args:
        transcriber: the model.
        utterances: what to transcribe.
        language: told to the model for all of them; by default it detects the language.
        own_language: tell the model each utterance's own language instead.
        on_progress: called with (utterances done, utterances in all) after each.

    Raises:
        OptionError: a language is asked for that the model does not know or that the utterance does not say, or a
            context of a model that cannot use one; found before the first is transcribed.
        AudioInvalidError and its kin: an audio cannot be read; the message names it.
    """
    told = [transcriber.resolve_language(language)] * len(utterances)
    if own_language:
        told = [transcriber.resolve_language(_own_language(utterance)) for utterance in utterances]
    hints = transcriber.capabilities.context
    requests = [
        Request(utterance.audio, name, utterance.context if hints else "")
        for utterance, name in zip(utterances, told, strict=True)
    ]
    for utterance, request in zip(utterances, requests, strict=True):
        try:
            transcriber.check(request)
        except OptionError as error:
            raise OptionError(f"{utterance.audio}: {error}") from None
    transcripts: dict[int, Transcript] = {}
    for outcome in transcriber.transcribe_many(requests):
        transcripts[outcome.index] = outcome.result()
        if on_progress:
            on_progress(len(transcripts), len(utterances))
    return [transcripts[index] for index in range(len(utterances))]


def _own_language(utterance: Utterance) -> str:
    if utterance.language is None:
        raise OptionError(f"{utterance.audio}: says no language that could be forced; give one with --language")
    return language_name(utterance.language) or utterance.language


def summarize(
    transcriber: Transcriber, utterances: Sequence[Utterance], transcripts: Sequence[Transcript], *, told: bool
) -> Evaluation:
    """Score at least one transcript, and say what made it; ``told`` is whether the model was told the language."""
    manifest = transcriber.artifact.manifest
    untold: Literal["detected", "implicit"] = "detected" if transcriber.capabilities.language_detection else "implicit"
    timings = [transcript.timings for transcript in transcripts]
    processing = sum(each.features + each.encode + each.prefill + each.decode for each in timings)
    duration = sum(transcript.duration for transcript in transcripts)
    return Evaluation(
        scores=score(utterances, [transcript.text for transcript in transcripts]),
        model=manifest.name,
        quantization=manifest.quantization.recipe if manifest.quantization else "float32",
        provider=transcripts[0].provider,
        language="told" if told else untold,
        processing_seconds=processing,
        audio_seconds=duration,
        real_time_factor=processing / duration if duration else None,
        versions=transcripts[0].versions | {name: importlib.metadata.version(name) for name in PACKAGES.values()},
    )
