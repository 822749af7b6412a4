"""Tables of ``docs/streaming.md``, made from the stored results alone."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import percent, table
from benchmarks.stamp import measured


def _live(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    return [
        _offline(results["offline"]),
        *_stability(results["stability"]),
        _normalization(results["normalization"]),
        _hours(results["hours"]),
        measured(part),
    ]


def _offline(rows: dict[str, Any]) -> str:
    return table(
        ["model", "fed in chunks of", "segments", "as offline", "stable text changed"],
        (
            [name, f"{1000 * float(seconds):.0f} ms", f"{row['segments']}", f"{row['equal']}", f"{row['taken_back']}"]
            for name, chunks in rows.items()
            for seconds, row in chunks.items()
        ),
        caption=(
            "**Streamed against offline results**: the small model over 100 held-out utterances with 1.2 s of silence "
            "between them. *As offline* counts final segments whose start, text and tokens are those of the same "
            "audio decoded offline:"
        ),
    )


def _stability(part: dict[str, Any]) -> list[str]:
    rows = []
    for row in part["rows"]:
        default = " (default)" if (row["agreeing"], row["early"]) == (part["usual"], False) else ""
        rows.append(
            [
                f"{row['agreeing']}{default}",
                "no" if row["early"] else "yes",
                percent(row["stable_share"], 0),
                *(f"{row[key]:.1f} s" for key in ("median_seconds", "p90_seconds")),
                f"{row['not_as_offline']} of {row['segments']}",
                f"{row['taken_back']}",
            ]
        )
    header = ["agreeing hypotheses", "waits for the encoder", "stable before the end", "delay, median", "delay, 90 %"]
    caption = (
        "**How much text is stable, and how soon**: 300 utterances, a partial text each second. *Stable before the "
        "end* is the share of characters that are stable before their segment ends; the delay is from the start of a "
        "spoken word until it is stable; *not as offline* counts segments whose final text differs from the "
        "offline text:"
    )
    first = part["rows"][0]["first_text_seconds"]
    return [
        table([*header, "not as offline", "stable text changed"], rows, caption=caption),
        f"The first text of a segment comes after {first:.1f} s of its audio (median).",
    ]


def _normalization(part: dict[str, Any]) -> str:
    rows = []
    for rise, row in part["rises"].items():
        default = " (default)" if float(rise) == part["usual"] else ""
        rows.append(
            [
                f"{'never' if rise == 'inf' else rise}{default}",
                f"{row['finished']}",
                f"{row['again']}",
                f"{row['other_partials']} of {row['partials']}",
            ]
        )
    return table(
        ["encode again when the maximum rises by", "finished windows", "encoded again", "differing partial texts"],
        rows,
        caption=(
            "**Loudness**: the same utterances with 0.3 s between them, so that segments are long. Windows that were "
            "encoded again, while their segment was open or at its end, and partial texts that differ from those with "
            "every window normalized to the maximum so far:"
        ),
    )


def _chunks(part: dict[str, Any]) -> list[str]:
    row = part["results"]
    first, last = row["beside"]["first_minute"], row["beside"]["last_minute"]
    minutes = len(row["minutes"])
    partial, final = row["partial"], row["final"]
    stages = ", ".join(f"{stage} {percent(seconds / row['total'], 0)}" for stage, seconds in row["timings"].items())
    rows = [
        [f"mean of a chunk in minute {minutes}", f"{last:.3f} s"],
        [
            "the same for minute 1 of a second stream, fed in alternation",
            f"{first:.3f} s (minute {minutes} takes {_change(last / first - 1)})",
        ],
        [f"means of minutes 1 to {minutes}", f"{', '.join(f'{each:.3f}' for each in row['minutes'])} s"],
        ["RTF", f"{row['total'] / row['seconds']:.3f}"],
        ["partial text: median, 95 %, maximum", _spread(partial)],
        ["end of a segment: median, 95 %, maximum", _spread(final)],
        ["first text, from the start of the speech", f"{row['first_text']:.2f} s"],
        ["share of each stage", stages],
    ]
    caption = (
        f"**Cost of a chunk of 1 s**: 0.6B int8 with random weights over {minutes} minutes of speech. The same minute "
        "is repeated, and its last second is silent, so that every minute has the same segments:"
    )
    return [table(["", ""], rows, caption=caption), measured(part)]


def _spread(row: dict[str, float]) -> str:
    return f"{row['median']:.2f} s, {row['p95']:.2f} s, {row['most']:.2f} s"


def _recordings(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    rows = [
        [
            name,
            f"{row['equal']} of {row['segments']}",
            f"{row['not_as_offline']}",
            f"{row['taken_back']}",
            percent(row["word_differences"] / row["words"]),
            *(f"{row[key]:.1f} s" for key in ("median_seconds", "p95_seconds", "first_text_seconds")),
        ]
        for name, row in results["rows"].items()
    ]
    first = next(iter(results["rows"].values()))
    header = [
        "Whisper base",
        "as offline",
        "stable text kept instead",
        "stable text changed",
        "words unlike the file's",
    ]
    caption = (
        f"**Real recordings with real weights**: {first['streams']} streams of a minute or two, "
        f"{first['seconds'] / 60:.0f} minutes, of recordings in one language each, fed in pieces of "
        f"{1000 * results['piece']:.0f} ms. *As offline* counts final segments with the start, text, tokens and "
        "confidence of the same audio decoded offline, *words unlike the file's* compares with the text of the whole "
        "file, which is cut at longer pauses. The delay is from the end of a word until it is stable, at the latest in "
        "the final text; the end of a word is estimated by its share of the segment's characters:"
    )
    delays = ["delay, median", "delay, 95 %", "first text"]
    return [table([*header, *delays], rows, caption=caption), measured(part)]


def _change(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _hours(row: dict[str, Any]) -> str:
    growth = row["last_bytes"] / row["first_bytes"] - 1
    return (
        f"**Memory** of a process that streams through the small model: {row['first_bytes'] / 1e6:.1f} MB after "
        f"{row['first'] / 60:.0f} minutes, {row['last_bytes'] / 1e6:.1f} MB after {row['seconds'] / 3600:.0f} hours "
        f"({_change(growth)}), {row['most_bytes'] / 1e6:.1f} MB at most; {row['finals']} segments, "
        f"{row['partials']} partial texts."
    )


TABLES = {"live": _live, "chunks": _chunks, "recordings": _recordings}
