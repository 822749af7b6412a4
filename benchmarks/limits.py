"""How far the int8 recipe's stages are from what the machine could do: what ``runtime benchmark`` says of it."""

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
    """Rates of the machine, and time, limit and what limits, of encoder, prefill and steps."""
    parent = random_weights("0.6b", work / "0.6b")
    model, _ = quantized(parent, "int8")
    clip, found = work / "minute.wav", work / "limits.json"
    soundfile.write(clip, speech(SECONDS), 16_000)
    options = ("--seconds", SECONDS, "--batch", ",".join(map(str, BATCHES)), "--clips", 1, "--new-tokens", TOKENS)
    run("runtime", "benchmark", "--model", model, "--audio", clip, *map(str, options), "--json", found)
    report = json.loads(found.read_text())
    rates = report["limits"]["rates"]
    stages = []
    for made in report["configurations"]:
        rows = f"{made['batch']} row{'s' if made['batch'] > 1 else ''} at most"
        if made["batch"] == BATCHES[0]:
            for stage, name in (("encode", "encoder"), ("prefill", "prefill")):
                seconds = made["stages"][stage]["median"]
                counted = made["tokens"]["audio" if stage == "encode" else "prompt"]
                stages.append(_row(f"{name}, {counted} positions", seconds, made["limits"][stage], "8-bit products"))
        stages.append(_row(f"step, {rows}", made["step"]["median"], made["limits"]["step"], "memory"))
    return {
        "rates": {
            "bandwidth": rates["memory_bytes"],
            "float": rates["float_operations"],
            "integer": rates["integer_operations"],
        },
        "stages": stages,
    }


def _row(name: str, seconds: float, share: float, by: str) -> dict[str, Any]:
    return {"name": name, "seconds": seconds, "limit": share * seconds, "by": by}
