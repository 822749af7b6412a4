"""Measure what tells sounds from speech, and which texts the rule for segments without speech drops.

    python -m benchmarks.no_speech MODEL --recordings DIR --films DIR --rows rows.jsonl

Sets of audio:

- sounds: music, noise, hum, tones, breathing and other sounds of `tests/helpers/no_speech.py`, 12 s each, as files and
  as streams.
- recordings: a folder with `index.json` (a list of objects with `file`, `language`, `text`) and the files.
- short: the first and the last 0.3, 0.4, 0.6 or 1.0 s of the speech in each recording (short answers), with a second of
  faint noise on both sides, as streams.
- 100 ms: the first 0.1 s of speech of each recording, with the same noise.
- films: a folder with WAV files, each with its text in a .txt file; as files, and as streams with pauses of 0.5 and
  0.8 s.

`--rows` keeps a line of JSON for each clip, with its segments: seconds, expected seconds of speech, mean and highest
probability of voice activity, no-speech probability, confidence, compression ratio, text. Clips that are in the file
already are not decoded again, so an interrupted run can be continued. Two tables are printed: the evidence in each set,
and the texts that are kept without the rule and with it, with words of the reference that it dropped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import typer

from benchmarks.markdown import table
from runtime import Transcriber
from runtime.audio import load_audio
from runtime.audio.segmentation import PAUSE_SECONDS, speech_pieces
from runtime.audio.vad import FRAME_SAMPLES, SAMPLE_RATE, SpeechDetector
from runtime.engines.base import SegmentOptions
from runtime.families.whisper.fallback import compression_ratio, is_silence
from runtime.pipeline.streaming import DEFAULT_LIVE
from runtime.results import Timings
from tests.helpers.no_speech import MAKERS, sound

Floats = npt.NDArray[np.float32]

SEEDS, SOUND_SECONDS = 12, 12.0
SHORT_SECONDS = (0.3, 0.4, 0.6, 1.0)
# Speech begins and ends where frames of 20 ms have at least this share of the loudest frame's RMS.
_LOUD_SHARE = 0.03
_LOUD_FRAME = SAMPLE_RATE // 50
# Quiet audio that is kept on the other side of a cut.
_MARGIN_SECONDS = 0.05
_GAP_SECONDS, _GAP_LEVEL = 1.0, 1e-4


class Clip(msgspec.Struct, frozen=True):
    """Audio to cut and decode; ``pause``: seconds of a stream's pauses, None for a file."""

    set: str
    name: str
    reference: str
    pause: float | None = None


class Row(msgspec.Struct, frozen=True):
    """Evidence and text of one segment; ``dropped`` is True where the text was dropped. Times in seconds."""

    start: float
    seconds: float
    speech: float
    vad_mean: float
    vad_peak: float
    no_speech: float
    confidence: float
    compression: float
    text: str
    dropped: bool


class Measured(msgspec.Struct, frozen=True):
    """A clip and its segments with a text."""

    clip: Clip
    rows: list[Row]


class _Recorder:
    """A detector that remembers its probabilities."""

    def __init__(self) -> None:
        self._detector, self.values = SpeechDetector(), list[float]()

    def probabilities(self, samples: Floats) -> Floats:
        values = self._detector.probabilities(samples)
        self.values += values.tolist()
        return values

    def finish(self) -> Floats:
        values = self._detector.finish()
        self.values += values.tolist()
        return values


