"""Tables and picture of ``docs/families.md``, made from the stored results alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.markdown import LANGUAGES, language_rates, percent, table
from benchmarks.stamp import measured
from runtime.bench.charts import Series
from runtime.bench.page import Html
from runtime.bench.panels import Group, panel_chart

# Index of each recipe's and package's color in the palette of runtime.bench.page.
_COLORS = {"float32": 6, "int8": 4, "int4": 3, "onnx-asr": 0, "sherpa-onnx": 2}
TITLES = {
    "qwen3-asr": "Qwen3-ASR",
    "whisper": "Whisper",
    "parakeet-tdt": "Parakeet TDT",
    "gigaam-ctc": "GigaAM CTC",
}
_WAYS = {
    "segments": "at pauses",
    "short": "at pauses, 8 s at most",
    "windows": "by the model, window by window",
}


def _families(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    clip = results["clip"]
    header = ["", "size", "total", "RTF", "features", "encoder", "prefill", "steps", "tokens", "peak resident"]
    rows = (
        _cells(model, name, row, clip["seconds"])
        for model, piece in results["models"].items()
        for name, row in piece["systems"].items()
    )
    caption = (
        f"**{clip['seconds']} s of speech, every family at its real size**, random weights. Medians of rounds in which "
        "the systems of a model took turns, each in its own process:"
    )
    note = (
        f"Cold start: from the start of the process to the text of a clip of {clip['cold_seconds']} s, with the files "
        "in the page cache. Stage times are those that our runtime reports; other packages report none. Other packages "
        "get the segments that our runtime cuts, one by one or all at once, whichever is faster for them; their time "
        "does not contain the segmentation. *Same text* compares their text with that of our runtime over the same "
        "graphs, by characters."
    )
    ratios = [line for model, piece in results["models"].items() if (line := _ratios(model, piece["systems"]))]
    reasons = [f"- {TITLES[family]}: {package} {reason}" for family, package, reason in results["reasons"]]
    for model, piece in results["models"].items():
        reasons += [f"- {model}: {name} failed: {reason}" for name, reason in piece["failures"].items()]
    return [
        table([*header, "cold start", "same text"], rows, caption=caption),
        note,
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
        percent(row.get("agreement"), 0),
    ]


def _ratios(model: str, systems: dict[str, Any]) -> str:
    """Speed of int8 against float32, and of our runtime against each other package over the same weights."""
    ratios = []
    if {"float32", "int8"} <= set(systems):
        ratios.append(f"int8 {_times(systems, 'float32', 'int8')} float32")
    for name in systems:
        package, comma, recipe = name.partition(", ")
        if comma and recipe in systems:
            ratios.append(f"{recipe} {_times(systems, name, recipe)} {package} over the same graphs")
    return f"- {model}: {'; '.join(ratios)}." if ratios else ""


def _times(systems: dict[str, Any], slow: str, fast: str) -> str:
    return f"{systems[slow]['total'] / systems[fast]['total']:.1f} times as fast as"


def _checkpoints(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    return [_accuracy(results), *_starts(results), _long(results), *_peers(results), measured(part)]


def _recipes(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield name with recipe, the checkpoint's results, and the recipe's results."""
    for name, piece in results.items():
        for recipe, row in piece["recipes"].items():
            yield f"{name}, {recipe}", piece, row


def _accuracy(results: dict[str, Any]) -> str:
    rows = (
        [
            name,
            f"{piece['utterances']}",
            f"{row['bytes'] / 1e6:.1f} MB",
            *language_rates(row["rates"]),
            percent(row["identical"], 1),
            ", ".join(f"{role} {error:.4f}" for role, error in row["relative_error"].items()),
        ]
        for name, piece, row in _recipes(results)
    )
    return table(
        ["", "utterances", "size", *LANGUAGES, "identical to float32", "relative error"],
        rows,
        caption=(
            "**Accuracy of the small checkpoints** on held-out utterances: error rates of words, for Chinese of "
            "characters:"
        ),
    )


