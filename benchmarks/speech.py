"""End-to-end time of a minute of speech: float32 and quantized, one segment and segments in rows, and transformers.

Each system runs in its own process, so that its memory is measured alone; the systems take turns, round by round. The
weights are random and the number of tokens is forced: 180 for 60 s, which is three a second, as in normal speech.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.artifacts import FLOAT, quantized, random_weights
from runtime import Transcriber
from runtime.engines.base import SegmentOptions
from runtime.host.memory import peak_resident_bytes
from runtime.ort.threads import usable_cores
from runtime.results import Timings
from runtime.transcriber import Request

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]

RATE, SECONDS, TOKENS = 16_000, 60, 180
ROUNDS = 3
CLIP = "minute.npy"
STAGES = ("segment", "features", "encode", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class System:
    """A system to time: the recipe of its artifact (or ``transformers``), how it is used, and its options."""

    recipe: str
    way: str
    options: dict[str, Any] = field(default_factory=dict)


SYSTEMS = {
    "float32, one segment": System(FLOAT, "one"),
    "int8, one segment": System("int8", "one"),
    "int8, segments one by one": System("int8", "segments", {"max_batch": 1}),
    "int8, segments in rows": System("int8", "segments"),
    "int4, segments in rows": System("int4", "segments"),
    "int8, four files of 15 s": System("int8", "files"),
    "transformers, float32": System("transformers", "one", {"dtype": "float32"}),
    "transformers, bfloat16": System("transformers", "one", {"dtype": "bfloat16"}),
}
# Limits of a segment's length in seconds; dialogue has short segments in any case.
SEGMENTS = (10.0, 15.0, 20.0, 30.0)
# Rows that are decoded together, over eight files of 15 s with 45 tokens each.
BATCHES = (1, 4, 8)
_FILE_SECONDS, _FILE_TOKENS = 15, 45


def measure(work: Path) -> dict[str, Any]:
    """Return for 0.6B the medians of every stage by system, by limit of a segment's length, and by rows."""
    parent = random_weights("0.6b", work / "0.6b")
    folders = {recipe: quantized(parent, recipe)[0] for recipe in ("int8", "int4")} | {FLOAT: parent}
    folders["transformers"] = parent.parent / "checkpoint"
    _write_clip(work)
    return {
        "clip": {"seconds": SECONDS, "tokens": TOKENS, "rounds": ROUNDS},
        "systems": _in_turns(work, {name: (folders[each.recipe], each) for name, each in SYSTEMS.items()}),
        "segments": _in_turns(
            work,
            {
                f"{limit:g} s": (folders["int8"], System("int8", "segments", {"segment_seconds": limit}))
                for limit in SEGMENTS
            },
        ),
        "batches": _in_turns(
            work,
            {
                f"{recipe}, {rows}": (folders[recipe], System(recipe, "batch", {"max_batch": rows}))
                for recipe in ("int8", "int4")
                for rows in BATCHES
            },
        ),
    }


def _write_clip(work: Path) -> None:
    from export.compare import speech  # not at the top: torch must not count as memory of the runtime's processes

    np.save(work / CLIP, speech(SECONDS))


