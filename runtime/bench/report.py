"""Render a benchmark as an HTML page with charts."""

from __future__ import annotations

from collections.abc import Callable

from runtime.bench.charts import Line, Series, bar_chart, line_chart
from runtime.bench.page import (
    Cell,
    Html,
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
from runtime.bench.results import Configuration, Report, Shares, Spread
from runtime.bench.table import has_steps, median, runs_of, stage_names, stages_of, value_range

_CLIP = "seconds of audio in a clip"


def as_page(report: Report) -> Html:
    """Return the report as one self-contained HTML page."""
    model, machine, settings = report.model, report.machine, report.settings
    lead = (
        f"{model.name} ({model.recipe}) on {machine.processor}, {settings.threads} threads, provider "
        f"{settings.provider}. {runs_of(report).capitalize()} after a warm-up; each configuration ran in a process of "
        "its own."
    )
    parts: list[Html] = [tiles(_tiles(report))]
    if report.configurations:
        parts += [_time(report), _speed(report), _steps(report), _memory(report), *_limits(report), _tables(report)]
    if report.failures:
        rows = [[f"{each.seconds:g} s", str(each.batch), each.reason] for each in report.failures]
        columns = ["clip", "batch", "reason"]
        failed = table("Configurations that could not be measured", columns, rows, prose_columns=(2,))
        parts.append(section("Failed", failed))
    parts += [_method(report), machine_box(machine)]
    return page(f"Benchmark of {model.name}", lead, *parts)


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    shown = []
    if configurations := report.configurations:
        fastest = min(configurations, key=lambda each: each.rtf.median)
        shown.append(("real-time factor, best", number(fastest.rtf.median), _name(fastest)))
        shown.append(("audio a second", f"{number(fastest.audio_seconds_per_second.median)} s", _name(fastest)))
        if first := [each for each in configurations if each.first_token]:
            quickest = min(first, key=lambda each: each.first_token.median if each.first_token else 0.0)
            shown.append(("first token, best", median(quickest.first_token), _name(quickest)))
        if stepped := [each for each in configurations if each.per_token]:
            quickest = min(stepped, key=lambda each: each.per_token.median if each.per_token else 0.0)
            shown.append(("per token, best", median(quickest.per_token), _name(quickest)))
    shown.append(("cold start", seconds(report.cold_start.total.median), "process start to first text"))
    if report.load:
        shown.append(("load", seconds(report.load.median), "opening the model"))
    if configurations:
        largest = max(configurations, key=lambda each: each.peak_bytes)
        shown.append(("peak memory, largest", size(largest.peak_bytes), _name(largest)))
    return [*shown, ("model", size(report.model.bytes), report.model.recipe)]


def _time(report: Report) -> Html:
    stages = stages_of(report)
    charts = []
    highest = max(1e3 * sum(s.median for s in each.stages.values()) / _audio(each) for each in report.configurations)
    for batch, configurations in _by_batch(report).items():
        lengths = [f"{each.seconds:g} s" for each in configurations]
        series = [
            Series(name, [1e3 * each.stages[stage].median / _audio(each) for each in configurations])
            for stage, name in zip(stages, stage_names(report), strict=True)
        ]
        charts.append(
            bar_chart(
                f"Stages, batch {batch}", lengths, series, unit="ms per second of audio", stacked=True, highest=highest
            )
        )
    return section(
        "Where the time goes",
        *charts,
        lead="Milliseconds of work for each second of audio, by clip length.",
    )


def _speed(report: Report) -> Html:
    charts = [
        _chart(
            "Real-time factor",
            "seconds of work per second of audio",
            _CLIP,
            _lines(report, lambda each: each.rtf.median),
        )
    ]
    first = _lines(report, lambda each: each.first_token.median if each.first_token else None)
    if any(line.points for line in first):
        charts.append(_chart("Time to first token", "seconds", _CLIP, first))
    return section("Speed by length", *charts, lead="Lower is better.")


def _chart(
    title: str, unit: str, x_unit: str, lines: list[Line], *, reference: tuple[str, float] | None = None
) -> Html:
    """Return a line chart, or a bar chart if all points have the same x."""
    indices = {x for line in lines for x, _ in line.points}
    if len(indices) > 1:
        return line_chart(title, lines, x_unit=x_unit, y_unit=unit, log_x=True, reference=reference)
    shown = [line for line in lines if line.points]
    values: list[float | None] = [line.points[0][1] for line in shown]
    note = f"{x_unit}: {indices.pop():g}" + (f"; {reference[0]}: {number(reference[1])}" if reference else "")
    return bar_chart(title, [line.name for line in shown], [Series(title, values)], unit=unit, note=note)


def _steps(report: Report) -> Html:
    lengths = sorted({each.seconds for each in report.configurations})

    def lines(value: Callable[[Configuration], float | None]) -> list[Line]:
        by_length = []
        for length in lengths:
            configurations = [each for each in report.configurations if each.seconds == length]
            points = [(float(each.batch), y) for each in configurations if (y := value(each)) is not None]
            by_length.append(Line(f"{length:g} s", points))
        return [line for line in by_length if line.points]

    charts = []
    if steps := lines(lambda each: each.step.median * 1e3 if each.step else None):
        least = None
        if report.limits and (weights := report.limits.work.weight_bytes) is not None:
            least = ("reading the weights", 1e3 * weights / report.limits.rates.memory_bytes)
        charts.append(_chart("Time of a step", "milliseconds", "batch (rows)", steps, reference=least))
    speed = lines(lambda each: each.audio_seconds_per_second.median)
    charts.append(_chart("Throughput", "seconds of audio a second", "batch (rows)", speed))
    lead = "A step gives every active row a token. Lower is better; many rows should take little more time than one."
    if not has_steps(report):
        lead = "Audio a second of rows that are transcribed together. Higher is better."
    return section("Batches", *charts, lead=lead)


def _memory(report: Report) -> Html:
    lengths = sorted({each.seconds for each in report.configurations})
    series = []
    for batch, configurations in _by_batch(report).items():
        peaks = {each.seconds: each.peak_bytes / 1e9 for each in configurations}
        series.append(Series(f"batch {batch}", [peaks.get(length) for length in lengths]))
    return section(
        "Memory",
        bar_chart("Peak resident memory", [f"{length:g} s" for length in lengths], series, unit="GB"),
    )


def _limits(report: Report) -> list[Html]:
    """Return the section on the machine's limits; empty if they were not measured."""
    if not report.limits:
        return []
    rates, work = report.limits.rates, report.limits.work
    stages: list[tuple[str, Callable[[Shares], float | None]]] = [("encoder", lambda share: share.encode)]
    if has_steps(report):
        stages += [("prefill", lambda share: share.prefill), ("step", lambda share: share.step)]
    rows, charts = [], []
    every = [each.limits for each in report.configurations if each.limits]
    highest = max((_percent(of(each)) or 0.0 for each in every for _, of in stages), default=0.0)
    for batch, configurations in _by_batch(report).items():
        measured = [(each, each.limits) for each in configurations if each.limits]
        series = [Series(name, [_percent(of(share)) for _, share in measured]) for name, of in stages]
        charts.append(
            bar_chart(
                f"Batch {batch}",
                [f"{each.seconds:g} s" for each, _ in measured],
                series,
                unit="% of the limit",
                highest=highest,
            )
        )
        rows += [[_name(each), *(_in_percent(of(share)) for _, of in stages)] for each, share in measured]
    lead = (
        f"On this machine memory is read at {number(rates.memory_bytes / 1e9)} GB/s; matrix products run at "
        f"{number(rates.float_operations / 1e9)} billion operations a second in float32 and "
        f"{number(rates.integer_operations / 1e9)} in 8 bits. A row of audio takes "
        f"{number(work.encoder_operations / 1e6)} million operations in the encoder."
    )
    if work.weight_bytes is None or work.cache_bytes is None or work.decoder_operations is None:
        lead += " The loop over the encoder's frames is not compared with a limit."
    else:
        lead += (
            f" A prompt position takes {number(work.decoder_operations / 1e6)} million operations in the decoder "
            f"(attention over the prompt not counted). A step must read {size(work.weight_bytes)} of weights, and "
            f"{number(work.cache_bytes / 1e3)} kB of keys and values for every position of every row."
        )
    shares = table("Least possible time over measured time", ["configuration", *(name for name, _ in stages)], rows)
    return [section("Share of the machine's limits", *charts, shares, lead=lead)]


def _tables(report: Report) -> Html:
    stages, steps = stages_of(report), has_steps(report)
    configurations = report.configurations
    times: list[list[str | Cell]] = [
        [
            _name(each),
            *(_cell(each.stages[stage]) for stage in stages),
            _cell(each.total),
            _cell(each.first_token),
            *([_cell(each.per_token), _cell(each.step)] if steps else []),
        ]
        for each in configurations
    ]
    speeds: list[list[str | Cell]] = [
        [
            _name(each),
            Cell(number(each.rtf.median), value_range(each.rtf, number)),
            Cell(
                number(each.audio_seconds_per_second.median),
                value_range(each.audio_seconds_per_second, number),
            ),
            size(each.peak_bytes),
            seconds(each.load),
        ]
        for each in configurations
    ]
    tokens: list[list[str | Cell]] = [
        [
            _name(each),
            str(each.clips),
            str(each.segments),
            str(each.tokens.audio),
            *([str(each.tokens.prompt)] if steps else []),
            str(each.tokens.generated),
            *([str(each.tokens.steps)] if steps else []),
            str(each.runs),
        ]
        for each in configurations
    ]
    cold = report.cold_start
    start: list[list[str | Cell]] = [
        ["cold start", _cell(cold.total), f"{cold.clip_seconds:g} s clip, {cold.runs} runs"]
    ]
    if report.load:
        start.append(["load", _cell(report.load), "one for each configuration"])
    return section(
        "All figures",
        table("Start", ["", "time", "measured"], start, text_columns=(0, 2)),
        table(
            "Time of all clips of a run",
            [
                "configuration",
                *stage_names(report),
                "total",
                "first token",
                *(["per token", "step"] if steps else []),
            ],
            times,
        ),
        table(
            "Speed and memory",
            ["configuration", "real-time factor", "audio seconds a second", "peak memory", "load"],
            speeds,
        ),
        table(
            "Content of a run",
            [
                *("configuration", "clips", "segments a clip", "audio rows"),
                *(["prompt", "generated", "steps"] if steps else ["generated"]),
                "runs",
            ],
            tokens,
        ),
        lead="Medians; below each its smallest and its largest value.",
    )


def _method(report: Report) -> Html:
    settings = report.settings
    decoding = ""
    if has_steps(report):
        decoding = (
            "Per token is the time of the decoder's steps over the tokens that they gave; the first token of a text "
            "comes from its prefill. "
        )
    elif report.configurations:
        decoding = "The text comes from the encoder's frames: decoding is a loop over these, without a prompt. "
    forced = (
        f"{settings.new_tokens} tokens were forced for each clip, divided among its segments and rounded up; the text "
        "has no meaning"
        if settings.new_tokens
        else "The model decided the length of its texts"
    )
    return section(
        "How it was measured",
        paragraph(
            f"Clips were cut from {', '.join(settings.audio)}, repeated where those are shorter. A configuration is a "
            "clip length and a batch size: as many copies of the clip as give each row of the batch a segment are "
            f"transcribed together (“clips”), each from a file. {forced}."
        ),
        paragraph(
            f"{decoding}Other is the rest of the total: reading the file, finding segments, the tokenizer. Cold start "
            "is the time from before the process is created until its text can be read, with a warm file cache."
        ),
    )


def _by_batch(report: Report) -> dict[int, list[Configuration]]:
    batches: dict[int, list[Configuration]] = {}
    for each in report.configurations:
        batches.setdefault(each.batch, []).append(each)
    return dict(sorted(batches.items()))


def _lines(report: Report, value: Callable[[Configuration], float | None]) -> list[Line]:
    """Return a line over clip lengths for each batch size."""
    return [
        Line(f"batch {batch}", [(each.seconds, y) for each in configurations if (y := value(each)) is not None])
        for batch, configurations in _by_batch(report).items()
    ]


def _audio(configuration: Configuration) -> float:
    """Return the seconds of audio of a run."""
    return configuration.seconds * configuration.clips


def _name(configuration: Configuration) -> str:
    return f"{configuration.seconds:g} s, batch {configuration.batch}"


def _cell(spread: Spread | None) -> Cell:
    return Cell(seconds(spread.median), value_range(spread, seconds)) if spread else Cell("–")


def _in_percent(share: float | None) -> str:
    return "–" if share is None else f"{number(_percent(share))} %"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
