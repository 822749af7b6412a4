"""Data sets of every layout and with every defect; error rates against counts made by hand."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper import english_normalizer as reference_normalizer

from runtime import Transcriber
from runtime.errors import AsrError, AudioNotFoundError, DatasetInvalidError, DatasetNotFoundError, OptionError
from runtime.evaluation import (
    Utterance,
    bootstrap_interval,
    error_unit,
    load_utterances,
    metric_language,
    normalize,
    recognize,
    score,
)
from runtime.evaluation.languages import language_name
from runtime.evaluation.metrics import _normalizers
from runtime.evaluation.recognition import Evaluation, summarize
from runtime.writers import evaluation_as_text, hypotheses_as_json_lines
from tests.conftest import DATA


def put(folder: Path, **files: str | bytes) -> Path:
    """Create files by name, with ``__`` for a slash and ``_`` for a dot."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def make_utterance(text: str, language: str | None = None) -> Utterance:
    return Utterance(Path("a.wav"), text, language)


# Data sets


def test_the_samples_are_a_data_set(samples: list[dict[str, Any]]) -> None:
    utterances = load_utterances(DATA)
    assert [utterance.audio.name for utterance in utterances] == sorted(sample["file"] for sample in samples)
    by_name = {sample["file"]: sample for sample in samples}
    for utterance in utterances:
        sample = by_name[utterance.audio.name]
        assert (utterance.text, utterance.language, utterance.context) == (
            sample["text"],
            sample["language"],
            sample["context"],
        )


@pytest.mark.parametrize("name", ["index_jsonl", "metadata_jsonl"])
def test_an_index_of_lines(tmp_path: Path, name: str) -> None:
    lines = (
        '\ufeff{"file_name": "sub/b.wav", "transcription": " Two words ", "language": "ru", "other": [1]}\r\n'
        "\n"
        '{"audio_filepath": "a.wav", "text": "", "context": "Names: Kris."}\n'
    )
    put(tmp_path, a_wav=b"", sub__b_wav=b"", **{name: lines})
    assert load_utterances(tmp_path, "en") == [
        Utterance(tmp_path / "a.wav", "", "en", "Names: Kris."),
        Utterance(tmp_path / "sub" / "b.wav", "Two words", "ru"),
    ]


def test_a_librispeech_tree(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "8__1__8-1_trans_txt": "8-1-1 LAST ONE\n8-1-0 A  FIRST ONE\r\n8-1-2\n\n",
        "8__1__8-1-0_flac": b"",
        "8__1__8-1-1_wav": b"",
        "8__1__8-1-2_flac": b"",
        "8__1___8-1_trans_txt": b"\xff resource fork",
        "_hidden__x_trans_txt": "x X",
        "8__1__notes_txt": "no pair",
    }
    put(tmp_path, **files)
    folder = tmp_path / "8" / "1"
    assert load_utterances(tmp_path) == [
        Utterance(folder / "8-1-0.flac", "A  FIRST ONE", "English"),
        Utterance(folder / "8-1-1.wav", "LAST ONE", "English"),
        Utterance(folder / "8-1-2.flac", "", "English"),
    ]
    assert {utterance.language for utterance in load_utterances(tmp_path, "de")} == {"de"}


def test_texts_beside_audio(tmp_path: Path) -> None:
    put(tmp_path, b_FLAC=b"", b_txt="Hello\n there.\n", a__c_opus=b"", a__c_txt="今天", lonely_wav=b"", README_txt="x")
    assert load_utterances(tmp_path) == [
        Utterance(tmp_path / "a" / "c.opus", "今天"),
        Utterance(tmp_path / "b.FLAC", "Hello there."),
    ]


