"""Format transcripts and evaluations as text, JSON, subtitles and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.host.files import printable
from runtime.results import Segment, Transcript, fields_of

if TYPE_CHECKING:  # importing runtime.evaluation would delay `transcribe`
    from runtime.evaluation import BaselineComparison, Comparison, Evaluation, Score, Utterance

VTT_HEADER = "WEBVTT\n"


def as_json(transcript: Transcript, **extra: Any) -> str:
    """Return ``transcript`` as one line of JSON, ``extra`` fields first; durations are rounded to 0.1 ms."""
    fields = {key: printable(value) if isinstance(value, str) else value for key, value in extra.items()} | fields_of(
        transcript
    )
    fields["timings"] = {stage: round(seconds, 4) for stage, seconds in fields["timings"].items()}
    return msgspec.json.encode(fields).decode()


def as_text(transcript: Transcript) -> str:
    """Return the text without timestamps."""
    return transcript.text


def as_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles with one cue for each segment that has text."""
    return "\n".join(srt_cue(segment, number) for number, segment in enumerate(_with_text(transcript), 1))


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles with one cue for each segment that has text; ``&``, ``<`` and ``>`` are escaped."""
    return VTT_HEADER + "".join(f"\n{vtt_cue(segment)}" for segment in _with_text(transcript))


def srt_cue(segment: Segment, number: int) -> str:
    """Return one SubRip cue. Cue numbers start at 1; join cues with an empty line."""
    start, end, text = _cue(segment)
    return f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"


def vtt_cue(segment: Segment) -> str:
    """Return one WebVTT cue. Write :data:`VTT_HEADER` before the first cue and an empty line before each."""
    start, end, text = _cue(segment)
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escaped}\n"


def as_tsv(transcript: Transcript) -> str:
    """Return a tab-separated table: start and end in milliseconds and text of each segment that has text."""
    rows = (f"{start}\t{end}\t{text}\n" for start, end, text in map(_cue, _with_text(transcript)))
    return "start\tend\ttext\n" + "".join(rows)


def on_one_line(text: str) -> str:
    """Replace each run of white space in ``text`` with one blank."""
    return " ".join(text.split())


def _with_text(transcript: Transcript) -> Iterator[Segment]:
    """Yield the segments whose text is not empty."""
    return (segment for segment in transcript.segments if on_one_line(segment.text))


def _cue(segment: Segment) -> tuple[int, int, str]:
    """Return start and end in milliseconds and the text on one line. A cue lasts at least 1 ms."""
    start = round(segment.start * 1000)
    end = max(round(segment.end * 1000), start + 1)  # players drop cues without duration
    return start, end, on_one_line(segment.text)


def _clock(milliseconds: int, separator: str) -> str:
    """Return ``hh:mm:ss`` and three digits of milliseconds behind ``separator``."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{separator}{rest:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "json": lambda transcript: as_json(transcript) + "\n",
    "txt": lambda transcript: as_text(transcript) + "\n",
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
}
"""Functions that make the content of a file, by format name."""


def evaluation_as_json(evaluation: Evaluation) -> str:
    """Return ``evaluation`` as one line of JSON; durations are rounded to 0.1 ms."""
    fields = msgspec.to_builtins(evaluation)
    for key in ("processing_seconds", "audio_seconds"):
        fields[key] = round(fields[key], 4)
    return msgspec.json.encode(fields).decode()


# Values of Evaluation.language.
_LANGUAGE = {
    "told": "given to the model",
    "detected": "detected by the model",
    "implicit": "neither given to the model nor detected by it",
}


def evaluation_as_text(evaluation: Evaluation) -> str:
    """Return a table of error rates, one row for each language, followed by speed, model, provider and versions.

    With a baseline, a second table compares the texts with the baseline's.
    """
    header = ("language", "unit", "utterances", "error rate", "95 % interval", "exact")
    table = _table([header, *map(_cells, evaluation.scores)])
    if evaluation.baseline:
        table += ["", *_baseline_lines(evaluation.baseline)]
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


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _baseline_lines(baseline: BaselineComparison) -> list[str]:
    header = ("language", "unit", "differ", "95 % interval", "same", "baseline", "rise in points", "95 % interval")
    rows = baseline.languages if len(baseline.languages) == 1 else [*baseline.languages, baseline.overall]
    title = f"compared with the baseline {baseline.model}, {baseline.quantization}:"
    return [title, *_table([header, *map(_comparison_cells, rows)])]


def _comparison_cells(row: Comparison) -> tuple[str, ...]:
    differ, differ_interval, rise, rise_interval, baseline = "none", "none", "none", "none", "none"
    if row.differ is not None and row.differ_low is not None and row.differ_high is not None:
        differ = f"{row.differing} of {row.baseline_units}, {row.differ:.2%}"
        differ_interval = f"{row.differ_low:.2%} to {row.differ_high:.2%}"
    if row.baseline_rate is not None:
        baseline = f"{row.baseline_rate:.2%}"
    if row.rise is not None and row.rise_low is not None and row.rise_high is not None:
        rise = f"{100 * row.rise:+.2f}"
        rise_interval = f"{100 * row.rise_low:+.2f} to {100 * row.rise_high:+.2f}"
    return row.language, row.unit, differ, differ_interval, f"{row.same:.1%}", baseline, rise, rise_interval


def _cells(score: Score) -> tuple[str, ...]:
    rate, interval = "none", "none"
    if score.rate is not None and score.low is not None and score.high is not None:
        rate, interval = f"{score.rate:.2%}", f"{score.low:.2%} to {score.high:.2%}"
    return score.language, score.unit, str(score.utterances), rate, interval, f"{score.exact:.1%}"


def hypotheses_as_json_lines(
    folder: Path,
    utterances: Sequence[Utterance],
    transcripts: Sequence[Transcript],
    baseline: Sequence[Transcript] | None = None,
) -> str:
    """Return one line of JSON for each utterance.

    Fields: path relative to ``folder``, language whose rules score it, and both texts, as they are and normalized; with
    a baseline also its text, as ``baseline`` and ``normalized_baseline``.
    """
    from runtime.evaluation import metric_language, normalize

    lines = []
    for index, (utterance, transcript) in enumerate(zip(utterances, transcripts, strict=True)):
        language = metric_language(utterance)
        fields = {
            "file": printable(utterance.audio.relative_to(folder).as_posix()),
            "language": language,
            "reference": utterance.text,
            "hypothesis": transcript.text,
            "normalized_reference": normalize(utterance.text, language),
            "normalized_hypothesis": normalize(transcript.text, language),
        }
        if baseline is not None:
            text = baseline[index].text
            fields |= {"baseline": text, "normalized_baseline": normalize(text, language)}
        lines.append(msgspec.json.encode(fields).decode() + "\n")
    return "".join(lines)
