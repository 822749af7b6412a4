"""Whisper from checkpoint to text: the runtime's tokens against transformers' ``generate``, small random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor
from typer.testing import CliRunner

from export.__main__ import app
from export.checkpoints import CheckpointFolder
from export.compare import RATE, speech
from export.errors import CheckpointInvalidError
from export.families.whisper.exporter import Whisper, load_model
from export.families.whisper.layouts import find_layout
from runtime import Transcriber, open_artifact
from runtime.__main__ import app as cli
from runtime.engines.base import EngineOptions, Head, LiveSegment, SegmentJob, SegmentOptions, SegmentResult
from runtime.errors import ArtifactInvalidError, OptionError
from runtime.families.whisper import engine as whisper
from runtime.families.whisper.engine import WhisperEngine
from runtime.pipeline.events import Final
from runtime.results import Timings
from tests.conftest import DATA
from tests.helpers import whisper_checkpoint
from tests.helpers.broken_tokenizer import with_tokenizer

pytestmark = pytest.mark.slow

NAME = "whisper-large-v3-turbo"
BUDGET = 40


def export(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@dataclass
class Pair:
    """A reference model and an artifact with the same weights."""

    model: Any
    artifact: Path
    seconds: float

    def engine(self, rows: int = 3) -> WhisperEngine:
        return WhisperEngine(open_artifact(self.artifact), EngineOptions(max_batch=rows, segment_seconds=self.seconds))

    def clips(self, count: int) -> list[np.ndarray]:
        """Speech of different lengths, up to a whole window."""
        whole = int(self.seconds * RATE)
        samples = speech(self.seconds * count)
        lengths = [whole - index * whole // (2 * count) for index in range(count)]
        return [samples[index * whole :][:length] for index, length in enumerate(lengths)]

    def features(self, clips: list[np.ndarray]) -> torch.Tensor:
        """The reference's features of clips, padded to a window."""
        extract = WhisperFeatureExtractor(feature_size=self.model.config.num_mel_bins, chunk_length=int(self.seconds))
        mel: torch.Tensor = extract(clips, sampling_rate=RATE, return_tensors="pt")["input_features"]
        return mel

    @torch.no_grad()
    def generate(self, clips: list[np.ndarray], budget: int = BUDGET, **options: Any) -> list[list[int]]:
        """The reference's tokens, without prompt and stop token."""
        config = self.model.config
        output = self.model.generate(
            self.features(clips), max_new_tokens=budget, force_unique_generate_call=True, do_sample=False, **options
        )
        prompt = 1 + 2 * self.model.generation_config.is_multilingual + (not options.get("return_timestamps"))
        texts = []
        for row in output.tolist():
            text = row[row.index(config.decoder_start_token_id) + prompt :]
            texts.append(text[: text.index(config.eos_token_id)] if config.eos_token_id in text else text)
        return texts


def make(folder: Path, seconds: float = 2.0, **changed: Any) -> Pair:
    model = whisper_checkpoint.write(folder / "checkpoint", positions=int(seconds * 50), **changed)
    result = export(NAME, "--checkpoint", folder / "checkpoint", "--out", folder / "artifact")
    assert result.exit_code == 0, result.output
    return Pair(model, folder / "artifact", seconds)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """With the published window of 30 s, 128 mels and more decoder layers than encoder layers."""
    return make(tmp_path_factory.mktemp("whisper-30"), 30.0, seed=3, mels=128, layers=(1, 2))


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("whisper-en"), seed=5, multilingual=False)


def run(engine: WhisperEngine, jobs: list[SegmentJob]) -> list[SegmentResult]:
    """Run all jobs together, in rows."""
    waiting = iter(jobs)
    results = dict(engine.run(lambda: next(waiting, None)))
    return [results[job.key] for job in jobs]


def transcribe(engine: WhisperEngine, clips: list[np.ndarray], options: SegmentOptions) -> list[SegmentResult]:
    return run(engine, [SegmentJob(index, clip, options, Timings(), 0.0) for index, clip in enumerate(clips)])


def test_parity_is_recorded(pair: Pair, whole: Pair, english: Pair) -> None:
    for each in (pair, whole, english):
        manifest = open_artifact(each.artifact).manifest
        assert manifest.family == "whisper"
        for role in ("encoder", "decoder"):
            parity = manifest.parity[role]
            assert 0 < (parity.max_relative_difference or 1) <= parity.tolerance == 1e-4
        assert "batch of 3" in manifest.parity["decoder"].cases


