"""Tests of the gate: comparisons of graphs and texts, bounds, the manifest entry and the table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rich.console import Console

from quantize.gate import (
    EvaluationRun,
    Expected,
    TextResults,
    compare_graphs,
    compare_runs,
    differs_too_much,
    find_exceeded_bounds,
    record,
    render,
    rises_too_much,
)
from quantize.graph import save_graph
from quantize.recipe import Bounds
from runtime.engines.base import Probe
from runtime.evaluation import Utterance
from runtime.model.artifact import Artifact, open_artifact
from runtime.model.manifest import (
    ErrorRate,
    FallbackNode,
    Gate,
    GraphQuantization,
    Quantization,
    TextDifference,
)
from runtime.results import Segment, Timings, TokenCounts, Transcript
from tests.conftest import ARTIFACT

BOUNDS = Bounds({"encoder": 0.1, "*": 0.2}, words_differ=0.01, error_rate=0.01, identical=0.9)
NAN, INF = float("nan"), float("inf")
SAME = TextDifference("words", 400, 0, 0.0, 0.0)


def rate(parent: float, quantized: float, language: str = "English", low: float | None = None) -> ErrorRate:
    high = None if low is None else low + 0.05
    return ErrorRate(language, "words", 4, parent, quantized, 40, 2, low, high)


def texts(identical: float = 1.0, difference: TextDifference = SAME, rates: Sequence[ErrorRate] = ()) -> TextResults:
    return TextResults(4, identical, difference, list(rates))


@pytest.mark.parametrize(
    ("errors", "results", "expected"),
    [
        ({"encoder": 0.1, "decoder": 0.2}, texts(0.9, rates=[rate(0.25, 0.25)]), []),
        ({"encoder": 0.0}, None, []),
        ({}, texts(rates=[rate(0.5, 0.1)]), []),  # better is allowed
        ({"encoder": 0.11}, texts(), ["relative error of the encoder is 0.1100, more than 0.1"]),
        ({"decoder": 0.21}, None, ["relative error of the decoder is 0.2100, more than 0.2"]),
        ({"encoder": NAN}, None, ["relative error of the encoder is nan, more than 0.1"]),
        ({"encoder": INF}, None, ["relative error of the encoder is inf, more than 0.1"]),
        ({}, texts(0.89), ["89.0% of the utterances have the parent's tokens, fewer than 90.0%"]),
        ({}, texts(NAN), ["nan% of the utterances have the parent's tokens, fewer than 90.0%"]),
        (
            {},
            texts(rates=[rate(0.0, 0.005), rate(0.02, 0.04, "Russian")]),
            ["error rate in Russian rose from 2.00% to 4.00%, more than 1 points"],
        ),
        (
            {},
            texts(rates=[rate(0.02, 0.04, low=0.005)]),
            [
                "error rate in English rose from 2.00% to 4.00% (95 % interval of the rise +0.50 to +5.50 points), "
                "more than 1 points"
            ],
        ),
        (
            {},
            texts(difference=TextDifference("words", 400, 20, 0.03, 0.075)),
            [
                "texts differ from the parent's in 20 of 400 words, 5.00% (95 % interval 3.00% to 7.50%), "
                "more than 1.00%"
            ],
        ),
    ],
)
def test_exceeded_bounds(errors: dict[str, float], results: TextResults | None, expected: list[str]) -> None:
    assert find_exceeded_bounds(BOUNDS, errors, results) == expected


def test_all_exceeded_bounds_are_listed() -> None:
    results = texts(0, TextDifference("words", 400, 40, 0.08, 0.12), [rate(0, 1), rate(0, 1, "Russian")])
    assert len(find_exceeded_bounds(BOUNDS, {"encoder": 1, "decoder": 1}, results)) == 6


@pytest.mark.parametrize(
    ("units", "differing", "low", "too_much"),
    [
        (400, 4, 0.002, False),  # the bound itself
        (400, 8, 0.011, False),  # above the bound, as chance gives it: at most 8 of 400 in 97.5 % of samples
        (400, 9, 0.011, True),
        (400, 20, 0.009, False),  # many words of few utterances: the interval over utterances reaches the bound
        (400, 20, 0.01, False),
        (3000, 45, 0.0101, True),
        (5, 1, 0.2, False),  # a single word proves nothing, even if every utterance has one
        (1, 1, 1.0, False),
        (5, 2, 0.4, True),
        (0, 0, None, False),  # both are silent
        (0, 1, None, False),
        (0, 2, None, True),  # only the parent is silent
        (400, 0, NAN, True),
        (400, 400, INF, True),
    ],
)
def test_words_that_differ_allow_for_the_size_of_the_set(
    units: int, differing: int, low: float | None, too_much: bool
) -> None:
    assert differs_too_much(TextDifference("words", units, differing, low, low), 0.01) is too_much


@pytest.mark.parametrize(
    ("parent", "quantized", "low", "too_much"),
    [
        (0.10, 0.11, 0.005, False),  # the bound itself
        (0.10, 0.105, 0.004, False),  # real, but below the bound
        (0.10, 0.15, 0.0, False),  # above the bound, within chance
        (0.10, 0.15, -0.01, False),
        (0.10, 0.15, 0.001, True),
        (0.10, 0.15, None, True),
        (0.15, 0.10, None, False),
        (0.0, NAN, None, True),
        (NAN, 0.0, None, True),
        (0.0, NAN, -1.0, True),
        (0.0, INF, -1.0, True),
        (0.10, 0.15, NAN, True),
    ],
)
def test_rise_of_the_error_rate_allows_for_chance(
    parent: float, quantized: float, low: float | None, too_much: bool
) -> None:
    assert rises_too_much(rate(parent, quantized, low=low), 0.01) is too_much


def evaluation_run(*results: tuple[str, str, str, list[list[int]]]) -> EvaluationRun:
    """Results are language, reference, text, and the tokens of each segment."""
    utterances, transcripts = [], []
    for language, reference, text, tokens in results:
        utterances.append(Utterance(Path("a.wav"), reference, language))
        segments = [Segment(0.0, 1.0, text, language, 1.0, "stop", each) for each in tokens]
        transcripts.append(
            Transcript(text, language, 1.0, segments, Timings(), TokenCounts(1, 1, 1), "model", "cpu", {})
        )
    return EvaluationRun(utterances, transcripts)


def test_texts_are_compared_by_token_word_and_language() -> None:
    parent = evaluation_run(
        ("English", "red green blue white", "red green blue white", [[1, 2]]),
        ("English", "cats dogs birds fish", "cats dogs birds", [[3], [4]]),
        ("Russian", "раз два", "раз два", [[5, 6]]),
        ("Chinese", "一二三四", "一二三四", [[7]]),
    )
    quantized = evaluation_run(
        ("English", "red green blue white", "red green blue white", [[1, 9]]),  # other tokens, the same text
        ("English", "cats dogs birds fish", "cats dogs", [[3, 4]]),  # cut into other segments
        ("Russian", "раз два", "раз", [[5]]),
        ("Chinese", "一二三四", "一二三四", [[7]]),
    )
    results = compare_runs(parent, quantized)
    assert (results.utterances, results.identical) == (4, 0.25)
    assert [(row.language, row.unit, row.utterances, row.parent, row.quantized) for row in results.rates] == [
        ("Chinese", "characters", 1, 0.0, 0.0),
        ("English", "words", 2, 0.125, 0.25),
        ("Russian", "words", 1, 0.0, 0.5),
    ]
    assert [(row.parent_units, row.differing) for row in results.rates] == [(4, 0), (7, 1), (2, 1)]
    assert [(row.rise_low, row.rise_high) for row in results.rates] == [(0, 0), (0, 0.25), (0.5, 0.5)]
    difference = results.words_differ
    assert (difference.unit, difference.parent_units, difference.differing) == ("words and characters", 13, 2)
    assert difference.share == 2 / 13
    assert compare_runs(parent, parent).identical == 1.0
    with pytest.raises(ValueError, match="zip"):
        compare_runs(parent, evaluation_run(("English", "one", "one", [[1]])))


def artifact(folder: Path, text: str, role: str = "decoder") -> Artifact:
    """An artifact of one graph, without its other files."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> tiny {text}')
    spec = save_graph(ir.from_proto(proto), folder / "m.onnx")
    return Artifact(folder, msgspec.structs.replace(open_artifact(ARTIFACT).manifest, graphs={role: spec}))