def test_an_index_comes_before_a_tree_and_a_tree_before_pairs(tmp_path: Path) -> None:
    put(tmp_path, a_wav=b"", a_txt="pair")
    assert load_utterances(tmp_path)[0].text == "pair"
    put(tmp_path, x_trans_txt="a tree")
    assert load_utterances(tmp_path)[0].text == "tree"
    put(tmp_path, metadata_jsonl='{"file": "a.wav", "text": "metadata"}')
    assert load_utterances(tmp_path)[0].text == "metadata"
    put(tmp_path, index_jsonl='{"file": "a.wav", "text": "lines"}')
    assert load_utterances(tmp_path)[0].text == "lines"
    put(tmp_path, index_json='[{"file": "a.wav", "text": "array"}]')
    assert load_utterances(tmp_path)[0].text == "array"


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, DatasetNotFoundError, "no reference texts; add an index.json"),
        ({"b_wav": b"", "c_txt": "x"}, DatasetNotFoundError, "no reference texts"),
        ({"index_json": "[]"}, DatasetInvalidError, "index.json: lists no utterance"),
        ({"index_jsonl": "\n \n"}, DatasetInvalidError, "index.jsonl: lists no utterance"),
        ({"index_json": "[{}"}, DatasetInvalidError, "index.json: is not an array in JSON"),
        ({"index_json": '{"file": "a.wav"}'}, DatasetInvalidError, "index.json: is not an array in JSON"),
        (
            {"index_json": '[{"file": "a.wav", "text": ""}, 3]'},
            DatasetInvalidError,
            "index.json: entry 2: is malformed",
        ),
        ({"index_json": '[{"file": "a.wav", "text": 3}]'}, DatasetInvalidError, r"Expected `str | null`, got `int`"),
        ({"index_json": '[{"text": "x"}]'}, DatasetInvalidError, "entry 1: has no file"),
        ({"index_json": '[{"file": "a.wav"}]'}, DatasetInvalidError, r"entry 1: has no text \(nor transcription\)"),
        ({"index_json": '[{"file": "b.wav", "text": "x"}]'}, AudioNotFoundError, "entry 1: .*b.wav: no such file"),
        ({"index_json": '[{"file": "b\\u0000", "text": "x"}]'}, AudioNotFoundError, "no such file"),
        ({"index_json": '[{"file": "../a.wav", "text": "x"}]'}, DatasetInvalidError, "'../a.wav' points outside"),
        ({"index_json": '[{"file": "/a.wav", "text": "x"}]'}, DatasetInvalidError, "'/a.wav' points outside"),
        ({"index_json": b'[{"file": "\xff"}]'}, DatasetInvalidError, "index.json: byte 11 is not UTF-8"),
        ({"index_json": f'[{{"file": "{"x" * 999}", "text": ""}}]'}, DatasetInvalidError, "cannot be read"),
        (
            {"index_jsonl": '{"file": "a.wav", "text": ""}\n{"file":'},
            DatasetInvalidError,
            "index.jsonl: line 2: is mal",
        ),
        ({"metadata_jsonl": "a.wav\tHello"}, DatasetInvalidError, "metadata.jsonl: line 1: is malformed"),
        ({"s__x_trans_txt": "a ONE\n"}, AudioNotFoundError, r"x.trans.txt: line 1: neither a.flac nor a.wav"),
        ({"s__x_trans_txt": "\n../a ONE\n"}, DatasetInvalidError, r"line 2: is malformed \('../a'.*ID TEXT"),
        ({"x_trans_txt": b"a \xff\n"}, DatasetInvalidError, "x.trans.txt: byte 2 is not UTF-8"),
        ({"a_txt": "Ä".encode("latin-1")}, DatasetInvalidError, "a.txt: byte 0 is not UTF-8"),
    ],
)
def test_broken_data_sets(tmp_path: Path, files: dict[str, str | bytes], error: type[AsrError], message: str) -> None:
    folder = put(tmp_path / "data", a_wav=b"", **files)
    with pytest.raises(error, match=message) as caught:
        load_utterances(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_an_unreadable_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetNotFoundError, match="no such folder"):
        load_utterances(tmp_path / "absent")
    with pytest.raises(DatasetNotFoundError, match="is a file, not a folder"):
        load_utterances(DATA / "en-1.wav")
    with pytest.raises(OptionError, match="unknown language 'englsh'"):
        load_utterances(DATA, "englsh")

    def denied(path: str) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DatasetInvalidError, match=f"{tmp_path}: cannot be read .Permission denied"):
        load_utterances(tmp_path)


# Languages


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("English", "English"),
        (" ENGLISH ", "English"),
        ("en-US", "English"),
        ("zh_CN", "Chinese"),
        ("cmn_hans_cn", "Chinese"),
        ("yue_hant_hk", "Cantonese"),
        ("haitian creole", "Haitian Creole"),
        ("fil", "Filipino"),
        ("Klingon", None),
        ("", None),
    ],
)
def test_names_of_languages(text: str, name: str | None) -> None:
    assert language_name(text) == name


@pytest.mark.parametrize(
    ("utterance", "language", "unit"),
    [
        (make_utterance("anything", "yue"), "Cantonese", "characters"),
        (make_utterance("今天", "English"), "English", "words"),
        (make_utterance("nuqneH", " Klingon "), "Klingon", "words"),
        (make_utterance("今天很热 OK"), "Chinese", "characters"),
        (make_utterance("今日は暑い"), "Japanese", "characters"),
        (make_utterance("コーヒー"), "Japanese", "characters"),
        (make_utterance("한국어 漢字"), "und", "words"),
        (make_utterance("สวัสดี"), "Thai", "characters"),
        (make_utterance("Hello"), "und", "words"),
        (make_utterance(""), "und", "words"),
    ],
)
def test_the_language_of_the_metric(utterance: Utterance, language: str, unit: str) -> None:
    assert metric_language(utterance) == language
    assert error_unit(language) == unit


