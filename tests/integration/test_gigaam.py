"""GigaAM from a checkpoint's folder to text, by the commands that people use: tokens are those of the torch module."""

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
    """Let the model of noise say more spaces, blanks and word marks, as one of speech does."""
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    bias = tensors["model.head.decoder_layers.0.bias"]
    bias[-1] += 1.5
    marked = [3, 5, 7, 10, 14] if kind == "e2e_ctc" else [0]
    bias[marked] += 2.0
    torch.save(tensors, path)
    return folder


@pytest.fixture(scope="module", params=list(NAMES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its artifact, for either vocabulary."""
    kind, index = request.param, tmp_path_factory.mktemp(request.param)
    checkpoint = lively(write(kind, index / "checkpoint", **TINY), kind)
    out = index / NAMES[kind]
    arguments = [NAMES[kind], "--checkpoint", str(checkpoint), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return checkpoint, out


@pytest.fixture(scope="module")
def module(made: tuple[Path, Path]) -> GigaAM:
    return GigaAM(CheckpointFolder(made[0], "x", None))


@pytest.fixture(scope="module")
def engine(made: tuple[Path, Path]) -> Transcriber:
    """Without voice activity: what is heard of a file is all of it."""
    return Transcriber.from_artifact(made[1], vad=False)


@torch.no_grad()
def published(module: GigaAM, samples: Floats) -> list[int]:
    """The module's tokens by the published rule: features of torch, best classes, runs once, no blanks."""
    features = torch.from_numpy(reference(samples))
    rows, _ = module.model(features[None], torch.tensor([features.shape[1]]))
    best = rows[0].argmax(-1)
    kept = best != module.parameters["blank_id"]
    kept[1:] &= best[1:] != best[:-1]
    tokens: list[int] = best[kept].tolist()
    return tokens


def test_what_the_artifact_says(made: tuple[Path, Path]) -> None:
    manifest = open_artifact(made[1]).manifest
    assert (manifest.family, manifest.name) == ("gigaam-ctc", made[1].name)
    assert (manifest.source.licence, manifest.source.repo) == ("MIT", "checkpoint")
    assert len(manifest.source.weights_sha256) == 64
    assert [language.code for language in manifest.languages] == ["ru"]
    assert manifest.parity["encoder"].max_abs_difference <= 1e-4


def test_tokens_are_those_of_the_module(module: GigaAM, engine: Transcriber) -> None:
    spoken = 0
    for file in FILES:
        heard = engine.transcribe(DATA / file)
        expected = published(module, load_audio(DATA / file, 16_000))
        assert [token for segment in heard.segments for token in segment.tokens] == expected, file
        assert heard.text == module.tokenizer.decode(expected).strip()
        assert heard.language == "Russian"  # all that there is
        spoken += len(expected)
    assert spoken > 100


def test_tokens_in_a_batch_are_those_alone(engine: Transcriber) -> None:
    alone = [engine.transcribe(DATA / file) for file in FILES]
    outcomes = sorted(engine.transcribe_many([Request(DATA / file) for file in FILES]), key=lambda each: each.index)
    for one, outcome in zip(alone, outcomes, strict=True):
        assert outcome.transcript is not None
        assert [each.tokens for each in outcome.transcript.segments] == [each.tokens for each in one.segments]
        assert outcome.transcript.text == one.text


def test_words_are_the_text_with_times_in_order(engine: Transcriber) -> None:
    seen = 0
    for file in FILES:
        heard = engine.transcribe(DATA / file)
        words = [word for segment in heard.segments for word in segment.words or []]
        assert " ".join(word.text for word in words) == " ".join(heard.text.split())
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(0 <= time <= heard.duration for time in times)
        assert all(0 < word.confidence <= 1 for word in words)
        seen += len(words)
    assert seen > len(FILES)


def test_times_are_those_of_the_frames(module: GigaAM, engine: Transcriber) -> None:
    """The first word begins with the frame of its first token: frames of 40 ms."""
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


def test_a_budget_cuts_and_says_so(engine: Transcriber) -> None:
    whole = engine.transcribe(DATA / "ru-1.wav").segments[0]
    cut = engine.transcribe(DATA / "ru-1.wav", max_new_tokens=3).segments[0]
    assert (cut.tokens, cut.finish_reason) == (whole.tokens[:3], "length")


def test_what_it_cannot_do_is_one_sentence(engine: Transcriber) -> None:
    with pytest.raises(OptionError, match="a context was given, but models of the family 'gigaam-ctc' cannot use one"):
        engine.transcribe(DATA / "ru-1.wav", context="names")
    with pytest.raises(OptionError, match=r"the language 'en' was given, but this model knows Russian \(ru\) alone"):
        engine.transcribe(DATA / "ru-1.wav", language="en")
    for options in (SegmentOptions(context="names"), SegmentOptions(language="German")):
        with pytest.raises(OptionError, match="was given, but"):
            engine.engine.check(options)


def test_segments_are_no_longer_than_the_model_takes(made: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError, match=r"segments of 26 s are too long: this model is made for 25 s at most"):
        Transcriber.from_artifact(made[1], segment_seconds=26)
    long = np.tile(load_audio(DATA / "ru-1.wav", 16_000), 20)
    transcriber = Transcriber.from_artifact(made[1], segment_seconds=25, vad=False)
    heard = transcriber.transcribe(long, sample_rate=16_000)
    assert len(heard.segments) > 1
    assert max(segment.end - segment.start for segment in heard.segments) <= 25


def test_the_end_of_a_stream_is_the_offline_text(made: tuple[Path, Path]) -> None:
    transcriber = Transcriber.from_artifact(made[1])
    samples = load_audio(DATA / "ru-2.wav", 16_000)
    stream = transcriber.stream()
    events = [event for at in range(0, len(samples), 4_000) for event in stream.feed(samples[at : at + 4_000])]
    finals = [event.result for event in (*events, *stream.finish()) if isinstance(event, Final)]
    assert finals
    for final in finals:
        piece = samples[round(final.start * 16_000) : round(final.end * 16_000)]
        assert final.tokens == transcriber.engine.transcribe(piece, SegmentOptions(), Timings()).tokens


def test_probes_are_what_the_graph_is_fed(engine: Transcriber) -> None:
    samples = load_audio(DATA / "ru-1.wav", 16_000)
    (probe,) = engine.engine.probes(samples, [], SegmentOptions())
    assert (probe.role, probe.choice) == ("encoder", "log_probs")
    (rows,) = engine.engine.run_probe(probe)
    best = rows[0].argmax(-1)
    expected = engine.engine.transcribe(samples, SegmentOptions(), Timings())
    assert len(best) == expected.audio_tokens
    assert set(expected.tokens) <= set(best.tolist())
    assert engine.engine.placement().keys() == {"encoder"}


def test_a_broken_tokenizer_is_one_sentence(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder = with_tokenizer(made[1], tmp_path / "artifact", b"{")
    with pytest.raises(
        ArtifactInvalidError, match=r"tokenizer\.json: not a readable tokenizer .*export the model again"
    ):
        Transcriber.from_artifact(folder)


def test_the_command_line_tells_words(made: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(
        runtime_app, ["transcribe", str(DATA / "ru-1.wav"), "--model", str(made[1]), "--format", "json"]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["segments"][0]["words"][0]["text"]
    refused = CliRunner().invoke(
        runtime_app, ["transcribe", str(DATA / "ru-1.wav"), "--model", str(made[1]), "--language", "en"]
    )
    assert refused.exit_code == 2
    assert "this model knows Russian (ru) alone; leave it out" in refused.stderr


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("front_end", "kind", "whisper-log-mel", r"Invalid enum value 'whisper-log-mel' - at `\$.kind`"),
        ("front_end", "n_mels", 80, "front_end.n_mels is 80, but graph or tokenizer have 64"),
        ("front_end", "hop_length", 0, "make no front end"),
        ("parameters", "vocab_size", 5, "parameters.vocab_size is 5, but graph or tokenizer have"),
        ("parameters", "blank_id", 0, "parameters.blank_id is 0"),
        ("parameters", "subsampling", 0, "not positive"),
        ("parameters", "segment_seconds", 61, "segment_seconds is 61, but positions are for 60 s"),
        ("parameters", "other", 1, "unknown field `other`"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_one_sentence(
    section: str, key: str, value: Any, message: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made[1], tmp_path / "artifact"))
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest[section][key] = value
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactInvalidError, match=message) as caught:
        Transcriber.from_artifact(folder)
    assert "export the model again" in str(caught.value)


def test_it_is_measured_as_what_it_is(made: tuple[Path, Path]) -> None:
    """A benchmark has its encoder's limit, and neither prompt nor steps."""
    clip = DATA / "ru-1.wav"
    work = measure_work(str(made[1]), str(clip))
    assert work.encoder_operations > 0
    assert (work.decoder_operations, work.weight_bytes, work.cache_bytes) == (None, None, None)
    found = measure(MeasureJob(Setup(str(made[1])), str(clip), 2.5, batch=1, runs=1))
    assert "prefill" not in found.stages
    assert (found.per_token, found.step, found.tokens.steps) == (None, None, 0)
    assert found.tokens.generated > 0
    share = shares(Limits(Rates(1e9, 1e9, 1e9), work), found)
    assert share.encode
    assert (share.prefill, share.step) == (None, None)
