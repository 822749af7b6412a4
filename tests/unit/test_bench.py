"""Parts of a benchmark: option parsing, counts of steps and operations, clips, single measurements."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import soundfile

from runtime.bench import child
from runtime.bench.benchmark import NewTokens, parse_counts, parse_numbers
from runtime.bench.child import ColdJob, Job, MeasureJob, RatesJob, Setup, WorkJob, count_steps
from runtime.bench.clips import cut, load_recordings, sample_recordings
from runtime.bench.limits import _product_model, best_rates, measure_work, shares
from runtime.bench.results import Configuration, Limits, Rates, Shares, Spread, Tokens, Work
from runtime.cli import cold_start
from runtime.decoding.greedy import TextJob as Text
from runtime.decoding.greedy import greedy_rows
from runtime.errors import AudioNotFoundError, OptionError
from tests.conftest import ARTIFACT, DATA, REPOSITORY
from tests.helpers.rows import PlainRows

SETUP = Setup(str(ARTIFACT))


def test_lists_of_numbers() -> None:
    assert parse_numbers("--seconds", "30,1, 0.5,1") == [0.5, 1.0, 30.0]
    assert parse_counts("--batch", "8,1") == [1, 8]


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1,,2", "nan", "inf", "1;2"])
def test_invalid_list_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--seconds: .*not a positive number"):
        parse_numbers("--seconds", text)


def test_batch_must_be_a_whole_number() -> None:
    with pytest.raises(OptionError, match=r"--batch: 1\.5 .*whole number"):
        parse_counts("--batch", "1.5")


def test_forced_tokens() -> None:
    assert NewTokens.parse("180").of(5) == NewTokens.parse("180").of(600) == 180
    assert [NewTokens.parse("3/s").of(seconds) for seconds in (0.1, 11, 60)] == [1, 33, 180]
    assert [str(NewTokens.parse(text)) for text in ("180", "2.5/s")] == ["180", "2.5/s"]


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", "3/min", "3/", "/s", "nan/s", ""])
def test_invalid_number_of_tokens_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--new-tokens"):
        NewTokens.parse(text)


class CountingRows(PlainRows):
    """A decoder that never ends a text and counts its steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.layout = (0, 0)
        self.movable = True

    def open_rows(self, rows: int, positions: int) -> None:
        self.layout = (rows, positions)

    def move_row(self, source: int, target: int) -> None: ...

    def prefill_row(self, row: int, prompt: list[int], audio_embeds: Any) -> Any:
        return np.zeros(4, np.float32)

    def step(self, tokens: Sequence[int | None]) -> Any:
        self.steps += 1
        return np.zeros((len(tokens), 4), np.float32)


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("counts", [[5], [7, 7, 7, 7], [1, 9, 3, 1, 1, 6, 2], [1, 1]])
def test_counted_steps_equal_those_of_the_decoder(counts: list[int], rows: int) -> None:
    decoder = CountingRows()
    texts = iter([(count, Text([0], np.zeros((0, 1), np.float32), count, ignore_stop=True)) for count in counts])
    assert len(list(greedy_rows(decoder, lambda: next(texts, None), lambda _: (rows, 10), []))) == len(counts)
    assert count_steps(counts, rows) == decoder.steps


def test_clips_have_the_exact_length_and_repeat_the_audio() -> None:
    samples = np.arange(10, dtype=np.float32)
    assert cut(samples, 4, 1.5).tolist() == [0, 1, 2, 3, 4, 5]
    assert cut(samples, 4, 5).tolist() == [*range(10), *range(10)]
    assert len(cut(samples, 4, 0.01)) == 1


def test_only_the_needed_recordings_are_read(tmp_path: Path) -> None:
    assert all(path.is_file() for path in sample_recordings())
    first, missing = DATA / "en-1.wav", tmp_path / "missing.wav"
    length = soundfile.info(first).frames
    assert len(load_recordings([first, missing], 16_000, 1.0)) == length
    with pytest.raises(AudioNotFoundError, match=r"missing\.wav"):
        load_recordings([first, missing], 16_000, 100.0)