def summary(part: dict[str, Any]) -> str:
    """Return the README's table of small checkpoints: size, error rates, and the mean error of word starts."""
    rows = []
    for name, _, row in _recipes(part["results"]):
        starts = row.get("words") or row.get("parts")
        error = f"{1000 * starts['mean']:.0f} ms off" if starts else ""
        rows.append([name, f"{row['bytes'] / 1e6:.1f} MB", *language_rates(row["rates"]), error])
    return f"{table(['', 'size', *LANGUAGES, 'starts of words'], rows)}\n\n{measured(part)}"


def speed_summary(part: dict[str, Any]) -> str:
    """Return the README's table of total times: our runtime, and other packages over the same weights."""
    models = part["results"]["models"]
    names = list(dict.fromkeys(name for piece in models.values() for name in piece["systems"]))
    rows = (
        [model, *(f"{row['total']:.2f} s" if (row := piece["systems"].get(name)) else "" for name in names)]
        for model, piece in models.items()
    )
    return f"{table(['', *names], rows)}\n\n{measured(part)}"


def _starts(results: dict[str, Any]) -> list[str]:
    kinds = {"words": "words", "parts": "first words of segments"}
    rows = []
    for name, _, row in _recipes(results):
        for key, kind in kinds.items():
            if key not in row:
                continue
            starts = row[key]
            rows.append(
                [
                    name,
                    kind,
                    f"{starts['matched']} of {starts['spoken']}" if key == "words" else f"{starts['matched']}",
                    *(f"{1000 * starts[average]:.0f} ms" for average in ("mean", "median")),
                    f"{1000 * starts['bias']:+.0f} ms",
                    percent(starts["near"], 1),
                ]
            )
    caption = (
        "**Word times** against the true starts from espeak, for words that are in both texts, English and Russian:"
    )
    header = ["", "times of", "matched", "mean error", "median error", "bias", "at most 80 ms off"]
    return [table(header, rows, caption=caption)] if rows else []


def _long(results: dict[str, Any]) -> str:
    minutes = [each for piece in results.values() for each in piece["minutes"].values()]
    rows = (
        [name, _WAYS[way], *language_rates(rates)]
        for name, _, row in _recipes(results)
        for way, rates in row["long"].items()
    )
    caption = (
        f"**Long audio**: one recording of {min(minutes):.1f} to {max(minutes):.1f} minutes for each language, in a "
        "voice that was not used in training:"
    )
    return table(["", "segmentation", *LANGUAGES], rows, caption=caption)


def _peers(results: dict[str, Any]) -> list[str]:
    rows = []
    for name, piece in results.items():
        for package, row in piece["peers"].items():
            if "failed" in row:
                rows.append([f"{name}, {package}", f"failed: {row['failed']}", "", "", ""])
            else:
                rows.append([f"{name}, {package}", *language_rates(row["rates"]), percent(row["same"], 1)])
    caption = "**Other packages over the same small float32 graphs**, on the same utterances:"
    return [table(["", *LANGUAGES, "same texts"], rows, caption=caption)] if rows else []


TABLES = {"families": _families, "checkpoints": _checkpoints}


def chart(results: dict[str, Any]) -> Html:
    """Draw real-time factor, memory and cold start of every system, model by model."""
    models, seconds = results["models"], results["clip"]["seconds"]
    systems = [(name, row) for piece in models.values() for name, row in piece["systems"].items()]
    return panel_chart(
        f"{seconds} s of speech, every family at its real size",
        [Group(model, list(piece["systems"])) for model, piece in models.items()],
        [
            Series("real-time factor", [row["total"] / seconds for _, row in systems]),
            Series("peak resident memory, GB", [row["resident_bytes"] / 1e9 for _, row in systems]),
            Series("cold start, s", [row["cold_start"] for _, row in systems]),
        ],
        unit="random weights, CPU",
        columns=3,
        colors=[_COLORS[name.partition(", ")[0]] for name, _ in systems],
    )
