"""Tables and pictures of ``docs/accuracy.md``, made from the stored results alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.markdown import percent, table
from benchmarks.stamp import measured
from runtime.bench.charts import Series
from runtime.bench.page import Html
from runtime.bench.panels import Group, panel_chart
from runtime.bench.scatter import Cluster, Point, scatter_chart

ALL = "all"


def _tables(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    systems = results["systems"]
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return [
        # In the generated part, since pages with missing pictures cannot be built.
        "![Word errors of every system by language](accuracy.svg)",
        "![Words that differ from the package's own most exact text, against the time](accuracy-time.svg)",
        _recordings(results),
        _summary(results),
        _by_language(
            systems,
            "**Word errors by language**, with 95 % intervals:",
            lambda row: f"{percent(row['rate'])} ({_range(row['interval'])})",
        ),
        _by_language(
            systems,
            "**Rise of the word errors against our float32 by language**, in points, with paired 95 % intervals:",
            lambda row: f"{_points(row['rise'])} ({_range(row['rise_interval'], signed=True)})",
        ),
        _by_language(
            systems,
            "**Words that differ from the package's own most exact text, and recordings with the same text**:",
            lambda row: f"{percent(row['differ'])}, {percent(row['same'], 0)}",
        ),
        _by_language(
            systems,
            "**Languages detected right**:",
            lambda row: percent(row["detected"], 1),
            lambda row: row["detected"] is not None,
        ),
        _by_language(systems, "**Seconds by language**:", lambda row: f"{row['seconds']:.1f}"),
        f"{measured(part)} Packages compared: {packages}. {results['threads']} threads each. SHA-256 of the weights: "
        f"`{results['checkpoint']}`.",
    ]


def _recordings(results: dict[str, Any]) -> str:
    rows = (
        [name, f"{row['recordings']}", f"{row['words']:,}", f"{row['seconds'] / 60:.1f} min"]
        for name, row in results["recordings"].items()
    )
    limit = f" The first {results['limit']} of each language only." if results["limit"] else ""
    return table(["", "recordings", "words", "length"], rows, caption=f"**Recordings**.{limit}")


def _summary(results: dict[str, Any]) -> str:
    seconds = results["recordings"][ALL]["seconds"]
    header = [
        "",
        "file size",
        "word errors",
        "rise",
        "words that differ",
        "same text",
        "differ from transformers",
        "language right",
        "time",
        "RTF",
        "ratio",
        "peak memory",
    ]
    rows = []
    for name, system in results["systems"].items():
        row = system["languages"][ALL]
        rows.append(
            [
                name,
                f"{system['bytes'] / 1e6:.0f} MB",
                f"{percent(row['rate'])} ({_range(row['interval'])})",
                f"{_points(row['rise'])} ({_range(row['rise_interval'], signed=True)})",
                f"{percent(row['differ'])} ({_range(row['differ_interval'])})" if system["own"] != name else "",
                percent(row["same"], 0) if system["own"] != name else "",
                percent(row["reference"]),
                percent(row["detected"], 1),
                f"{row['seconds']:.0f} s",
                f"{row['seconds'] / seconds:.3f}",
                f"{row['ratio']:.2f}",
                f"{system['peak_bytes'] / 1e6:.0f} MB",
            ]
        )
    caption = "**All languages together.** 95 % intervals are in parentheses:"
    return table(header, rows, caption=caption)


def _by_language(
    systems: dict[str, Any],
    caption: str,
    cell: Any,
    shown: Any = lambda row: True,
) -> str:
    """Return a table with a row for each system and a column for each language."""
    languages = list(next(iter(systems.values()))["languages"])
    rows = (
        [name, *(cell(system["languages"][language]) for language in languages)]
        for name, system in systems.items()
        if shown(system["languages"][ALL])
    )
    return table(["", *languages], rows, caption=caption)


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _range(bounds: Iterable[float | None], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return " to ".join("–" if bound is None else f"{100 * bound:{sign}.2f}" for bound in bounds)


TABLES = {"real": _tables}


def _packages(systems: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of the systems of each package."""
    packages: dict[str, list[str]] = {}
    for name in systems:
        packages.setdefault(name.partition(", ")[0], []).append(name)
    return packages


def errors_chart(results: dict[str, Any]) -> Html:
    """Draw the word errors of every system with intervals, language by language."""
    systems = results["systems"]
    packages = _packages(systems)
    names = [name for group in packages.values() for name in group]
    panels = []
    for language in results["recordings"]:
        rows = [systems[name]["languages"][language] for name in names]
        intervals = [None if None in row["interval"] else (*(100 * each for each in row["interval"]),) for row in rows]
        panels.append(Series(f"{language}, %", [100 * row["rate"] for row in rows], intervals))
    return panel_chart(
        "Word errors on real recordings",
        [Group(package, [name.partition(", ")[2] for name in group]) for package, group in packages.items()],
        panels,
        unit="the same weights everywhere; lines are 95 % intervals",
        columns=3,
        colors=[index for index, group in enumerate(packages.values()) for _ in group],  # as in the other picture
    )


def time_chart(results: dict[str, Any]) -> Html:
    """Draw the words that differ from each package's own most exact text against the time."""
    clusters = []
    for package, names in _packages(results["systems"]).items():
        rows = {name.partition(", ")[2]: results["systems"][name]["languages"][ALL] for name in names}
        points = [Point(name, row["ratio"], 100 * row["differ"]) for name, row in rows.items()]
        clusters.append(Cluster(package, points))
    return scatter_chart(
        "Words that differ, against time",
        clusters,
        x_unit="time of a recording, our float32 = 1 (median)",
        y_unit="%",
    )
