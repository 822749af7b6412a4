"""Parakeet from checkpoint to text against transformers, with small random TDT and CTC checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from export import compare
from export.__main__ import app
from export.checkpoints import CheckpointFolder
from export.errors import CheckpointInvalidError
from export.families.parakeet.exporter import LANGUAGES, ParakeetCtc, ParakeetTdt
from export.families.parakeet.modules import DecoderJoint, FastConformer
from runtime import Transcriber, open_artifact
from runtime.__main__ import app as runtime_app
from runtime.bench.limits import measure_work
from runtime.decoding.tdt import States, TdtRules, greedy_tdt
from runtime.engines.base import EngineOptions, SegmentJob, SegmentOptions, SegmentResult
from runtime.engines.frame import padded
from runtime.errors import ArtifactInvalidError, OptionError
from runtime.families import make_engine
from runtime.families.parakeet import ParakeetCtcEngine, ParakeetEngine, ParakeetTdtEngine
from runtime.pipeline.events import Final, Partial
from runtime.results import Timings
from runtime.transcriber import Request
from tests.conftest import DATA
from tests.helpers import parakeet_checkpoint as tiny_parakeet
from tests.helpers.broken_tokenizer import with_tokenizer
from tests.helpers.parakeet_checkpoint import BLANK, VOCABULARY

pytestmark = pytest.mark.slow

RATE = 16_000
SECONDS = (5.0, 3.21, 0.9, 8.0, 0.1)
NAMES = {"tdt": "parakeet-tdt-0.6b-v3", "ctc": "parakeet-ctc-1.1b"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    models = {"tdt": tiny_parakeet.tdt_model(), "ctc": tiny_parakeet.ctc_model()}
    return {kind: tiny_parakeet.write(model, folder / kind) for kind, model in models.items()}


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    for kind, name in NAMES.items():
        arguments = [name, "--checkpoint", str(checkpoints[kind]), "--out", str(folder / kind)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    return {kind: folder / kind for kind in NAMES}


@pytest.fixture(scope="module")
def tdt(artifacts: dict[str, Path]) -> ParakeetTdtEngine:
    engine = make_engine(open_artifact(artifacts["tdt"]), EngineOptions(max_batch=3))
    assert isinstance(engine, ParakeetTdtEngine)
    return engine


@pytest.fixture(scope="module")
def ctc(artifacts: dict[str, Path]) -> ParakeetCtcEngine:
    engine = make_engine(open_artifact(artifacts["ctc"]), EngineOptions(max_batch=3))
    assert isinstance(engine, ParakeetCtcEngine)
    return engine


@pytest.fixture(scope="module")
def clips(speech: np.ndarray) -> list[np.ndarray]:
    return [speech[index * 40_000 :][: int(seconds * RATE)] for index, seconds in enumerate(SECONDS)]


def run(engine: ParakeetEngine, clips: list[np.ndarray], **options: Any) -> list[SegmentResult]:
    jobs = iter(
        [SegmentJob(index, clip, SegmentOptions(**options), Timings(), 0.0) for index, clip in enumerate(clips)]
    )
    results = dict(engine.run(lambda: next(jobs, None)))
    return [results[index] for index in range(len(clips))]


Step = tuple[int, int, int]


@torch.no_grad()
def generated(model: Any, inputs: Any) -> list[list[Step]]:
    """(token, frame, duration) of each step of ``generate`` within a row's frames, blanks included."""
    output = model.generate(**inputs, max_new_tokens=2000)
    valid = model.encoder._get_output_attention_mask(inputs["attention_mask"]).sum(-1).tolist()
    rows = []
    for tokens, durations, length in zip(output.sequences.tolist(), output.durations.tolist(), valid, strict=True):
        steps, frame = [], 0
        for token, duration in zip(tokens[1:], durations[1:], strict=True):
            if frame >= length:
                break
            steps.append((token, frame, duration))
            frame += duration
        assert frame >= length
        rows.append(steps)
    return rows


def spoken(steps: list[Step]) -> list[Step]:
    return [step for step in steps if step[0] != BLANK]