def expect(x: Any, y: Any, choice: str | None = "y", role: str = "decoder") -> Expected:
    probe = Probe(role, {"x": np.array(x, np.float32)}, ["y"], choice)
    return Expected(probe, {"y": np.array(y, np.float32)})


def test_graphs_are_compared_over_all_probes(tmp_path: Path) -> None:
    """The error is that of all outputs together, so that small outputs have little weight."""
    quantized = artifact(tmp_path, "(float[M, 2] x) => (float[M, 2] y) { y = Identity(x) }")
    probes = [expect([[3.0, 0.0], [0.0, 4.0]], [[3.0, 0.0], [0.0, 4.5]]), expect([[0.0, 1.0]], [[1.0, 0.0]])]
    errors, same_choices = compare_graphs(quantized, probes)
    assert errors == {"decoder": pytest.approx((2.25 / (9 + 4.5**2 + 1)) ** 0.5)}
    assert same_choices == pytest.approx(2 / 3)
    exact = [expect([[1.0, 2.0]], [[1.0, 2.0]], choice=None)]
    assert compare_graphs(quantized, exact) == ({"decoder": 0.0}, None)


def test_nan_exceeds_any_bound(tmp_path: Path) -> None:
    quantized = artifact(tmp_path, "(float[M, 2] x) => (float[M, 2] y) { y = Log(x) }", role="encoder")
    errors, _ = compare_graphs(quantized, [expect([[-1.0, 1.0]], [[0.0, 0.0]], None, "encoder")])
    assert np.isnan(errors["encoder"])
    assert len(find_exceeded_bounds(BOUNDS, errors, None)) == 1


