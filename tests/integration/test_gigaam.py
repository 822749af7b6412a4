"""GigaAM from checkpoint to text through the command line; tokens equal those of the torch module."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from export.checkpoints import CheckpointFolder
from export.families.gigaam.exporter import GigaAM
from runtime import Request, Transcriber, open_artifact
from runtime.__main__ import app as runtime_app
from runtime.audio import load_audio
from runtime.bench.child import MeasureJob, Setup, measure
from runtime.bench.limits import measure_work, shares
from runtime.bench.results import Limits, Rates
from runtime.engines.base import SegmentOptions
from runtime.errors import ArtifactInvalidError, OptionError
from runtime.model.manifest import MANIFEST
from runtime.pipeline.events import Final
from runtime.results import Timings
from tests.conftest import DATA
from tests.helpers.broken_tokenizer import with_tokenizer
from tests.helpers.gigaam_checkpoint import TINY, write
from tests.unit.test_htk_log_mel import reference

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]
NAMES = {"ctc": "gigaam-v3-ctc", "e2e_ctc": "gigaam-v3-e2e-ctc"}
FILES = [f"{language}-{number}.wav" for language in ("ru", "en") for number in (1, 2, 3)]


def lively(folder: Path, kind: str) -> Path:
    """Raise the probability of spaces, blanks and word marks in a random model, as in a trained one."""
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    bias = tensors["model.head.decoder_layers.0.bias"]
    bias[-1] += 1.5
    marked = [3, 5, 7, 10, 14] if kind == "e2e_ctc" else [0]
    bias[marked] += 2.0
    torch.save(tensors, path)
    return folder


@pytest.fixture(scope="module", params=list(NAMES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its artifact, for either vocabulary."""
    kind, index = request.param, tmp_path_factory.mktemp(request.param)
    checkpoint = lively(write(kind, index / "checkpoint", **TINY), kind)
    out = index / NAMES[kind]
    arguments = [NAMES[kind], "--checkpoint", str(checkpoint), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return checkpoint, out


@pytest.fixture(scope="module")
def module(exported: tuple[Path, Path]) -> GigaAM:
    return GigaAM(CheckpointFolder(exported[0], "x", None))


@pytest.fixture(scope="module")
def engine(exported: tuple[Path, Path]) -> Transcriber:
    """Transcriber without voice activity detection: all of a file is decoded."""
    return Transcriber.from_artifact(exported[1], vad=False)


@torch.no_grad()
def published(module: GigaAM, samples: Floats) -> list[int]:
    """The module's tokens by the published rule: best classes, repetitions merged, no blanks."""
    features = torch.from_numpy(reference(samples))
    rows, _ = module.model(features[None], torch.tensor([features.shape[1]]))
    best = rows[0].argmax(-1)
    is_token = best != module.parameters["blank_id"]
    is_token[1:] &= best[1:] != best[:-1]
    tokens: list[int] = best[is_token].tolist()
    return tokens


def test_manifest_of_the_artifact(exported: tuple[Path, Path]) -> None:
    manifest = open_artifact(exported[1]).manifest
    assert (manifest.family, manifest.name) == ("gigaam-ctc", exported[1].name)
    assert (manifest.source.licence, manifest.source.repo) == ("MIT", "checkpoint")
    assert len(manifest.source.weights_sha256) == 64
    assert [language.code for language in manifest.languages] == ["ru"]
    assert (manifest.parity["encoder"].max_relative_difference or 1) <= 1e-4


def test_tokens_equal_those_of_the_module(module: GigaAM, engine: Transcriber) -> None:
    spoken = 0
    for file in FILES:
        transcript = engine.transcribe(DATA / file)
        expected = published(module, load_audio(DATA / file, 16_000))
        assert [token for segment in transcript.segments for token in segment.tokens] == expected, file
        assert transcript.text == module.tokenizer.decode(expected).strip()
        assert transcript.language == "Russian"  # the only language
        spoken += len(expected)
    assert spoken > 100


def test_tokens_in_a_batch_equal_single_runs(engine: Transcriber) -> None:
    alone = [engine.transcribe(DATA / file) for file in FILES]
    outcomes = sorted(engine.transcribe_many([Request(DATA / file) for file in FILES]), key=lambda each: each.index)
    for one, outcome in zip(alone, outcomes, strict=True):
        assert outcome.transcript is not None
        assert [each.tokens for each in outcome.transcript.segments] == [each.tokens for each in one.segments]
        assert outcome.transcript.text == one.text


def test_words_cover_the_text_with_increasing_times(engine: Transcriber) -> None:
    seen = 0
    for file in FILES:
        transcript = engine.transcribe(DATA / file)
        words = [word for segment in transcript.segments for word in segment.words or []]
        assert " ".join(word.text for word in words) == " ".join(transcript.text.split())
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(0 <= time <= transcript.duration for time in times)
        assert all(0 < word.confidence <= 1 for word in words)
        seen += len(words)
    assert seen > len(FILES)


def test_word_times_are_frame_times(module: GigaAM, engine: Transcriber) -> None:
    """The first word begins at the frame (40 ms) of its first token."""
    samples = load_audio(DATA / FILES[0], 16_000)
    result = engine.engine.transcribe(samples, SegmentOptions(), Timings())
    with torch.no_grad():
        features = torch.from_numpy(reference(samples))
        rows, _ = module.model(features[None], torch.tensor([features.shape[1]]))
    best = rows[0].argmax(-1).tolist()
    spoken = [
        frame
        for frame, token in enumerate(best)
        if token != module.parameters["blank_id"]
        and any(each.isalnum() for each in module.tokenizer.id_to_token(token) or "")
    ]
    assert result.words
    assert result.words[0].start == pytest.approx(spoken[0] * 0.04)
    assert result.audio_tokens == len(best)


def test_max_new_tokens_ends_with_length(engine: Transcriber) -> None:
    whole = engine.transcribe(DATA / "ru-1.wav").segments[0]
    cut = engine.transcribe(DATA / "ru-1.wav", max_new_tokens=3).segments[0]
    assert (cut.tokens, cut.finish_reason) == (whole.tokens[:3], "length")


def test_unsupported_options_are_refused(engine: Transcriber) -> None:
    with pytest.raises(OptionError, match=r"context was given.* 'gigaam-ctc'"):
        engine.transcribe(DATA / "ru-1.wav", context="names")
    with pytest.raises(OptionError, match=r"language 'en' was given.* Russian \(ru\)"):
        engine.transcribe(DATA / "ru-1.wav", language="en")


def test_segment_length_is_limited_by_the_model(exported: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match=r"segments of 26 s are too long: .* 25 s"):
        Transcriber.from_artifact(exported[1], segment_seconds=26)
    long = np.tile(load_audio(DATA / "ru-1.wav", 16_000), 20)
    transcriber = Transcriber.from_artifact(exported[1], segment_seconds=25, vad=False)
    transcript = transcriber.transcribe(long, sample_rate=16_000)
    assert len(transcript.segments) > 1
    assert max(segment.end - segment.start for segment in transcript.segments) <= 25


def test_stream_results_equal_offline_results(exported: tuple[Path, Path]) -> None:
    transcriber = Transcriber.from_artifact(exported[1])
    samples = load_audio(DATA / "ru-2.wav", 16_000)
    stream = transcriber.stream()
    events = [event for start in range(0, len(samples), 4_000) for event in stream.feed(samples[start : start + 4_000])]
    finals = [event.result for event in (*events, *stream.finish()) if isinstance(event, Final)]
    assert finals
    for final in finals:
        piece = samples[round(final.start * 16_000) : round(final.end * 16_000)]
        assert final.tokens == transcriber.engine.transcribe(piece, SegmentOptions(), Timings()).tokens


def test_probes_equal_graph_inputs(engine: Transcriber) -> None:
    samples = load_audio(DATA / "ru-1.wav", 16_000)
    (probe,) = engine.engine.probes(samples, [], SegmentOptions())
    assert (probe.role, probe.choice) == ("encoder", "log_probs")
    (rows,) = engine.engine.run_probe(probe)
    best = rows[0].argmax(-1)
    expected = engine.engine.transcribe(samples, SegmentOptions(), Timings())
    assert len(best) == expected.audio_tokens
    assert set(expected.tokens) <= set(best.tolist())
    assert engine.engine.placement().keys() == {"encoder"}


def test_broken_tokenizer_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    folder = with_tokenizer(exported[1], tmp_path / "artifact", b"{")
    with pytest.raises(
        ArtifactInvalidError, match=r"tokenizer\.json: not a readable tokenizer .*export the model again"
    ):
        Transcriber.from_artifact(folder)


def test_command_line_writes_words(exported: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(
        runtime_app, ["transcribe", str(DATA / "ru-1.wav"), "--model", str(exported[1]), "--format", "json"]
    )
    assert result.exit_code == 0, result.output
    transcript = json.loads(result.stdout)
    assert transcript["segments"][0]["words"][0]["text"]
    refused = CliRunner().invoke(
        runtime_app, ["transcribe", str(DATA / "ru-1.wav"), "--model", str(exported[1]), "--language", "en"]
    )
    assert refused.exit_code == 2
    assert "Russian (ru)" in refused.stderr


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("front_end", "kind", "whisper-log-mel", r"Invalid enum value 'whisper-log-mel' - at `\$.kind`"),
        ("front_end", "n_mels", 80, "front_end.n_mels is 80, but graph or tokenizer have 64"),
        ("front_end", "hop_length", 0, "make no front end"),
        ("parameters", "vocab_size", 5, "parameters.vocab_size is 5, but graph or tokenizer have"),
        ("parameters", "blank_id", 0, "parameters.blank_id is 0"),
        ("parameters", "subsampling", 0, "must be positive"),
        ("parameters", "segment_seconds", 61, "segment_seconds is 61, but positions cover 60 s"),
        ("parameters", "other", 1, "unknown field `other`"),
    ],
)
def test_contradictory_manifest_is_refused(
    section: str, key: str, value: Any, message: str, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported[1], tmp_path / "artifact"))
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest[section][key] = value
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactInvalidError, match=message) as caught:
        Transcriber.from_artifact(folder)
    assert "export the model again" in str(caught.value)


def test_benchmark_measures_the_encoder_only(exported: tuple[Path, Path]) -> None:
    """The result has a limit for the encoder, and no prompt or steps."""
    clip = DATA / "ru-1.wav"
    work = measure_work(str(exported[1]), str(clip))
    assert work.encoder_operations > 0
    assert (work.decoder_operations, work.weight_bytes, work.cache_bytes) == (None, None, None)
    measured = measure(MeasureJob(Setup(str(exported[1])), str(clip), 2.5, batch=1, runs=1))
    assert "prefill" not in measured.stages
    assert (measured.per_token, measured.step, measured.tokens.steps) == (None, None, 0)
    assert measured.tokens.generated > 0
    share = shares(Limits(Rates(1e9, 1e9, 1e9), work), measured)
    assert share.encode
    assert (share.prefill, share.step) == (None, None)
