"""Whisper in the runtime, for ``benchmarks.fidelity``: the same texts as the reference, on different kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from benchmarks.fidelity_reference import Text
from runtime.engines.base import EngineOptions, SegmentJob, SegmentOptions, SegmentResult
from runtime.families.whisper.cross_decoder import CrossDecoder
from runtime.families.whisper.engine import WhisperEngine
from runtime.model.artifact import open_artifact
from runtime.ort.providers import parse_providers
from runtime.ort.threads import apply_threads
from runtime.results import Timings

Floats = npt.NDArray[np.float32]


class Kernels(msgspec.Struct, frozen=True):
    """What runs the graphs: an execution provider, and whether ONNX Runtime may optimize them."""

    title: str
    provider: str = "cpu"
    optimized: bool = True


#: Ways to run the same graphs; the first is the default of the runtime.
KERNELS = {
    "cpu": Kernels("ONNX Runtime's CPU kernels"),
    "unoptimized": Kernels("the same, graph optimizations off", optimized=False),
    "openvino": Kernels("OpenVINO's CPU kernels", "openvino"),
}
#: How a recording is decoded: (language given, timestamps).
WAYS = {
    "given": (True, False),
    "given, timestamps": (True, True),
    "detected": (False, False),
    "detected, timestamps": (False, True),
}
# Rows that decode recordings together.
ROWS = 8


class Outcome(msgspec.Struct, frozen=True):
    """What the runtime decoded: token ids, code of the language, why it ended, text, start and end of its parts."""

    tokens: list[int]
    language: str | None
    finish_reason: str
    text: str = ""
    edges: list[tuple[float, float]] = []


class System:
    """An opened Whisper artifact on some kernels. The encoder runs once for each recording."""

    def __init__(self, artifact: Path, kernels: Kernels, threads: int, *, rows: int = 1) -> None:
        """Open the artifact.

        Raises:
            ArtifactInvalidError: the artifact is not that of a Whisper model, or is damaged.
            ProviderError: a provider is missing, inactive, or refuses a graph.
        """
        opened = open_artifact(artifact)
        providers = dict.fromkeys(opened.manifest.graphs, parse_providers(kernels.provider))
        self.engine = WhisperEngine(opened, EngineOptions(providers, threads, max_batch=rows))
        if not kernels.optimized:
            self._disable_optimizations(threads)
        self._codes = {language.name: language.code for language in opened.manifest.languages}
        self._names = {code: name for name, code in self._codes.items()}
        self._encode_once()

    def _disable_optimizations(self, threads: int) -> None:
        options = ort.SessionOptions()
        apply_threads(options, threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        engine, artifact = self.engine, self.engine._artifact
        encoder, decoder = (
            ort.InferenceSession(artifact.graph_path(role), options, providers=["CPUExecutionProvider"])
            for role in ("encoder", "decoder")
        )
        engine._encoder = encoder
        engine._decoder = CrossDecoder(
            decoder, artifact.manifest.graphs["decoder"], context_length=engine.parameters.context_length
        )

    def _encode_once(self) -> None:
        """Keep the encoder's last output: each recording is decoded several times."""
        encode = self.engine.encode
        last: list[Any] = []

        def remembered(samples: Floats, timings: Timings, features: Floats | None = None) -> list[Floats]:
            if features is not None:
                return encode(samples, timings, features)
            if not (last and last[0] is samples):
                last[:] = [samples, encode(samples, timings)]
            arrays: list[Floats] = last[1]
            return arrays

        self.engine.encode = remembered  # type: ignore[method-assign]

    def text(self, samples: Floats, language: str | None, *, timestamps: bool) -> Outcome:
        """Decode one window with the default options; ``language`` is a code, None to detect it."""
        return self.outcome(self.engine.transcribe(samples, self._options(language, timestamps), Timings()))

    def outcome(self, result: SegmentResult) -> Outcome:
        """Return what is compared of a segment's result."""
        return Outcome(
            result.tokens,
            self._codes.get(result.language or ""),
            result.finish_reason,
            result.text,
            [(round(each.start, 3), round(each.end, 3)) for each in result.phrases],
        )

    def _options(self, language: str | None, timestamps: bool) -> SegmentOptions:
        return SegmentOptions(self._names[language] if language else None, timestamps=timestamps)

    def together(self, clips: Sequence[tuple[Floats, str]]) -> list[Outcome]:
        """Decode windows in rows, with the language code of each; a row that ends takes the next clip."""
        jobs = iter(
            [
                SegmentJob(index, samples, self._options(language, timestamps=False), Timings(), 0.0)
                for index, (samples, language) in enumerate(clips)
            ]
        )
        results = dict(self.engine.run(lambda: next(jobs, None)))
        return [self.outcome(results[index]) for index in range(len(clips))]

    def long_form(self, samples: Floats, language: str | None) -> Outcome:
        """Decode audio of any length window by window."""
        work = self.engine.long_form(samples, self._options(language, timestamps=True), Timings())
        for _, result in self.engine.run(work.next_job):
            work.take(result)
        rate = self.engine.sample_rate
        spans = [span for span in work.spans if span.result.text]  # the others hold what was dropped as silence
        edges = [
            (round(span.start / rate + each.start, 3), round(span.start / rate + each.end, 3))
            for span in spans
            for each in span.result.phrases
        ]
        again = [span.decoded_again for span in spans if span.decoded_again]
        return Outcome(
            [token for span in spans for token in span.result.tokens],
            self._codes.get(spans[0].result.language or "") if spans else None,
            again[0] if again else "stop",
            " ".join(span.result.text for span in spans),
            edges,
        )

    def logits(self, samples: Floats, language: str, tokens: Sequence[int], *, timestamps: bool) -> Floats:
        """Return the logits [tokens + 1, vocab] after the prompt and after each of ``tokens``, in one pass."""
        decoder = self.engine._decoder
        audio = self.engine.encode(samples, Timings())
        prompt = self.prompt(language, timestamps=timestamps)
        ids = np.array([[*prompt, *tokens]], np.int64)
        feeds = decoder.feeds(ids, audio, logits_count=len(tokens) + 1)
        values: Floats = decoder._session.run(["logits"], feeds)[0][0]
        return values

    def prompt(self, language: str, *, timestamps: bool) -> list[int]:
        """Return the prompt's token ids."""
        return self.engine.prompt_ids(language, self._options(language, timestamps))

    def lead_change(self, samples: Floats, language: str, text: Text, *, timestamps: bool) -> float:
        """Return by how much the leads of the reference's choices over its second choices differ here, at most."""
        logits = self.logits(samples, language, text.tokens, timestamps=timestamps)
        stop = self.engine.parameters.stop_id
        change = 0.0
        for row, token, second, lead in zip(logits, [*text.tokens, stop], text.seconds, text.leads, strict=False):
            if second is not None and lead is not None:
                change = max(change, abs(float(row[token] - row[second]) - lead))
        return change

    def decisive_lead(
        self, logits: Floats, tokens: Sequence[int], first: int, second: int, *, timestamps: bool
    ) -> float:
        """Return by how much ``first`` leads ``second`` after ``tokens``, in ``logits`` [vocab].

        Where one of them is a timestamp and the other is not, the rule on all timestamps together decides: then the
        lead is that of the timestamps' total over the likeliest text token, with the sign of ``first``.
        """
        logits = logits.copy()
        rules = self.engine._rules[timestamps]
        begin = self.engine._timestamps.first_id
        plain = logits.copy()
        plain[rules.suppress] = -np.inf
        rules(logits, tokens)
        if np.isfinite(logits[first]) and np.isfinite(logits[second]):
            return float(logits[first] - logits[second])
        times = plain[begin:]
        allowed = times[np.isfinite(times)]
        total = float(allowed.max() + np.log(np.exp(allowed - allowed.max()).sum()))
        slack = total - float(plain[:begin].max())
        return slack if first >= begin else -slack
