"""Render a comparison of execution providers as text for a terminal and as an HTML page with charts."""

from __future__ import annotations

import msgspec

from runtime.bench.charts import Series, bar_chart
from runtime.bench.compared import Comparison, Measured, Outcome
from runtime.bench.machine import Machine
from runtime.bench.page import (
    Cell,
    Html,
    definitions,
    machine_box,
    number,
    page,
    paragraph,
    seconds,
    section,
    size,
    table,
    tiles,
)

_Row = tuple[Outcome, Measured]

_COLUMNS = ("provider", "load", "encode", "prefill", "step", "total", "RTF", "peak memory")


def as_text(comparison: Comparison) -> str:
    """Return tables of times, of differences from the reference and of node placement, then the errors."""
    measured = [each for each in comparison.outcomes if each.measured]
    parts = [f"{comparison.model}, {comparison.audio_seconds:.1f} s of audio, medians of {comparison.runs} runs"]
    if measured:
        parts += [
            _grid(_COLUMNS, [_times(each.provider, each.measured) for each in measured if each.measured]),
            f"difference from {comparison.reference}, relative to its outputs, on the same inputs",
            _grid(_accuracy_columns(measured), [_accuracy(each, comparison) for each in measured]),
            "nodes of each graph, by the provider that runs them",
            _grid(("provider", "graph", "on", "nodes", "operators"), _placement(measured)),
        ]
    parts += [f"{each.provider}: {each.error}" for each in comparison.outcomes if each.error]
    return "\n\n".join(parts)