@pytest.mark.parametrize("timestamps", [False, True], ids=["text", "timestamps"])
@pytest.mark.parametrize("language", ["German", "Cantonese", None])
def test_tokens_equal_generate(pair: Pair, language: str | None, timestamps: bool) -> None:
    """Seven clips in three rows, so that rows begin and end at different steps."""
    clips = pair.clips(7)
    code = {"German": "de", "Cantonese": "yue", None: None}[language]
    expected = pair.generate(clips, language=code, task="transcribe", return_timestamps=timestamps)
    results = transcribe(pair.engine(), clips, SegmentOptions(language, "", BUDGET, timestamps=timestamps))
    assert [result.tokens for result in results] == expected
    assert len({tuple(tokens) for tokens in expected}) > 3  # they depend on the audio
    assert {result.finish_reason for result in results} >= {"stop"}


def test_tokens_equal_generate_with_windows_of_30_seconds(whole: Pair) -> None:
    clips = whole.clips(2)
    for timestamps in (False, True):
        expected = whole.generate(clips, language="ru", task="transcribe", return_timestamps=timestamps)
        results = transcribe(whole.engine(), clips, SegmentOptions("Russian", "", BUDGET, timestamps=timestamps))
        assert [result.tokens for result in results] == expected


def test_english_models(english: Pair) -> None:
    clips, engine = english.clips(4), english.engine()
    for timestamps in (False, True):
        expected = english.generate(clips, return_timestamps=timestamps)
        for language in ("English", None):
            results = transcribe(engine, clips, SegmentOptions(language, "", BUDGET, timestamps=timestamps))
            assert [result.tokens for result in results] == expected
            assert {result.language for result in results} <= {"English", None}
    assert (engine.capabilities.language_detection, engine.capabilities.translation) == (False, False)
    with pytest.raises(OptionError, match=r"translation was .* 'whisper'"):
        Transcriber.from_artifact(english.artifact).transcribe(clips[0], sample_rate=RATE, task="translate")


def test_untrained_tasks_are_not_exported(pair: Pair) -> None:
    """The files of large-v3-turbo name translation, but the model transcribes when translation is requested."""
    folder = pair.artifact.parent / "checkpoint"
    tasks = {
        repo: set(Whisper(CheckpointFolder(folder, repo, None)).parameters["task_ids"])
        for repo in ("openai/whisper-large-v3-turbo", "openai/whisper-large-v3")
    }
    assert tasks == {
        "openai/whisper-large-v3-turbo": {"transcribe"},
        "openai/whisper-large-v3": {"transcribe", "translate"},
    }


def test_context_equals_prompt_ids_of_generate(pair: Pair) -> None:
    """Rows with prompts of different lengths, and translation, which only changes a token of the prompt."""
    clips, engine = pair.clips(3), pair.engine()
    text = "Sara, Jon"
    context_ids = torch.tensor([pair.engine().parameters.previous_id, *engine._context_ids(text)])
    results = []
    for context, prompt_ids in ((text, context_ids), ("", None)):
        options = SegmentOptions("Russian", context, BUDGET, task="translate")
        expected = pair.generate(clips, language="ru", task="translate", prompt_ids=prompt_ids)
        results.append([result.tokens for result in transcribe(engine, clips, options)])
        assert results[-1] == expected
    assert results[0] != results[1]
    mixed = [
        SegmentJob(index, clip, SegmentOptions("Russian", context, BUDGET, task="translate"), Timings(), 0.0)
        for index, (clip, context) in enumerate(zip(clips, (text, "", text), strict=True))
    ]
    assert [result.tokens for result in run(engine, mixed)] == [results[0][0], results[1][1], results[0][2]]


def test_detected_language_equals_the_reference(pair: Pair, whole: Pair) -> None:
    for each in (pair, whole):
        engine = each.engine()
        rng = np.random.default_rng(3)
        noises = [
            rng.standard_normal(int(each.seconds * RATE)).astype(np.float32) * level for level in (1e-3, 0.1, 1.0)
        ]
        for clip in [*each.clips(2), *noises]:
            expected = int(each.model.detect_language(each.features([clip]))[0])
            result = engine.transcribe(clip, SegmentOptions(max_new_tokens=2, ignore_stop=True), Timings())
            code = next(code for code, token in engine.parameters.language_ids.items() if token == expected)
            assert result.language == engine._names[code]