def test_tokens_durations_and_text_equal_generate(tdt: ParakeetTdtEngine, clips: list[np.ndarray]) -> None:
    """From samples, front end included, one by one and in a batch."""
    model, processor = tiny_parakeet.tdt_model(), tiny_parakeet.processor("tdt")
    rows = generated(model, processor(clips, sampling_rate=RATE))
    # The comparison is meaningful: texts differ, and there are blanks and tokens with duration 0.
    assert all(0.05 < np.mean([step[0] == BLANK for step in row]) < 0.9 for row in rows[:2])
    assert len({step[0] for row in rows for step in row}) > 8
    assert any(step[2] == 0 for row in rows for step in spoken(row))
    for batched in (True, False):
        results = run(tdt, clips) if batched else [run(tdt, [clip])[0] for clip in clips]
        for result, row, clip in zip(results, rows, clips, strict=True):
            encoded, lengths = tdt.encode(*padded([tdt.features(clip)]))
            ((_, hypothesis),) = tdt.decode([encoded[0, : lengths[0]]], [None], lambda _: False)
            spans = zip(hypothesis.tokens, hypothesis.starts, hypothesis.ends, strict=True)
            assert [(token, start, end - start) for token, start, end in spans] == spoken(row)
            assert result.tokens == hypothesis.tokens
            text = processor.decode([step[0] for step in row], skip_special_tokens=True)
            assert result.text == text.strip()
            # This small checkpoint has one language.
            assert (result.finish_reason, result.language) == ("stop", "English")
            assert result.audio_tokens == lengths[0]


def test_reference_batches_equal_its_single_runs(clips: list[np.ndarray]) -> None:
    """So the runtime may be compared with either."""
    model, processor = tiny_parakeet.tdt_model(), tiny_parakeet.processor("tdt")
    batched = generated(model, processor(clips, sampling_rate=RATE))
    for clip, row in zip(clips, batched, strict=True):
        assert generated(model, processor([clip], sampling_rate=RATE)) == [row]


def test_word_times_equal_reference_token_times(tdt: ParakeetTdtEngine, clips: list[np.ndarray]) -> None:
    model, processor = tiny_parakeet.tdt_model(), tiny_parakeet.processor("tdt")
    inputs = processor(clips[:1], sampling_rate=RATE)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=2000)
    _, (timed,) = processor.decode(output.sequences, durations=output.durations, skip_special_tokens=True)
    (result,) = run(tdt, clips[:1])
    words = result.words or []
    assert " ".join(word.text for word in words) == " ".join(result.text.split())
    assert len(words) > 3
    starts = {round(each["start"], 3) for each in timed}
    ends = {round(min(each["end"], SECONDS[0]), 3) for each in timed}
    for word in words:
        assert round(word.start, 3) in starts
        assert round(word.end, 3) in ends
        assert 0 < word.confidence <= 1
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert words[-1].end <= SECONDS[0]


def test_ctc_tokens_and_text_equal_the_reference(ctc: ParakeetCtcEngine, clips: list[np.ndarray]) -> None:
    model, processor = tiny_parakeet.ctc_model(), tiny_parakeet.processor("ctc")
    inputs = processor(clips, sampling_rate=RATE)
    with torch.no_grad():
        sequences = model.generate(**inputs)
    texts = processor.batch_decode(sequences, skip_special_tokens=True)
    assert len(set(texts)) == len(texts)
    for batched in (True, False):
        results = run(ctc, clips) if batched else [run(ctc, [clip])[0] for clip in clips]
        for result, row, text in zip(results, sequences.tolist(), texts, strict=True):
            grouped = [token for token, before in zip(row, [None, *row[:-1]], strict=True) if token != before]
            assert result.tokens == [token for token in grouped if token != BLANK]
            assert result.text == text.strip()
            assert " ".join(word.text for word in result.words or []) == " ".join(result.text.split())
    cut = run(ctc, clips[:1], max_new_tokens=2)[0]
    assert (cut.tokens, cut.finish_reason) == (results[0].tokens[:2], "length")


