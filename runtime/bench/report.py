"""A benchmark as a table on a terminal and as a page."""

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
from runtime.bench.results import Configuration, Report, Spread

_SAYS = {
    "segment": "voice activity",
    "features": "features",
    "encode": "encoder",
    "prefill": "prefill",
    "decode": "steps",
    "other": "other",
}


def as_table(report: Report) -> str:
    """The model, the machine, and a row for each configuration, in columns."""
    facts = _facts(report)
    width = max(map(len, facts))
    lines = [f"{key:<{width}}  {value}" for key, value in facts.items()]
    stages = _stages(report)
    header = ["clip", "batch", "clips", *(_SAYS.get(stage, stage) for stage in stages)]
    header += ["per token", "first token", "total", "RTF", "audio s/s", "memory"]
    rows = [header]
    for found in report.configurations:
        timed = [seconds(found.stages[stage].median) for stage in stages]
        rows.append(
            [
                f"{found.seconds:g} s",
                str(found.batch),
                str(found.clips),
                *timed,
                _median(found.per_token),
                _median(found.first_token),
                seconds(found.total.median),
                number(found.rtf.median),
                number(found.audio_seconds_per_second.median),
                size(found.peak_bytes),
            ]
        )
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)]
    lines += [f"failed: {each.seconds:g} s, batch {each.batch}: {each.reason}" for each in report.failures]
    return "\n".join(lines)


def as_page(report: Report) -> Html:
    """The report as one self-contained page."""
    model, machine, settings = report.model, report.machine, report.settings
    lead = (
        f"{model.name} ({model.recipe}) on {machine.processor}, {settings.threads} threads, provider "
        f"{settings.provider}. Medians of {settings.runs} runs after a warm-up; each configuration in a process of its "
        "own."
    )
    parts: list[Html] = [tiles(_tiles(report))]
    if report.configurations:
        parts += [_time(report), _speed(report), _steps(report), _memory(report), *_limits(report), _tables(report)]
    if report.failures:
        rows = [[f"{each.seconds:g} s", str(each.batch), each.reason] for each in report.failures]
        failed = table("Configurations that could not be measured", ["clip", "batch", "why"], rows, prose_columns=(2,))
        parts.append(section("Failed", failed))
    parts += [_method(report), machine_box(machine)]
    return page(f"Benchmark of {model.name}", lead, *parts)


def _facts(report: Report) -> dict[str, str]:
    model, machine, settings, cold = report.model, report.machine, report.settings, report.cold_start
    facts = {
        "model": f"{model.name} ({model.recipe}), {size(model.bytes)}",
        "machine": f"{machine.processor}, {settings.threads} threads, {settings.provider}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "cold start": _spread(cold.total),
    }
    if report.load:
        facts["load"] = _spread(report.load)
    if limits := report.limits:
        facts["machine's limits"] = (
            f"memory read {number(limits.memory_bytes_per_second / 1e9)} GB/s, products "
            f"{number(limits.float_operations_per_second / 1e9)} Gop/s in float32, "
            f"{number(limits.integer_operations_per_second / 1e9)} in 8 bits"
        )
    forced = f"{settings.new_tokens} tokens forced" if settings.new_tokens else "as long as the text"
    facts["measured"] = f"medians of {settings.runs} runs, {forced}"
    return facts


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    shown = []
    if found := report.configurations:
        fastest = min(found, key=lambda each: each.rtf.median)
        shown.append(("real-time factor, best", number(fastest.rtf.median), _name(fastest)))
        shown.append(("audio a second", f"{number(fastest.audio_seconds_per_second.median)} s", _name(fastest)))
        if first := [each for each in found if each.first_token]:
            quickest = min(first, key=lambda each: each.first_token.median if each.first_token else 0.0)
            shown.append(("first token, best", _median(quickest.first_token), _name(quickest)))
        if stepped := [each for each in found if each.per_token]:
            quickest = min(stepped, key=lambda each: each.per_token.median if each.per_token else 0.0)
            shown.append(("per token, best", _median(quickest.per_token), _name(quickest)))
    shown.append(("cold start", seconds(report.cold_start.total.median), "process start to first text"))
    if report.load:
        shown.append(("load", seconds(report.load.median), "opening the model"))
    if found:
        largest = max(found, key=lambda each: each.peak_bytes)
        shown.append(("peak memory, most", size(largest.peak_bytes), _name(largest)))
    return [*shown, ("model", size(report.model.bytes), report.model.recipe)]


