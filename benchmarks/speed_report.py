"""The tables and the picture of ``docs/speed.md``, from stored results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.stamp import measured

# Okabe and Ito's colours, which people with any colour vision can tell apart.
_COLOURS = {
    "segment": "#999999",
    "features": "#E69F00",
    "encode": "#0072B2",
    "prefill": "#009E73",
    "decode": "#D55E00",
}
_STAGES = {
    "segment": "reading and voice activity",
    "features": "features",
    "encode": "encoder",
    "prefill": "prefill",
    "decode": "steps",
}


def _speech(part: dict[str, Any]) -> list[str]:
    found = part["results"]
    clip, systems = found["clip"], found["systems"]
    lines = [
        f"**{clip['seconds']} s of speech, {clip['tokens']} tokens in all**, 0.6B at real size with random weights; "
        f"medians of {clip['rounds']} rounds in which the systems took turns, each in a process of its own:",
        "",
        "| | cutting | features | encoder | prefill | ms a token | total | RTF | peak resident |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in systems.items():
        cells = [
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
        lines.append(f"| {' | '.join(cells)} |")
    floats, alone = systems["float32, one segment"]["total"], systems["int8, one segment"]["total"]
    rows, reference = systems["int8, segments in rows"]["total"], systems["transformers, float32"]["total"]
    half = systems["transformers, bfloat16"]["total"]
    ratios = (
        f"int8 with segments in rows is {floats / rows:.1f} times as fast as float32 in one segment, "
        f"{reference / rows:.1f} times as fast as transformers in float32 and {half / rows:.1f} times as fast as "
        f"transformers in bfloat16; int8 in one segment {floats / alone:.1f} times as fast as float32 in one segment."
    )
    beside = (
        "Cutting (reading and voice activity) runs beside the other stages, in a thread of its own. The peaks of "
        "transformers are those of loading in float32."
    )
    return [
        "\n".join(lines),
        beside,
        ratios,
        *_batches(found["batches"]),
        *_segments(found["segments"]),
        measured(part),
    ]


def _segments(rows: dict[str, Any]) -> list[str]:
    lines = [
        "**Longest segment**, the same minute, int8, segments in rows:",
        "",
        "| at most | segments | encoder | prefill | steps | total |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        times = " | ".join(f"{row[stage]:.2f} s" for stage in ("encode", "prefill", "decode", "total"))
        lines.append(f"| {name} | {row['segments']:.0f} | {times} |")
    return ["\n".join(lines)]


def _batches(rows: dict[str, Any]) -> list[str]:
    lines = [
        "**Eight files of 15 s together**, 45 tokens each, by the rows that are decoded together:",
        "",
        "| | audio-seconds per second | encoder and prefill | steps | against one row |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        first = rows[f"{name.split(',')[0]}, 1"]["total"]
        cells = [
            name.replace(", ", ", rows: "),
            f"{120 / row['total']:.1f}",
            f"{row['encode'] + row['prefill']:.2f} s",
            f"{row['decode']:.2f} s",
            f"{first / row['total']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines)]


def _scale(part: dict[str, Any]) -> list[str]:
    found = part["results"]
    minutes = [
        "**By length**, 0.6B int8, random weights, as many tokens a minute at every length:",
        "",
        "| audio | total | a minute of audio | RTF | peak resident |",
        "|---|---|---|---|---|",
    ]
    for count, row in found["minutes"].items():
        each = row["seconds"] / int(count)
        peak = f"{row['peak_bytes'] / 1e9:.2f} GB"
        minutes.append(f"| {count} min | {row['seconds']:.1f} s | {each:.2f} s | {each / 60:.4f} | {peak} |")
    short, long = found["hours"].values()
    files, starts = found["files"], found["cold_starts"]
    growth = files["last_bytes"] / files["first_bytes"] - 1
    cold = [
        "**Cold start**, from the start of the process to the first text of a clip of 2 s (file cache warm):",
        "",
        "| | plain | prepared |",
        "|---|---|---|",
        *(
            f"| {name} | {row['plain']['median']:.2f} s | {row['prepared']['median']:.2f} s |"
            for name, row in starts.items()
        ),
    ]
    memory = (
        f"**Memory**, the small model: {long['duration'] / 3600:.0f} hours in one file peak at "
        f"{long['peak_bytes'] / 1e6:.0f} MB, one minute at {short['peak_bytes'] / 1e6:.0f} MB; of "
        f"{files['files']} files in a row the process has {files['first_bytes'] / 1e6:.0f} MB after the "
        f"{files['first']}th and "
        f"{files['last_bytes'] / 1e6:.0f} MB after the last ({100 * growth:+.1f} %)."
    )
    return ["\n".join(minutes), memory, "\n".join(cold), measured(part)]


def _limits(part: dict[str, Any]) -> list[str]:
    lines = [
        "**How far each stage is from its limit**, 0.6B: bytes of weights and of keys and values over the memory "
        "bandwidth, operations over the peak of products, both measured in the same run:",
        "",
        "| | time | limit | of the limit | what limits |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {1000 * row['seconds']:.1f} ms | {1000 * row['limit']:.1f} ms | "
        f"{100 * row['limit'] / row['seconds']:.0f} % | {row['by']} |"
        for row in part["results"]["stages"]
    ]
    rates = part["results"]["rates"]
    said = (
        f"Measured limits: {rates['bandwidth'] / 1e9:.0f} GB/s read from memory, {rates['integer'] / 1e9:.0f} G "
        f"operations a second in 8-bit products, {rates['float'] / 1e9:.0f} G in float32."
    )
    return ["\n".join(lines), said, measured(part)]


TABLES = {"speech": _speech, "scale": _scale, "limits": _limits}


def draw(results: dict[str, Any], path: Path) -> None:
    """Stages of every system, one above the other."""
    systems = results["systems"]
    with mpl.rc_context({"svg.hashsalt": "asr-deploy", "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        names = list(systems)
        left = [0.0] * len(names)
        for stage, colour in _COLOURS.items():
            if stage == "segment":
                continue  # beside the others, in a thread of its own
            values = [systems[name][stage] for name in names]
            axes.barh(names, values, left=left, color=colour, label=_STAGES[stage])
            left = [a + b for a, b in zip(left, values, strict=True)]
        for index, name in enumerate(names):
            axes.text(left[index] + 0.1, index, f"{systems[name]['total']:.1f} s", va="center", fontsize=9)
        axes.set_title("Qwen3-ASR 0.6B (random weights): a minute of speech, 180 tokens, seconds", fontsize=11)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.legend(loc="lower right", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})
