"""Render a benchmark as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable

from runtime.bench.page import number, seconds, size
from runtime.bench.results import Report, Spread

# Labels of the stages in reports.
STAGES = {
    "segment": "voice activity",
    "features": "features",
    "encode": "encoder",
    "prefill": "prefill",
    "decode": "steps",
    "other": "other",
}
# Label of the stage `decode` for CTC and transducer models, which have no steps that give every row a token.
_DECODING = "decoding"


def as_table(report: Report) -> str:
    """Return facts of the model and the machine, then a table with a row for each configuration."""
    facts = _facts(report)
    width = max(map(len, facts))
    lines = [f"{key:<{width}}  {value}" for key, value in facts.items()]
    stages = stages_of(report)
    header = ["clip", "batch", "clips", *stage_names(report)]
    header += [*(["per token"] if has_steps(report) else []), "first token", "total", "RTF", "audio s/s", "memory"]
    rows = [header]
    for each in report.configurations:
        times = [seconds(each.stages[stage].median) for stage in stages]
        rows.append(
            [
                f"{each.seconds:g} s",
                str(each.batch),
                str(each.clips),
                *times,
                *([median(each.per_token)] if has_steps(report) else []),
                median(each.first_token),
                seconds(each.total.median),
                number(each.rtf.median),
                number(each.audio_seconds_per_second.median),
                size(each.peak_bytes),
            ]
        )
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)]
    lines += [f"failed: {each.seconds:g} s, batch {each.batch}: {each.reason}" for each in report.failures]
    return "\n".join(lines)


def stages_of(report: Report) -> list[str]:
    """Return the names of the measured stages, in order."""
    return list(report.configurations[0].stages) if report.configurations else []


def has_steps(report: Report) -> bool:
    """Return whether the model has a decoder with a prompt and steps; CTC and transducer models have none."""
    return "prefill" in stages_of(report)


def stage_names(report: Report) -> list[str]:
    """Return the labels of the stages, in order."""
    names = STAGES if has_steps(report) else STAGES | {"decode": _DECODING}
    return [names.get(stage, stage) for stage in stages_of(report)]


def runs_of(report: Report) -> str:
    """Describe the number of runs of each configuration."""
    runs = report.settings.runs
    return f"medians of {runs} runs" if runs > 1 else "a single run"


def median(spread: Spread | None) -> str:
    """Format the median of a duration; a dash for None."""
    return seconds(spread.median if spread else None)


def value_range(spread: Spread, shown: Callable[[float], str]) -> str:
    """Format the smallest and the largest value, with a single unit if both have the same.

    Args:
        spread: the values.
        shown: formats a value, as ``number``, or ``seconds`` with the unit after a space.
    """
    low, high = shown(spread.low), shown(spread.high)
    value, _, unit = low.partition(" ")
    return f"{value}–{high}" if unit == high.partition(" ")[2] else f"{low} – {high}"


def _facts(report: Report) -> dict[str, str]:
    model, machine, settings = report.model, report.machine, report.settings
    facts = {
        "model": f"{model.name} ({model.recipe}), {size(model.bytes)}",
        "machine": f"{machine.processor}, {settings.threads} threads, {settings.provider}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "cold start": _spread(report.cold_start.total),
    }
    if report.load:
        facts["load"] = _spread(report.load)
    if report.limits:
        rates = report.limits.rates
        facts["machine's limits"] = (
            f"memory read {number(rates.memory_bytes / 1e9)} GB/s, products {number(rates.float_operations / 1e9)} "
            f"Gop/s in float32, {number(rates.integer_operations / 1e9)} in 8 bits"
        )
    forced = f"{settings.new_tokens} tokens forced" if settings.new_tokens else "as long as the text"
    facts["measured"] = f"{runs_of(report)}, {forced}"
    return facts


def _spread(spread: Spread) -> str:
    return f"{median(spread)} ({value_range(spread, seconds)})"
