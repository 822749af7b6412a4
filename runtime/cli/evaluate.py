"""``evaluate``: a model's error rate on recordings with reference texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from runtime.transcriber import Transcriber
from runtime.writers import evaluation_as_json, evaluation_as_text, hypotheses_as_json_lines


def evaluate(
    data: Annotated[
        Path,
        typer.Option(help="Folder with an index.json, a LibriSpeech tree, or audio with a .txt beside each file."),
    ],
    model: ModelOption = None,
    language: Annotated[
        str | None, typer.Option(help="English name or code of the language of utterances that do not say theirs.")
    ] = None,
    force_language: Annotated[
        bool, typer.Option("--force-language", help="Tell the model the language too; it detects it otherwise.")
    ] = False,
    provider: ProviderOption = None,
    encoder_provider: EncoderProviderOption = None,
    decoder_provider: DecoderProviderOption = None,
    threads: ThreadsOption = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many utterances.")] = None,
    format: Annotated[OutputFormat, typer.Option(help="A table, or one line of JSON.")] = OutputFormat.txt,
    hypotheses: Annotated[
        Path | None, typer.Option(help="Write what was said and heard to this file, one line of JSON an utterance.")
    ] = None,
) -> None:
    """Measure a model's word or character error rate on recordings with reference texts.

    Needs the extra packages of asr-deploy[evaluate].
    """
    # Here, so that the other commands do not wait for it.
    from runtime.evaluation import check_packages, load_utterances, recognize, summarize

    with guarded():
        check_packages()
        if limit is not None and limit < 1:
            raise OptionError(f"limit must be at least 1, not {limit}")
        if hypotheses:
            check_writable(hypotheses)
        utterances = load_utterances(data, language)[:limit]
        transcriber = Transcriber.from_artifact(
            model,
            provider=provider or "cpu",
            encoder_provider=encoder_provider,
            decoder_provider=decoder_provider,
            threads=threads,
        )
        with progress_bar(str(data), unit="utterances") as progress:
            transcripts = recognize(transcriber, utterances, own_language=force_language, on_progress=progress)
        evaluation = summarize(transcriber, utterances, transcripts, told=force_language)
        if hypotheses:
            write(hypotheses, hypotheses_as_json_lines(data, utterances, transcripts).encode())
    typer.echo(evaluation_as_json(evaluation) if format is OutputFormat.json else evaluation_as_text(evaluation))
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        warn(transcript, str(utterance.audio))