def rows_of(transcriber: Transcriber, audio: Floats, pause: float | None) -> Iterator[Row]:
    """Cut ``audio`` [n] as a file or a stream is cut, and yield each segment that gets a text, dropped or not.

    ``pause``: that of a :class:`Clip`.
    """
    engine, recorder = transcriber.engine, _Recorder()
    pieces = speech_pieces(
        [audio],
        SAMPLE_RATE,
        engine.segment_seconds,
        recorder,
        pause=PAUSE_SECONDS if pause is None else pause,
        live=pause is not None,
    )
    for piece in pieces:
        result = engine.transcribe(piece.samples, SegmentOptions(), Timings(), piece.speech)
        values = recorder.values[piece.start // FRAME_SAMPLES : -(-piece.end // FRAME_SAMPLES)]
        text = result.dropped_text or result.text
        if not text:
            continue
        assert result.no_speech_prob is not None
        assert piece.speech is not None
        yield Row(
            round(piece.start / SAMPLE_RATE, 3),
            round(len(piece.samples) / SAMPLE_RATE, 3),
            round(piece.speech, 3),
            round(float(np.mean(values)), 3),
            round(max(values), 3),
            round(result.no_speech_prob, 4),
            round(result.confidence, 4),
            round(compression_ratio(text), 2),
            text,
            dropped=bool(result.dropped_text),
        )


def padded(audio: Floats, seed: int) -> Floats:
    """Return ``audio`` with a second of faint noise on both sides."""
    random = np.random.default_rng(seed)
    before, after = (_GAP_LEVEL * random.standard_normal((2, round(_GAP_SECONDS * SAMPLE_RATE)))).astype(np.float32)
    return np.concatenate([before, audio, after])


def speech_bounds(audio: Floats) -> tuple[int, int]:
    """Return the first loud sample and the one after the last, in frames of 20 ms."""
    frames = audio[: len(audio) // _LOUD_FRAME * _LOUD_FRAME].reshape(-1, _LOUD_FRAME)
    rms = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
    loud = np.flatnonzero(rms >= _LOUD_SHARE * rms.max())
    return int(loud[0]) * _LOUD_FRAME, (int(loud[-1]) + 1) * _LOUD_FRAME


def short_cuts(audio: Floats, seconds: float, seed: int) -> dict[str, Floats]:
    """Return the first and the last ``seconds`` of speech, padded."""
    begin, end = speech_bounds(audio)
    length, margin = round(seconds * SAMPLE_RATE), round(_MARGIN_SECONDS * SAMPLE_RATE)
    cuts = {"first": audio[max(0, begin - margin) : begin + length], "last": audio[max(0, end - length) : end + margin]}
    return {name: padded(cut, seed) for name, cut in cuts.items()}


def clips(recordings: Path | None, films: Path | None, every: int) -> Iterator[tuple[Clip, Floats]]:
    """Yield all clips with their audio; every n-th recording."""
    for name in MAKERS:
        for seed in range(SEEDS):
            audio = sound(name, SOUND_SECONDS, seed)
            for pause in (None, DEFAULT_LIVE.pause):
                yield Clip("sounds", f"{name} {seed}", "", pause), audio
    for path in sorted(films.glob("*.wav")) if films else ():
        audio, text = load_audio(path, SAMPLE_RATE), path.with_suffix(".txt").read_text(encoding="utf-8")
        for pause in (None, 0.5, DEFAULT_LIVE.pause):
            yield Clip("films", path.stem, text, pause), audio
    index = msgspec.json.decode((recordings / "index.json").read_bytes()) if recordings else []
    for number, entry in list(enumerate(index))[::every]:
        assert recordings
        audio, name, text = load_audio(recordings / entry["file"], SAMPLE_RATE), entry["file"], entry["text"]
        seconds = SHORT_SECONDS[number % len(SHORT_SECONDS)]
        for side, cut in short_cuts(audio, seconds, number).items():
            yield Clip(f"short, {seconds:g} s", f"{name} {side}", text, DEFAULT_LIVE.pause), cut
        begin, _ = speech_bounds(audio)
        yield Clip("100 ms", name, text, DEFAULT_LIVE.pause), padded(audio[begin : begin + SAMPLE_RATE // 10], number)
        yield Clip("recordings", name, text), audio


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def words_said(text: str, reference: str) -> int:
    """Count the words of a text that its reference has too."""
    return sum((Counter(words(text)) & Counter(words(reference))).values())


def _whispers_rule(row: Row) -> bool:
    """Return whether Whisper's own rule drops the text, which knows no voice activity."""
    return is_silence(row.no_speech, math.log(max(row.confidence, 1e-9)))


def tables(measured: Sequence[Measured]) -> str:
    """Return the tables of evidence and of dropped texts."""
    sets: dict[str, list[tuple[Row, str]]] = {}
    for each in measured:
        mode = "file" if each.clip.pause is None else f"stream, {each.clip.pause:g} s"
        sets.setdefault(f"{each.clip.set} ({mode})", []).extend((row, each.clip.reference) for row in each.rows)

    def spread(part: list[tuple[Row, str]], key: str) -> str:
        if not part:
            return ""
        low, middle, high = np.percentile([getattr(row, key) for row, _ in part], (0, 50, 100))
        return f"{low:.2f} · {middle:.2f} · {high:.2f}"

    evidence = table(
        ["set", "texts", "seconds", "expected speech, s", "highest VAD", "no-speech", "confidence"],
        (
            [
                name,
                f"{len(part)}",
                *(spread(part, key) for key in ("seconds", "speech", "vad_peak", "no_speech", "confidence")),
            ]
            for name, part in sets.items()
        ),
        caption="**Evidence** (lowest · median · highest) of segments for which the model writes a text:",
    )
    dropped = table(
        ["set", "every text", "by Whisper's rule", "by this rule", "said words dropped"],
        (
            [
                name,
                f"{len(part)}",
                f"{sum(not _whispers_rule(row) for row, _ in part)}",
                f"{sum(not row.dropped for row, _ in part)}",
                f"{sum(words_said(row.text, reference) for row, reference in part if row.dropped)} of "
                f"{sum(words_said(row.text, reference) for row, reference in part)}",
            ]
            for name, part in sets.items()
        ),
        caption="**Texts that are kept**, and words of the reference in dropped texts:",
    )
    return f"{evidence}\n\n{dropped}"


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a Whisper artifact.")],
    recordings: Annotated[Path | None, typer.Option(help="Folder with index.json and recordings.")] = None,
    films: Annotated[Path | None, typer.Option(help="Folder with WAV files and their texts.")] = None,
    rows: Annotated[Path, typer.Option(help="File of JSON lines for the segments.")] = Path("build/no_speech.jsonl"),
    every: Annotated[int, typer.Option(min=1, help="Take every n-th recording.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each graph.")] = None,
) -> None:
    """Decode all sets, keep a row for each segment, and print two tables."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    done = (
        [msgspec.json.decode(line, type=Measured) for line in rows.read_bytes().splitlines()] if rows.exists() else []
    )
    known = {measured.clip for measured in done}
    transcriber = Transcriber.from_artifact(model, threads=threads)
    with rows.open("ab") as file:
        for clip, audio in clips(recordings, films, every):
            if clip in known:
                continue
            done.append(Measured(clip, list(rows_of(transcriber, audio, clip.pause))))
            file.write(msgspec.json.encode(done[-1]) + b"\n")
            file.flush()
    typer.echo(tables(done))


if __name__ == "__main__":
    typer.run(main)