def _time(report: Report) -> Html:
    stages = _stages(report)
    charts = []
    for batch, found in _by_batch(report).items():
        lengths = [f"{each.seconds:g} s" for each in found]
        series = [
            Series(
                _SAYS.get(stage, stage),
                [1e3 * each.stages[stage].median / (each.seconds * each.clips) for each in found],
            )
            for stage in stages
        ]
        charts.append(bar_chart(f"Stages, batch {batch}", lengths, series, unit="ms per second of audio", stacked=True))
    return section(
        "Where the time goes",
        *charts,
        lead="By length of the clip, as milliseconds of work for each second of audio, so that lengths compare.",
    )


def _speed(report: Report) -> Html:
    rtf = _lines(report, lambda each: each.rtf.median)
    charts = [
        line_chart(
            "Real-time factor",
            rtf,
            x_unit="seconds of audio in a clip",
            y_unit="seconds of work per second of audio",
            log_x=True,
        )
    ]
    first = _lines(report, lambda each: each.first_token.median if each.first_token else None)
    if any(line.points for line in first):
        charts.append(
            line_chart("Time to first token", first, x_unit="seconds of audio in a clip", y_unit="seconds", log_x=True)
        )
    return section("Speed by length", *charts, lead="Lower is better.")


def _steps(report: Report) -> Html:
    lengths = sorted({each.seconds for each in report.configurations})

    def lines(value: Callable[[Configuration], float | None]) -> list[Line]:
        made = []
        for length in lengths:
            found = [each for each in report.configurations if each.seconds == length]
            points = [(float(each.batch), y) for each in found if (y := value(each)) is not None]
            made.append(Line(f"{length:g} s", points))
        return [line for line in made if line.points]

    charts = []
    if steps := lines(lambda each: each.step.median * 1e3 if each.step else None):
        least = None
        if limits := report.limits:
            least = ("reading the weights", 1e3 * limits.weight_bytes / limits.memory_bytes_per_second)
        charts.append(
            line_chart(
                "Time of a step",
                steps,
                x_unit="batch (rows)",
                y_unit="milliseconds",
                reference=least,
                note="One step gives every row in flight a token.",
            )
        )
    speed = lines(lambda each: each.audio_seconds_per_second.median)
    charts.append(
        line_chart(
            "Throughput", speed, x_unit="batch (rows)", y_unit="seconds of audio a second", note="Higher is better."
        )
    )
    return section("Batches", *charts)


def _memory(report: Report) -> Html:
    lengths = sorted({each.seconds for each in report.configurations})
    series = []
    for batch, found in _by_batch(report).items():
        peaks = {each.seconds: each.peak_bytes / 1e9 for each in found}
        series.append(Series(f"batch {batch}", [peaks.get(length) for length in lengths]))
    return section(
        "Memory",
        bar_chart("Peak resident memory", [f"{length:g} s" for length in lengths], series, unit="GB"),
    )


def _limits(report: Report) -> list[Html]:
    """How near the stages are to the machine's limits; nothing where these were not measured."""
    if not (limits := report.limits):
        return []
    rows, charts = [], []
    for batch, found in _by_batch(report).items():
        known = [(each, each.limits) for each in found if each.limits]
        series = [
            Series("encoder", [_percent(share.encode) for _, share in known]),
            Series("prefill", [_percent(share.prefill) for _, share in known]),
            Series("step", [_percent(share.step) for _, share in known]),
        ]
        charts.append(
            bar_chart(f"Batch {batch}", [f"{each.seconds:g} s" for each, _ in known], series, unit="% of the limit")
        )
        rows += [
            [_name(each), *(f"{number(_percent(value))} %" for value in (share.encode, share.prefill, share.step))]
            for each, share in known
        ]
    lead = (
        f"Measured here: memory is read at {number(limits.memory_bytes_per_second / 1e9)} GB/s; matrix products run at "
        f"{number(limits.float_operations_per_second / 1e9)} billion operations a second in float32 and "
        f"{number(limits.integer_operations_per_second / 1e9)} in 8 bits. A step must read "
        f"{size(limits.weight_bytes)} of weights, and {number(limits.cache_bytes / 1e3)} kB of keys and values for "
        f"every position of every row. A row of audio takes the encoder "
        f"{number(limits.encoder_operations / 1e6)} million operations, a prompt position the decoder "
        f"{number(limits.decoder_operations / 1e6)} million (attention over the prompt not counted)."
    )
    shown = table("Least possible time over measured time", ["configuration", "encoder", "prefill", "step"], rows)
    return [section("How near to the machine's limits", *charts, shown, lead=lead)]