def test_phrases_equal_segments_of_the_reference(pair: Pair) -> None:
    """Compared where both have end times; the reference counts time before the first timestamp as part of the text."""
    clips, engine = pair.clips(7), pair.engine()
    results = transcribe(engine, clips, SegmentOptions("German", "", BUDGET, timestamps=True))
    first = engine.parameters.no_timestamps_id + 1
    compared = 0
    for clip, result in zip(clips, results, strict=True):
        segments = pair.model._retrieve_segment(
            seek_sequence=torch.tensor(result.tokens),
            seek_outputs=[{}],
            time_offset=torch.zeros(1, dtype=torch.float64),
            timestamp_begin=first,
            seek_num_frames=torch.tensor([int(pair.seconds * 100)]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 3),
        )[0]
        assert all(0 <= phrase.start <= phrase.end <= len(clip) / RATE for phrase in result.phrases)
        if len(segments) > 1:
            expected = [
                (min(float(each["start"]), len(clip) / RATE), min(float(each["end"]), len(clip) / RATE))
                for each in segments
                if engine.read(each["tokens"].tolist(), None, ended=False)[1]
            ]
            ours = [(phrase.start, phrase.end) for phrase in result.phrases][: len(expected)]
            assert ours == [pytest.approx(each) for each in expected]
            compared += 1
    assert compared


def test_drafts_do_not_change_tokens(pair: Pair) -> None:
    """A growing segment: each pass verifies the draft of the previous one and gives the tokens of a run without it."""
    engine = pair.engine()
    clip = pair.clips(1)[0]
    for timestamps in (False, True):
        options = SegmentOptions("German", "", BUDGET, timestamps=timestamps)
        draft: list[int] = []
        state = engine.live()
        for part in (0.4, 0.7, 1.0):
            samples = clip[: int(len(clip) * part)]
            alone = engine.transcribe(samples, options, Timings()).tokens
            for final in (False, True):
                work = LiveSegment(state, final=final, draft=draft)
                (live,) = run(engine, [SegmentJob(0, samples, options, Timings(), 0.0, live=work)])
                assert live.tokens == alone
            draft = alone
        work = LiveSegment(state, final=True, draft=[5, 6, 8], forced=2)
        (forced,) = run(engine, [SegmentJob(0, clip, options, Timings(), 0.0, live=work)])
        assert forced.tokens[:2] == [5, 6]
    assert state.settled == 0


def test_transcripts_of_files_and_streams(pair: Pair) -> None:
    """Through the public API; a batch gives the same tokens as single runs."""
    audio = speech(7.0)
    alone = Transcriber.from_artifact(pair.artifact, max_batch=1, vad=False).transcribe(
        audio, "de", "Jon", sample_rate=RATE, max_new_tokens=20
    )
    rows = Transcriber.from_artifact(pair.artifact, max_batch=4, vad=False)
    batched = rows.transcribe(audio, "German", "Jon", sample_rate=RATE, max_new_tokens=20)
    assert len(alone.segments) > 3
    assert [each.tokens for each in batched.segments] == [each.tokens for each in alone.segments]
    assert batched.language == "German"
    assert batched.tokens.audio == len(alone.segments) * 100
    assert rows.plan.row_bytes > rows.plan.positions * 2 * 2 * 4 * 8 * 4  # includes the audio's keys and values
    stream = rows.stream("de")
    events = [event for start in range(0, len(audio), 8000) for event in stream.feed(audio[start : start + 8000])]
    assert any(isinstance(event, Final) for event in [*events, *stream.finish()])


