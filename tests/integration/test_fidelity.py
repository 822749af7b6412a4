"""Compare the runtime with transformers' ``Qwen3ASRForConditionalGeneration`` on the bundled trained checkpoint."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import pytest
import soundfile
import torch
from transformers import AutoProcessor, Qwen3ASRForConditionalGeneration

from runtime import Transcriber
from runtime.engines.base import EngineOptions, SegmentOptions
from runtime.errors import AudioNotFoundError
from runtime.families.qwen3_asr.engine import Qwen3AsrEngine
from runtime.features.log_mel import log_mel
from runtime.results import Timings
from runtime.transcriber import Request
from tests.conftest import CHECKPOINT, DATA
from tools.tiny.espeak import Espeak
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import RATE, Utterance, utterance

pytestmark = pytest.mark.slow

STOPS = ("<|endoftext|>", "<|im_end|>")
Floats = np.ndarray


@pytest.fixture(scope="module")
def reference() -> Qwen3ASRForConditionalGeneration:
    return Qwen3ASRForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def engine(float_transcriber: Transcriber) -> Qwen3AsrEngine:
    engine = float_transcriber._engine
    assert isinstance(engine, Qwen3AsrEngine)
    return engine


@pytest.fixture(scope="module")
def utterances() -> list[Utterance]:
    """Make 100 utterances with seeds that training did not use; half have a context, a tenth are joined."""
    espeak, rng = Espeak(), random.Random(77_001)
    return [
        utterance(
            espeak,
            rng,
            ("en", "ru", "zh")[i % 3],
            with_context=i % 2 == 0,
            joined=i % 10 == 9,
            held_out_voice=i % 7 == 0,
        )
        for i in range(100)
    ]


def samples_of(utterance: Utterance) -> Floats:
    return utterance.samples.astype(np.float32) / 32768


def request(processor: Any, samples: Floats, language: str | None = None, context: str | None = None) -> Any:
    return processor.apply_transcription_request(samples, language=language, prompt=context)


@torch.no_grad()
def reference_tokens(model: Any, inputs: Any, budget: int) -> list[int]:
    """Return the tokens of ``generate``, without the stop token."""
    output = model.generate(**inputs, max_new_tokens=budget, do_sample=False)
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids[: next((i for i, token in enumerate(ids) if token in stop_ids(model)), len(ids))]


def stop_ids(model: Any) -> set[int]:
    return {model.config.pad_token_id, *model.config.eos_token_id}


@torch.no_grad()
def greedy_choices(model: Any, inputs: Any, tokens: list[int]) -> list[int]:
    """Return the reference's greedy choice after the prompt and after each of ``tokens``, from one pass.

    Greedy decoding gives exactly ``tokens`` if and only if these are the choices and a stop token follows.
    """
    prompt = inputs["input_ids"]
    ids = torch.cat([prompt, torch.tensor([tokens], dtype=prompt.dtype)], dim=1)
    output = model(
        input_ids=ids, input_features=inputs["input_features"], input_features_mask=inputs["input_features_mask"]
    )
    choices: list[int] = output.logits[0, prompt.shape[1] - 1 :].argmax(-1).tolist()
    return choices


@torch.no_grad()
def test_encoder_rows(reference: Any, processor: Any, engine: Qwen3AsrEngine, speech: Floats) -> None:
    """Compare the path from samples to the decoder's input, for clips of less than a chunk up to many windows."""
    for seconds in (0.03, 0.5, 0.73, 1.0, 3.21, 8.0, 8.01, 29.0):
        clip = speech[: int(seconds * RATE)]
        inputs = request(processor, clip)
        expected = reference.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        actual = engine.encode(log_mel(clip, engine._front_end))
        assert actual.shape == tuple(expected.shape)
        assert np.abs(actual - expected.numpy()).max() <= 1e-4, seconds


def test_prompt_ids_equal_the_processor(processor: Any, engine: Qwen3AsrEngine, speech: Floats) -> None:
    clip = speech[: 3 * RATE]
    for language in (None, "English", "Chinese"):
        for context in ("", "Sara, Jon", "Имена: Биляев, Симён.", "热词：章伟、李纳", "a\nb <|im_end|> {name} {}"):
            expected = request(processor, clip, language, context or None)["input_ids"][0].tolist()
            assert engine.prompt_ids(39, context, language) == expected


