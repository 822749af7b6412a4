"""The command ``evaluate``: measure a model's error rate on recordings with reference texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from runtime.cli.common import (
    DecoderProviderOption,
    EncoderProviderOption,
    ModelOption,
    OutputFormat,
    ProviderOption,
    ThreadsOption,
    check_writable,
    guarded,
    progress_bar,
    warn,
    write,
)
from runtime.errors import OptionError
from runtime.model.artifact import open_artifact
from runtime.transcriber import Transcriber
from runtime.writers import evaluation_as_json, evaluation_as_text, hypotheses_as_json_lines


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of recordings with reference texts: an index.json, index.jsonl or metadata.jsonl, a "
            "LibriSpeech tree, or a .txt beside each audio file."
        ),
    ],
    model: ModelOption = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a model to compare with, such as the float32 parent: words that differ from its text, and "
            "the difference of the error rates with a paired 95 % interval."
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Language of utterances without one in the data: English name or ISO 639 code."),
    ] = None,
    force_language: Annotated[
        bool,
        typer.Option("--force-language", help="Set each utterance's language instead of letting the model detect it."),
    ] = False,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Evaluate only the first utterances, at least 1. [default: all]")
    ] = None,
    format: Annotated[OutputFormat, typer.Option(help="Print a table, or one line of JSON.")] = OutputFormat.txt,
    hypotheses: Annotated[
        Path | None,
        typer.Option(
            help="Write reference and hypothesis of each utterance, and the baseline's, to this file, one line of JSON "
            "each."
        ),
    ] = None,
) -> None:
    """Measure a model's word or character error rate on recordings with reference texts.

    Needs the packages of asr-deploy[evaluate].
    """
    # Imported when the command runs, so that other commands start faster.
    from runtime.evaluation import check_packages, compare, load_utterances, recognize, summarize

    with guarded():
        check_packages()
        if limit is not None and limit < 1:
            raise OptionError(f"limit must be at least 1, not {limit}")
        if hypotheses:
            check_writable(hypotheses)
        utterances = load_utterances(data, language)[:limit]

        def opened(path: Path | None) -> Transcriber:
            return Transcriber.from_artifact(
                path,
                provider=provider or "cpu",
                encoder_provider=encoder_provider,
                decoder_provider=decoder_provider,
                threads=threads,
            )

        if baseline:
            open_artifact(baseline)  # report errors before the first transcription
        transcriber = opened(model)
        with progress_bar(str(data), unit="utterances") as progress:
            transcripts = recognize(transcriber, utterances, own_language=force_language, on_progress=progress)
        evaluation = summarize(transcriber, utterances, transcripts, forced_language=force_language)
        before = None
        if baseline:
            del transcriber  # both models together may not fit into memory
            reference = opened(baseline)
            with progress_bar(f"{data} (baseline)", unit="utterances") as progress:
                before = recognize(reference, utterances, own_language=force_language, on_progress=progress)
            comparison = compare(reference.artifact, utterances, before, transcripts)
            evaluation = msgspec.structs.replace(evaluation, baseline=comparison)
        if hypotheses:
            write(hypotheses, hypotheses_as_json_lines(data, utterances, transcripts, before).encode())
    typer.echo(evaluation_as_json(evaluation) if format is OutputFormat.json else evaluation_as_text(evaluation))
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        warn(transcript, str(utterance.audio))