def _grid(header: tuple[str, ...], rows: list[list[str]]) -> str:
    table = [list(header), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def _times(provider: str, measured: Measured) -> list[str]:
    return [
        provider,
        seconds(measured.load),
        seconds(measured.encode.median),
        seconds(measured.prefill.median if _has_prompt(measured) else None),
        seconds(measured.step.median if measured.step else None),
        seconds(measured.total.median),
        number(measured.rtf),
        size(measured.peak_bytes),
    ]


def _has_prompt(measured: Measured) -> bool:
    """Return whether the model has a decoder with a prompt; CTC and transducer models have no prefill."""
    return "decoder" in measured.placement


def _accuracy_columns(outcomes: list[Outcome]) -> tuple[str, ...]:
    """Return the columns of the table of differences: one for each graph of the family, then those of the texts."""
    roles = next((each.measured.placement for each in outcomes if each.measured), {})
    return ("provider", *roles, "same choices", "same tokens", "first difference", "word errors")


def _accuracy(outcome: Outcome, comparison: Comparison) -> list[str]:
    measured = outcome.measured
    assert measured is not None
    differences = measured.differences
    # One graph of a family makes the choices: a decoder, a transducer's joint, the encoder of a CTC model.
    same = next((each.same_choices for each in differences.values() if each.same_choices is not None), None)
    return [
        outcome.provider,
        *(
            _scientific(differences[role].relative) if role in differences else "reference"
            for role in measured.placement
        ),
        "–" if same is None else f"{same:.1%}",
        f"{outcome.identical} of {len(comparison.audio)} files",
        "none" if outcome.first_difference is None else f"token {outcome.first_difference}",
        "–" if outcome.word_errors is None else f"{outcome.word_errors:.2%}",
    ]


def _scientific(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _placement(outcomes: list[Outcome]) -> list[list[str]]:
    rows = []
    for each in outcomes:
        for role, by_provider in (each.measured.placement if each.measured else {}).items():
            for on, nodes in by_provider.items():
                listed = ", ".join(f"{count} {name}" for name, count in list(nodes.items())[:8])
                more = f" and {len(nodes) - 8} more operators" if len(nodes) > 8 else ""
                rows.append([each.provider, role, on, str(sum(nodes.values())), listed + more])
    return rows


def as_page(comparison: Comparison) -> Html:
    """Return the self-contained HTML page."""
    measured = [(each, each.measured) for each in comparison.outcomes if each.measured]
    failed = [[each.provider, each.error or ""] for each in comparison.outcomes if each.error]
    parts = [_tiles(comparison, measured, len(failed))]
    if measured:
        parts += [_speed(measured), _accuracy_section(comparison, measured), _nodes(measured)]
    if failed:
        parts.append(section("Not measured", table("Errors", ("provider", "reason"), failed, prose_columns=(1,))))
    parts.append(machine_box(msgspec.convert(comparison.machine, Machine)))
    forced = f", {comparison.new_tokens} tokens forced for every segment" if comparison.new_tokens else ""
    lead = (
        f"{comparison.model}: {comparison.audio_seconds:.1f} s of audio, medians of {comparison.runs} runs{forced}. "
        f"Differences are from {comparison.reference}."
    )
    return page("Execution providers compared", lead, *parts)


def _tiles(comparison: Comparison, measured: list[_Row], failed: int) -> Html:
    shown = [
        ("measured", str(len(measured)), "providers"),
        ("not measured", str(failed), "providers, reasons below"),
        ("audio", f"{comparison.audio_seconds:.1f} s", f"{len(comparison.audio)} files"),
    ]
    if measured:
        fastest, result = min(measured, key=lambda row: row[1].rtf)
        shown.insert(0, ("fastest", fastest.provider.partition(":")[0], f"RTF {number(result.rtf)}"))
    return tiles(shown)


def _speed(measured: list[_Row]) -> Html:
    names = [each.provider for each, _ in measured]
    prompts = any(_has_prompt(result) for _, result in measured)
    return section(
        "Speed and memory",
        table(
            "Medians; below them the smallest and largest values",
            _COLUMNS,
            [_time_cells(each.provider, result) for each, result in measured],
        ),
        bar_chart(
            "Where the time goes",
            names,
            [
                Series("encode", [result.encode.median for _, result in measured]),
                *([Series("prefill", [result.prefill.median for _, result in measured])] if prompts else []),
                Series("decode", [_decode(result) for _, result in measured]),
            ],
            unit="seconds of work for all audio",
            stacked=True,
        ),
        bar_chart(
            "Peak resident memory",
            names,
            [Series("peak", [result.peak_bytes / 1e6 for _, result in measured])],
            unit="MB of the provider's own process",
        ),
        definitions({each.provider: _versions(result) for each, result in measured}),
    )


def _accuracy_section(comparison: Comparison, measured: list[_Row]) -> Html:
    return section(
        "Difference from the reference",
        table(
            f"Differences from {comparison.reference}",
            _accuracy_columns([each for each, _ in measured]),
            [_accuracy(each, comparison) for each, _ in measured],
        ),
        paragraph(
            "Each graph ran on the reference's inputs. The difference is the Euclidean norm of (outputs - reference "
            "outputs), divided by that of the reference outputs. Same choices: share of positions with the same "
            "largest logit as the reference. Tokens and word errors are those of whole transcripts.",
            note=True,
        ),
    )


def _nodes(measured: list[_Row]) -> Html:
    names = [each.provider for each, _ in measured]
    roles = dict.fromkeys(role for _, result in measured for role in result.placement)
    return section(
        "Nodes",
        *(_placement_chart(role, names, [result for _, result in measured]) for role in roles),
        table(
            "Nodes by the provider that runs them",
            ("provider", "graph", "on", "nodes", "operators"),
            _placement([each for each, _ in measured]),
            text_columns=(0, 1, 2),
            prose_columns=(4,),
        ),
    )


def _time_cells(provider: str, measured: Measured) -> list[str | Cell]:
    cells: list[str | Cell] = list(_times(provider, measured))
    prefill = measured.prefill if _has_prompt(measured) else None
    for column, spread in ((2, measured.encode), (3, prefill), (4, measured.step), (5, measured.total)):
        if spread:
            cells[column] = Cell(str(cells[column]), f"{seconds(spread.low)} – {seconds(spread.high)}")
    return cells


def _versions(measured: Measured) -> str:
    return ", ".join(f"{name} {version}" for name, version in measured.versions.items())


def _decode(measured: Measured) -> float:
    return measured.step.median * sum(map(len, measured.tokens)) if measured.step else 0.0


def _placement_chart(role: str, names: list[str], measured: list[Measured]) -> Html:
    counts = [{on: sum(nodes.values()) for on, nodes in each.placement.get(role, {}).items()} for each in measured]
    on = list(dict.fromkeys(name for each in counts for name in each))
    series = [Series(name, [float(each.get(name, 0)) for each in counts]) for name in on]
    return bar_chart(f"Nodes of the {role}", names, series, unit="nodes", stacked=True)