class TorchJoint:
    """A reference model's networks with the interface of the decoding loop."""

    def __init__(self, model: Any) -> None:
        self.module = DecoderJoint(model.decoder, model.joint.head, VOCABULARY)

    def start(self, rows: int) -> States:
        return States(np.zeros((2, rows, 20), np.float32), np.zeros((2, rows, 20), np.float32))

    @torch.no_grad()
    def step(self, tokens: np.ndarray, states: States, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, States]:
        inputs = (torch.from_numpy(each) for each in (tokens, states.hidden, states.cell, frames))
        token_logits, duration_logits, hidden, cell = (each.numpy() for each in self.module(*inputs))
        return token_logits, duration_logits, States(hidden, cell)


@torch.no_grad()
def test_max_symbols_advances_a_model_with_only_zero_durations(clips: list[np.ndarray]) -> None:
    """The reference has no limit and fills its buffer; the same networks in our loop reach the end of the audio."""
    model = tiny_parakeet.tdt_model(stay_bias=30.0, blank_bias=-30.0)
    inputs = tiny_parakeet.processor("tdt")(clips[2:3], sampling_rate=RATE)
    assert not model.generate(**inputs, max_new_tokens=60).durations.any()
    encoded = model.get_audio_features(inputs["input_features"], inputs["attention_mask"])
    count = int(encoded.attention_mask.sum())
    rules = TdtRules(BLANK, (0, 1, 2, 3, 4), 10)
    ((_, hypothesis),) = greedy_tdt(TorchJoint(model), [encoded.pooler_output[0, :count].numpy()], rules)
    assert hypothesis.starts == hypothesis.ends == [frame for frame in range(count) for _ in range(10)]


