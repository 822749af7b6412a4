"""Finding and downloading checkpoints, up to the network call, and errors for invalid ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

from export.checkpoints import CHECKPOINTS, DOWNLOADED, CheckpointFolder, find_checkpoint, locate
from export.errors import CheckpointInvalidError, CheckpointNotFoundError
from export.families import family_of
from export.families.qwen3_asr.exporter import Qwen3Asr, native_name
from export.tokenizer import load_tokenizer
from tests.conftest import CHECKPOINT

REAL = CHECKPOINTS["qwen3-asr-0.6b"]
TINY = CHECKPOINTS["qwen3-asr-tiny"]


class Hub:
    """Replaces ``snapshot_download``: records calls, and answers from a cache and a network."""

    def __init__(self, cached: Path | None = None, remote: Path | Exception | None = None) -> None:
        self.cached, self.remote = cached, remote
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo: str, **options: Any) -> str:
        self.calls.append({"repo": repo, **options})
        if options.get("local_files_only"):
            if self.cached is None:
                raise LocalEntryNotFoundError("not cached")
            return str(self.cached)
        if isinstance(self.remote, Exception):
            raise self.remote
        return str(self.remote)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(**answers: Any) -> Hub:
        fake = Hub(**answers)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
        return fake

    return make


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


def test_names_without_a_pinned_commit_require_a_revision(hub: Callable[..., Hub], tmp_path: Path) -> None:
    for checkpoint in CHECKPOINTS.values():
        if checkpoint.bundled is None and checkpoint.revision is None:
            calls = hub(cached=tmp_path, remote=AssertionError("the network was used")).calls
            with pytest.raises(CheckpointNotFoundError, match=r"--revision, or give .* --checkpoint"):
                locate(checkpoint)
            assert not calls
        elif checkpoint.bundled is None:
            assert checkpoint.revision is not None
            assert len(checkpoint.revision) == 40
            int(checkpoint.revision, 16)


def test_cached_checkpoint_needs_no_network(hub: Callable[..., Hub], tmp_path: Path) -> None:
    cached = Path(shutil.copytree(CHECKPOINT, tmp_path / str(REAL.revision)))
    calls = hub(cached=cached, remote=AssertionError("the network was used")).calls
    folder = locate(REAL)
    assert (folder.path, folder.repo, folder.revision) == (cached, REAL.repo, REAL.revision)
    assert len(calls) == 1
    assert calls[0]["revision"] == REAL.revision
    assert calls[0]["allow_patterns"] == list(DOWNLOADED)


def test_interrupted_download_is_resumed(hub: Callable[..., Hub], tmp_path: Path) -> None:
    """After an interrupted download the hub's cache returns a folder without weights."""
    partial = tmp_path / "partial"
    partial.mkdir()
    shutil.copy(CHECKPOINT / "config.json", partial)
    calls = hub(cached=partial, remote=CHECKPOINT).calls
    assert locate(REAL).path == CHECKPOINT
    assert [call.get("local_files_only", False) for call in calls] == [True, False]


def test_cache_without_tokenizer_is_completed(hub: Callable[..., Hub], copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    hub(cached=copy, remote=CHECKPOINT)
    assert locate(REAL).path == CHECKPOINT


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("gigaam-v3-ctc", ["config.json", "pytorch_model.bin"]),
        ("gigaam-v3-e2e-ctc", ["config.json", "pytorch_model.bin", "tokenizer.model"]),
    ],
)
def test_only_files_of_the_checkpoint_are_downloaded(
    name: str, files: list[str], hub: Callable[..., Hub], tmp_path: Path
) -> None:
    """A cache without one of the files is completed."""
    cached = tmp_path / "cached"
    cached.mkdir()
    for file in files:
        (cached / file).touch()
    calls = hub(cached=cached, remote=AssertionError("the network was used")).calls
    assert locate(CHECKPOINTS[name]).path == cached
    assert calls[0]["allow_patterns"] == [*files, "LICENSE*"]
    for file in files:
        (cached / file).unlink()
        remote = tmp_path / "remote"
        hub(cached=cached, remote=remote)
        assert locate(CHECKPOINTS[name]).path == remote
        (cached / file).touch()