def test_the_timed_model_computes_a_matrix_product(rng: np.random.Generator) -> None:
    for integer, left, weights in (
        (True, rng.integers(0, 255, (3, 5), np.uint8), rng.integers(-127, 127, (5, 7), np.int8)),
        (False, rng.standard_normal((3, 5), np.float32), rng.standard_normal((5, 7), np.float32)),
    ):
        session = ort.InferenceSession(_product_model(weights, integer=integer), providers=["CPUExecutionProvider"])
        wide = np.int32 if integer else np.float32
        (output,) = session.run(None, {"a": left})
        np.testing.assert_allclose(output, left.astype(wide) @ weights.astype(wide), rtol=1e-5)


def test_operations_and_bytes_of_the_bundled_model() -> None:
    """Expected values follow from the model's sizes; a prompt position takes two operations for each layer weight."""
    work = measure_work(str(ARTIFACT), str(DATA / "en-3.wav"))
    assert work.integer_products
    hidden, ffn, layers, heads, kv, size = 256, 768, 4, 4, 2, 64
    layer = hidden * (heads + 2 * kv) * size + heads * size * hidden + 3 * hidden * ffn
    assert work.decoder_operations == pytest.approx(2 * layer * layers, rel=0.05)
    assert work.cache_bytes == layers * 2 * kv * size  # int8
    assert work.weight_bytes == (ARTIFACT / "decoder.onnx").stat().st_size
    assert work.encoder_operations > 0


def configuration(**changes: Any) -> Configuration:
    one = Spread.of([1.0])
    base = Configuration(
        seconds=10.0,
        batch=2,
        clips=2,
        segments=1,
        runs=1,
        tokens=Tokens(audio=260, prompt=300, generated=42, stepped=40, steps=20),
        total=one,
        stages={"encode": Spread.of([2.0]), "prefill": Spread.of([0.5]), "decode": one},
        per_token=one,
        step=Spread.of([0.1]),
        first_token=None,
        rtf=one,
        audio_seconds_per_second=one,
        load=1.0,
        peak_bytes=1,
    )
    return msgspec.structs.replace(base, **changes)


def test_shares_of_the_limits() -> None:
    rates = Rates(memory_bytes=1e9, float_operations=1e9, integer_operations=4e9)
    work = Work(
        integer_products=True, encoder_operations=1e6, decoder_operations=2e6, weight_bytes=10_000_000, cache_bytes=1000
    )
    result = shares(Limits(rates, work), configuration())
    assert result.encode == pytest.approx(260 * 1e6 / 4e9 / 2.0)
    assert result.prefill == pytest.approx(300 * 2e6 / 4e9 / 0.5)
    # Two rows, each with 150 prompt positions and on average half of its 21 tokens.
    assert result.step == pytest.approx((10_000_000 + 2 * 160.5 * 1000) / 1e9 / 0.1)
    floats = msgspec.structs.replace(work, integer_products=False)
    assert shares(Limits(rates, floats), configuration()).encode == pytest.approx(260 * 1e6 / 1e9 / 2.0)
    assert shares(Limits(rates, work), configuration(step=None)).step is None
    assert best_rates([rates, Rates(2e9, 5e8, 1.0)]) == Rates(2e9, 1e9, 4e9)


def test_a_model_without_a_decoder_has_only_the_encoders_share() -> None:
    rates = Rates(memory_bytes=1e9, float_operations=1e9, integer_operations=4e9)
    result = configuration(step=None, stages={"encode": Spread.of([2.0]), "decode": Spread.of([0.1])})
    limits = Limits(rates, Work(integer_products=False, encoder_operations=1e6))
    assert shares(limits, result) == Shares(encode=0.13, prefill=None, step=None)