def _in_turns(work: Path, systems: dict[str, tuple[Path, System]]) -> dict[str, dict[str, Any]]:
    """Run systems in turns, each in its own process; return the medians of each."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for name, (folder, system) in systems.items():
        ends[name], other = context.Pipe()
        context.Process(target=_serve, args=(other, folder, system, work / CLIP), name=name, daemon=True).start()
        ends[name].recv()  # loaded, and warmed up by one run
        log.info("%s: ready", name)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    for number in range(ROUNDS):
        for name, end in ends.items():
            end.send(True)
            runs[name].append(end.recv())
        log.info(
            "round %d of %d: %s", number + 1, ROUNDS, {name: round(each[-1]["total"], 2) for name, each in runs.items()}
        )
    for end in ends.values():
        end.send(False)
    return {name: _medians(each) for name, each in runs.items()}


def _medians(runs: list[dict[str, float]]) -> dict[str, Any]:
    medians: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return medians | {"totals": sorted(run["total"] for run in runs)}


def _serve(end: Connection, folder: Path, system: System, clip: Path) -> None:
    """Load a system, then run it for each True that ``end`` receives, and send the seconds of each stage."""
    make = _transformers if system.recipe == "transformers" else _runtime
    run = make(folder, system, np.load(clip))
    run()
    end.send(True)
    while end.recv():
        began = time.perf_counter()
        stages = run()
        end.send(stages | {"total": time.perf_counter() - began, "resident_bytes": float(peak_resident_bytes())})


def _runtime(folder: Path, system: System, clip: Floats) -> Callable[[], dict[str, float]]:
    transcriber = Transcriber.from_artifact(folder, **system.options)

    def one() -> dict[str, float]:
        timings = Timings()
        transcriber._engine.transcribe(clip, SegmentOptions(max_new_tokens=TOKENS, ignore_stop=True), timings)
        return _stages(timings, TOKENS)

    def segments(count: int = 0) -> dict[str, float]:
        counted = count or len(
            transcriber.transcribe(clip, sample_rate=RATE, max_new_tokens=1, ignore_stop=True).segments
        )
        each = math.ceil(TOKENS / counted)
        transcript = transcriber.transcribe(clip, sample_rate=RATE, max_new_tokens=each, ignore_stop=True)
        return _stages(transcript.timings, transcript.tokens.generated) | {"segments": float(counted)}

    def files(count: int, seconds: int, tokens: int) -> dict[str, float]:
        parts = [clip[index * RATE : (index + seconds) * RATE] for index in range(0, count * seconds, seconds)]
        requests = [Request(part if len(part) else clip[: seconds * RATE], sample_rate=RATE) for part in parts]
        outcomes = list(transcriber.transcribe_many(requests, max_new_tokens=tokens, ignore_stop=True))
        added = Timings()
        for outcome in outcomes:
            for stage in STAGES:
                added.add(stage, getattr(outcome.result().timings, stage))
        return _stages(added, sum(outcome.result().tokens.generated for outcome in outcomes))

    if system.way == "one":
        return one
    if system.way == "files":
        return lambda: files(4, 15, TOKENS // 4)
    if system.way == "batch":
        return lambda: files(8, _FILE_SECONDS, _FILE_TOKENS)
    counted = len(transcriber.transcribe(clip, sample_rate=RATE, max_new_tokens=1, ignore_stop=True).segments)
    return lambda: segments(counted)


def _stages(timings: Any, tokens: int) -> dict[str, float]:
    return {stage: getattr(timings, stage) for stage in STAGES} | {"token": timings.decode / tokens, "tokens": tokens}


def _transformers(folder: Path, system: System, clip: Floats) -> Callable[[], dict[str, float]]:
    """Time the reference implementation's modules in a plain greedy loop, without the overhead of ``generate``."""
    import torch

    from export.checkpoints import CheckpointFolder
    from export.families.qwen3_asr.exporter import load_model, native_config
    from export.families.qwen3_asr.parity import features, reference_prompt
    from export.tokenizer import load_tokenizer

    torch.set_num_threads(usable_cores())
    checkpoint = CheckpointFolder(folder, "", None)
    config, _ = native_config(checkpoint.config(), folder / "config.json")
    model = load_model(checkpoint, config).to(getattr(torch, system.options["dtype"]))
    tokenizer = load_tokenizer(checkpoint)

    @torch.no_grad()
    def run() -> dict[str, float]:
        marks = [time.perf_counter()]
        mel, mask = features([clip], config.audio_config.num_mel_bins)
        marks.append(time.perf_counter())
        embeds = model.get_audio_features(mel.to(model.dtype), mask).pooler_output
        marks.append(time.perf_counter())
        ids = torch.tensor([reference_prompt(tokenizer, len(embeds))])
        inputs = model.get_input_embeddings()(ids)
        inputs = inputs.masked_scatter((ids == model.config.audio_token_id)[..., None], embeds)
        output = model.model.language_model(inputs_embeds=inputs, use_cache=True)
        token = model.lm_head(output.last_hidden_state[:, -1:]).argmax(-1)
        marks.append(time.perf_counter())
        for _ in range(TOKENS - 1):
            past = output.past_key_values
            output = model.model.language_model(input_ids=token, past_key_values=past, use_cache=True)
            token = model.lm_head(output.last_hidden_state).argmax(-1)
        marks.append(time.perf_counter())
        stages = dict(zip(STAGES[1:], np.diff(marks).tolist(), strict=True))
        return {"segment": 0.0} | stages | {"token": stages["decode"] / TOKENS, "tokens": float(TOKENS)}

    return run