def test_safetensors_take_precedence_over_pickled_tensors(copy: Path) -> None:
    (copy / "pytorch_model.bin").touch()
    assert [file.name for file in CheckpointFolder(copy, "x", None).weight_files()] == ["model.safetensors"]


def test_requested_revision_is_recorded_by_its_commit(hub: Callable[..., Hub], tmp_path: Path) -> None:
    commit = "f" * 40
    calls = hub(remote=Path(shutil.copytree(CHECKPOINT, tmp_path / commit))).calls
    assert locate(REAL, revision="main").revision == commit
    assert calls[-1]["revision"] == "main"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LocalEntryNotFoundError("offline\nmore lines"),
            r"not in the local cache, and the hub cannot be reached \(offline\)",
        ),
        (httpx2.RemoteProtocolError("peer closed connection"), r"hub cannot be reached \(peer closed connection\)"),
        (OSError(28, "No space left on device"), "No space left"),
        (
            RevisionNotFoundError("404", response=httpx2.Response(404, request=httpx2.Request("GET", "x://y"))),
            "has no revision '5eb144",
        ),
    ],
)
def test_unreachable_hub_is_a_one_line_error(hub: Callable[..., Hub], error: Exception, message: str) -> None:
    hub(remote=error)
    with pytest.raises(CheckpointNotFoundError, match=message) as caught:
        locate(REAL)
    assert "\n" not in str(caught.value)


def test_local_folders_and_revisions_exclude_each_other(tmp_path: Path) -> None:
    assert locate(TINY).path == CHECKPOINT
    assert locate(REAL, CHECKPOINT).repo == CHECKPOINT.name
    with pytest.raises(CheckpointNotFoundError, match="no such checkpoint folder"):
        locate(REAL, tmp_path / "absent")
    with pytest.raises(CheckpointInvalidError, match="cannot be used with --checkpoint"):
        locate(REAL, CHECKPOINT, "main")
    with pytest.raises(CheckpointInvalidError, match="is bundled and has no revisions"):
        locate(TINY, revision="main")


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()  # the tensors are mapped from it
    save_file(tensors, path)


NORM = "model.language_model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "config.json").unlink(), "holds no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda p: (p / "config.json").write_text("[1]"), "config.json: holds a list"),
        (
            lambda p: (p / "model.safetensors").unlink(),
            "model.safetensors: .* missing",
        ),
        (lambda p: (p / "model.safetensors").write_bytes(b"x" * 99), "not a readable safetensors file"),
        (lambda p: (p / "tokenizer.json").unlink(), "vocab.json: "),
        (lambda p: edit_weights(p, lambda t: t.pop(NORM)), f"tensor '{NORM}' is missing"),
        (lambda p: edit_weights(p, lambda t: t.update(extra=torch.zeros(2))), "tensor 'extra' is unexpected"),
        (
            lambda p: edit_weights(p, lambda t: t.update({NORM: torch.zeros(7)})),
            rf"tensor '{NORM}' has shape \[7\], .*\[256\]",
        ),
        (
            lambda p: edit_weights(p, lambda t: t.update({NORM: torch.zeros(256, dtype=torch.int8)})),
            "is torch.int8: quantized",
        ),
        (
            lambda p: edit_weights(p, lambda t: t.update({"lm_head.weight": torch.ones(928, 256)})),
            "ties .* to the embedding.* 'lm_head.weight' differs",
        ),
        (lambda p: edit_config(p, lambda c: c.update(model_type="qwen3")), "model_type is 'qwen3', not 'qwen3_asr'"),
        (lambda p: edit_config(p, lambda c: c.update(audio_token_id=3)), "audio_token_id is 3"),
        (lambda p: edit_config(p, lambda c: c["audio_config"].update(n_window=100)), "audio_config.n_window is 100"),
        (lambda p: edit_config(p, lambda c: c["audio_config"].update(output_dim=64)), "audio_config.output_dim is 64"),
        (
            lambda p: edit_config(p, lambda c: c["text_config"].update(num_hidden_layers=9)),
            "contradicts itself .*layer",
        ),
        (lambda p: edit_config(p, lambda c: c["audio_config"].update(d_model="wide")), "contradicts itself .*d_model"),
        (lambda p: edit_config(p, lambda c: c["text_config"].update(num_hidden_layers=5)), "layers.4.* is missing"),
        (lambda p: edit_config(p, lambda c: c["text_config"].update(num_hidden_layers=3)), "layers.3.* is unexpected"),
        (lambda p: edit_config(p, lambda c: c["text_config"].update(vocab_size=512)), "more than the vocab_size 512"),
        (lambda p: edit_config(p, lambda c: c.update(support_languages=["Klingon"])), "unknown language 'Klingon'"),
        (lambda p: edit_config(p, lambda c: c.update(thinker_config={})), "thinker_config has no key 'audio_config'"),
        (lambda p: edit_config(p, lambda c: c.update(thinker_config={"classify_num": 5000})), "forced aligner"),
    ],
)
def test_invalid_checkpoints_are_one_line_errors(copy: Path, change: Callable[[Path], object], message: str) -> None:
    change(copy)
    if "layers." in message:  # transformers would report the list of layer types before the tensors are read
        edit_config(copy, lambda c: c["text_config"].pop("layer_types", None))
    with pytest.raises((CheckpointInvalidError, CheckpointNotFoundError), match=message) as caught:
        Qwen3Asr(CheckpointFolder(copy, "x", None))
    assert "\n" not in str(caught.value)


