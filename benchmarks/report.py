"""Results as JSON, as tables between two marks of a page in ``docs``, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import families_report, live_report, serving_report, speed_report
from benchmarks.artifacts import FLOAT, RECIPES
from benchmarks.stamp import measured, stamp
from runtime.host.files import write_atomically

RESULTS, PAGE, PICTURE = "quantization.json", "quantization.md", "quantization.svg"
SPEED_RESULTS, SPEED_PAGE, SPEED_PICTURE = "speed.json", "speed.md", "speed.svg"
STREAMING_RESULTS, STREAMING_PAGE = "streaming.json", "streaming.md"
SERVING_RESULTS, SERVING_PAGE = "serving.json", "serving.md"
FAMILIES_RESULTS, FAMILIES_PAGE, FAMILIES_PICTURE = "families.json", "families.md", "families.svg"
BEGIN, END = "<!-- results: python -m benchmarks -->", "<!-- end of results -->"
LANGUAGES = ("English", "Russian", "Chinese")
# Okabe and Ito's colours, which people with any colour vision can tell apart.
_COLOURS = {
    FLOAT: "#000000",
    "int8": "#D55E00",
    "q8": "#0072B2",
    "mixed": "#009E73",
    "int4": "#CC79A7",
    "int4-small": "#E69F00",
    "fp16": "#56B4E9",
}


def store(docs: Path, part: str, results: dict[str, Any]) -> None:
    """Put one part's results, with machine, versions and date, beside those of the others on its page."""
    path = docs / next(page.results for page in PAGES if part in page.tables)
    known = json.loads(path.read_text()) if path.exists() else {}
    known[part] = stamp() | {"results": results}
    write_atomically(path, json.dumps(known, indent=1).encode() + b"\n")


def write(docs: Path) -> str:
    """The tables into the pages, and the pictures beside them; returns the tables."""
    written = []
    for page in PAGES:
        if not (docs / page.results).exists():
            continue
        known = json.loads((docs / page.results).read_text())
        rendered = [table for part, render in page.tables.items() if part in known for table in render(known[part])]
        written.append(_put(docs / page.text, "\n\n".join(rendered)))
        if page.drawn in known and page.draw:
            page.draw(known[page.drawn]["results"], docs / page.picture)
    return "\n\n".join(written)


def _put(page: Path, tables: str) -> str:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page}: has no marks {BEGIN} and {END} to put the results between")
    write_atomically(page, f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}".encode())
    return tables


def _accuracy(part: dict[str, Any]) -> list[str]:
    names = {"small": "the small checkpoint", "twin": "its outlier twin"}
    made = []
    for model, rows in part["results"].items():
        lines = [
            f"**Accuracy of {names[model]}**, 300 held-out utterances:",
            "",
            f"| recipe | size | {' | '.join(LANGUAGES)} | identical to float32 | relative error, encoder / decoder |",
            "|---|---|" + "---|" * len(LANGUAGES) + "---|---|",
        ]
        for recipe, row in rows.items():
            errors = " / ".join(f"{row['relative_error'][role]:.4f}" for role in row["relative_error"]) or ""
            rates = " | ".join(f"{100 * row['rates'][language]:.2f} %" for language in LANGUAGES)
            lines.append(
                f"| {recipe} | {row['bytes'] / 1e6:.1f} MB | {rates} | {100 * row['identical']:.1f} % | {errors} |"
            )
        made.append("\n".join(lines))
    return [*made, "English and Russian: words, Chinese: characters. " + measured(part)]