def _tables(report: Report) -> Html:
    stages = _stages(report)
    found = report.configurations
    times: list[list[str | Cell]] = [
        [
            _name(each),
            *(_cell(each.stages[stage]) for stage in stages),
            _cell(each.total),
            _cell(each.first_token),
            _cell(each.per_token),
            _cell(each.step),
        ]
        for each in found
    ]
    speeds: list[list[str | Cell]] = [
        [
            _name(each),
            Cell(number(each.rtf.median), _range(each.rtf, number)),
            Cell(
                number(each.audio_seconds_per_second.median),
                _range(each.audio_seconds_per_second, number),
            ),
            size(each.peak_bytes),
            seconds(each.load),
        ]
        for each in found
    ]
    tokens: list[list[str | Cell]] = [
        [
            _name(each),
            str(each.clips),
            str(each.segments),
            *(str(count) for count in (each.tokens.audio, each.tokens.prompt, each.tokens.generated)),
            str(each.tokens.steps),
            str(each.runs),
        ]
        for each in found
    ]
    cold = report.cold_start
    start: list[list[str | Cell]] = [
        ["cold start", _cell(cold.total), f"{cold.clip_seconds:g} s clip, {cold.runs} runs"]
    ]
    if report.load:
        start.append(["load", _cell(report.load), "one for each configuration"])
    names = [_SAYS.get(stage, stage) for stage in stages]
    return section(
        "All figures",
        table("Starting", ["", "time", "measured"], start, text_columns=(0, 2)),
        table(
            "Time, of all clips of a run together",
            ["configuration", *names, "total", "first token", "per token", "step"],
            times,
        ),
        table(
            "Speed and memory",
            ["configuration", "real-time factor", "audio seconds a second", "peak memory", "load"],
            speeds,
        ),
        table(
            "What a run holds",
            ["configuration", "clips", "segments a clip", "audio rows", "prompt", "generated", "steps", "runs"],
            tokens,
        ),
        lead="Medians; below each its smallest and largest value.",
    )


def _method(report: Report) -> Html:
    settings = report.settings
    forced = (
        f"{settings.new_tokens} tokens were forced for each clip, shared by its segments and rounded up to the same "
        "number for each; the text means nothing"
        if settings.new_tokens
        else "Texts were as long as the model made them"
    )
    return section(
        "How it was measured",
        paragraph(
            f"Clips were cut from {', '.join(settings.audio)}, repeated where those are shorter. A configuration is a "
            "clip's length and a batch size: as many copies of the clip as give each row of the batch a segment are "
            f"transcribed together (“clips”), each from a file. {forced}."
        ),
        paragraph(
            "Per token is the time of the decoder's steps over the tokens that they gave; the first token of a text "
            "comes from its prefill. Other is what of the total is none of the stages: reading the file, finding "
            "segments, the tokenizer. Cold start is measured from before the process is made until its text can be "
            "read, with the file cache warm."
        ),
    )


def _stages(report: Report) -> list[str]:
    return list(report.configurations[0].stages) if report.configurations else []


def _by_batch(report: Report) -> dict[int, list[Configuration]]:
    found: dict[int, list[Configuration]] = {}
    for each in report.configurations:
        found.setdefault(each.batch, []).append(each)
    return dict(sorted(found.items()))


def _lines(report: Report, value: Callable[[Configuration], float | None]) -> list[Line]:
    """A line over lengths for each batch size."""
    return [
        Line(f"batch {batch}", [(each.seconds, y) for each in found if (y := value(each)) is not None])
        for batch, found in _by_batch(report).items()
    ]


def _name(found: Configuration) -> str:
    return f"{found.seconds:g} s, batch {found.batch}"


def _median(spread: Spread | None) -> str:
    return seconds(spread.median if spread else None)


def _range(spread: Spread, shown: Callable[[float], str]) -> str:
    return f"{shown(spread.low)} to {shown(spread.high)}"


def _spread(spread: Spread) -> str:
    return f"{seconds(spread.median)} ({_range(spread, seconds)})"


def _cell(spread: Spread | None) -> Cell:
    return Cell(seconds(spread.median), _range(spread, seconds)) if spread else Cell("–")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