def test_shards_are_read_by_index(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name].clone() for name in part}, copy / file)
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    folder = CheckpointFolder(copy, "x", None)
    assert {name for name, _ in folder.tensors()} == set(names)
    (copy / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"model-2.safetensors: .* missing"):
        list(folder.tensors())
    (copy / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointInvalidError, match="holds no `weight_map`"):
        folder.weight_files()


@pytest.mark.parametrize(
    ("original", "native"),
    [
        ("thinker.audio_tower.conv2d1.weight", "model.audio_tower.conv2d1.weight"),
        ("thinker.audio_tower.proj1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("thinker.audio_tower.proj2.weight", "model.multi_modal_projector.linear_2.weight"),
        ("thinker.model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("thinker.lm_head.weight", "lm_head.weight"),
        ("model.audio_tower.ln_post.weight", "model.audio_tower.ln_post.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_tensor_names_of_both_layouts(original: str, native: str) -> None:
    assert native_name(original) == native


def test_tokenizer_is_built_from_vocab_and_merges(tmp_path: Path) -> None:
    """The published repos with the original layout have no tokenizer.json."""
    whole = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    added = {str(token.pop("id")): token for token in whole["added_tokens"]}
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>"})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_asr", "thinker_config": {}}))
    built = load_tokenizer(CheckpointFolder(tmp_path, "x", None))
    single = load_tokenizer(CheckpointFolder(CHECKPOINT, "x", None))
    assert built.get_vocab() == single.get_vocab()
    for text in (
        "<|im_start|>system\nJon, Sara<|im_end|>\n",
        "language English<asr_text>It's 7:30.",
        "请在七点 Разбуди 🎉",
    ):
        ids = built.encode(text, add_special_tokens=False).ids
        assert ids == single.encode(text, add_special_tokens=False).ids
        assert built.decode(ids) == single.decode(ids)


def test_names_and_repo_ids() -> None:
    assert find_checkpoint("qwen3-asr-0.6b") is REAL
    assert find_checkpoint("openai/whisper-base") is CHECKPOINTS["whisper-base"]
    assert find_checkpoint("ai-sage/GigaAM-v3").name == "gigaam-v3"  # several models in one repository
    other = find_checkpoint("openai/whisper-Small.en")
    assert (other.name, other.repo, other.revision, other.family) == (
        "whisper-small.en",
        "openai/whisper-Small.en",
        None,
        "",
    )
    for invalid in ("whisper", "../weights", "a/b/c", "a/..", "a--b/c", "/a", "a/", "a/-b", "a/" + "b" * 97, ""):
        with pytest.raises(CheckpointNotFoundError, match=r"unknown model .* repo ids"):
            find_checkpoint(invalid)


@pytest.mark.parametrize(("model_type", "family"), [("whisper", "whisper"), ("qwen3_asr", "qwen3-asr"), ("bert", None)])
def test_family_is_found_by_model_type(tmp_path: Path, model_type: str, family: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    folder = CheckpointFolder(tmp_path, "x", None)
    if family:
        assert family_of(folder) == family
    else:
        with pytest.raises(CheckpointInvalidError, match=r"model_type is 'bert'.* whisper"):
            family_of(folder)