# Normalization


@pytest.mark.parametrize(
    ("text", "language", "normalized"),
    [
        ("Mr. Smith's twenty-one colour", "English", "mister smith is 21 color"),
        ("Mister Smith is 21 color.", "English", "mister smith is 21 color"),
        ("Um, I've [laughs] won $20 million (really)!", "English", "i have won $20000000"),
        ("The cause, kinda.", "English", "the cause kinda"),
        ("Mr. Smith's twenty-one colour", "und", "mr smith s twenty one colour"),
        ("Привет, МИР! [шум] Ёлка…", "Russian", "привет мир ёлка"),
        ("那辆 红色的车，是李娜的。", "Chinese", "那辆红色的车是李娜的"),
        ("Ｏｋ （笑） 今天", "Cantonese", "ok笑今天"),
        ("", "English", ""),
        ("...", "Thai", ""),
    ],
)
def test_normalization(text: str, language: str, normalized: str) -> None:
    assert normalize(text, language) == normalized


WORDS = """
one two twenty hundred million point and double oh o'clock dollars cents percent minus Mr. St. isn't we've he's gone
been colour cause kinda dunno Uh $5 3.5 1,000 20% 1960s café [noise] (x) , ...
"""


@given(st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join))
def test_english_normalization_equals_the_reference(text: str) -> None:
    """The reference is transformers' copy of Whisper's normalizer, with the same list of spellings."""
    spellings = _normalizers()[0].standardize_spellings.mapping  # type: ignore[attr-defined]
    expected = reference_normalizer.EnglishTextNormalizer(spellings)(text)
    assert normalize(text, "English").split() == expected.split()
    assert normalize(text, "Russian").split() == reference_normalizer.BasicTextNormalizer()(text).split()


def test_a_number_too_long_for_python_is_no_crash() -> None:
    assert normalize("9" * 5000, "English") == "9" * 5000


# Error rates


def test_word_errors_by_hand() -> None:
    (row,) = score(
        [
            make_utterance("The quick brown fox.", "en"),
            make_utterance("Jumps over it", "English"),
            make_utterance("", "en-GB"),
        ],
        ["the quick fox", "Jumps over the dog", "thank you"],
    )
    assert (row.language, row.unit, row.utterances, row.reference_units) == ("English", "words", 3, 7)
    assert (row.substitutions, row.deletions, row.insertions) == (1, 1, 3)
    assert row.rate is not None
    assert row.low is not None
    assert row.high is not None
    assert row.rate == pytest.approx(5 / 7)
    assert row.low < row.rate < row.high
    assert row.exact == 0


@pytest.mark.parametrize(
    ("language", "reference", "text", "units", "errors"),
    [
        ("Chinese", "今天很热。", "今天 很冷", 4, (1, 0, 0)),
        (None, "今天很热。", "今天热", 4, (0, 1, 0)),
        ("Cantonese", "你食咗飯未呀？", "你食咗飯未", 6, (0, 1, 0)),
        ("ja", "東京 タワー", "東京タワーです", 5, (0, 0, 2)),
        ("Thai", "ขอบคุณ ครับ", "ขอบคุณคับ", 8, (0, 1, 0)),
        ("Korean", "감사 합니다", "감사합니다", 2, (1, 1, 0)),
    ],
)
def test_character_errors_by_hand(
    language: str | None, reference: str, text: str, units: int, errors: tuple[int, int, int]
) -> None:
    """Whisper's rules drop combining marks, as Thai's u and a are: ขอบคุณ ครับ has five and three characters."""
    (row,) = score([make_utterance(reference, language)], [text])
    assert row.reference_units == units
    assert (row.substitutions, row.deletions, row.insertions) == errors
    assert row.rate == row.low == row.high == sum(errors) / units


def test_languages_are_not_merged() -> None:
    rows = score(
        [
            make_utterance("今天"),
            make_utterance("Да.", "ru"),
            make_utterance("Yes", "en"),
            make_utterance("Нет", "Russian"),
        ],
        ["今天", "да", "no", ""],
    )
    assert [(row.language, row.utterances, row.rate, row.exact) for row in rows] == [
        ("Chinese", 1, 0.0, 1.0),
        ("English", 1, 1.0, 0.0),
        ("Russian", 2, 0.5, 0.5),
    ]
    with pytest.raises(ValueError, match="zip"):
        score([make_utterance("Yes")], [])
    assert score([], []) == []