def test_manifest_and_card_of_the_artifact(artifacts: dict[str, Path]) -> None:
    manifest = open_artifact(artifacts["tdt"]).manifest
    assert manifest.source.licence == "CC-BY-4.0"
    assert set(manifest.graphs) == {"encoder", "decoder_joint"}
    assert manifest.parameters["durations"] == [0, 1, 2, 3, 4]
    assert (manifest.parameters["blank_id"], manifest.parameters["vocab_size"]) == (BLANK, VOCABULARY)
    assert manifest.parameters["frame_seconds"] == 0.08
    for each in (manifest, open_artifact(artifacts["ctc"]).manifest):
        assert all(
            0 < (result.max_relative_difference or 0) <= result.tolerance == 1e-4 for result in each.parity.values()
        )
        assert "batch of 3" in each.parity["encoder"].cases[-1]
        assert [language.code for language in each.languages] == ["en"]
    info = CliRunner().invoke(runtime_app, ["info", str(artifacts["tdt"])]).stdout
    assert "CC-BY-4.0" in info
    card = (artifacts["tdt"] / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "under [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/)" in card
    assert "README.md" in manifest.files
    assert "decoder_joint.onnx" in info


def test_file_is_transcribed(artifacts: dict[str, Path]) -> None:
    transcriber = Transcriber.from_artifact(artifacts["tdt"])
    whole = transcriber.transcribe(DATA / "en-1.wav")
    assert whole.text
    words = [word for segment in whole.segments for word in segment.words or []]
    assert " ".join(word.text for word in words) == " ".join(whole.text.split())
    assert all(0 <= word.start <= word.end <= whole.duration for word in words)
    shown = CliRunner().invoke(
        runtime_app,
        ["transcribe", str(DATA / "en-1.wav"), "--model", str(artifacts["tdt"]), "--format", "json"],
    )
    segments = json.loads(shown.stdout)["segments"]
    assert [word["text"] for segment in segments for word in segment["words"]] == [word.text for word in words]
    many = [DATA / f"{name}.wav" for name in ("en-1", "ru-1", "zh-1", "en-2")]
    outcomes = {each.index: each.result() for each in transcriber.transcribe_many(map(Request, many))}
    assert outcomes[0].text == whole.text
    with pytest.raises(OptionError, match=r"context was given.* 'parakeet-tdt'"):
        transcriber.transcribe(DATA / "en-1.wav", context="Sara")
    for code, message in (
        ("de", r"'de' was given.* English \(en\)"),
        ("en", r"English \(en\) was given"),
    ):
        with pytest.raises(OptionError, match=message):
            transcriber.transcribe(DATA / "en-1.wav", code)
    with pytest.raises(OptionError, match="this model has no decoder, only encoder, decoder_joint"):
        Transcriber.from_artifact(artifacts["tdt"], decoder_provider="cpu")


@pytest.mark.parametrize("kind", ["tdt", "ctc"])
def test_stream_results_equal_offline_results(artifacts: dict[str, Path], kind: str, speech: np.ndarray) -> None:
    transcriber = Transcriber.from_artifact(artifacts[kind])
    stream, events = transcriber.stream(interval=0.5), []
    audio = np.concatenate([speech[: 4 * RATE], np.zeros(RATE, np.float32)])
    for start in range(0, len(audio), 4000):
        events += stream.feed(audio[start : start + 4000])
    events += stream.finish()
    partials = [event for event in events if isinstance(event, Partial)]
    finals = [event for event in events if isinstance(event, Final)]
    assert partials
    assert not any(event.stable for event in partials)
    assert finals
    for event in finals:
        assert event.as_offline
        piece = audio[round(event.result.start * RATE) : round(event.result.end * RATE)]
        alone = transcriber.engine.transcribe(piece, SegmentOptions(), Timings())
        assert event.result.text == alone.text
        assert event.result.tokens == alone.tokens
        begin = event.result.start
        assert [word.start for word in event.result.words or []] == [
            pytest.approx(begin + word.start, abs=2e-3) for word in alone.words or []
        ]


def test_probes_equal_graph_inputs(tdt: ParakeetTdtEngine, ctc: ParakeetCtcEngine, speech: np.ndarray) -> None:
    clip = speech[: 3 * RATE]
    tokens = tdt.transcribe(clip, SegmentOptions(), Timings()).tokens
    encoder, joint = tdt.probes(clip, tokens, SegmentOptions())
    assert (encoder.role, joint.role, joint.choice) == ("encoder", "decoder_joint", "token_logits")
    logits = tdt.run_probe(joint)[joint.outputs.index("token_logits")]
    choices = logits.argmax(axis=1)
    assert choices[choices != BLANK].tolist() == tokens
    assert len(tdt.run_probe(encoder)[0][0]) == -(-300 // 8)
    other = tdt.probes(clip, [7, 8], SegmentOptions())[1]
    assert set(other.feeds["token"].tolist()) <= {BLANK, 7, 8}
    assert np.array_equal(other.feeds["frame"][0], joint.feeds["frame"][0])
    (only,) = ctc.probes(clip, [], SegmentOptions())
    assert ctc.run_probe(only)[0].shape == (1, 38, VOCABULARY)
    assert set(tdt.placement()) == {"encoder", "decoder_joint"}


def test_any_length_is_transcribed(tdt: ParakeetTdtEngine, ctc: ParakeetCtcEngine, rng: np.random.Generator) -> None:
    for length in (0, 1, 159, 160, 161, 1279, 1280, 1281, 30 * RATE):
        for engine in (tdt, ctc):
            result = engine.transcribe(rng.standard_normal(length).astype(np.float32), SegmentOptions(), Timings())
            assert result.audio_tokens == max(1, -(-(length // 160) // 8))


@torch.no_grad()
def test_modules_equal_the_reference_with_other_sizes() -> None:
    """Other kernels and subsampling factor, no biases, no scale, one LSTM layer, batch norms with statistics."""
    sizes = tiny_parakeet.ENCODER | {
        "attention_bias": False,
        "convolution_bias": False,
        "scale_input": False,
        "conv_kernel_size": 5,
        "subsampling_factor": 4,
        "num_attention_heads": 2,
    }
    model = tiny_parakeet.tdt_model(num_decoder_layers=1, encoder_config=sizes)
    encoder = FastConformer(model.encoder, model.encoder_projector).eval()
    joint = DecoderJoint(model.decoder, model.joint.head, VOCABULARY)
    features, lengths = torch.randn(3, 90, 16), torch.tensor([90, 41, 2])
    expected = model.get_audio_features(features, torch.arange(90) < lengths[:, None])
    ours, valid = encoder(features, lengths)
    assert valid.tolist() == expected.attention_mask.sum(-1).tolist()
    for row, count in enumerate(valid.tolist()):
        assert (ours[row, :count] - expected.pooler_output[row, :count]).abs().max() <= 1e-4
    hidden = torch.zeros(1, 3, 20)
    tokens, durations, *_ = joint(torch.tensor([1, 2, 3]), hidden, hidden, ours[:, 0])
    reference = model.joint(model.decoder(torch.tensor([[1], [2], [3]]))[:, 0], ours[:, 0])
    assert (torch.cat([tokens, durations], dim=1) - reference).abs().max() <= 1e-4


def edited(folder: Path, out: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> Path:
    shutil.copytree(folder, out)
    content = json.loads((out / name).read_text())
    change(content)
    (out / name).write_text(json.dumps(content))
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="parakeet_ctc"), "model_type is 'parakeet_ctc', not 'parakeet_tdt'"),
        (lambda c: c.update(durations=[0, 2, 4]), r"durations is \[0, 2, 4\]"),
        (lambda c: c.update(durations=[]), r"durations is \[\]"),
        (lambda c: c.update(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (lambda c: c.update(blank_token_id=99), "blank has the id 99"),
        (lambda c: c.update(vocab_size="many"), "contradicts itself or the architecture"),
        (lambda c: c["encoder_config"].update(subsampling_conv_stride=3), "subsampling_conv_stride is 3"),
        (lambda c: c["encoder_config"].update(subsampling_factor=6), "subsampling_factor is 6"),
        (lambda c: c["encoder_config"].update(conv_kernel_size=4), "conv_kernel_size % 2"),
        (lambda c: c["encoder_config"].update(hidden_size=25), "hidden_size"),
        (lambda c: c["encoder_config"].update(num_hidden_layers=3), r"tensor 'encoder.layers.2.* is missing \(and"),
        (lambda c: c["encoder_config"].update(num_hidden_layers=1), "is unexpected"),
        (lambda c: c["encoder_config"].update(intermediate_size=40), r"has shape \[48"),
        (lambda c: c.update(vocab_size=20, blank_token_id=19), "more than the vocab_size 20"),
        (lambda c: c.update(languages=["Klingon"]), "unknown language 'Klingon'"),
        (lambda c: c.update(languages=7), "unknown language 7"),
        (lambda c: c.update(segment_seconds=True), "segment_seconds is True"),
        (lambda c: c.update(segment_seconds=1e9), "not a number from 1 to 600"),
    ],
)
def test_unsupported_configurations_are_one_line_errors(
    checkpoints: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = edited(checkpoints["tdt"], tmp_path / "x", change)
    with pytest.raises(CheckpointInvalidError, match=message) as caught:
        ParakeetTdt(CheckpointFolder(folder, "x", None))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_front_end_blank_and_weights_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(
        checkpoints["tdt"],
        tmp_path / "front",
        lambda c: c["feature_extractor"].update(n_fft=400),
        "processor_config.json",
    )
    with pytest.raises(CheckpointInvalidError, match=r"n_fft is 400, .* 512"):
        ParakeetTdt(CheckpointFolder(folder, "x", None))
    (folder / "processor_config.json").unlink()
    ParakeetTdt(CheckpointFolder(folder, "x", None))  # without the file the published settings are assumed
    folder = edited(checkpoints["ctc"], tmp_path / "blank", lambda c: c.update(pad_token_id=None))
    with pytest.raises(CheckpointInvalidError, match="the blank has the id -1"):
        ParakeetCtc(CheckpointFolder(folder, "x", None))
    folder = shutil.copytree(checkpoints["ctc"], tmp_path / "integers")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"ctc_head.bias": tensors["ctc_head.bias"].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(CheckpointInvalidError, match="quantized checkpoints cannot be exported"):
        ParakeetCtc(CheckpointFolder(folder, "x", None))


def test_languages_by_vocabulary_and_by_name(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(checkpoints["tdt"], tmp_path / "x", lambda c: c.update(languages=["de", "Ukrainian"]))
    parsed = ParakeetTdt(CheckpointFolder(folder, "x", None)).languages
    assert [(each.name, each.code) for each in parsed] == [("German", "de"), ("Ukrainian", "uk")]
    assert len(LANGUAGES) == len(set(LANGUAGES.values())) == 25


def test_out_of_tolerance_stops_the_export(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "TOLERANCE", 1e-12)
    arguments = [NAMES["ctc"], "--checkpoint", str(checkpoints["ctc"]), "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "the graph differs from the reference by" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert compare.RATE == RATE


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("tdt", lambda m: m["parameters"].update(hidden_size=21), "hidden_size says 21, but the graph has 20"),
        ("tdt", lambda m: m["parameters"].update(durations=[0, 1]), "durations says 2, but the graph has 5"),
        ("tdt", lambda m: m["parameters"].update(durations=[-1, 1, 2, 3, 4]), "must not be negative"),
        ("tdt", lambda m: m["parameters"].update(max_symbols=0), "must not be negative"),
        ("tdt", lambda m: m["parameters"].pop("blank_id"), "missing required field `blank_id`"),
        ("tdt", lambda m: m["front_end"].update(n_mels=80), "front_end.n_mels is 80, but the graph has 16"),
        ("tdt", lambda m: m["front_end"].update(kind="whisper-log-mel"), "kind"),
        ("tdt", lambda m: m["graphs"].pop("decoder_joint"), "no graph with the role 'decoder_joint'"),
        ("ctc", lambda m: m["parameters"].update(vocab_size=49), "the encoder's width is 49, but the graph has 48"),
        ("ctc", lambda m: m["parameters"].update(blank_id=48), "the blank is 48"),
        ("ctc", lambda m: m["parameters"].update(frame_seconds=0.04), "frame_seconds is 0.04"),
        ("ctc", lambda m: m["parameters"].update(extra=1), "unknown field `extra`"),
    ],
)
def test_wrong_manifest_is_refused_at_load(
    artifacts: dict[str, Path],
    tmp_path: Path,
    kind: str,
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    folder = edited(artifacts[kind], tmp_path / "x", change, "manifest.json")
    with pytest.raises(ArtifactInvalidError, match=message) as caught:
        make_engine(open_artifact(folder), EngineOptions())
    assert str(folder) in str(caught.value)
    assert "export the model again" in str(caught.value)


@pytest.mark.parametrize("kind", NAMES)
def test_broken_tokenizer_is_refused(kind: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = with_tokenizer(artifacts[kind], tmp_path / "artifact", b"{")
    with pytest.raises(
        ArtifactInvalidError, match=r"tokenizer\.json: not a readable tokenizer .*export the model again"
    ):
        Transcriber.from_artifact(folder)


def test_segment_length_is_limited_by_the_model(artifacts: dict[str, Path]) -> None:
    artifact = open_artifact(artifacts["tdt"])
    assert make_engine(artifact, EngineOptions()).segment_seconds == 20.0
    with pytest.raises(OptionError, match=r"segments of 31 s are too long: .* 30 s"):
        make_engine(artifact, EngineOptions(segment_seconds=31.0))
    assert msgspec.to_builtins(artifact.manifest)["parameters"]["segment_seconds"] == 30.0


@pytest.mark.parametrize("kind", ["tdt", "ctc"])
def test_work_counts_the_encoder_only(artifacts: dict[str, Path], kind: str) -> None:
    """The number of joint network steps depends on the text, so they are not counted."""
    work = measure_work(str(artifacts[kind]), str(DATA / "en-1.wav"))
    assert work.encoder_operations > 0
    assert work.decoder_operations is None
