"""Pages, pictures and bounds of the benchmarks, on small invented results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import report
from benchmarks.__main__ import PARTS, app
from benchmarks.bounds import BOUNDS
from benchmarks.check import violations
from benchmarks.per_tensor import per_tensor
from runtime.engines.base import EngineOptions, SegmentOptions
from runtime.families import make_engine
from runtime.model.artifact import open_artifact
from tests.helpers.benchmark_results import RESULTS

NAMES = list(RESULTS)
STAMP = {"date": "2026-11-21", "machine": "2 cores", "versions": {"python": "3.11"}}


def write_docs(folder: Path) -> None:
    """Store the invented results of all pages and write the pages."""
    for name, results in RESULTS.items():
        stored = {part: STAMP | {"results": values} for part, values in results().items()}
        (folder / f"{name}.json").write_text(json.dumps(stored), encoding="utf-8")
        (folder / f"{name}.md").write_text(f"# Page\n\n{report.BEGIN}\n\n{report.END}\n\nEnd.\n", encoding="utf-8")
    report.write(folder)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write_docs(tmp_path)
    return tmp_path


def test_every_page_has_its_parts_and_bounds() -> None:
    assert set(report.PAGES) == set(BOUNDS) == set(RESULTS)
    tables = {part for page in report.PAGES.values() for part in page.tables}
    own = {part for page in report.PAGES.values() for part in page.own}
    assert tables - own == set(PARTS)
    assert own <= tables


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("quantization", "| int8 | 10.0 MB | 1.00 % | 2.00 % | 3.00 % | 100.0 % | 0.0100 / 0.0200 |"),
        ("quantization", "| fp16 | 400 MB |  |  |  |  | 60 s, 4.0 GB | 0.000 / 0.100 |"),
        ("speed", "| int8, segments in rows | 100 ms | 10 ms | 0.70 s | 0.60 s | 10.0 | 3.00 s | 0.050 | 1.00 GB |"),
        ("speed", "| step, 1 row at most | 20.0 ms | 15.0 ms | 75 % | memory |"),
        ("streaming", "| 3 (default) | yes | 20 % | 4.0 s | 7.0 s | 1 of 300 | 0 |"),
        ("streaming", "| int8, 3 hypotheses | 299 of 300 | 1 | 0 | 1.00 % | 2.0 s | 5.0 s | 1.2 s |"),
        (
            "fidelity",
            "| ONNX Runtime's CPU kernels | 305 of 306 (1 ended by a guard) | 305 of 306 | 0.00 s | 3.0e-05 |",
        ),
        (
            "fidelity",
            "| ONNX Runtime's CPU kernels | fr-1.opus | language detected | 3 | `,` (+1.0e-05) | `.` (+2.0e-05) |",
        ),
        ("fidelity", "| film.wav | 60 s | language given | 100 | identical | 0.00 s | 3.0e-05 |"),
        ("serving", "| files | 10 | 10 | 0 | 0 | 0 | 0.10 s | 0.20 s | 0.30 s | 5.0 | 20 s |"),
        ("families", "| gigaam-v3-tiny, int8 | 100 | 10.0 MB |  | 1.23 % |  | 99.0 % | encoder 0.0100 |"),
        (
            "accuracy",
            "| asr-deploy, int8 | 80 MB | 16.70 % (14.70 to 18.70) | +0.20 (-0.80 to +1.20) | 1.20 % (0.00 to 2.40) "
            "| 94 % | 1.20 % | 99.0 % | 360 s | 0.286 | 0.60 | 240 MB |",
        ),
    ],
)  # fmt: skip
def test_pages_contain_the_results_between_the_marks(docs: Path, name: str, line: str) -> None:
    text = (docs / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# Page\n\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\n\nEnd.\n")
    assert line in text.splitlines()
    assert "Measured on 2026-11-21, 2 cores" in text


@pytest.mark.parametrize("name", ["quantization", "speed", "families", "accuracy", "accuracy-time"])
def test_pictures_are_whole_svg_files_with_all_names(docs: Path, name: str) -> None:
    picture = (docs / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    expected = {
        "quantization": {"int8", "fp16", "for GPUs, not timed", "one step, ms", "400"},
        "speed": {"int8, segments in rows", "steps"},
        "families": {"gigaam-v3-ctc", "onnx-asr, float32", "real-time factor"},
        "accuracy": {"Russian, %", "all, %", "whisper.cpp", "int4-small", "17.1"},
        "accuracy-time": {"faster-whisper", "int8", "int4"},
    }
    assert expected[name] <= texts


def test_a_page_without_marks_is_not_changed(docs: Path) -> None:
    page = docs / "quantization.md"
    page.write_text("a page", encoding="utf-8")
    with pytest.raises(ValueError, match=r"quantization\.md"):
        report.write(docs)
    assert page.read_text(encoding="utf-8") == "a page"
    assert [line for line in violations(docs) if str(page) in line]


def test_parts_are_stored_beside_one_another(tmp_path: Path) -> None:
    report.store(tmp_path, "speed", {"int8": {"bytes": 1}})
    report.store(tmp_path, "large", {"int4": {"bytes": 2}})
    stored = json.loads((tmp_path / "quantization.json").read_text())
    assert set(stored) == {"speed", "large"}
    assert stored["speed"]["results"] == {"int8": {"bytes": 1}}
    assert "onnxruntime" in stored["speed"]["versions"]


def test_pages_that_match_have_no_violations(docs: Path) -> None:
    assert violations(docs) == []


def test_changed_pages_and_pictures_are_violations(docs: Path) -> None:
    (docs / "speed.md").write_text((docs / "speed.md").read_text().replace("3.00 s", "2.00 s"))
    (docs / "families.svg").unlink()
    lines = violations(docs)
    assert len(lines) == 2
    assert "speed.md" in lines[0]
    assert "families.svg" in lines[1]
    assert all("python -m benchmarks --only report" in line for line in lines)


def test_missing_results_are_violations(docs: Path) -> None:
    (docs / "streaming.json").unlink()
    stored = json.loads((docs / "serving.json").read_text())
    del stored["serving"]["results"]["hostile"]
    (docs / "serving.json").write_text(json.dumps(stored))
    stored = json.loads((docs / "speed.json").read_text())
    del stored["scale"]
    (docs / "speed.json").write_text(json.dumps(stored))
    speed, streaming, serving = violations(docs)
    assert "scale" in speed
    assert "streaming.md: has figures" in streaming
    assert "'hostile'" in serving


@pytest.mark.parametrize("name", NAMES)
def test_invented_results_keep_the_bounds(name: str) -> None:
    assert list(BOUNDS[name](RESULTS[name]())) == []


@pytest.mark.parametrize(
    ("name", "path", "value", "line"),
    [
        ("quantization", "accuracy/twin/int8/identical", 0.9, "accuracy of twin, int8: share identical"),
        ("quantization", "accuracy/twin/per-tensor/rates", {"English": 0.02}, "per-tensor: rise"),
        ("quantization", "speed/int8/bytes", 9e8, "int8: bytes is 9e+08, above 8.6e+08"),
        ("quantization", "speed/int4/quantize_seconds", 200, "int4: seconds of quantizing is 200, above 180"),
        ("quantization", "large/int4/resident_bytes", 2.3e9, "1.7B int4: resident bytes"),
        ("speed", "speech/systems/int8, one segment/total", 19, "int8, one segment: times as fast"),
        ("speed", "speech/systems/int8, segments in rows/token", 0.02, "token is 0.02, above 0.016"),
        ("speed", "scale/minutes/10/seconds", 34, "10 min against 1 min"),
        ("speed", "scale/files/last_bytes", 2e8, "bytes after 200 files"),
        ("streaming", "live/offline/int8/1/equal", 99, "chunks of 1 s: segments as offline is 99, not 100"),
        ("streaming", "live/hours/last_bytes", 1.1e8, "bytes at the end of the long stream"),
        ("streaming", "chunks/total", 300, "real-time factor of chunks"),
        ("streaming", "recordings/rows/int8, 3 hypotheses/equal", 298, "segments as offline is 298, not 299"),
        ("fidelity", "fidelity/systems/cpu/differences", [], "texts that are equal or listed is 611, not 612"),
        ("fidelity", "fidelity/systems/cpu/lead_change", 1e-6, "fr-1.opus, language detected: lead in transformers"),
        ("fidelity", "fidelity/systems/cpu/ways/detected/language", 305, "languages as detected by transformers"),
        ("fidelity", "fidelity/films/film.wav/ways/given/identical", False, "film.wav, language given"),
        ("fidelity", "fidelity/rows/float32/identical", 305, "rows of float32"),
        ("fidelity", "fidelity/recordings/features", 0.01, "difference of features"),
        ("serving", "serving/clients/live/lost", 1, "live: lost is 1, not 0"),
        ("serving", "serving/hostile/closed", {"good request": 1}, "closed by the server alone"),
        ("serving", "serving/hostile/grown/open_files", 2, "growth of open_files"),
        ("families", "families/models/b/systems/int8/total", 7.0, "b, int8: seconds against float32"),
        ("families", "families/models/c/family", "whisper", "families is"),
        ("accuracy", "real/limit", 2, "limit of recordings is 2"),
        ("accuracy", "real/systems/asr-deploy, q8/languages/all/differ", 0.007, "q8: share of words that differ"),
        ("accuracy", "real/systems/asr-deploy, int8/languages/all/ratio", 1.1, "int8: median time against float32"),
        ("accuracy", "real/systems/asr-deploy, int4/languages/all/rise_interval", [0.1, 0.2], "int4: lower bound"),
        ("accuracy", "real/systems/asr-deploy, float32, not cut/languages/all/reference", 0.01, "differ from transf"),
        ("accuracy", "real/recordings/all/recordings", 60, "recordings is 60, below 306"),
        ("families", "checkpoints/gigaam-v3-tiny/recipes/int8/rates/Russian", 0.02, "int8, Russian: rise of the error"),
    ],
)
def test_a_violated_bound_is_found(name: str, path: str, value: object, line: str) -> None:
    results = json.loads(json.dumps(RESULTS[name]()))  # no shared parts
    *parents, key = path.split("/")
    row: Any = results
    for parent in parents:
        row = row[parent]
    assert key in row
    row[key] = value
    (violation,) = BOUNDS[name](results)
    assert line in violation


def test_check_exits_with_1_and_one_line_for_each_violation(docs: Path) -> None:
    assert CliRunner().invoke(app, ["--check", "--docs", str(docs)]).exit_code == 0
    stored = json.loads((docs / "serving.json").read_text())
    stored["serving"]["results"]["hostile"]["good_request"] = False
    (docs / "serving.json").write_text(json.dumps(stored))
    result = CliRunner().invoke(app, ["--check", "--docs", str(docs)])
    assert result.exit_code == 1
    page, bound = result.stderr.splitlines()
    assert "serving.md" in page
    assert "good request" in bound


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--only", "nothing", "--docs", str(tmp_path)])
    assert result.exit_code == 2
    assert "nothing" in result.stderr
    assert "accuracy" in result.stderr


@pytest.mark.slow
def test_one_scale_per_tensor_is_a_working_model_with_larger_errors(float_artifact: Path, tmp_path: Path) -> None:
    parent = open_artifact(float_artifact)
    quantized = per_tensor(parent, tmp_path / "per-tensor")
    samples = np.random.default_rng(1).standard_normal(32_000).astype(np.float32) * 0.1
    probes = [
        make_engine(each, EngineOptions()).probes(samples, [], SegmentOptions())[-1] for each in (parent, quantized)
    ]
    exact, rounded = (probe.feeds["audio_embeds"] for probe in probes)
    assert 0.002 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.3
