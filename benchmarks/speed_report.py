"""Tables and picture of ``docs/speed.md``, made from the stored results alone."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import table
from benchmarks.stamp import measured
from runtime.bench.charts import Series, bar_chart
from runtime.bench.page import Html

# Stages that run one after the other; segmentation runs beside them, in its own thread.
_STAGES = {"features": "features", "encode": "encoder", "prefill": "prefill", "decode": "steps"}


def _speech(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    clip, systems = results["clip"], results["systems"]
    rows = [
        [
            name,
            f"{1000 * row['segment']:.0f} ms" if row["segment"] else "",
            f"{1000 * row['features']:.0f} ms",
            f"{row['encode']:.2f} s",
            f"{row['prefill']:.2f} s",
            f"{1000 * row['token']:.1f}",
            f"{row['total']:.2f} s",
            f"{row['total'] / clip['seconds']:.3f}",
            f"{row['resident_bytes'] / 1e9:.2f} GB",
        ]
        for name, row in systems.items()
    ]
    header = ["", "segmentation", "features", "encoder", "prefill", "ms per token", "total", "RTF", "peak resident"]
    caption = (
        f"**{clip['seconds']} s of speech with {clip['tokens']} tokens**, 0.6B at real size with random weights. "
        f"Medians of {clip['rounds']} rounds in which the systems took turns, each in its own process:"
    )
    floats, single = systems["float32, one segment"]["total"], systems["int8, one segment"]["total"]
    batched, reference = systems["int8, segments in rows"]["total"], systems["transformers, float32"]["total"]
    half = systems["transformers, bfloat16"]["total"]
    ratios = (
        f"int8 with segments in rows is {floats / batched:.1f} times as fast as float32 in one segment, "
        f"{reference / batched:.1f} times as fast as transformers in float32 and {half / batched:.1f} times as fast as "
        f"transformers in bfloat16; int8 in one segment is {floats / single:.1f} times as fast as float32 in one "
        "segment."
    )
    note = (
        "Segmentation (reading and voice activity) runs beside the other stages, in its own thread. The peaks of "
        "transformers are those of loading in float32."
    )
    return [
        table(header, rows, caption=caption),
        note,
        ratios,
        _batches(results["batches"]),
        _segments(results["segments"]),
        measured(part),
    ]


def _segments(rows: dict[str, Any]) -> str:
    return table(
        ["limit", "segments", "encoder", "prefill", "steps", "total"],
        (
            [
                name,
                f"{row['segments']:.0f}",
                *(f"{row[stage]:.2f} s" for stage in ("encode", "prefill", "decode", "total")),
            ]
            for name, row in rows.items()
        ),
        caption="**Limit of a segment's length**: the same minute, int8, segments in rows:",
    )


def _batches(rows: dict[str, Any]) -> str:
    cells = []
    for name, row in rows.items():
        single = rows[f"{name.split(',')[0]}, 1"]["total"]
        cells.append(
            [
                name.replace(", ", ", rows: "),
                f"{120 / row['total']:.1f}",
                f"{row['encode'] + row['prefill']:.2f} s",
                f"{row['decode']:.2f} s",
                f"{single / row['total']:.2f}",
            ]
        )
    header = ["", "audio-seconds per second", "encoder and prefill", "steps", "against one row"]
    caption = "**Eight files of 15 s at once**, 45 tokens each, by the number of rows that are decoded together:"
    return table(header, cells, caption=caption)


def _scale(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    minutes = []
    for count, row in results["minutes"].items():
        seconds = row["seconds"] / int(count)
        peak = f"{row['peak_bytes'] / 1e9:.2f} GB"
        minutes.append([f"{count} min", f"{row['seconds']:.1f} s", f"{seconds:.2f} s", f"{seconds / 60:.4f}", peak])
    short, long = results["hours"].values()
    files = results["files"]
    growth = files["last_bytes"] / files["first_bytes"] - 1
    memory = (
        f"**Memory** of the small model: one file of {long['duration'] / 3600:.0f} hours peaks at "
        f"{long['peak_bytes'] / 1e6:.0f} MB, one of a minute at {short['peak_bytes'] / 1e6:.0f} MB. Of "
        f"{files['files']} files in a row the process has {files['first_bytes'] / 1e6:.0f} MB after file "
        f"{files['first']} and {files['last_bytes'] / 1e6:.0f} MB after the last ({100 * growth:+.1f} %)."
    )
    starts = [
        [name, *(f"{row[way]['median']:.2f} s" for way in ("plain", "prepared"))]
        for name, row in results["cold_starts"].items()
    ]
    return [
        table(
            ["audio", "total", "per minute of audio", "RTF", "peak resident"],
            minutes,
            caption="**By length**: 0.6B int8 with random weights, the same number of tokens per minute:",
        ),
        memory,
        table(
            ["", "plain", "after `prepare`"],
            starts,
            caption=(
                "**Cold start**: from the start of the process to the first text of a clip of 2 s, with the files in "
                "the page cache:"
            ),
        ),
        measured(part),
    ]


def _limits(part: dict[str, Any]) -> list[str]:
    rates = part["results"]["rates"]
    note = (
        f"Measured limits: {rates['bandwidth'] / 1e9:.0f} GB/s read from memory, {rates['integer'] / 1e9:.0f} G "
        f"operations per second in 8-bit products, {rates['float'] / 1e9:.0f} G in float32."
    )
    rows = table(
        ["", "time", "limit", "share of the limit", "limited by"],
        (
            [
                row["name"],
                f"{1000 * row['seconds']:.1f} ms",
                f"{1000 * row['limit']:.1f} ms",
                f"{100 * row['limit'] / row['seconds']:.0f} %",
                row["by"],
            ]
            for row in part["results"]["stages"]
        ),
        caption=(
            "**How near each stage is to the limit of the machine**, 0.6B int8: bytes of weights, keys and values "
            "divided by the memory bandwidth, or operations divided by the peak rate of products, both measured in the "
            "same run:"
        ),
    )
    return [rows, note, measured(part)]


TABLES = {"speech": _speech, "scale": _scale, "limits": _limits}


def chart(results: dict[str, Any]) -> Html:
    """Draw the time of every stage of every system."""
    systems, clip = results["systems"], results["clip"]
    return bar_chart(
        f"Qwen3-ASR 0.6B: {clip['seconds']} s of speech, {clip['tokens']} tokens, random weights",
        list(systems),
        [Series(name, [row[stage] for row in systems.values()]) for stage, name in _STAGES.items()],
        unit="seconds",
        stacked=True,
    )