def test_probe_is_cast_to_the_type_of_a_float16_cache(tmp_path: Path) -> None:
    quantized = artifact(tmp_path, "(float16[M, 2] x) => (float[M, 2] y) { y = Cast<to = 1>(x) }")
    assert compare_graphs(quantized, [expect([[1.0, 2.0]], [[1.0, 2.0]])]) == ({"decoder": 0.0}, 1.0)


def gate(errors: dict[str, float], *, force: bool) -> Gate:
    results = texts(0.95, TextDifference("words", 40, 2, 0.0, 0.1), [rate(0.01, 0.015, low=-0.01)])
    return record("4 utterances", BOUNDS, errors, 0.99, results, (2_000, 1_000), force=force)


def test_manifest_entry() -> None:
    passed = gate({"encoder": 0.0123456789}, force=True)
    assert passed == Gate(
        evaluation="4 utterances",
        relative_error={"encoder": 0.012346},
        same_choices=0.99,
        utterances=4,
        identical=0.95,
        error_rates=[rate(0.01, 0.015, low=-0.01)],
        parent_bytes=2_000,
        bytes=1_000,
        exceeded=[],
        forced=False,  # no bound was exceeded
        words_differ=TextDifference("words", 40, 2, 0.0, 0.1),
    )
    refused = gate({"encoder": 0.3}, force=False)
    assert (len(refused.exceeded), refused.forced) == (1, False)
    forced = gate({"encoder": 0.3}, force=True)
    assert (forced.exceeded, forced.forced) == (refused.exceeded, True)
    alone = record("graphs alone", BOUNDS, {"encoder": 0.01}, None, None, (2, 1), force=False)
    assert (alone.utterances, alone.identical, alone.error_rates, alone.exceeded) == (0, None, [], [])
    assert alone.words_differ is None


def test_manifest_of_an_older_version_is_read() -> None:
    """The fields that older versions did not write are None."""
    fields = msgspec.to_builtins(gate({}, force=False))
    del fields["words_differ"]
    for key in ("parent_units", "differing", "rise_low", "rise_high"):
        del fields["error_rates"][0][key]
    older = msgspec.json.decode(msgspec.json.encode(fields), type=Gate)
    assert older.words_differ is None
    assert older.error_rates == [ErrorRate("English", "words", 4, 0.01, 0.015)]
    shown = io.StringIO()
    Console(file=shown, width=200).print(render(quantization(older)))
    assert "differ from" not in shown.getvalue()


def quantization(result: Gate) -> Quantization:
    summary = GraphQuantization({"w8a8": 3, "float32": 1}, 2, [FallbackNode("/a/MatMul", 0.07)])
    return Quantization("own", {}, "0" * 64, "bundled samples", {"encoder": summary}, result)


def test_table_of_results() -> None:
    output = io.StringIO()
    Console(file=output, width=200).print(render(quantization(gate({"encoder": 0.0123, "decoder": 0.3}, force=True))))
    rows = {cells[0]: cells[1:] for line in output.getvalue().splitlines() if (cells := line.strip("│").split("│"))[1:]}
    table = {key.strip(): [cell.strip() for cell in cells] for key, cells in rows.items()}
    assert "evaluated on 4 utterances" in output.getvalue()
    for key, cells in {
        "size": ["0.0 MB", "0.0 MB"],
        "encoder: nodes": ["float32", "3 w8a8"],
        "encoder: inputs smoothed": ["", "2"],
        "encoder: fell back to weight-only": ["", "1"],
        "encoder: relative error": ["", "0.0123"],
        "decoder: relative error": ["", "0.3000"],
        "same choice, on the parent's text": ["", "99.0%"],
        "identical utterances": ["", "95.0% of 4"],
        "differ from the parent's text": ["", "2 of 40 words, 5.00% (95 % interval 0.00% to 10.00%)"],
        "English, words wrong of 4 utterances": [
            "1.00%",
            "1.50% (95 % interval of the rise -1.00 to +4.00 points)",
        ],
    }.items():
        assert table[key] == cells