def test_silence_has_errors_but_no_rate() -> None:
    (row,) = score([make_utterance("", "en"), make_utterance("[silence]", "en")], ["Thank you.", ""])
    assert (row.reference_units, row.insertions, row.rate, row.low, row.high, row.exact) == (
        0,
        2,
        None,
        None,
        None,
        0.5,
    )
    (spoken,) = score([make_utterance("", "en"), make_utterance("Yes, please", "en")], ["Thank you.", "Yes, please"])
    assert (spoken.rate, spoken.low) == (1.0, 0.0)  # samples with silence only are left out
    evaluation = Evaluation([row], "m", "int8", "cpu", "told", 1.0, 0.0, None, {"a": "1"})
    text = evaluation_as_text(evaluation).splitlines()
    assert text[1].split() == ["English", "words", "2", "none", "none", "50.0%"]
    assert text[3].split(maxsplit=2) == ["real-time", "factor", "1.0 s for 0.0 s of audio"]
    assert text[4].endswith("m, int8")


ROWS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=40)


@given(ROWS)
def test_the_interval_contains_the_rate(rows: list[tuple[int, int]]) -> None:
    units, errors = np.array(rows, np.int64).T
    low, high = bootstrap_interval(errors, units)
    assert low is not None
    assert high is not None
    assert low <= errors.sum() / units.sum() <= high
    assert (low, high) == bootstrap_interval(errors, units)


@given(st.integers(1, 30), st.integers(0, 40), st.integers(1, 50))
def test_the_interval_of_identical_utterances_is_a_point(units: int, errors: int, count: int) -> None:
    interval = bootstrap_interval(np.full(count, errors), np.full(count, units))
    assert interval == (errors / units, errors / units)


def test_the_interval_matches_the_binomial_and_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 utterances of one word, 40 wrong: 10 % ± 1.96 · √(0.1 · 0.9 / 400) = 2.94 %."""
    errors, units = np.repeat([1, 0], [40, 360]), np.ones(400, np.int64)
    low, high = bootstrap_interval(errors, units)
    assert low == pytest.approx(0.1 - 0.0294, abs=0.005)
    assert high == pytest.approx(0.1 + 0.0294, abs=0.005)
    monkeypatch.setattr("runtime.evaluation.metrics._INDICES_PER_BLOCK", 3_000)
    assert bootstrap_interval(errors, units) == (low, high)


# Recognition


def test_recognition_uses_contexts_and_forces_languages_only_on_request(transcriber: Transcriber) -> None:
    plain, hinted = Utterance(DATA / "en-4.wav", "", "en"), Utterance(DATA / "en-4.wav", "", "en", "Names: Kris.")
    done: list[tuple[int, int]] = []
    first, second = recognize(transcriber, [plain, hinted], on_progress=lambda *counts: done.append(counts))
    assert "Chris" in first.text
    assert "Kris" in second.text
    assert done == [(1, 2), (2, 2)]
    assert recognize(transcriber, [plain], language="ru")[0].language == "Russian"
    assert recognize(transcriber, [plain], own_language=True)[0].language == "English"
    with pytest.raises(OptionError, match=r"en-4\.wav: .*no language.*--language"):
        recognize(transcriber, [plain, Utterance(DATA / "en-4.wav", "")], own_language=True)
    with pytest.raises(OptionError, match="unknown language 'Klingon'"):
        recognize(transcriber, [make_utterance("", "Klingon")], own_language=True)
    with pytest.raises(AudioNotFoundError, match=r"^a\.wav: no such file"):
        recognize(transcriber, [make_utterance("")])


def test_hypotheses_can_have_file_names_that_are_not_utf_8(transcriber: Transcriber) -> None:
    utterance = Utterance(DATA / os.fsdecode(b"sub/\xff.wav"), "今 天")
    transcripts = recognize(transcriber, [Utterance(DATA / "zh-1.wav", "")])
    line = hypotheses_as_json_lines(DATA, [utterance], transcripts)
    assert line.startswith(r'{"file":"sub/\\xff.wav","language":"Chinese","reference":"今 天","hypothesis":')
    assert '"normalized_reference":"今天"' in line


def test_a_model_without_language_detection_has_an_implicit_language(transcriber: Transcriber) -> None:
    transcript = transcriber.transcribe(DATA / "en-1.wav")
    utterances = [Utterance(DATA / "en-1.wav", "It was very quiet in Madrid.", "English")]
    for detects, kind, phrase in (
        (True, "detected", "detected by"),
        (False, "implicit", "neither given to the model nor"),
    ):
        capabilities = msgspec.structs.replace(transcriber.capabilities, language_detection=detects)
        model: Any = SimpleNamespace(artifact=transcriber.artifact, capabilities=capabilities)
        evaluation = summarize(model, utterances, [transcript], forced_language=False)
        assert evaluation.language == kind
        assert phrase in evaluation_as_text(evaluation)
