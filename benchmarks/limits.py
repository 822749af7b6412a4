"""Time of each stage of the int8 artifact against the limits of the machine, from ``runtime benchmark``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import soundfile

from benchmarks.artifacts import quantized, random_weights, run
from export.compare import speech

SECONDS, TOKENS = 60, 180
BATCHES = (1, 8)


def measure(work: Path) -> dict[str, Any]:
    """Return the peak rates of the machine, and time, limit and limiting resource of encoder, prefill and steps."""
    parent = random_weights("0.6b", work / "0.6b")
    model, _ = quantized(parent, "int8")
    clip, out = work / "minute.wav", work / "limits.json"
    soundfile.write(clip, speech(SECONDS), 16_000)
    options = ("--seconds", SECONDS, "--batch", ",".join(map(str, BATCHES)), "--clips", 1, "--new-tokens", TOKENS)
    run("runtime", "benchmark", "--model", model, "--audio", clip, *map(str, options), "--json", out)
    report = json.loads(out.read_text())
    rates = report["limits"]["rates"]
    stages = []
    for configuration in report["configurations"]:
        rows = f"{configuration['batch']} row{'s' if configuration['batch'] > 1 else ''} at most"
        if configuration["batch"] == BATCHES[0]:
            for stage, name in (("encode", "encoder"), ("prefill", "prefill")):
                seconds = configuration["stages"][stage]["median"]
                counted = configuration["tokens"]["audio" if stage == "encode" else "prompt"]
                stages.append(
                    _row(f"{name}, {counted} positions", seconds, configuration["limits"][stage], "8-bit products")
                )
        stages.append(_row(f"step, {rows}", configuration["step"]["median"], configuration["limits"]["step"], "memory"))
    return {
        "rates": {
            "bandwidth": rates["memory_bytes"],
            "float": rates["float_operations"],
            "integer": rates["integer_operations"],
        },
        "stages": stages,
    }


def _row(name: str, seconds: float, share: float, by: str) -> dict[str, Any]:
    """Return a row of the table; ``share`` is limit over time."""
    return {"name": name, "seconds": seconds, "limit": share * seconds, "by": by}
