"""Tables of ``docs/streaming.md``."""

from __future__ import annotations

from typing import Any

from benchmarks.stamp import measured


def _live(part: dict[str, Any]) -> list[str]:
    found = part["results"]
    return [
        _offline(found["offline"]),
        _stability(found["stability"]),
        _normalization(found["normalization"]),
        _hours(found["hours"]),
        measured(part),
    ]


def _offline(rows: dict[str, Any]) -> str:
    lines = [
        "**Ends against offline**, the small model, 100 held-out utterances joined with 1.2 s between them: segments "
        "whose start, text and tokens are those of the same piece decoded alone, and stable text that was taken back:",
        "",
        "| | fed in pieces of | segments | as offline | taken back |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {1000 * float(piece):.0f} ms | {row['segments']} | {row['equal']} | {row['taken_back']} |"
        for name, pieces in rows.items()
        for piece, row in pieces.items()
    ]
    return "\n".join(lines)


def _stability(part: dict[str, Any]) -> str:
    lines = [
        "**How often and how late text is stable**, 300 utterances, a partial text each second: of all characters "
        "those that were stable before their segment ended, the time from the beginning of a spoken word to its being "
        "stable, and segments that would have ended as another text:",
        "",
        "| hypotheses that agree | the encoder is waited for | stable before the end | median | 90 % under "
        "| not as offline | taken back |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        late = [f"{row[key]:.1f} s" for key in ("median_seconds", "p90_seconds")]
        usual = " (usual)" if (row["agreeing"], row["early"]) == (part["usual"], False) else ""
        lines.append(
            f"| {row['agreeing']}{usual} | {'no' if row['early'] else 'yes'} | {100 * row['stable_share']:.0f} % | "
            f"{' | '.join(late)} | {row['not_as_offline']} of {row['segments']} | {row['taken_back']} |"
        )
    first = part["rows"][0]["first_text_seconds"]
    lines += ["", f"The first text of a segment is there after {first:.1f} s of its audio (median)."]
    return "\n".join(lines)


def _normalization(part: dict[str, Any]) -> str:
    lines = [
        "**Loudness**, the same utterances with 0.3 s between them, so that segments are long: windows that were "
        "encoded again, while their segment was open or at its end, and partial texts that differ from those with "
        "every window normalized to the maximum so far:",
        "",
        "| encoded again from a rise of | finished windows | encoded again | other partial texts |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {'never' if rise == 'inf' else rise}{' (usual)' if float(rise) == part['usual'] else ''} | "
        f"{row['finished']} | {row['again']} | {row['other_partials']} of {row['partials']} |"
        for rise, row in part["rises"].items()
    ]
    return "\n".join(lines)


def _chunks(part: dict[str, Any]) -> list[str]:
    row = part["results"]
    first, last = row["beside"]["first_minute"], row["beside"]["last_minute"]
    minutes = len(row["minutes"])
    partial, final = row["partial"], row["final"]
    stages = ", ".join(
        f"{stage} {100 * seconds / row['total']:.0f} %" for stage, seconds in row["timings"].items() if stage != "total"
    )
    table = "\n".join(
        [
            f"**What a second costs**, 0.6B int8, random weights, {minutes} minutes of speech in pieces of 1 s, the "
            "same minute again and again, its last second silent so that all are cut alike:",
            "",
            "| | |",
            "|---|---|",
            f"| a chunk in minute {minutes}, mean | {last:.3f} s |",
            f"| beside it, chunk by chunk, another stream's minute 1 | {first:.3f} s ({_percent(last / first - 1)} for "
            f"minute {minutes}) |",
            f"| minutes 1 to {minutes}, as they came | {', '.join(f'{each:.3f}' for each in row['minutes'])} s |",
            f"| RTF | {row['total'] / row['seconds']:.3f} |",
            f"| partial text: median, 95 %, most | {partial['median']:.2f} s, {partial['p95']:.2f} s, "
            f"{partial['most']:.2f} s |",
            f"| end of a segment: median, 95 %, most | {final['median']:.2f} s, {final['p95']:.2f} s, "
            f"{final['most']:.2f} s |",
            f"| first text, from the beginning of the speech | {row['first_text']:.2f} s |",
            f"| where the time goes | {stages} |",
        ]
    )
    return [table, measured(part)]


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _hours(row: dict[str, Any]) -> str:
    growth = row["last_bytes"] / row["first_bytes"] - 1
    return (
        f"**Memory**, the small model: after {row['first'] / 60:.0f} minutes of a stream the process has "
        f"{row['first_bytes'] / 1e6:.1f} MB, after {row['seconds'] / 3600:.0f} hours {row['last_bytes'] / 1e6:.1f} MB "
        f"({100 * growth:+.1f} %), {row['most_bytes'] / 1e6:.1f} MB at most; {row['finals']} segments, "
        f"{row['partials']} partial texts."
    )


TABLES = {"live": _live, "chunks": _chunks}
