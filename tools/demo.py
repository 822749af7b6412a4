"""Transcribe ten recordings of people in five languages with the bundled model: ``make demo``.

Prints what was said beside what the model heard, the word errors, the detected language and the time. Needs the runtime
and its extra ``evaluate``, not torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from runtime import Transcriber, Transcript
from runtime.errors import AsrError, DatasetNotFoundError
from runtime.evaluation import Utterance, check_packages, load_utterances, metric_language, score

RECORDINGS = Path(__file__).resolve().parents[1] / "tests" / "data" / "real"
#: Two recordings a language, some of them hard. None was used to calibrate the model.
CHOSEN = (
    "en-conf-invalid.opus",
    "en-tt-weasels.opus",
    "es-confbridge-lock-no-join.opus",
    "es-vm-tooshort.opus",
    "fr-conf-placeintoconf.opus",
    "fr-vm-login.opus",
    "it-conf-nonextended.opus",
    "it-vm-rec-temp.opus",
    "ru-pbx-invalidpark.opus",
    "ru-vm-whichbox.opus",
)
#: Share of wrong words above which the demo fails: something is broken then, not merely inaccurate.
MOST_ERRORS = 0.25


class Errors(NamedTuple):
    """Number of wrong words and of words in the reference."""

    wrong: int
    words: int

    @property
    def rate(self) -> float:
        """Share of wrong words, 0 and above."""
        return self.wrong / self.words


def chosen_utterances(folder: Path = RECORDINGS) -> list[Utterance]:
    """Return the utterances of :data:`CHOSEN` in that order.

    Raises:
        DatasetNotFoundError: one of them is missing.
        AsrError: :func:`runtime.evaluation.load_utterances` cannot load the folder.
    """
    by_name = {utterance.audio.name: utterance for utterance in load_utterances(folder)}
    if missing := [name for name in CHOSEN if name not in by_name]:
        raise DatasetNotFoundError(f"{folder}: has no {', '.join(missing)}; check out the whole repository")
    return [by_name[name] for name in CHOSEN]


def count_errors(utterances: Sequence[Utterance], texts: Sequence[str]) -> Errors:
    """Count the wrong words of ``texts``, without regard to case and punctuation."""
    scores = score(utterances, texts)
    wrong = sum(each.substitutions + each.deletions + each.insertions for each in scores)
    return Errors(wrong, sum(each.reference_units for each in scores))


def describe(utterance: Utterance, transcript: Transcript) -> str:
    """Return the lines about one recording."""
    errors = count_errors([utterance], [transcript.text])
    seconds = transcript.timings.total
    return "\n".join(
        [
            f"{utterance.audio.name}: {transcript.language}, {transcript.duration:.1f} s in {seconds:.2f} s "
            f"(real-time factor {seconds / transcript.duration:.2f})",
            f"  said   {utterance.text}",
            f"  heard  {transcript.text}",
            f"  wrong  {errors.wrong} of {errors.words} words ({errors.rate:.0%})",
        ]
    )


def summarize(utterances: Sequence[Utterance], transcripts: Sequence[Transcript]) -> str:
    """Return the lines about all recordings."""
    errors = count_errors(utterances, [transcript.text for transcript in transcripts])
    audio = sum(transcript.duration for transcript in transcripts)
    seconds = sum(transcript.timings.total for transcript in transcripts)
    right = sum(
        transcript.language == metric_language(utterance)
        for utterance, transcript in zip(utterances, transcripts, strict=True)
    )
    return "\n".join(
        [
            f"word errors: {errors.wrong} of {errors.words} ({errors.rate:.1%}), not counting case and punctuation",
            f"language detected right: {right} of {len(utterances)}",
            f"speed: {audio:.0f} s of speech in {seconds:.1f} s (real-time factor {seconds / audio:.2f})",
        ]
    )


def main(
    model: Annotated[Path | None, typer.Argument(help="Folder of a model. [default: the bundled model]")] = None,
) -> None:
    """Transcribe ten real recordings in five languages; print what was said beside what was heard."""
    try:
        check_packages()
        utterances = chosen_utterances()
        transcriber = Transcriber.from_artifact(model)
        artifact = transcriber.artifact
        torch = "installed, but not used" if importlib.util.find_spec("torch") else "not installed"
        size, seconds = artifact.size / 1e6, transcriber.load_seconds
        typer.echo(f"{artifact.manifest.name}, {size:.0f} MB, loaded in {seconds:.1f} s; torch is {torch}\n")
        transcripts = []
        for utterance in utterances:
            transcripts.append(transcriber.transcribe(utterance.audio))
            typer.echo(describe(utterance, transcripts[-1]) + "\n")
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("error: interrupted", err=True)
        raise typer.Exit(130) from None
    typer.echo(summarize(utterances, transcripts))
    errors = count_errors(utterances, [transcript.text for transcript in transcripts])
    if errors.rate > MOST_ERRORS:
        typer.echo(
            f"error: more than {MOST_ERRORS:.0%} of the words are wrong; the model or the runtime is broken", err=True
        )
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