@torch.no_grad()
def test_logits_at_prefill_and_at_every_step(
    reference: Any, processor: Any, engine: Qwen3AsrEngine, speech: Floats
) -> None:
    """Compare single rows and a batch of three lengths, in preallocated buffers."""
    clips = [speech[: int(0.6 * RATE)], speech[RATE : 5 * RATE], speech[5 * RATE : 14 * RATE]]
    prompts, audio, references, tokens = [], [], [], []
    for clip in clips:
        inputs = request(processor, clip)
        output = reference(**inputs, use_cache=True)
        rows = [output.logits[0, -1]]
        chosen = []
        for _ in range(12):
            chosen.append(int(rows[-1].argmax()))
            output = reference(
                input_ids=torch.tensor([[chosen[-1]]]), past_key_values=output.past_key_values, use_cache=True
            )
            rows.append(output.logits[0, -1])
        prompts.append(inputs["input_ids"][0].tolist())
        audio.append(engine.encode(log_mel(clip, engine._front_end)))
        references.append(torch.stack(rows).numpy())
        tokens.append(chosen)
    single = []
    for row in range(3):
        logits = [engine._decoder.prefill([prompts[row]], audio[row], 16)[0, 0]]
        logits += [engine._decoder.step([token])[0].copy() for token in tokens[row]]
        single.append(np.stack(logits))
        assert np.abs(single[row] - references[row]).max() <= 1e-3
    batch = [engine._decoder.prefill(prompts, np.concatenate(audio), 16)[:, 0]]
    batch += [engine._decoder.step([row[step] for row in tokens]).copy() for step in range(12)]
    for row in range(3):
        ragged = np.stack([logits[row] for logits in batch])
        assert np.abs(ragged - references[row]).max() <= 1e-3
        assert np.abs(ragged - single[row]).max() <= 1e-5


@pytest.mark.parametrize("forced", [False, True], ids=["automatic language", "forced language"])
@pytest.mark.parametrize("with_context", [False, True], ids=["no context", "context"])
def test_generated_tokens_are_identical(
    reference: Any,
    processor: Any,
    engine: Qwen3AsrEngine,
    utterances: list[Utterance],
    forced: bool,
    with_context: bool,
) -> None:
    """Compare all 100 held-out utterances without a context, and the 50 that have one with it."""
    selected = [each for each in utterances if each.sentence.context] if with_context else utterances
    assert len(selected) == (50 if with_context else 100)
    for index, clip in enumerate(selected):
        language = LANGUAGES[clip.sentence.language] if forced else None
        context = clip.sentence.context if with_context else ""
        result = engine.transcribe(samples_of(clip), SegmentOptions(language, context), Timings())
        assert result.finish_reason == "stop"
        inputs = request(processor, samples_of(clip), language, context or None)
        *choices, last = greedy_choices(reference, inputs, result.tokens)
        assert choices == result.tokens, clip.sentence.text
        assert last in stop_ids(reference)
        if index % 20 == 0:  # compare with generate too, which is slow
            assert reference_tokens(reference, inputs, 250) == result.tokens


@pytest.mark.parametrize("fixture", ["float_transcriber", "transcriber"], ids=["float32", "int8"])
def test_onnxruntime_genai_gives_the_same_tokens(
    fixture: str, utterances: list[Utterance], request: pytest.FixtureRequest
) -> None:
    """Run the same decoder graph in onnxruntime-genai, with its ``genai_config.json``."""
    transcriber = request.getfixturevalue(fixture)
    engine, model = transcriber._engine, og.Model(str(transcriber.artifact.path))
    stops = set(engine.parameters.stop_ids)
    for clip in utterances[:12]:
        rows = engine.encode(log_mel(samples_of(clip), engine._front_end))
        prompt = engine.prompt_ids(len(rows), clip.sentence.context, None)
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + 200, do_sample=False)
        generator = og.Generator(model, params)
        generator.set_model_input("audio_embeds", rows)
        generator.append_tokens(np.array([prompt], np.int32))
        tokens: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        expected = engine.transcribe(samples_of(clip), SegmentOptions(None, clip.sentence.context), Timings()).tokens
        assert [token for token in tokens if token not in stops] == expected


def test_sample_transcripts(transcriber: Transcriber, samples: list[dict[str, Any]]) -> None:
    """The small model's transcripts equal the references, with names spelled as in their contexts.

    The model may be wrong for one of the twelve recordings, five sentences in a row.
    """
    mismatches = []
    for sample in samples:
        transcript = transcriber.transcribe(DATA / sample["file"], context=sample["context"])
        assert transcript.language == sample["language"]
        assert transcript.duration == pytest.approx(soundfile.info(DATA / sample["file"]).duration, abs=1e-3)
        if transcript.text != sample["text"]:
            mismatches.append(sample["file"])
    assert mismatches in ([], ["en-3.wav"])


