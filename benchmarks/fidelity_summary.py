"""Count what the records of ``benchmarks.fidelity`` say: equal texts, differences with their leads, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.fidelity_systems import KERNELS, WAYS
from benchmarks.recordings import Record

# Reasons for which the runtime ends a text that the reference continues.
GUARDS = ("repetition", "length")
Spell = Callable[[int], str]


def summary(parts: Mapping[str, Mapping[str, Record]], spell: Spell) -> dict[str, Any]:
    """Return the figures of all parts that were run; nothing without the reference.

    Args:
        parts: records by name, for each part.
        spell: token id → text, for the list of differences.
    """
    if "reference" not in parts:
        return {}
    results: dict[str, Any] = {"recordings": _recordings(parts["reference"])}
    results["systems"] = {
        part: _system(part, parts[part], parts["reference"], spell) for part in KERNELS if part in parts
    }
    if "films" in parts:
        results["films"] = {name: _film(record, spell) for name, record in parts["films"].items()}
    results["rows"] = {
        part.removeprefix("rows-"): {
            "compared": len(records),
            "identical": sum(record["alone"] == record["together"] for record in records.values()),
        }
        for part, records in parts.items()
        if part.startswith("rows-")
    }
    return results


def _recordings(reference: Mapping[str, Record]) -> dict[str, Any]:
    records = list(reference.values())
    leads = [
        lead
        for record in records
        for way in ("given", "given, timestamps")
        for lead in record["texts"][way]["leads"]
        if lead is not None
    ]
    return {
        "count": len(records),
        "seconds": sum(record["seconds"] for record in records),
        "languages": dict(Counter(record["given"] for record in records)),
        "detected_as_given": sum(record["given"] == record["detected"] for record in records),
        "features": max(record["features"] for record in records),
        "tokens": len(leads),
        "smallest_lead": min(leads),
        "leads_below": {f"{limit:g}": sum(lead < limit for lead in leads) for limit in (0.001, 0.01, 0.1)},
    }


def _system(part: str, records: Mapping[str, Record], reference: Mapping[str, Record], spell: Spell) -> dict[str, Any]:
    ways, differences = {}, []
    change, edges = 0.0, []
    for way, (is_given, timestamps) in WAYS.items():
        counts = Counter[str]()
        for name, record in records.items():
            text, expected = record["texts"][way], reference[name]
            counts["compared"] += 1
            change = max(change, text["lead_change"])
            counts["language"] += text["language"] in (expected["given" if is_given else "detected"], None)
            if text["tokens"] == expected["texts"][way]["tokens"]:
                counts["identical"] += 1
            elif ended_by_guard(text, expected["texts"][way]):
                counts["ended"] += 1
            else:
                differences.append(_difference(name, way, text["difference"], spell))
            if timestamps and text["tokens"] == expected["texts"][way]["tokens"] and text["text"]:
                edges.append(edge_difference(text["edges"], expected["texts"][way]["edges"], expected["seconds"]))
        ways[way] = {key: counts[key] for key in ("compared", "identical", "ended", "language")}
    return {
        "title": KERNELS[part].title,
        "ways": ways,
        "lead_change": change,
        "differences": differences,
        "edges": {"texts": len(edges), "largest": max(edges, default=0.0)},
    }


def ended_by_guard(text: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether the runtime ended a text that begins like the reference's: a loop, or the limit of its length."""
    tokens = text["tokens"]
    return text["finish_reason"] in GUARDS and tokens == expected["tokens"][: len(tokens)]


def edge_difference(edges: list[list[float]], expected: list[list[float]], seconds: float) -> float:
    """Return the largest difference in seconds between parts' starts and ends, and those of the reference.

    The runtime counts no time after the end of the audio, and gives a last part without an end, which the reference
    leaves out, the end of the audio.
    """
    pairs = zip(edges, expected, strict=False)
    differences = [
        abs(one - min(other, seconds)) for ours, theirs in pairs for one, other in zip(ours, theirs, strict=True)
    ]
    missing = [seconds for _ in range(len(expected) - len(edges))]
    return max([*differences, *missing], default=0.0)


def _difference(name: str, way: str, difference: Mapping[str, Any], spell: Spell) -> dict[str, Any]:
    texts = {f"{key}_text": spell(difference[key]) for key in ("expected", "actual")}
    return {"name": name, "way": way, **difference, **texts}


def _film(record: Record, spell: Spell) -> dict[str, Any]:
    ways = {}
    for way, both in record["texts"].items():
        expected, actual = both["expected"], both["actual"]
        identical = expected["tokens"] == actual["tokens"]
        ways[way] = {
            "tokens": len(expected["tokens"]),
            "identical": identical,
            "finish_reason": actual["finish_reason"],
            "edges": edge_difference(actual["edges"], expected["edges"], record["seconds"]),
        }
        if not identical:
            pairs = list(zip(expected["tokens"], actual["tokens"], strict=False))
            position = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
            ways[way]["difference"] = {
                "position": position,
                "expected": "".join(map(spell, expected["tokens"][position : position + 5])),
                "actual": "".join(map(spell, actual["tokens"][position : position + 5])),
            }
    return {key: record[key] for key in ("seconds", "detected", "features")} | {"ways": ways}
