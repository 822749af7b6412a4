"""The tables and the picture of ``docs/families.md``, from stored results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.stamp import measured

LANGUAGES = ("English", "Russian", "Chinese")
# Okabe and Ito's colours, which people with any colour vision can tell apart.
_COLOURS = {"float32": "#000000", "int8": "#D55E00", "int4": "#CC79A7", "onnx-asr": "#0072B2", "sherpa-onnx": "#009E73"}
_TITLES = {
    "qwen3-asr": "Qwen3-ASR",
    "whisper": "Whisper",
    "parakeet-tdt": "Parakeet TDT",
    "gigaam-ctc": "GigaAM CTC",
}


def _families(part: dict[str, Any]) -> list[str]:
    found = part["results"]
    clip = found["clip"]
    lines = [
        f"**{clip['seconds']} s of speech, every family at its real size**, random weights; medians of rounds in which "
        "the systems of a model took turns, each in a process of its own:",
        "",
        "| | size | total | RTF | features | encoder | prefill | steps | tokens | peak resident | cold start | "
        "text as ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, piece in found["models"].items():
        for name, row in piece["systems"].items():
            lines.append(f"| {' | '.join(_cells(model, name, row, clip['seconds']))} |")
    said = [
        f"Cold start: from the start of the process to the text of a clip of {clip['cold_seconds']} s, file cache "
        "warm. Features, encoder, prefill and steps are our own clocks; other packages have none. A peer is given the "
        "pieces that our segmentation made, one by one or all together, whichever took it less, and the cutting is "
        "not in its time. Its text is compared with that of our runtime over the same graphs, "
        "character by character."
    ]
    ratios = [line for model, piece in found["models"].items() if (line := _ratios(model, piece["systems"]))]
    reasons = [f"- {_TITLES[family]}: {package} {why}" for family, package, why in found["reasons"]]
    for model, piece in found["models"].items():
        reasons += [f"- {model}: {name} failed: {why}" for name, why in piece["failures"].items()]
    return [
        "\n".join(lines),
        *said,
        "\n".join(ratios),
        "Not in the table:\n\n" + "\n".join(reasons),
        measured(part),
    ]


def _cells(model: str, name: str, row: dict[str, Any], seconds: float) -> list[str]:
    stages = row.get("stages", {})
    times = [f"{stages[key]:.2f} s" if stages.get(key) else "" for key in ("features", "encode", "prefill", "decode")]
    return [
        f"{model}, {name}",
        f"{row['bytes'] / 1e6:.0f} MB" if "bytes" in row else "",
        f"{row['total']:.2f} s",
        f"{row['total'] / seconds:.3f}",
        *times,
        f"{row['tokens']}",
        f"{row['resident_bytes'] / 1e9:.2f} GB",
        f"{row['cold_start']:.2f} s",
        f"{100 * row['agreement']:.0f} %" if "agreement" in row else "",
    ]


def _ratios(model: str, systems: dict[str, Any]) -> str:
    """How many times as fast int8 is as float32, and each of ours as each peer over the same weights."""
    said = []
    if {"float32", "int8"} <= set(systems):
        said.append(f"int8 {_times(systems, 'float32', 'int8')} float32")
    for name in systems:
        package, comma, recipe = name.partition(", ")
        if comma and recipe in systems:
            said.append(f"{recipe} {_times(systems, name, recipe)} {package} over the same graphs")
    return f"- {model}: {'; '.join(said)}." if said else ""


def _times(systems: dict[str, Any], slow: str, fast: str) -> str:
    return f"{systems[slow]['total'] / systems[fast]['total']:.1f} times as fast as"


def _checkpoints(part: dict[str, Any]) -> list[str]:
    found = part["results"]
    return [*_accuracy(found), *_starts(found), *_long(found), *_peers(found), measured(part)]


def _accuracy(found: dict[str, Any]) -> list[str]:
    lines = [
        "**Accuracy of the small checkpoints**, held-out utterances, errors in words and, in Chinese, in characters:",
        "",
        f"| | utterances | size | {' | '.join(LANGUAGES)} | identical to float32 | relative error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, piece in found.items():
        for recipe, row in piece["recipes"].items():
            errors = ", ".join(f"{role} {error:.4f}" for role, error in row["relative_error"].items())
            cells = [f"{name}, {recipe}", f"{piece['utterances']}", f"{row['bytes'] / 1e6:.1f} MB"]
            cells += [*_rates(row["rates"]), f"{100 * row['identical']:.1f} %", errors]
            lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines)]


def summary(part: dict[str, Any]) -> str:
    """The table of small checkpoints for the README: size, error rates and the mean error of times."""
    lines = [f"| | size | {' | '.join(LANGUAGES)} | starts of words |", "|---|---|---|---|---|---|"]
    for name, piece in part["results"].items():
        for recipe, row in piece["recipes"].items():
            starts = row.get("words") or row.get("parts")
            off = f"{1000 * starts['mean']:.0f} ms off" if starts else ""
            cells = [f"{name}, {recipe}", f"{row['bytes'] / 1e6:.1f} MB", *_rates(row["rates"]), off]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured(part)])


def speed_summary(part: dict[str, Any]) -> str:
    """The table of whole times for the README: ours, and other packages over the same weights."""
    found = part["results"]
    names = list(dict.fromkeys(name for piece in found["models"].values() for name in piece["systems"]))
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for model, piece in found["models"].items():
        totals = [f"{row['total']:.2f} s" if (row := piece["systems"].get(name)) else "" for name in names]
        lines.append(f"| {model} | {' | '.join(totals)} |")
    return "\n".join([*lines, "", measured(part)])


def _rates(rates: dict[str, float | None]) -> list[str]:
    return ["" if rates.get(language) is None else f"{100 * (rates[language] or 0):.2f} %" for language in LANGUAGES]


def _starts(found: dict[str, Any]) -> list[str]:
    lines = [
        "**Times**, against espeak's true starts of the words that are in both texts, English and Russian:",
        "",
        "| | of | matched | mean error | median | with its sign | at most 80 ms off |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = {"words": "words", "parts": "first words of parts"}
    for name, piece in found.items():
        for recipe, row in piece["recipes"].items():
            for key, what in kinds.items():
                if key not in row:
                    continue
                each = row[key]
                matched = f"{each['matched']} of {each['spoken']}" if key == "words" else f"{each['matched']}"
                times = [f"{1000 * each[kind]:.0f} ms" for kind in ("mean", "median")]
                cells = [f"{name}, {recipe}", what, matched, *times, f"{1000 * each['bias']:+.0f} ms"]
                lines.append(f"| {' | '.join(cells)} | {100 * each['near']:.1f} % |")
    return ["\n".join(lines)] if len(lines) > 4 else []


def _long(found: dict[str, Any]) -> list[str]:
    minutes = [each for piece in found.values() for each in piece["minutes"].values()]
    lines = [
        f"**Long audio**: recordings of {min(minutes):.1f} to {max(minutes):.1f} minutes, one a language, in the voice "
        "that no training heard:",
        "",
        f"| | cut | {' | '.join(LANGUAGES)} |",
        "|---|---|---|---|---|",
    ]
    ways = {
        "segments": "at pauses",
        "short": "at pauses, 8 s at most",
        "windows": "by the model, window by window",
    }
    for name, piece in found.items():
        for recipe, row in piece["recipes"].items():
            for way, rates in row["long"].items():
                lines.append(f"| {name}, {recipe} | {ways[way]} | {' | '.join(_rates(rates))} |")
    return ["\n".join(lines)]


def _peers(found: dict[str, Any]) -> list[str]:
    lines = [
        "**Other packages over the same small float32 graphs**, the same utterances:",
        "",
        f"| | {' | '.join(LANGUAGES)} | texts as ours |",
        "|---|---|---|---|---|",
    ]
    for name, piece in found.items():
        for package, row in piece["peers"].items():
            if "failed" in row:
                lines.append(f"| {name}, {package} | failed: {row['failed']} | | | |")
            else:
                lines.append(f"| {name}, {package} | {' | '.join(_rates(row['rates']))} | {100 * row['same']:.1f} % |")
    return ["\n".join(lines)] if len(lines) > 4 else []


TABLES = {"families": _families, "checkpoints": _checkpoints}


def draw(results: dict[str, Any], path: Path) -> None:
    """Real-time factor, memory and cold start of every system, model by model."""
    models = results["models"]
    seconds = results["clip"]["seconds"]
    names: list[str] = []
    values: list[tuple[float, float, float]] = []
    colours: list[str] = []
    edges: list[int] = []
    for model, piece in models.items():
        edges.append(len(names))
        for name, row in piece["systems"].items():
            names.append(f"{model}, {name}")
            values.append((row["total"] / seconds, row["resident_bytes"] / 1e9, row["cold_start"]))
            colours.append(_COLOURS[name.partition(", ")[0]])
    panels = (("real-time factor", "{:.3f}"), ("peak resident memory, GB", "{:.2f}"), ("cold start, s", "{:.1f}"))
    with mpl.rc_context({"svg.hashsalt": "asr-deploy", "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 0.32 * len(names) + 1.2), layout="constrained", facecolor="white")
        figure.suptitle(f"{seconds} s of speech, real sizes, random weights, CPU")
        axes = figure.subplots(1, len(panels), sharey=True)
        for index, (title, form) in enumerate(panels):
            panel = axes[index]
            lengths = [row[index] for row in values]
            bars = panel.barh(names, lengths, color=colours)
            panel.bar_label(bars, labels=[form.format(length) for length in lengths], padding=3, fontsize=8)
            for edge in edges[1:]:
                panel.axhline(edge - 0.5, color="#999999", linewidth=0.5)
            panel.set_title(title, fontsize=10)
            panel.margins(x=0.2)
            panel.spines[["top", "right"]].set_visible(False)
        axes[0].invert_yaxis()
        figure.savefig(path, format="svg", metadata={"Date": None})
