"""The table of ``docs/serving.md``, from stored results alone."""

from __future__ import annotations

from typing import Any

from benchmarks.stamp import measured


def _serving(part: dict[str, Any]) -> list[str]:
    found = part["results"]
    return [*_clients(found["clients"]), *_batching(found["batching"]), *_hostile(found["hostile"]), measured(part)]


def _clients(found: dict[str, Any]) -> list[str]:
    lines = [
        f"**{found['clients']} clients for {found['seconds']:.0f} s**, each with a request at any time, and "
        f"{found['streams']} live streams beside them at the speed of speech; every text is compared with the "
        "transcriber's own:",
        "",
        "| | requests | right | wrong | lost | refused | p50 | p95 | p99 | requests a second | audio a second |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in (("files", found["files"]), ("turns of live streams", found["live"])):
        latency = [f"{row['latency'][part]:.2f} s" for part in ("p50", "p95", "p99")]
        rates = [f"{row['requests_a_second']:.1f}", f"{row['audio_seconds_a_second']:.0f} s"]
        counts = [f"{row[key]:,}" for key in ("requests", "right", "wrong", "lost", "refused")]
        lines.append(f"| {' | '.join([name, *counts, *latency, *rates])} |")
    batch, memory = found["batch_size"], [size / 1e6 for size in found["resident_bytes"].values()]
    said = (
        f"The latency of a live turn is from its commit to its text. The server had {memory[0]:.0f} MB resident after "
        f"20 s, {memory[1]:.0f} MB at half of the time and {memory[2]:.0f} MB at the end; a segment ended beside "
        f"{batch['mean'] - 1:.1f} others on average. Clients and server share the machine: the server had "
        f"{found['server_cores']:.2f} of its cores."
    )
    return ["\n".join(lines), said]


def _batching(found: dict[str, Any]) -> list[str]:
    lines = [
        f"**{found['batch_clients']} clients**, {found['requests']} requests of {min(found['clip_seconds']):.0f} to "
        f"{max(found['clip_seconds']):.0f} s and {min(found['clip_tokens'])} to {max(found['clip_tokens'])} tokens, by "
        f"the rows that are decoded together (medians of {found['rounds']} rounds in turns):",
        "",
        "| rows | audio-seconds a second | against one row | processor time a request |",
        "|---|---|---|---|",
    ]
    first = next(iter(found["audio_seconds_a_second"].values()))
    for rows, rate in found["audio_seconds_a_second"].items():
        spent = f"{1000 * found['cpu_seconds_a_request'][rows]:.0f} ms"
        lines.append(f"| {rows} | {rate:.0f} | {rate / first:.2f} | {spent} |")
    return ["\n".join(lines)]


def _hostile(found: dict[str, Any]) -> list[str]:
    lines = [
        f"**{found['requests']:,} hostile requests** of {found['kinds']} kinds (`tests/hostile`), after "
        f"{found['warm_up']:,} more to warm up:",
        "",
        "| how they were answered | |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in found["outcomes"].items()),
    ]
    left = found["grown"]
    closed = ", ".join(found["closed"])
    said = (
        (f"Closed without an answer: {closed}. " if closed else "")
        + f"Afterwards the server had {left['resident_bytes'] / 1e6:+.1f} MB of memory, {left['open_files']:+d} open "
        f"files and {left['temporary_files']:+d} temporary files more than before, and a good request was answered "
        f"{'rightly' if found['good_request'] else 'wrongly'}."
    )
    return ["\n".join(lines), said]


TABLES = {"serving": _serving}
