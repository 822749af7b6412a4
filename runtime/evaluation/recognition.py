"""Transcribe a data set and summarize its errors."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from runtime.errors import OptionError
from runtime.evaluation.comparison import Comparison, compare_texts
from runtime.evaluation.dataset import Utterance
from runtime.evaluation.languages import language_name
from runtime.evaluation.metrics import PACKAGES, Score, score
from runtime.model.artifact import Artifact
from runtime.model.manifest import Manifest
from runtime.results import Transcript
from runtime.transcriber import Request, Transcriber


class BaselineComparison(msgspec.Struct, frozen=True):
    """Texts of a model beside those of a baseline on the same utterances.

    Attributes:
        model: name of the baseline.
        quantization: its recipe, or ``float32``.
        languages: comparisons by language, sorted by name.
        overall: comparison over all utterances.
    """

    model: str
    quantization: str
    languages: list[Comparison]
    overall: Comparison


class Evaluation(msgspec.Struct, frozen=True):
    """Scores of a model, with its settings and its speed.

    Attributes:
        scores: errors for each language.
        model: name of the model.
        quantization: recipe of the model, or ``float32``.
        provider: execution providers.
        language: ``told`` if the language was set, ``detected`` if the model detected it, ``implicit`` if the model
            does neither (Parakeet, GigaAM).
        processing_seconds: time of features, encoder and decoder, without reading the files.
        audio_seconds: length of all audio.
        real_time_factor: processing / audio; None for no audio.
        versions: version by package.
        baseline: comparison with another model; None if none was given.
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
    baseline: BaselineComparison | None = None


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
        utterances: utterances to transcribe.
        language: language of all of them; None: the model detects it.
        own_language: set each utterance's own language instead of ``language``.
        on_progress: called with (utterances done, utterances in all) after each.

    Returns:
        Transcripts in the order of ``utterances``.

    Raises:
        OptionError: the model does not know a language, or ``own_language`` is set and an utterance has none; raised
            before the first utterance is transcribed.
        AudioNotFoundError: a recording does not exist.
        AudioInvalidError: a recording cannot be decoded.
        AudioUnsupportedError: a recording needs an optional package.
    """
    languages = [transcriber.resolve_language(language)] * len(utterances)
    if own_language:
        languages = [transcriber.resolve_language(_own_language(utterance)) for utterance in utterances]
    takes_context = transcriber.capabilities.context
    requests = [
        Request(utterance.audio, name, utterance.context if takes_context else "")
        for utterance, name in zip(utterances, languages, strict=True)
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
        raise OptionError(f"{utterance.audio}: has no language to force; give one with --language")
    return language_name(utterance.language) or utterance.language


def summarize(
    transcriber: Transcriber,
    utterances: Sequence[Utterance],
    transcripts: Sequence[Transcript],
    *,
    forced_language: bool,
) -> Evaluation:
    """Score transcripts against the references.

    Args:
        transcriber: the model of the transcripts.
        utterances: the references.
        transcripts: a transcript for each utterance, at least one.
        forced_language: whether the languages of the utterances were set.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
    """
    manifest = transcriber.artifact.manifest
    unset: Literal["detected", "implicit"] = "detected" if transcriber.capabilities.language_detection else "implicit"
    timings = [transcript.timings for transcript in transcripts]
    processing = sum(each.features + each.encode + each.prefill + each.decode for each in timings)
    duration = sum(transcript.duration for transcript in transcripts)
    return Evaluation(
        scores=score(utterances, [transcript.text for transcript in transcripts]),
        model=manifest.name,
        quantization=_quantization(manifest),
        provider=transcripts[0].provider,
        language="told" if forced_language else unset,
        processing_seconds=processing,
        audio_seconds=duration,
        real_time_factor=processing / duration if duration else None,
        versions=transcripts[0].versions | {name: importlib.metadata.version(name) for name in PACKAGES.values()},
    )


def compare(
    baseline: Artifact, utterances: Sequence[Utterance], before: Sequence[Transcript], after: Sequence[Transcript]
) -> BaselineComparison:
    """Compare transcripts with those of a baseline.

    Args:
        baseline: the baseline.
        utterances: the references, at least one.
        before: the baseline's transcript of each utterance.
        after: the model's transcript of each utterance.

    Raises:
        PackageMissingError: the extra ``evaluate`` is not installed.
    """
    manifest = baseline.manifest
    comparison = compare_texts(utterances, [each.text for each in before], [each.text for each in after])
    return BaselineComparison(
        model=manifest.name,
        quantization=_quantization(manifest),
        languages=comparison.languages,
        overall=comparison.overall,
    )


def _quantization(manifest: Manifest) -> str:
    return manifest.quantization.recipe if manifest.quantization else "float32"
