"""Whisper's layouts are told apart by their files, and special tokens are read from the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from export.checkpoints import CheckpointFolder, find_checkpoint, locate
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from export.families import family_of
from export.families.whisper.layouts import find_layout, recognizes
from export.families.whisper.layouts.base import ENGLISH_STOP_ID, make_generation
from export.families.whisper.layouts.openai import suppressed_tokens
from tests.helpers.whisper_checkpoint import LANGUAGES, special_tokens, tokenizer
from tests.helpers.whisper_layouts import encode_model


def folder_with(path: Path, *names: str) -> CheckpointFolder:
    for name in names:
        (path / name).write_text(json.dumps({"suppress_ids": []}) if name == "config.json" else "")
    return CheckpointFolder(path, "x", None)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (("config.json", "model.bin"), "ctranslate2"),
        (("model.pt", "tokenizer.json"), "openai"),
        (("config.json", "model.safetensors"), "native"),
        (("config.json", "pytorch_model.bin", "optimizer.pt"), "native"),
    ],
)
def test_layouts_are_told_apart_by_files(names: tuple[str, ...], layout: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, *names)
    assert find_layout(folder).name == layout
    assert recognizes(folder) == (layout != "native")
    if layout == "native":
        with pytest.raises(CheckpointInvalidError, match="model_type is None"):
            family_of(folder)
    else:
        assert family_of(folder) == "whisper"


def test_folders_without_weights_are_of_no_layout(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "vocabulary.txt")
    assert not recognizes(folder)
    with pytest.raises(CheckpointNotFoundError, match=r"holds no config\.json"):
        family_of(folder)
    with pytest.raises(CheckpointInvalidError, match=r"several \.pt files"):
        family_of(folder_with(tmp_path, "a.pt", "b.pt"))
    named = locate(find_checkpoint("a/b"), tmp_path / "b.pt")
    assert (named.weight_files(), named.repo, family_of(named)) == ([tmp_path / "b.pt"], "b", "whisper")


def test_languages_and_tasks_are_read_from_the_tokenizer(tmp_path: Path) -> None:
    multilingual = tokenizer(special_tokens(LANGUAGES, 10))
    generation = make_generation(tmp_path, multilingual, None, [1], [2])
    assert list(generation.lang_to_id) == [f"<|{code}|>" for code in LANGUAGES]
    assert generation.task_to_id == {"transcribe": 264, "translate": 263}
    assert (generation.is_multilingual, generation.max_initial_timestamp_index) == (True, 50)
    some = make_generation(tmp_path, multilingual, [260, 258, 267], [1], [2])  # 267 is <|nospeech|>
    assert some.lang_to_id == {"<|en|>": 258, "<|ru|>": 260}
    # English-only vocabularies have language tokens that the models were not trained with.
    english = tokenizer(special_tokens(LANGUAGES, 10), ENGLISH_STOP_ID)
    generation = make_generation(tmp_path, english, None, None, None)
    assert (generation.is_multilingual, generation.lang_to_id, generation.task_to_id) == (False, {}, {})


def test_signs_are_suppressed_as_openai_does() -> None:
    """A sign of one token is suppressed; of a musical sign of several tokens the first is."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("(", "("), ("Ġ", "-"), ("Ġ", "'"), ("Ġ", "â"), ("â", "Ļ"), ("a", "b")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(special_tokens((), 3))
    suppressed, first = suppressed_tokens(bpe, Path("x"))
    texts = [bpe.id_to_token(each) for each in suppressed]
    assert {"((", "(", "Ġ-", "Ġ'", "Ġâ", "âĻ", "<|nospeech|>", "<|startoftranscript|>"} <= {*texts}
    assert not {"Ġ", "ab", "a", "-", "<|endoftext|>", "<|notimestamps|>"} & {*texts}
    assert [bpe.id_to_token(each) for each in first] == ["Ġ", "<|endoftext|>"]


def test_every_type_of_weights_is_read(tmp_path: Path) -> None:
    values = torch.tensor([[1.5, -2.0], [0.0, 0.25]])
    bits = values.to(torch.bfloat16).view(torch.uint16).numpy()
    variables = {
        "a/weight": values.numpy(),
        "b/weight": values.numpy().astype(np.float16),
        "c/weight": bits,
        "d/weight": np.array([[60, -80], [0, 10]], np.int8),
        "d/weight_scale": np.array([40, 40], np.float32),
    }
    (tmp_path / "model.bin").write_bytes(encode_model(variables, {"e/weight": "a/weight"}))
    tensors = dict(CheckpointFolder(tmp_path, "x", None).tensors())
    assert list(tensors) == ["a/weight", "b/weight", "c/weight", "d/weight", "e/weight"]
    assert all(torch.equal(tensor, values) for tensor in tensors.values())
    assert CheckpointFolder(tmp_path, "x", None).parameters() == 16
