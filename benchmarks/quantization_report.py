"""Tables and picture of ``docs/quantization.md``, made from the stored results alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.artifacts import FLOAT, RECIPES
from benchmarks.markdown import LANGUAGES, language_rates, percent, table
from benchmarks.stamp import measured
from runtime.bench.charts import Series
from runtime.bench.page import Html
from runtime.bench.panels import Group, panel_chart

# Index of each recipe's color in the palette of runtime.bench.page.
_COLORS = {FLOAT: 6, "int8": 4, "q8": 0, "mixed": 2, "int4": 3, "int4-small": 1, "fp16": 5}


def _accuracy(part: dict[str, Any]) -> list[str]:
    names = {"small": "the small checkpoint", "twin": "its twin with outlier channels"}
    tables = []
    for model, rows in part["results"].items():
        cells = [
            [
                recipe,
                f"{row['bytes'] / 1e6:.1f} MB",
                *language_rates(row["rates"]),
                percent(row["identical"], 1),
                " / ".join(f"{error:.4f}" for error in row["relative_error"].values()),
            ]
            for recipe, row in rows.items()
        ]
        header = ["recipe", "size", *LANGUAGES, "identical to float32", "relative error, encoder / decoder"]
        caption = f"**Accuracy of {names[model]}** on 300 held-out utterances:"
        tables.append(table(header, cells, caption=caption))
    return [*tables, "Error rates are of words for English and Russian, of characters for Chinese. " + measured(part)]


def _speed(part: dict[str, Any]) -> list[str]:
    rows = part["results"]
    cells = []
    for recipe, row in rows.items():
        times = [f"{1000 * row[stage]:.0f} ms" if stage in row else "" for stage in ("encode", "prefill", "step")]
        errors = " / ".join(f"{error:.3f}" for error in row.get("relative_error", {}).values())
        cells.append([recipe, f"{row['bytes'] / 1e6:.0f} MB", *times, _memory(row), _quantization(row), errors])
    header = ["recipe", "size", "encoder", "prefill", "step", "peak resident", "quantization", "relative error"]
    caption = (
        "**0.6B at real size with random weights**: encoder over 32 s of audio (two windows a call), prefill of 400 "
        "tokens, and one step after it at batch 1. Times are medians, with all recipes in one process and in turns. "
        "Memory is that of a process that transcribes 30 s with 100 tokens:"
    )
    ratios = []
    if "encode" in rows.get("int8", {}):
        int8, q8, floats = rows["int8"], rows["q8"], rows[FLOAT]
        ratios.append(
            f"int8: prefill {q8['prefill'] / int8['prefill']:.1f} times as fast as q8 and "
            f"{floats['prefill'] / int8['prefill']:.1f} times as fast as float32, encoder "
            f"{floats['encode'] / int8['encode']:.1f} times as fast as float32; a step takes "
            f"{int8['step'] / q8['step']:.2f} of q8's time and {int8['step'] / floats['step']:.2f} of float32's."
        )
    return [table(header, cells, caption=caption), *ratios, measured(part)]


def _large(part: dict[str, Any]) -> list[str]:
    cells = [
        [recipe, f"{row['bytes'] / 1e6:.0f} MB", _memory(row), _quantization(row)]
        for recipe, row in part["results"].items()
    ]
    header = ["recipe", "size", "peak resident", "quantization"]
    return [table(header, cells, caption="**1.7B at real size with random weights**:"), measured(part)]


def _memory(row: dict[str, Any]) -> str:
    return f"{row['resident_bytes'] / 1e9:.2f} GB" if "resident_bytes" in row else ""


def _quantization(row: dict[str, Any]) -> str:
    """Time and peak memory of quantizing."""
    if "quantize_seconds" not in row:
        return ""
    return f"{row['quantize_seconds']:.0f} s, {row['quantize_peak_bytes'] / 1e9:.1f} GB"


def _kernels(part: dict[str, Any]) -> list[str]:
    stem = table(
        ["computed as", "ms", "relative error"],
        ([name, f"{row['ms']:.0f}", f"{row['relative_error']:.4f}"] for name, row in part["results"]["stem"].items()),
        caption="**The convolution stem**, 480 channels over 16 s of audio:",
    )
    blocks = table(
        ["weights of", "error of the weights", "error of the kernel", "ms, M = 8", "ms, M = 400"],
        (
            [name, f"{row['weights']:.4f}", f"{row['kernel']:.4f}", *(f"{row[f'ms_{rows}']:.2f}" for rows in (8, 400))]
            for name, row in part["results"]["blocks"].items()
        ),
        caption=(
            "**Weight-only products** [M, 1024] × [1024, 3072] with Gaussian weights, by bits and block: relative "
            "error of the rounded weights, relative error that the kernel adds to its own dequantized weights, and "
            "time by the number of rows M:"
        ),
    )
    return [stem, blocks, measured(part)]


TABLES = {"accuracy": _accuracy, "speed": _speed, "large": _large, "kernels": _kernels}


def _scaled(key: str, factor: float) -> Callable[[dict[str, Any]], float | None]:
    return lambda row: factor * row[key] if key in row else None


def chart(rows: dict[str, Any]) -> Html:
    """Draw size, memory, times and error of every recipe side by side."""
    recipes = [recipe for recipe in (FLOAT, *RECIPES) if recipe in rows]
    panels: dict[str, Callable[[dict[str, Any]], float | None]] = {
        "size on disk, MB": _scaled("bytes", 1e-6),
        "peak resident memory, GB": _scaled("resident_bytes", 1e-9),
        "encoder, 32 s of audio, ms": _scaled("encode", 1000),
        "prefill of 400 tokens, ms": _scaled("prefill", 1000),
        "one step, ms": _scaled("step", 1000),
        "relative error of the logits": lambda row: row.get("relative_error", {}).get("decoder", 0.0),
    }
    return panel_chart(
        "Qwen3-ASR 0.6B by recipe",
        [Group("", recipes)],
        [Series(name, [value(rows[recipe]) for recipe in recipes]) for name, value in panels.items()],
        unit="random weights, CPU",
        columns=3,
        colors=[_COLORS[recipe] for recipe in recipes],
        missing="for GPUs, not timed",
    )