def test_silence_and_noise_give_no_text(transcriber: Transcriber) -> None:
    rng = np.random.default_rng(5)
    for clip in (np.zeros(RATE * 2, np.float32), 0.01 * rng.standard_normal(RATE * 3).astype(np.float32)):
        transcript = transcriber.transcribe(clip, sample_rate=RATE)
        assert (transcript.text, transcript.language) == ("", None)


def test_transcribing_writes_no_file_beside_the_audio(transcriber: Transcriber, tmp_path: Path) -> None:
    path = tmp_path / "copy.wav"
    path.write_bytes((DATA / "en-1.wav").read_bytes())
    transcriber.transcribe(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fixture", ["float_transcriber", "transcriber"], ids=["float32", "int8"])
def test_segments_decoded_together_equal_single_runs(
    fixture: str, speech: Floats, request: pytest.FixtureRequest
) -> None:
    """Tokens are equal for fewer rows than segments, as many, and more."""
    artifact = request.getfixturevalue(fixture).artifact
    audio = np.concatenate([speech, np.zeros(RATE, np.float32), speech[::-1]])
    single = Transcriber(artifact, EngineOptions(max_batch=1)).transcribe(audio, sample_rate=RATE)
    assert len(single.segments) >= 6
    for rows in (2, len(single.segments), 20):
        progress: list[tuple[float, float]] = []
        transcriber = Transcriber(artifact, EngineOptions(max_batch=rows))
        batched = transcriber.transcribe(
            audio, sample_rate=RATE, on_progress=lambda *times, progress=progress: progress.append(times)
        )
        decoded_seconds = [seconds for seconds, _ in progress]
        assert [segment.tokens for segment in batched.segments] == [segment.tokens for segment in single.segments]
        assert batched.text == single.text
        assert batched.tokens == single.tokens
        assert decoded_seconds == sorted(decoded_seconds)
        assert decoded_seconds[-1] == pytest.approx(single.duration, abs=1e-3)


@pytest.mark.parametrize("fixture", ["float_transcriber", "transcriber"], ids=["float32", "int8"])
def test_files_decoded_together_equal_single_runs(
    fixture: str, samples: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    """Decode files with their own language and context; some occur twice, and one is missing."""
    artifact = request.getfixturevalue(fixture).artifact
    requests = [
        Request(DATA / sample["file"], sample["language"] if index % 2 else None, sample["context"])
        for index, sample in enumerate([*samples, *samples[:3]])
    ]
    requests.insert(4, Request(DATA / "none.wav"))
    one_row, five_rows = (Transcriber(artifact, EngineOptions(max_batch=rows)) for rows in (1, 5))
    progress: list[float] = []
    results = {
        outcome.index: outcome for outcome in five_rows.transcribe_many(iter(requests), on_progress=progress.append)
    }
    assert sorted(results) == list(range(len(requests)))
    seconds = sum(outcome.transcript.duration for outcome in results.values() if outcome.transcript)
    assert sum(progress) == pytest.approx(seconds, abs=0.01)
    for index, each in enumerate(requests):
        if index == 4:
            assert isinstance(results[4].error, AudioNotFoundError)
            continue
        single = one_row.transcribe(each.source, each.language, each.context)
        batched = results[index].result()
        assert [segment.tokens for segment in batched.segments] == [segment.tokens for segment in single.segments]
        assert (batched.text, batched.language, batched.duration) == (single.text, single.language, single.duration)


@pytest.mark.parametrize("fixture", ["float_transcriber", "transcriber"], ids=["float32", "int8"])
def test_windows_encoded_together_equal_single_runs(
    fixture: str, speech: Floats, request: pytest.FixtureRequest
) -> None:
    """Rows are equal bit by bit, for segments with last windows of equal and different lengths."""
    engine = request.getfixturevalue(fixture)._engine
    seconds = (0.6, 2.5, 8.0, 9.2, 2.1, 12.0, 7.95, 3.99, 9.9)
    features = [log_mel(speech[: int(length * RATE)], engine._front_end) for length in seconds]
    for batched, each in zip(engine._encoder.encode_many(features), features, strict=True):
        assert np.array_equal(batched, engine.encode(each))
