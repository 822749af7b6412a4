"""Streams of real recordings: final texts against offline ones, and how late words become stable.

    python -m benchmarks.live_recordings --artifact int8=DIR --artifact float32=DIR --recordings DIR

Recordings of a language are joined, in the order of their index and with the silence that they have, to streams of a
minute or more. Times are positions in the audio, so other load on the machine does not change them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jiwer
import numpy as np
import numpy.typing as npt
import typer

from benchmarks import report
from benchmarks.recordings import RATE, Record, Recordings, Records, fingerprint
from runtime import Transcriber
from runtime.engines.base import SegmentOptions
from runtime.errors import AsrError
from runtime.evaluation.metrics import normalize
from runtime.pipeline.events import Event, Final, Partial
from runtime.pipeline.streaming import DEFAULT_LIVE, LiveOptions, Stream
from tests.helpers.streams import ends_as_offline, finals, offline, taken_back

Floats = npt.NDArray[np.float32]

REPOSITORY = Path(__file__).resolve().parents[1]
#: Seconds of a stream, at least, and of the pieces in which it is fed.
MINUTE, PIECE = 60.0, 0.1
#: Number of hypotheses that must agree, and whether words are emitted before their encoder output is settled.
STABILITY = ((3, False), (3, True), (2, True))

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def streams_of(recordings: Recordings, seconds: dict[str, float]) -> dict[str, list[str]]:
    """Return the recordings of each stream by its name: consecutive ones of one language, of at least a minute.

    What is left of a language is part of its last stream.

    Args:
        recordings: the recordings.
        seconds: length of each.
    """
    streams: dict[str, list[str]] = {}
    for language in dict.fromkeys(recordings.languages[name] for name in recordings.names):
        groups: list[list[str]] = [[]]
        for name in recordings.names:
            if recordings.languages[name] != language:
                continue
            if sum(seconds[each] for each in groups[-1]) >= MINUTE:
                groups.append([])
            groups[-1].append(name)
        if len(groups) > 1 and sum(seconds[each] for each in groups[-1]) < MINUTE:
            groups[-2:] = [[*groups[-2], *groups[-1]]]
        streams |= {f"{language}-{index + 1}": group for index, group in enumerate(groups)}
    return streams


def heard(stream: Stream, audio: Floats) -> list[tuple[float, Event]]:
    """Feed ``audio`` in pieces and return all events, each with the seconds that were fed when it came."""
    step, events = int(PIECE * RATE), list[tuple[float, Event]]()
    for start in range(0, len(audio), step):
        fed = min(start + step, len(audio)) / RATE
        events += [(fed, event) for event in stream.feed(audio[start : start + step])]
    return [*events, *((len(audio) / RATE, event) for event in stream.finish())]


def lateness(events: Sequence[tuple[float, Event]]) -> tuple[list[float], list[float]]:
    """Return the seconds from the end of each word until it was stable, and from a segment's start to its first text.

    A word that is not stable before is so in the final text. Its end is estimated: the segment's time up to it is its
    share of the text's characters.
    """
    growth: dict[int, list[tuple[float, int]]] = {}
    late, first = list[float](), dict[int, float]()
    for fed, event in events:
        if isinstance(event, Partial):
            growth.setdefault(event.segment, []).append((fed, len(event.stable.split())))
            if event.stable + event.unstable:
                first.setdefault(event.segment, fed - event.start)
        elif isinstance(event, Final) and event.result.text:
            segment, words = event.result, event.result.text.split()
            first.setdefault(event.segment, fed - segment.start)
            read, total = 0, sum(map(len, words))
            for index, word in enumerate(words):
                read += len(word)
                end = segment.start + (segment.end - segment.start) * read / total
                stable_at = next((at for at, count in growth.get(event.segment, []) if count > index), fed)
                late.append(stable_at - end)
    return late, list(first.values())


def measure_stream(transcriber: Transcriber, audio: Floats, language: str, live: LiveOptions) -> Record:
    """Stream ``audio`` and compare it with the offline texts of its segments and of the whole audio.

    Args:
        transcriber: the model.
        audio: mono samples [n] at 16 kHz.
        language: code of its language.
        live: options of the stream.
    """
    session = transcriber.live(language, live=live)
    timed = heard(Stream(transcriber.engine, session, RATE), audio)
    events = [event for _, event in timed]
    name = transcriber.resolve_language(language)
    ends, expected = finals(events), offline(transcriber.engine, audio, SegmentOptions(name))
    if len(ends) != len(expected):
        raise AssertionError(f"the stream has {len(ends)} segments, the same audio offline {len(expected)}")
    late, first = lateness(timed)
    whole = transcriber.transcribe(audio, language, sample_rate=RATE).text
    reference, streamed = (normalize(text, name or "") for text in (whole, " ".join(end.result.text for end in ends)))
    compared = jiwer.process_words(reference, streamed)
    return {
        "seconds": len(audio) / RATE,
        "segments": len(ends),
        "equal": sum(ends_as_offline(final, *one) for final, one in zip(ends, expected, strict=True)),
        "not_as_offline": sum(not final.as_offline for final in ends),
        "taken_back": taken_back(events),
        "late": [round(each, 3) for each in late],
        "first": [round(each, 3) for each in first],
        "words": len(reference.split()),
        "word_differences": compared.substitutions + compared.insertions + compared.deletions,
    }


def summary(records: dict[str, dict[str, Record]]) -> dict[str, Any]:
    """Return the figures of all streams by row: artifact and options."""
    rows = {}
    for row, streams in records.items():
        late = [each for record in streams.values() for each in record["late"]]
        first = [each for record in streams.values() for each in record["first"]]
        rows[row] = {
            "streams": len(streams),
            **{
                key: sum(record[key] for record in streams.values())
                for key in ("seconds", "segments", "equal", "not_as_offline", "taken_back", "words", "word_differences")
            },
            "stable": len(late),
            "median_seconds": float(np.median(late)),
            "p95_seconds": float(np.quantile(late, 0.95)),
            "first_text_seconds": float(np.median(first)),
        }
    return {"piece": PIECE, "interval": DEFAULT_LIVE.interval, "pause": DEFAULT_LIVE.pause, "rows": rows}


@app.command()
def main(
    artifact: Annotated[list[str], typer.Option(metavar="NAME=DIR", help="Artifact and its name; repeatable.")],
    recordings: Annotated[Path, typer.Option(help="Folder of recordings with index.json (file, language, text).")],
    work: Annotated[Path, typer.Option(help="Folder of results; a second run continues there.")] = (
        REPOSITORY / "build" / "live"
    ),
    docs: Annotated[Path | None, typer.Option(help="Folder where streaming.json and streaming.md are written.")] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="Number of streams, spread over the languages.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; by default the usable cores.")] = None,
) -> None:
    """Stream real recordings, compare with offline texts, and measure when words become stable."""
    source = Recordings(recordings)
    rows: dict[str, dict[str, Record]] = {}
    try:
        clips = {name: source.load(name) for name in source.names}
        groups = streams_of(source, {name: len(clip) / RATE for name, clip in clips.items()})
        chosen = list(groups)[:: max(1, len(groups) // streams)][:streams] if streams else list(groups)
        for each in artifact:
            name, _, folder = each.partition("=")
            if not folder:
                raise typer.BadParameter(f"{each!r}: give a name and a folder, such as int8=DIR")
            transcriber = Transcriber.from_artifact(folder, threads=threads)
            records = Records(work / fingerprint(Path(folder)))
            for agreeing, early in STABILITY:
                options = LiveOptions(agreeing=agreeing, early=early)

                def make(
                    names: list[str], used: Transcriber = transcriber, live: LiveOptions = options
                ) -> list[Record]:
                    parts = [clips[one] for name in names for one in groups[name]]
                    return [measure_stream(used, np.concatenate(parts), names[0].partition("-")[0], live)]

                row = f"{name}, {agreeing} hypotheses{', early' if early else ''}"
                rows[row] = records.complete(f"{agreeing}{'-early' if early else ''}", chosen, make)
    except AsrError as error:
        raise typer.BadParameter(str(error)) from None
    results = summary(rows)
    if docs is None:
        typer.echo(json.dumps(results, indent=1, ensure_ascii=False))
        return
    report.store(docs, "recordings", results)
    typer.echo(report.write(docs))


if __name__ == "__main__":
    app()