def test_one_measurement() -> None:
    job = MeasureJob(SETUP, str(DATA / "en-1.wav"), 2.0, batch=2, runs=2, new_tokens=4)
    result = child.measure(job)
    assert (result.clips, result.segments, result.runs) == (2, 1, 2)
    assert result.tokens.generated == 8
    assert (result.tokens.stepped, result.tokens.steps) == (6, 3)
    assert set(result.stages) >= {"features", "encode", "prefill", "decode", "other"}
    assert result.rtf.median == pytest.approx(result.total.median / 4.0)
    assert result.rtf.low * result.audio_seconds_per_second.high == pytest.approx(1.0)
    assert result.peak_bytes > 10_000_000
    assert msgspec.json.decode(msgspec.json.encode(result), type=Configuration) == result


def test_forced_tokens_are_divided_among_segments(tmp_path: Path, speech: Any) -> None:
    soundfile.write(tmp_path / "x.wav", cut(speech, 16_000, 6.0), 16_000)
    setup = msgspec.structs.replace(SETUP, segment_seconds=3.0)
    result = child.measure(MeasureJob(setup, str(tmp_path / "x.wav"), 6.0, batch=1, runs=1, new_tokens=7, clips=1))
    assert result.segments >= 2
    assert result.tokens.generated == result.segments * -(-7 // result.segments)


def test_without_forced_tokens_the_model_ends_the_text() -> None:
    result = child.measure(MeasureJob(SETUP, str(DATA / "en-1.wav"), 2.07, batch=1, runs=1))
    assert result.tokens.generated > 5
    assert result.tokens.stepped == result.tokens.generated  # without the first token, with the stop id
    assert result.first_token is not None
    assert result.first_token.median < result.total.median


class Streams:
    """Standard streams of bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.buffer = io.BytesIO(data)
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text


def run_child(
    job: Job | ColdJob, monkeypatch: pytest.MonkeyPatch, main: Callable[[], int] = child.main
) -> tuple[int, bytes, str]:
    """Return exit code, standard output and standard error of a job."""
    out, err = Streams(), Streams()
    monkeypatch.setattr(sys, "stdin", Streams(msgspec.json.encode(job)))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = main()
    return code, out.buffer.getvalue(), err.written


def test_jobs_and_results_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = str(DATA / "en-1.wav")
    _, output, _ = run_child(WorkJob(str(ARTIFACT), clip), monkeypatch)
    assert msgspec.json.decode(output, type=Work).cache_bytes
    _, output, _ = run_child(MeasureJob(SETUP, clip, 2.0, batch=1, runs=1, new_tokens=2), monkeypatch)
    assert msgspec.json.decode(output, type=Configuration).tokens.generated == 2
    job = MeasureJob(SETUP, "missing.wav", 2.0, batch=1, runs=1)
    assert run_child(job, monkeypatch) == (2, b"", "missing.wav: no such file\n")


def test_a_cold_start_writes_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    job = ColdJob(SETUP, str(DATA / "en-1.wav"))
    assert run_child(job, monkeypatch, cold_start.main) == (0, b"It was very quiet in Madrid.\n", "")
    job = ColdJob(SETUP, "missing.wav")
    assert run_child(job, monkeypatch, cold_start.main) == (2, b"", "missing.wav: no such file\n")


def test_nothing_imports_the_cold_start() -> None:
    """It imports the command line, which imports the benchmark: any import of it would close a circle."""
    sources = [path for path in (REPOSITORY / "runtime").rglob("*.py") if path.name != "cold_start.py"]
    pattern = re.compile(r"^\s*(from|import) .*\bcold_start\b", re.MULTILINE)
    assert not [path for path in sources if pattern.search(path.read_text(encoding="utf-8"))]


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.bench.limits._READ_BYTES", 1 << 24)
    monkeypatch.setattr("runtime.bench.limits._ROUNDS", 2)
    monkeypatch.setattr("runtime.bench.limits._PRODUCT", (16, 64, 32))
    _, output, _ = run_child(RatesJob(1), monkeypatch)
    result = msgspec.json.decode(output, type=Rates)
    assert min(result.memory_bytes, result.float_operations, result.integer_operations) > 1e6