def test_timestamps_make_segments(pair: Pair) -> None:
    """Segments have times in the whole audio, also if the audio was decoded in parts."""
    audio = speech(6.5)
    transcriber = Transcriber.from_artifact(pair.artifact, vad=False)
    plain = transcriber.transcribe(audio, "de", sample_rate=RATE)
    timed = transcriber.transcribe(audio, "de", sample_rate=RATE, timestamps=True, task="translate")
    assert len(timed.segments) > len(plain.segments)
    edges = [edge for segment in timed.segments for edge in (segment.start, segment.end)]
    assert edges == sorted(edges)
    assert edges[-1] <= 6.5
    assert all(token < 256 for segment in timed.segments for token in segment.tokens)
    assert timed.tokens.generated > sum(len(segment.tokens) for segment in timed.segments)


@pytest.mark.parametrize("prompt", ["", "Sara, Jon"], ids=["no context", "context"])
@pytest.mark.parametrize("language", ["German", None])
def test_long_form_equals_generate(pair: Pair, language: str | None, prompt: str) -> None:
    """Eleven seconds with a window of two: the same windows as the reference, with the same tokens."""
    audio = speech(11.0)
    transcriber = Transcriber.from_artifact(pair.artifact)
    progress: list[float] = []
    transcript = transcriber.transcribe(
        audio,
        language,
        prompt,
        sample_rate=RATE,
        long_form=True,
        max_new_tokens=BUDGET,
        on_progress=lambda done, _: progress.append(done),
    )
    extract = WhisperFeatureExtractor(feature_size=80)
    features = extract(audio, sampling_rate=RATE, truncation=False, padding="longest", return_tensors="pt")
    engine = transcriber.engine
    assert isinstance(engine, WhisperEngine)
    ids = torch.tensor([engine.parameters.previous_id, *engine._context_ids(prompt)]) if prompt else None
    expected = pair.model.generate(
        features["input_features"],
        max_new_tokens=BUDGET,
        task="transcribe",
        language="de" if language else None,
        return_timestamps=True,
        return_segments=True,
        prompt_ids=ids,
        do_sample=False,
    )
    work = engine.long_form(audio, SegmentOptions(language, prompt, BUDGET), Timings())
    for _, result in engine.run(work.next_job):
        work.take(result)
    spoken = [each["tokens"].tolist() for each in expected["segments"][0] if (each["tokens"] < 256).any()]
    assert [token for span in work.spans for token in span.result.tokens] == [token for row in spoken for token in row]
    assert len(work.spans) > 1
    assert progress == sorted(progress)
    assert progress[-1] == 11.0
    edges = [edge for segment in transcript.segments for edge in (segment.start, segment.end)]
    assert edges == sorted(edges)
    assert edges[-1] <= 11.0
    starts = {round(float(each["start"]), 2) for each in expected["segments"][0]}
    assert {round(segment.start, 2) for segment in transcript.segments} & starts
    assert transcript.duration == 11.0


