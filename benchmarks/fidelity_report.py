"""Tables of ``docs/fidelity.md``, made from the stored results alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.markdown import table
from benchmarks.stamp import measured

_LANGUAGES = {"en": "English", "fr": "French", "it": "Italian", "ru": "Russian", "es": "Spanish"}


def _fidelity(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    return [
        _tokens(results),
        _leads(results),
        *_differences(results["systems"]),
        *_films(results.get("films", {})),
        *_rows(results["rows"]),
        measured(part),
    ]


def _tokens(results: dict[str, Any]) -> str:
    recordings, systems = results["recordings"], results["systems"]
    ways = list(next(iter(systems.values()))["ways"])
    counts = ", ".join(f"{_LANGUAGES.get(code, code)} {count}" for code, count in recordings["languages"].items())
    rows = []
    for system in systems.values():
        cells = [_share(system["ways"][way]) for way in ways]
        rows.append([system["title"], *cells, f"{system['edges']['largest']:.2f} s", f"{system['lead_change']:.1e}"])
    return table(
        ["", *(f"language {way}" for way in ways), "times", "leads"],
        rows,
        caption=(
            f"**Texts with the tokens of `generate`**: {recordings['count']} recordings ({counts}; "
            f"{recordings['seconds'] / 60:.0f} minutes) in float32. *Times* is the largest difference between start "
            "and end of the timed parts and those that transformers decodes; *leads* is by how much the lead of a "
            "chosen token over the second best differs from transformers' at most, in logits:"
        ),
    )


def _share(way: dict[str, Any]) -> str:
    text = f"{way['identical']} of {way['compared']}"
    return f"{text} ({way['ended']} ended by a guard)" if way["ended"] else text


def _leads(results: dict[str, Any]) -> str:
    recordings = results["recordings"]
    below = ", ".join(f"{count} are below {limit}" for limit, count in recordings["leads_below"].items())
    return (
        f"transformers detects the language of the script in {recordings['detected_as_given']} of "
        f"{recordings['count']} recordings. Features differ from those of `WhisperFeatureExtractor` by "
        f"{recordings['features']:.1e} at most. Of the {recordings['tokens']:,} decisions of transformers with the "
        f"language given, {below}; the smallest lead is {recordings['smallest_lead']:.1e}."
    )


def _differences(systems: dict[str, Any]) -> Iterator[str]:
    rows = [
        [
            system["title"],
            each["name"],
            f"language {each['way']}",
            f"{each['position']}",
            f"`{each['expected_text']}` ({each['reference_lead']:+.1e})",
            f"`{each['actual_text']}` ({-each['lead']:+.1e})",
        ]
        for system in systems.values()
        for each in system["differences"]
    ]
    if rows:
        yield table(
            ["", "recording", "", "token", "transformers, and its lead", "runtime, and its lead"],
            rows,
            caption="**Texts that differ**, with the first token that does and how much it leads the other one's:",
        )


def _films(films: dict[str, Any]) -> Iterator[str]:
    if not films:
        return
    rows = []
    for name, film in films.items():
        for way, result in film["ways"].items():
            equal = "identical" if result["identical"] else f"differs from token {result['difference']['position']} on"
            rows.append(
                [
                    name,
                    f"{film['seconds']:.0f} s",
                    f"language {way}",
                    f"{result['tokens']}",
                    equal,
                    f"{result['edges']:.2f} s",
                    f"{film['features']:.1e}",
                ]
            )
    yield table(
        ["file", "length", "", "tokens", "against transformers", "times", "features"],
        rows,
        caption=(
            "**Long form**, window by window, against transformers' own with the same thresholds for silence. *Times* "
            "and *features* are the largest differences:"
        ),
    )


def _rows(rows: dict[str, Any]) -> Iterator[str]:
    if rows:
        yield table(
            ["", "recordings", "same tokens"],
            ([name, f"{row['compared']}", f"{row['identical']}"] for name, row in rows.items()),
            caption="**Recordings decoded together**, eight in rows, against each one alone:",
        )


TABLES = {"fidelity": _fidelity}
