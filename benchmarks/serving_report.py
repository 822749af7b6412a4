"""Tables of ``docs/serving.md``, made from the stored results alone."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import table
from benchmarks.stamp import measured


def _serving(part: dict[str, Any]) -> list[str]:
    results = part["results"]
    return [
        *_clients(results["clients"]),
        _batching(results["batching"]),
        *_hostile(results["hostile"]),
        measured(part),
    ]


def _clients(results: dict[str, Any]) -> list[str]:
    rows = []
    for name, row in (("files", results["files"]), ("turns of live streams", results["live"])):
        counts = [f"{row[key]:,}" for key in ("requests", "right", "wrong", "lost", "refused")]
        latency = [f"{row['latency'][quantile]:.2f} s" for quantile in ("p50", "p95", "p99")]
        rates = [f"{row['requests_a_second']:.1f}", f"{row['audio_seconds_a_second']:.0f} s"]
        rows.append([name, *counts, *latency, *rates])
    header = ["", "requests", "right", "wrong", "lost", "refused", "p50", "p95", "p99"]
    caption = (
        f"**{results['clients']} clients for {results['seconds']:.0f} s**, each with one request at a time, and "
        f"{results['streams']} live streams at the speed of speech at the same time. Every text is compared with the "
        "text of the transcriber alone:"
    )
    batch, memory = results["batch_size"], [size / 1e6 for size in results["resident_bytes"].values()]
    note = (
        "The latency of a live turn is from its commit to its text. Resident memory of the server: "
        f"{memory[0]:.0f} MB after 20 s, {memory[1]:.0f} MB at half of the time, {memory[2]:.0f} MB at the end. On "
        f"average {batch['mean']:.1f} segments were decoded together. Clients and server share the machine; the server "
        f"used {results['server_cores']:.2f} cores."
    )
    return [table([*header, "requests per second", "audio per second"], rows, caption=caption), note]


def _batching(results: dict[str, Any]) -> str:
    rates, seconds, tokens = results["audio_seconds_a_second"], results["clip_seconds"], results["clip_tokens"]
    first = next(iter(rates.values()))
    return table(
        ["rows", "audio-seconds per second", "against one row", "processor time of a request"],
        (
            [rows, f"{rate:.0f}", f"{rate / first:.2f}", f"{1000 * results['cpu_seconds_a_request'][rows]:.0f} ms"]
            for rows, rate in rates.items()
        ),
        caption=(
            f"**{results['batch_clients']} clients**, {results['requests']} requests of {min(seconds):.0f} to "
            f"{max(seconds):.0f} s and {min(tokens)} to {max(tokens)} tokens, "
            f"by the number of rows that are decoded together (medians of {results['rounds']} rounds in turns):"
        ),
    )


def _hostile(results: dict[str, Any]) -> list[str]:
    grown = results["grown"]
    closed = ", ".join(results["closed"])
    note = (
        (f"Closed without an answer: {closed}. " if closed else "")
        + f"Afterwards the server had {grown['resident_bytes'] / 1e6:+.1f} MB of memory, {grown['open_files']:+d} open "
        f"files and {grown['temporary_files']:+d} temporary files compared with before, and the answer to a good "
        f"request was {'right' if results['good_request'] else 'wrong'}."
    )
    caption = (
        f"**{results['requests']:,} hostile requests** of {results['kinds']} kinds (`tests/hostile`), after "
        f"{results['warm_up']:,} more to warm up:"
    )
    rows = ([name, str(count)] for name, count in results["outcomes"].items())
    return [table(["answer", "requests"], rows, caption=caption), note]


TABLES = {"serving": _serving}
