"""Bounds that stored results of each page must keep.

The bounds hold for what was measured and stored, not for the speed of the machine at hand. Each function takes the
results of a page by part and yields one sentence for each violated bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.families_report import TITLES
from tests.hostile import ENDED_BY_CLIENT

Results = dict[str, Any]

# Features are at most about 1.5; both sides compute them in float32 from a spectrum that spans eight decades.
FEATURES = 1e-3
# Less than half a step of timestamps, 20 ms: the rest is rounding of times to milliseconds.
EDGE_SECONDS = 0.005


def at_most(name: str, value: float, limit: float) -> Iterator[str]:
    """Yield a violation unless ``value`` <= ``limit``."""
    if not value <= limit:
        yield f"{name} is {value:.6g}, above {limit:.6g}"


def at_least(name: str, value: float, limit: float) -> Iterator[str]:
    """Yield a violation unless ``value`` >= ``limit``."""
    if not value >= limit:
        yield f"{name} is {value:.6g}, below {limit:.6g}"


def below(name: str, value: float, limit: float) -> Iterator[str]:
    """Yield a violation unless ``value`` < ``limit``."""
    if not value < limit:
        yield f"{name} is {value:.6g}, not below {limit:.6g}"


def equal(name: str, value: object, expected: object) -> Iterator[str]:
    """Yield a violation unless ``value`` == ``expected``."""
    if value != expected:
        yield f"{name} is {value!r}, not {expected!r}"


def quantization(results: Results) -> Iterator[str]:
    """Accuracy by recipe, and at the real sizes: times relative to q8 and float32, sizes, memory."""
    accuracy, speed, large = results["accuracy"], results["speed"], results["large"]["int4"]
    floats = accuracy["small"]["float32"]["rates"]
    for model, rows in accuracy.items():
        for recipe, rise, identical in (
            ("int8", 0.002, 0.98),
            ("q8", 0.002, 0.98),
            ("mixed", 0.005, 0),
            ("int4", 0.01, 0),
        ):
            name = f"accuracy of {model}, {recipe}"
            for language, rate in floats.items():
                difference = rows[recipe]["rates"][language] - rate
                yield from at_most(f"{name}: rise of the error rate for {language}", difference, rise)
            yield from at_least(f"{name}: share identical to float32", rows[recipe]["identical"], identical)
    # This row shows that one scale per tensor fails where a model has outlier channels.
    for language, rate in accuracy["twin"]["per-tensor"]["rates"].items():
        rise = rate - floats[language]
        if not rise > 0.03:
            yield f"accuracy of twin, per-tensor: rise of the error rate for {language} is {rise:.6g}, not above 0.03"
    int8, q8, float32 = speed["int8"], speed["q8"], speed["float32"]
    yield from at_least("int8: prefill, times as fast as q8", q8["prefill"] / int8["prefill"], 2.3)
    yield from at_least("int8: encoder, times as fast as float32", float32["encode"] / int8["encode"], 2)
    yield from at_most("int8: seconds of a step against q8", int8["step"], q8["step"])
    for recipe, limit in (("int8", 860e6), ("int4", 580e6), ("int4-small", 490e6)):
        yield from at_most(f"{recipe}: bytes", speed[recipe]["bytes"], limit)
    yield from at_most("int4: resident bytes", speed["int4"]["resident_bytes"], 1.0e9)
    for recipe, row in speed.items():
        if recipe != "float32":
            yield from at_most(f"{recipe}: seconds of quantizing", row["quantize_seconds"], 180)
            yield from at_most(f"{recipe}: peak bytes of quantizing", row["quantize_peak_bytes"], 8e9)
    yield from at_most("1.7B int4: bytes", large["bytes"], 1.4e9)
    yield from at_most("1.7B int4: resident bytes", large["resident_bytes"], 2.2e9)


def speed(results: Results) -> Iterator[str]:
    """Speed-ups over float32 and transformers, times of the minute, growth with length, memory, cold starts."""
    systems, scale = results["speech"]["systems"], results["scale"]
    floats, batched = systems["float32, one segment"]["total"], systems["int8, segments in rows"]
    yield from at_least("int8, segments in rows: times as fast as float32", floats / batched["total"], 4)
    single = systems["int8, one segment"]["total"]
    yield from at_least("int8, one segment: times as fast as float32", floats / single, 2.2)
    for key, limit in (("total", 4.8), ("encode", 0.8), ("token", 0.016), ("resident_bytes", 1.3e9)):
        yield from at_most(f"int8, segments in rows: {key}", batched[key], limit)
    for name, row in systems.items():
        if name.startswith("transformers"):
            yield from below(f"int8, segments in rows: total against {name}", batched["total"], row["total"])
    # One minute has fewer segments than rows, so longer audio may cost less per minute, but never more.
    minutes = {int(count): row["seconds"] / int(count) for count, row in scale["minutes"].items()}
    for short, limit in minutes.items():
        for long, seconds in minutes.items():
            if long > short:
                yield from at_most(f"seconds per minute of {long} min against {short} min", seconds, 1.1 * limit)
    files, starts = scale["files"], scale["cold_starts"]
    yield from at_most(f"bytes after {files['files']} files", files["last_bytes"], 1.05 * files["first_bytes"])
    yield from at_most("int8: median cold start after prepare", starts["int8"]["prepared"]["median"], 1.5)
    one, other = scale["hours"].values()
    samples = 4 * 16_000 * (other["duration"] - one["duration"])
    yield from at_most("growth of peak bytes over hours of audio", other["peak_bytes"] - one["peak_bytes"], samples)


def streaming(results: Results) -> Iterator[str]:
    """Final texts as offline, no change of stable text, cost of chunks, memory."""
    live, chunks = results["live"], results["chunks"]
    for model, sizes in live["offline"].items():
        yield from equal(f"{model}: seconds of the chunks", sorted(sizes), ["0.02", "0.1", "1"])
        for size, row in sizes.items():
            name = f"{model}, chunks of {size} s"
            yield from equal(f"{name}: segments as offline", row["equal"], row["segments"])
            yield from at_least(f"{name}: segments", row["segments"], 100)
            yield from equal(f"{name}: changes of stable text", row["taken_back"], 0)
    for row in live["stability"]["rows"]:
        name = f"{row['agreeing']} hypotheses{', early' if row['early'] else ''}"
        yield from equal(f"{name}: changes of stable text", row["taken_back"], 0)
    yield from equal("minutes of chunks", len(chunks["minutes"]), 10)
    first, last = (chunks["beside"][key] for key in ("first_minute", "last_minute"))
    yield from at_most("seconds of a chunk in the last minute", last, 1.1 * first)
    yield from below("real-time factor of chunks", chunks["total"] / chunks["seconds"], 0.5)
    hours = live["hours"]
    yield from equal("seconds of the long stream", hours["seconds"], 7200)
    yield from at_most("bytes at the end of the long stream", hours["last_bytes"], 1.03 * hours["first_bytes"])
    if "recordings" in results:
        for name, row in results["recordings"]["rows"].items():
            yield from equal(f"{name}: changes of stable text", row["taken_back"], 0)
            yield from equal(f"{name}: segments as offline", row["equal"], row["segments"] - row["not_as_offline"])


def fidelity(results: Results) -> Iterator[str]:
    """Tokens, languages, features and times as transformers has them; every other token is a tie of two logits."""
    part = results["fidelity"]
    yield from at_most("difference of features", part["recordings"]["features"], FEATURES)
    for name, system in part["systems"].items():
        texts = sum(way["identical"] + way["ended"] for way in system["ways"].values())
        compared = sum(way["compared"] for way in system["ways"].values())
        yield from equal(f"{name}: texts that are equal or listed", texts + len(system["differences"]), compared)
        for each in system["differences"]:
            where = f"{name}: {each['name']}, language {each['way']}"
            yield from at_most(f"{where}: lead in transformers", abs(each["reference_lead"]), system["lead_change"])
        languages = sum(way["language"] for way in system["ways"].values())
        yield from at_least(f"{name}: languages as detected by transformers", languages, compared)
        yield from at_most(f"{name}: difference of times", system["edges"]["largest"], EDGE_SECONDS)
    for name, film in part.get("films", {}).items():
        for way, result in film["ways"].items():
            yield from equal(f"{name}, language {way}: tokens as transformers", result["identical"], True)
    for name, row in part["rows"].items():
        yield from equal(f"rows of {name}: recordings with the same tokens", row["identical"], row["compared"])


def serving(results: Results) -> Iterator[str]:
    """No wrong, lost or refused request; memory; batching; hostile requests are refused and leave nothing behind."""
    clients, batching, hostile = (results["serving"][key] for key in ("clients", "batching", "hostile"))
    yield from equal("clients", clients["clients"], 200)
    yield from equal("live streams", clients["streams"], 8)
    yield from at_least("seconds of load", clients["seconds"], 120)
    rows = {"files": clients["files"], "live": clients["live"]}
    rows |= {
        f"{count} rows, run {index}": run for count, runs in batching["runs"].items() for index, run in enumerate(runs)
    }
    for name, row in rows.items():
        yield from at_least(f"{name}: requests", row["requests"], 1)
        yield from equal(f"{name}: right texts", row["right"], row["requests"])
        for key in ("wrong", "lost", "refused"):
            yield from equal(f"{name}: {key}", row[key], 0)
    memory = clients["resident_bytes"]
    yield from at_most("resident bytes at the end against half of the time", memory["last"], 1.1 * memory["half"])
    yield from at_least("rounds of batching", batching["rounds"], 3)
    # Processor time, which other load on the machine changes least.
    seconds = batching["cpu_seconds_a_request"]
    yield from below("processor seconds of a request with 16 rows against 1 row", seconds["16"], seconds["1"])
    yield from equal("hostile requests", hostile["requests"], 1000)
    yield from equal("hostile requests that were not refused", hostile["not_refused"], {})
    yield from equal("outcomes of hostile requests", sum(hostile["outcomes"].values()), 1000)
    yield from equal("kinds closed by the server alone", sorted(set(hostile["closed"]) - ENDED_BY_CLIENT), [])
    yield from equal("good request after hostile ones", hostile["good_request"], True)
    for key, limit in (("resident_bytes", 5e6), ("open_files", 0), ("temporary_files", 0)):
        yield from at_most(f"growth of {key} by hostile requests", hostile["grown"][key], limit)


def families(results: Results) -> Iterator[str]:
    """int8 is faster and smaller than float32 in every family; accuracy of the small checkpoints by recipe."""
    models = results["families"]["models"]
    yield from equal("families", sorted({piece["family"] for piece in models.values()}), sorted(TITLES))
    for name, piece in models.items():
        floats, int8 = (piece["systems"][recipe] for recipe in ("float32", "int8"))
        yield from below(f"{name}, int8: seconds against float32", int8["total"], floats["total"])
        yield from below(f"{name}, int8: bytes against float32", int8["bytes"], 0.4 * floats["bytes"])
        memory = int8["resident_bytes"], floats["resident_bytes"]
        yield from below(f"{name}, int8: resident bytes against float32", *memory)
        if int4 := piece["systems"].get("int4"):
            yield from at_most(f"{name}, int4: bytes against int8", int4["bytes"], int8["bytes"])
    for name, piece in results["checkpoints"].items():
        floats = piece["recipes"]["float32"]["rates"]
        for recipe, rise in (("float32", 0.0), ("int8", 0.005), ("int4", 0.02)):
            for language, rate in piece["recipes"][recipe]["rates"].items():
                title = f"{name}, {recipe}, {language}"
                yield from at_most(f"{title}: error rate", rate, 0.04 + rise)
                yield from at_most(f"{title}: rise of the error rate", rate - floats[language], rise)


# Our float32 without segmentation must write what transformers writes, but for sounds without speech, where it writes
# nothing. Recordings of more than 30 s, which are cut at other places, do not count.
_WHOLE, _LONG = "float32, not cut", 0.005
# Largest share of words that may differ from float32's text, by recipe.
_LARGEST_DIFFERENCE = {"fp16": 0.002, "q8": 0.006, "int8": 0.015, "mixed": 0.02, "int4": 0.04}


def accuracy(results: Results) -> Iterator[str]:
    """All recordings; words that differ by recipe; word errors within float32's interval; int8 is faster."""
    part = results["real"]
    yield from equal("limit of recordings", part["limit"], None)
    yield from at_least("recordings", part["recordings"]["all"]["recordings"], 306)
    rows = {
        name.removeprefix("asr-deploy, "): system["languages"]["all"]
        for name, system in part["systems"].items()
        if name.startswith("asr-deploy, ")
    }
    for recipe, limit in _LARGEST_DIFFERENCE.items():
        row = rows[recipe]
        yield from at_most(f"{recipe}: share of words that differ from float32's text", row["differ"], limit)
        yield from at_most(f"{recipe}: lower bound of the rise of the error rate", row["rise_interval"][0], 0)
    yield from at_most(f"{_WHOLE}: share of words that differ from transformers", rows[_WHOLE]["reference"], _LONG)
    yield from below("int8: median time against float32", rows["int8"]["ratio"], 1)


BOUNDS: dict[str, Callable[[Results], Iterator[str]]] = {
    "quantization": quantization,
    "speed": speed,
    "streaming": streaming,
    "serving": serving,
    "families": families,
    "accuracy": accuracy,
    "fidelity": fidelity,
}
