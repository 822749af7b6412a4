"""Transcripts and evaluations as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.results import Segment, Transcript, fields_of

if TYPE_CHECKING:  # `transcribe` need not wait for it
    from runtime.evaluation import Evaluation, Score, Utterance

VTT_HEADER = "WEBVTT\n"


def as_json(transcript: Transcript, **extra: Any) -> str:
    """One line of JSON, ``extra`` fields first; durations are rounded to a tenth of a millisecond."""
    fields = {key: _printable(value) for key, value in extra.items()} | fields_of(transcript)
    fields["timings"] = {stage: round(seconds, 4) for stage, seconds in fields["timings"].items()}
    return msgspec.json.encode(fields).decode()


def _printable(value: Any) -> Any:
    """File names may hold bytes that are no UTF-8; JSON may not."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def as_text(transcript: Transcript) -> str:
    """The text alone."""
    return transcript.text


def as_srt(transcript: Transcript) -> str:
    """SubRip subtitles, a cue a segment with text."""
    return "\n".join(srt_cue(segment, number) for number, segment in enumerate(_spoken(transcript), 1))


def as_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles, a cue a segment with text; what would be markup there is escaped."""
    return VTT_HEADER + "".join(f"\n{vtt_cue(segment)}" for segment in _spoken(transcript))


def srt_cue(segment: Segment, number: int) -> str:
    """One cue of SubRip subtitles; cues are counted from 1, with an empty line between them."""
    start, end, text = _cue(segment)
    return f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"


def vtt_cue(segment: Segment) -> str:
    """One cue of WebVTT subtitles; an empty line comes before each, and :data:`VTT_HEADER` before the first."""
    start, end, text = _cue(segment)
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escaped}\n"


def as_tsv(transcript: Transcript) -> str:
    """A table with a row a segment with text: start and end in milliseconds, text."""
    rows = (f"{start}\t{end}\t{text}\n" for start, end, text in map(_cue, _spoken(transcript)))
    return "start\tend\ttext\n" + "".join(rows)


def on_one_line(text: str) -> str:
    """Text without line ends and tabs."""
    return " ".join(text.split())


def _spoken(transcript: Transcript) -> Iterator[Segment]:
    """Segments in which somebody speaks."""
    return (segment for segment in transcript.segments if on_one_line(segment.text))


def _cue(segment: Segment) -> tuple[int, int, str]:
    """Start and end in milliseconds, and the text on one line."""
    start = round(segment.start * 1000)
    return start, max(round(segment.end * 1000), start + 1), on_one_line(segment.text)  # players drop empty cues


def _clock(milliseconds: int, separator: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{separator}{rest:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "json": lambda transcript: as_json(transcript) + "\n",
    "txt": lambda transcript: as_text(transcript) + "\n",
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
}
"""Whole files by format."""


def evaluation_as_json(evaluation: Evaluation) -> str:
    """One line of JSON; durations are rounded to a tenth of a millisecond."""
    fields = msgspec.to_builtins(evaluation)
    for key in ("processing_seconds", "audio_seconds"):
        fields[key] = round(fields[key], 4)
    return msgspec.json.encode(fields).decode()


_LANGUAGE = {
    "told": "told to the model",
    "detected": "detected by the model",
    "implicit": "neither told to the model nor named by it",
}


def evaluation_as_text(evaluation: Evaluation) -> str:
    """A table with a row a language, and below it how fast and by what."""
    header = ("language", "unit", "utterances", "error rate", "95 % interval", "exact")
    rows = [header, *map(_cells, evaluation.scores)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    factor = evaluation.real_time_factor
    speed = f"{evaluation.processing_seconds:.1f} s for {evaluation.audio_seconds:.1f} s of audio"
    notes = {
        "real-time factor": speed if factor is None else f"{factor:.3f} ({speed})",
        "model": f"{evaluation.model}, {evaluation.quantization}",
        "provider": evaluation.provider,
        "language": _LANGUAGE[evaluation.language],
        "versions": ", ".join(f"{name} {version}" for name, version in evaluation.versions.items()),
    }
    width = max(map(len, notes))
    return "\n".join([*table, "", *(f"{key:<{width}}  {value}" for key, value in notes.items())])


def _cells(score: Score) -> tuple[str, ...]:
    rate, interval = "none", "none"
    if score.rate is not None and score.low is not None and score.high is not None:
        rate, interval = f"{score.rate:.2%}", f"{score.low:.2%} to {score.high:.2%}"
    return score.language, score.unit, str(score.utterances), rate, interval, f"{score.exact:.1%}"


def hypotheses_as_json_lines(folder: Path, utterances: Sequence[Utterance], transcripts: Sequence[Transcript]) -> str:
    """A line an utterance: file in ``folder``, language it is scored by, both texts as they are and normalized."""
    from runtime.evaluation import metric_language, normalize

    lines = []
    for utterance, transcript in zip(utterances, transcripts, strict=True):
        language = metric_language(utterance)
        fields = {
            "file": _printable(utterance.audio.relative_to(folder).as_posix()),
            "language": language,
            "reference": utterance.text,
            "hypothesis": transcript.text,
            "normalized_reference": normalize(utterance.text, language),
            "normalized_hypothesis": normalize(transcript.text, language),
        }
        lines.append(msgspec.json.encode(fields).decode() + "\n")
    return "".join(lines)