def _speed(part: dict[str, Any]) -> list[str]:
    rows = part["results"]
    lines = [
        "**0.6B, random weights at the real size**: encoder over 32 s (two windows a call), prefill of 400 tokens, one "
        "step at batch 1 after it (medians, in one process, round by round); memory of a process that transcribes 30 s "
        "with 100 tokens:",
        "",
        "| recipe | size | encoder | prefill | step | peak resident | quantizing took | relative error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, row in rows.items():
        times = [f"{1000 * row[stage]:.0f} ms" if stage in row else "" for stage in ("encode", "prefill", "step")]
        errors = " / ".join(f"{error:.3f}" for error in row.get("relative_error", {}).values())
        cells = [recipe, f"{row['bytes'] / 1e6:.0f} MB", *times, _memory(row), _made(row), errors]
        lines.append(f"| {' | '.join(cells)} |")
    ratios = []
    if "encode" in rows.get("int8", {}):
        int8, q8, floats = rows["int8"], rows["q8"], rows[FLOAT]
        ratios.append(
            f"int8: prefill {q8['prefill'] / int8['prefill']:.1f} times as fast as q8 and "
            f"{floats['prefill'] / int8['prefill']:.1f} times as fast as float32, encoder "
            f"{floats['encode'] / int8['encode']:.1f} times as fast as float32, step {int8['step'] / q8['step']:.2f} "
            f"of q8's and {int8['step'] / floats['step']:.2f} of float32's."
        )
    return ["\n".join(lines), *ratios, measured(part)]


def _large(part: dict[str, Any]) -> list[str]:
    lines = [
        "**1.7B, random weights at the real size**:",
        "",
        "| recipe | size | peak resident | quantizing took |",
        "|---|---|---|---|",
    ]
    for recipe, row in part["results"].items():
        lines.append(f"| {recipe} | {row['bytes'] / 1e6:.0f} MB | {_memory(row)} | {_made(row)} |")
    return ["\n".join(lines), measured(part)]


def _memory(row: dict[str, Any]) -> str:
    return f"{row['resident_bytes'] / 1e9:.2f} GB" if "resident_bytes" in row else ""


def _made(row: dict[str, Any]) -> str:
    if "quantize_seconds" not in row:
        return ""
    return f"{row['quantize_seconds']:.0f} s, {row['quantize_peak_bytes'] / 1e9:.1f} GB"


def _kernels(part: dict[str, Any]) -> list[str]:
    stem = [
        "**The convolution stem**, 480 channels over 16 s of audio, by how it is computed:",
        "",
        "| | ms | relative error |",
        "|---|---|---|",
        *(
            f"| {name} | {row['ms']:.0f} | {row['relative_error']:.4f} |"
            for name, row in part["results"]["stem"].items()
        ),
    ]
    blocks = [
        "**Weight-only products** [M, 1024] × [1024, 3072] of Gaussian weights, by bits and block: relative error "
        "that the weights make, and that the kernel adds to its own dequantized weights; ms by rows M:",
        "",
        "| | weights | kernel | M = 8 | M = 400 |",
        "|---|---|---|---|---|",
    ]
    for name, row in part["results"]["blocks"].items():
        times = " | ".join(f"{row[f'ms_{count}']:.2f}" for count in (8, 400))
        blocks.append(f"| {name} | {row['weights']:.4f} | {row['kernel']:.4f} | {times} |")
    return ["\n".join(stem), "\n".join(blocks), measured(part)]


def _scaled(row: dict[str, Any], key: str, factor: float) -> float | None:
    return factor * row[key] if key in row else None


def draw(rows: dict[str, Any], path: Path) -> None:
    """Size, time and error of every recipe side by side."""
    recipes = [recipe for recipe in (FLOAT, *RECIPES) if recipe in rows]
    panels: tuple[tuple[str, Callable[[dict[str, Any]], float | None], str], ...] = (
        ("size on disk, MB", lambda row: row["bytes"] / 1e6, "{:.0f}"),
        ("peak resident memory, GB", lambda row: _scaled(row, "resident_bytes", 1e-9), "{:.2f}"),
        ("encoder, 32 s of audio, ms", lambda row: _scaled(row, "encode", 1000), "{:.0f}"),
        ("prefill of 400 tokens, ms", lambda row: _scaled(row, "prefill", 1000), "{:.0f}"),
        ("one step, ms", lambda row: _scaled(row, "step", 1000), "{:.1f}"),
        ("relative error of the logits", lambda row: row.get("relative_error", {}).get("decoder", 0.0), "{:.3f}"),
    )
    with mpl.rc_context({"svg.hashsalt": "asr-deploy", "font.family": "sans-serif", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 6), layout="constrained", facecolor="white")
        figure.suptitle("Qwen3-ASR 0.6B by recipe (random weights, CPU)")
        for index, (title, value, form) in enumerate(panels):
            axes = figure.add_subplot(2, 3, index + 1)
            values = [value(rows[recipe]) for recipe in recipes]
            lengths = [each or 0.0 for each in values]
            bars = axes.barh(recipes, lengths, color=[_COLOURS[recipe] for recipe in recipes])
            labels = ["for GPUs, not timed" if each is None else form.format(each) for each in values]
            axes.bar_label(bars, labels=labels, padding=3, fontsize=8)
            axes.set_title(title, fontsize=10)
            axes.invert_yaxis()
            axes.margins(x=0.2)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})


@dataclass(frozen=True, slots=True)
class Page:
    """A page of ``docs``: its stored results, its tables by part, and its picture with the part that it shows."""

    results: str
    text: str
    tables: Mapping[str, Callable[[dict[str, Any]], list[str]]]
    picture: str = ""
    drawn: str = ""
    draw: Callable[[dict[str, Any], Path], None] | None = None


_TABLES = {"accuracy": _accuracy, "speed": _speed, "large": _large, "kernels": _kernels}
PAGES = (
    Page(RESULTS, PAGE, _TABLES, PICTURE, "speed", draw),
    Page(SPEED_RESULTS, SPEED_PAGE, speed_report.TABLES, SPEED_PICTURE, "speech", speed_report.draw),
    Page(STREAMING_RESULTS, STREAMING_PAGE, live_report.TABLES),
    Page(SERVING_RESULTS, SERVING_PAGE, serving_report.TABLES),
    Page(
        FAMILIES_RESULTS,
        FAMILIES_PAGE,
        families_report.TABLES,
        FAMILIES_PICTURE,
        "families",
        families_report.draw,
    ),
)