def test_repetition_is_decoded_again_with_a_penalty(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second result is final. Windows without speech are skipped."""
    engine = pair.engine()
    penalties: list[float] = []
    monkeypatch.setattr(whisper, "repeats", lambda _: True)
    work = engine.long_form(speech(3.0), SegmentOptions("German"), Timings())

    def next_job() -> SegmentJob | None:
        job = work.next_job()
        if job:
            penalties.append(job.options.repetition_penalty)
        return job

    for _, result in engine.run(next_job):
        work.take(result)
    assert penalties[:4] == [1.0, 1.1, 1.0, 1.1]
    assert {span.decoded_again for span in work.spans} == {"repetition"}
    monkeypatch.setattr(whisper, "is_silence", lambda *_: True)
    silent = engine.long_form(speech(3.0), SegmentOptions("German"), Timings())
    for _, result in engine.run(silent.next_job):
        silent.take(result)
    assert silent.spans  # what was dropped stays visible
    assert all(span.result.dropped_text and not span.result.text for span in silent.spans)
    assert silent.done == 3 * RATE


@pytest.mark.usefixtures("small_default")
def test_command_line_options(pair: Pair) -> None:
    arguments = [
        "transcribe",
        str(DATA / "en-1.wav"),
        "--model",
        str(pair.artifact),
        "--language",
        "en",
        "--format",
        "json",
    ]
    plain = CliRunner().invoke(cli, arguments)
    timed = CliRunner().invoke(cli, [*arguments, "--timestamps", "--translate"])
    long = CliRunner().invoke(cli, [*arguments, "--long-form"])
    for result in (plain, timed, long):
        assert result.exit_code == 0, result.output
    texts = [json.loads(result.stdout)["text"] for result in (plain, timed, long)]
    assert len(set(texts)) == 3
    refused = CliRunner().invoke(cli, ["transcribe", str(DATA / "en-1.wav"), "--long-form"])
    assert refused.exit_code == 2
    assert "long form" in refused.stderr
    assert "'qwen3-asr'" in refused.stderr
    refused = CliRunner().invoke(cli, ["transcribe", str(DATA / "en-1.wav"), "--timestamps"])
    assert "timestamps" in refused.stderr
    assert "'qwen3-asr'" in refused.stderr


def test_unlisted_size_is_exported_by_repo_id(pair: Pair, tmp_path: Path) -> None:
    """config.json gives the family, the repo id the name."""
    checkpoint = pair.artifact.parent / "checkpoint"
    result = export("openai/whisper-Tiny", "--checkpoint", checkpoint, "--out", tmp_path / "x")
    assert result.exit_code == 0, result.output
    manifest = open_artifact(tmp_path / "x").manifest
    assert (manifest.name, manifest.family) == ("whisper-tiny", "whisper")
    assert manifest.files["decoder.onnx"] == open_artifact(pair.artifact).manifest.files["decoder.onnx"]
    other = rewritten(checkpoint, tmp_path / "other", "config.json", model_type="wav2vec2")
    refused = export("a/b", "--checkpoint", other, "--out", tmp_path / "y")
    assert refused.exit_code == 2
    assert "model_type is 'wav2vec2'" in " ".join(refused.stderr.split())


def test_the_head_of_a_text_ends_at_its_last_pair_of_timestamps(pair: Pair) -> None:
    """As in long form; a text without a pair, or one that ends with a single timestamp, is complete."""
    engine = pair.engine()
    first, step = engine._timestamps.first_id, round(0.02 * RATE)
    clip = np.zeros(2 * RATE, np.float32)
    plain = engine.transcribe(clip, SegmentOptions("German", "", BUDGET), Timings())
    assert plain.head is None

    def head(*tokens: int) -> Head | None:
        return engine._head(msgspec.structs.replace(plain, tokens=list(tokens)), len(clip))

    cut = head(first, 3, first + 9, first + 11, 4)
    assert cut is not None
    assert (cut.samples, cut.result.tokens, cut.result.text_tokens) == (9 * step, [first, 3, first + 9, first + 11], 1)
    assert [phrase.tokens for phrase in cut.result.phrases] == [[3]]
    assert head(first, 3, first + 9) is None
    assert head(first, 3, first + 9, first + 11, 4, first + 12) is None
    timed = engine.transcribe(clip, SegmentOptions("German", "", BUDGET, timestamps=True), Timings())
    assert timed.text_tokens == sum(token < engine.parameters.stop_id for token in timed.tokens)


def test_a_context_that_is_too_long_keeps_its_last_tokens(pair: Pair) -> None:
    engine = pair.engine()
    words = " ".join(f"name{index}" for index in range(100))
    with pytest.raises(OptionError, match="give a shorter one"):
        engine.check(SegmentOptions(context=words))
    shortened, dropped = engine.shorten_context(SegmentOptions(context=words))
    assert words.endswith(shortened.context)
    assert len(engine._context_ids(shortened.context)) <= 47
    assert len(engine._context_ids(shortened.context)) + dropped == pytest.approx(
        len(engine._context_ids(words)), abs=2
    )
    engine.check(shortened)
    assert engine.shorten_context(SegmentOptions(context="Sara")) == (SegmentOptions(context="Sara"), 0)


def test_silence_gives_no_text(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pair.engine()
    clip = np.zeros(RATE, np.float32)
    result = engine.transcribe(clip, SegmentOptions("German", "", BUDGET, timestamps=True), Timings())
    assert result.text
    assert result.phrases
    monkeypatch.setattr(whisper, "is_silence", lambda no_speech, certainty, _: no_speech > 0 > certainty)
    silent = engine.transcribe(clip, SegmentOptions("German", "", BUDGET, timestamps=True), Timings())
    assert (silent.text, silent.language, silent.phrases, silent.finish_reason) == ("", None, [], "stop")
    assert silent.tokens == result.tokens
    assert (silent.dropped_text, result.dropped_text) == (result.text, None)
    assert silent.no_speech_prob == result.no_speech_prob
    monkeypatch.setattr(whisper, "is_silence", lambda *_: False)
    monkeypatch.setattr(whisper, "repeats", lambda text: bool(text))
    assert engine.transcribe(clip, SegmentOptions("German", "", BUDGET), Timings()).finish_reason == "repetition"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            SegmentOptions(context="a <|endoftext|> b"),
            r"the context contains <\|endoftext\|>.*remove it",
        ),
        (SegmentOptions(context="<|0.40|>"), r"the context contains <\|0.40\|>"),
        (SegmentOptions(context="x" * 60), "the context has 61 tokens; give a shorter one, of at most 47"),
        (SegmentOptions(context="x" * 40, max_new_tokens=60), "the prompt takes 46 of the 96 positions"),
    ],
    ids=["stop token", "timestamp", "too long", "no room"],
)
def test_invalid_contexts_are_refused(pair: Pair, options: SegmentOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pair.engine().check(options)


def test_segment_length_is_limited_by_the_window(pair: Pair) -> None:
    with pytest.raises(OptionError, match=r"segments of 3 s are too long: .* 2 s"):
        WhisperEngine(open_artifact(pair.artifact), EngineOptions(segment_seconds=3.0))


def test_manifest_that_contradicts_its_graphs_is_refused(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.artifact, tmp_path / "x")
    path = tmp_path / "x" / "manifest.json"
    manifest = json.loads(path.read_text())
    for change, message in (
        ({"heads": 2}, "parameters.heads is 2, but graph or tokenizer have 4"),
        ({"stop_id": 3}, "parameters.stop_id is 3, but graph or tokenizer have 256"),
        ({"language_ids": {"en": 258}}, "language 'de' has no entry in parameters.language_ids"),
        ({"heads": "four"}, "Expected `int`, got `str`"),
    ):
        path.write_text(json.dumps(manifest | {"parameters": manifest["parameters"] | change}))
        with pytest.raises(ArtifactInvalidError, match=message):
            WhisperEngine(open_artifact(tmp_path / "x"), EngineOptions())


def test_broken_tokenizer_is_refused(pair: Pair, tmp_path: Path) -> None:
    folder = with_tokenizer(pair.artifact, tmp_path / "artifact", b"{")
    with pytest.raises(
        ArtifactInvalidError, match=r"tokenizer\.json: not a readable tokenizer .*export the model again"
    ):
        Transcriber.from_artifact(folder)


def test_probes_equal_graph_inputs(pair: Pair) -> None:
    engine = pair.engine()
    clip = pair.clips(1)[0]
    options = SegmentOptions("German", "", BUDGET)
    result = engine.transcribe(clip, options, Timings())
    encoder, decoder = engine.probes(clip, result.tokens, options)
    assert (encoder.rows, decoder.rows) == (100, len(result.tokens) + 4)
    assert len(engine.run_probe(encoder)) == 4
    (logits,) = engine.run_probe(decoder)
    assert logits.shape == (1, len(result.tokens) + 1, engine.parameters.vocab_size)
    for index, line in enumerate(logits[0]):
        engine._rules[False](line, result.tokens[:index])
    assert logits[0].argmax(1).tolist() == [*result.tokens, engine.parameters.stop_id]
    assert set(engine.placement()) == {"encoder", "decoder"}


@pytest.mark.parametrize("recipe", ["int8", "q8"])
def test_quantized_graphs_run(recipe: str, tmp_path: Path) -> None:
    """A recipe applies to both graphs and to caches. A random model's text is no measure of quality."""
    folder = tmp_path / "checkpoint"
    whisper_checkpoint.write(folder, width=64, positions=1500)
    result = export(NAME, "--checkpoint", folder, "--recipe", recipe, "--force", "--no-eval", "--out", tmp_path / "x")
    assert result.exit_code == 0, result.output
    quantization = open_artifact(tmp_path / "x").manifest.quantization
    assert quantization is not None
    node_counts = {role: graph.nodes for role, graph in quantization.graphs.items()}
    assert sum(node_counts["encoder"].values()) == 2 * 6 + 2 * 2 + 2  # layers, cross-attention, convolutions
    assert sum(node_counts["decoder"].values()) >= 2 * 8 + 1
    assert quantization.graphs["decoder"].caches == (0 if recipe == "q8" else 2)
    assert quantization.gate.relative_error["encoder"] < 0.2
    engine = WhisperEngine(open_artifact(tmp_path / "x"), EngineOptions(max_batch=2))
    clips = [speech(4.0), speech(9.0)[RATE:], speech(6.0)[2 * RATE :]]
    results = transcribe(engine, clips, SegmentOptions("German", "", BUDGET, timestamps=True))
    assert all(result.tokens and np.isfinite(result.confidence) for result in results)


def rewritten(checkpoint: Path, folder: Path, name: str, **changed: Any) -> Path:
    """Copy a checkpoint and change values in a JSON file; None removes a key."""
    shutil.copytree(checkpoint, folder)
    values = json.loads((folder / name).read_text()) | changed
    (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("config.json", {"model_type": "whisker"}, "model_type is 'whisker', not 'whisper'"),
        ("config.json", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("config.json", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("config.json", {"decoder_attention_heads": 5}, "decoder_attention_heads is 5, which does not divide d_model"),
        ("config.json", {"decoder_layers": 1}, "is unexpected"),
        ("config.json", {"decoder_layers": 3}, "tensor 'model.decoder.layers.2"),
        ("config.json", {"d_model": 64}, "but config.json requires"),
        ("generation_config.json", {"no_timestamps_token_id": None}, "missing required field `no_timestamps_token_id`"),
        ("generation_config.json", {"lang_to_id": None}, "a multilingual model needs lang_to_id and task_to_id"),
        ("generation_config.json", {"suppress_tokens": [9999]}, "id 9999 is not in a vocabulary of"),
        ("generation_config.json", {"eos_token_id": 5}, "has the id 5 for <|endoftext|>, but the tokenizer 256"),
        ("generation_config.json", {"lang_to_id": {"<|en|>": 259}}, "has the id 259 for <|en|>, but the tokenizer 258"),
        ("preprocessor_config.json", {"feature_size": 128}, "feature_size is 128, but the model's front end needs 80"),
    ],
)
def test_invalid_checkpoints_are_one_line_errors(
    pair: Pair, tmp_path: Path, name: str, changed: dict[str, Any], message: str
) -> None:
    folder = rewritten(pair.artifact.parent / "checkpoint", tmp_path / "c", name, **changed)
    result = export(NAME, "--checkpoint", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_untied_head_is_refused_and_a_copy_of_the_embedding_is_not(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(pair.artifact.parent / "checkpoint", folder)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.decoder.embed_tokens.weight"]

    def load() -> Any:
        checkpoint = CheckpointFolder(folder, "c", None)
        return load_model(find_layout(checkpoint)(checkpoint))

    save_file(tensors | {"proj_out.weight": table.clone()}, folder / "model.safetensors")
    assert load().proj_out.weight.shape == table.shape
    save_file(tensors | {"proj_out.weight": table + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointInvalidError, match=r"to the embedding, but tensor .* differs"):
        load()


def test_decoder_refuses_audio_of_the_wrong_shape(pair: Pair) -> None:
    engine = pair.engine()
    audio = engine.encode(pair.clips(1)[0], Timings())
    decoder = engine._decoder
    decoder.open_rows(2, 96)
    with pytest.raises(ValueError, match="keys and values have shapes"):
        decoder.prefill_row(0, [257], [each[:, :, 1:] for each in audio])
    with pytest.raises(ValueError, match="97 positions do not fit a row of 96"):
        decoder.prefill_row(0, [257] * 97, audio)
    with pytest.raises(ValueError, match="97 positions are more than the 96 of the graph"):
        decoder.open_rows(2, 97)


def test_moved_row_keeps_its_audio(pair: Pair) -> None:
    engine = pair.engine()
    decoder, clips = engine._decoder, pair.clips(2)
    decoder.open_rows(2, 96)
    prompt = [257, 259, 264, 268]
    for row, clip in enumerate(clips):
        decoder.prefill_row(row, prompt, engine.encode(clip, Timings()))
    expected = decoder.step([7, 9])[1].copy()
    decoder.prefill_row(1, prompt, engine.encode(clips[1], Timings()))
    decoder.move_row(1, 0)
    assert np.array_equal(decoder.step([9])[0], expected)
