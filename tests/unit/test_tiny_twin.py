"""The twin with outlier channels: the same function as its original, with larger activations in the chosen channels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3ASRForConditionalGeneration
from typer.testing import CliRunner

from export.errors import CheckpointInvalidError
from tests.conftest import CHECKPOINT, DATA
from tools.tiny.__main__ import app
from tools.tiny.qwen3_asr.model import log_mel, prompt_ids, token_counts, transcribe
from tools.tiny.qwen3_asr.twin import FACTORS, Outliers, choose, rescale, write_twin

SAMPLES = ("en-1.wav", "ru-2.wav", "zh-3.wav")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outliers]]:
    """The folder of the twin, and its rescaled channels."""
    out = tmp_path_factory.mktemp("twin") / "twin"
    return out, write_twin(CHECKPOINT, out)


@pytest.fixture(scope="module")
def models(twin: tuple[Path, list[Outliers]]) -> tuple[nn.Module, nn.Module]:
    """The original and the twin in float32."""
    original, rescaled = (
        Qwen3ASRForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
        for path in (CHECKPOINT, twin[0])
    )
    return original, rescaled


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def clip(file: str) -> Any:
    return soundfile.read(DATA / file, dtype="float32")[0]


@torch.inference_mode()
def logits(model: Any, tokenizer: Tokenizer, file: str) -> Tensor:
    """Return the logits of the whole prompt with the file's audio."""
    features, frames = log_mel([clip(file)])
    result: Tensor = model(
        input_ids=torch.tensor([prompt_ids(tokenizer, int(token_counts(frames)))]),
        input_features=features,
        input_features_mask=(torch.arange(features.shape[-1]) < frames[:, None]).long(),
    ).logits
    return result


def consumers(chosen: list[Outliers]) -> Iterator[tuple[str, dict[int, float]]]:
    """Yield every module that reads a rescaled activation, with the factor of each rescaled column."""
    for outliers in chosen:
        factors = {
            column: factor for channel, factor in outliers.factors.items() for column in outliers.site.columns(channel)
        }
        yield from ((name, factors) for name in outliers.site.consumers)


def input_peaks(model: nn.Module, names: list[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """Return the largest magnitude of each input channel of each module during ``run``."""
    peaks: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peaks[name] = inputs[0].flatten(0, -2).abs().amax(0)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    run()
    for handle in handles:
        handle.remove()
    return peaks


def test_the_function_is_unchanged(models: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    expected, actual = (logits(model, tokenizer, "ru-3.wav") for model in models)
    assert expected.abs().max() > 1
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
def test_the_tokens_are_unchanged(models: tuple[nn.Module, nn.Module], tokenizer: Tokenizer) -> None:
    """Also with the cache of keys and values, in which the twin's values are larger."""
    clips = [clip(file) for file in SAMPLES]
    expected, actual = (transcribe(model, tokenizer, clips) for model in models)
    assert all(len(tokens) > 5 for tokens in expected)
    assert actual == expected


def test_only_chosen_channels_are_larger(
    models: tuple[nn.Module, nn.Module], twin: tuple[Path, list[Outliers]], tokenizer: Tokenizer
) -> None:
    indices = list(consumers(twin[1]))
    assert len(indices) == 4 * 5 + 1 + 4 * 7  # encoder layers, projector, decoder layers
    names = [name for name, _ in indices]
    original, rescaled = (input_peaks(model, names, partial(logits, model, tokenizer, "en-1.wav")) for model in models)
    for name, factors in indices:
        assert len(factors) >= 2
        assert all(30 <= factor <= 100 for factor in factors.values())
        expected = original[name].clone()
        for column, factor in factors.items():
            assert expected[column] > 0, (name, column)
            expected[column] *= factor
        torch.testing.assert_close(rescaled[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_only_modules_of_the_sites_differ(twin: tuple[Path, list[Outliers]]) -> None:
    """In particular the embedding, which is also lm_head, and the norm before it do not."""
    out, chosen = twin
    before, after = load_file(CHECKPOINT / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed == {name for outliers in chosen for name in (outliers.site.producer, *outliers.site.consumers)}


def test_the_rescaling_undoes_itself(twin: tuple[Path, list[Outliers]]) -> None:
    """In every bit, since the factors are powers of two."""
    before = {name: tensor.float() for name, tensor in load_file(CHECKPOINT / "model.safetensors").items()}
    after = load_file(twin[0] / "model.safetensors")
    rescale(after, [Outliers(o.site, {channel: 1 / factor for channel, factor in o.factors.items()}) for o in twin[1]])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_folder_is_a_checkpoint(twin: tuple[Path, list[Outliers]]) -> None:
    out = twin[0]
    described, original = (json.loads((path / "config.json").read_text()) for path in (out, CHECKPOINT))
    assert described == original | {"dtype": "float32"}
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in CHECKPOINT.iterdir()} - {"README.md"}
    assert (out / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in out.iterdir())
    assert not list(out.parent.glob(".*"))


def test_channels_depend_on_the_seed_alone(twin: tuple[Path, list[Outliers]], models: tuple[Any, Any]) -> None:
    config = models[0].config
    assert choose(config) == twin[1]
    assert choose(config, seed=1) != twin[1]
    counts = {outliers.site.width: len(outliers.factors) for outliers in twin[1]}
    assert counts == {128: 2, 192: 2, 256: 3, 768: 8}
    assert {factor for outliers in twin[1] for factor in outliers.factors.values()} == set(FACTORS)


def test_errors_name_the_folder_and_leave_nothing(tmp_path: Path) -> None:
    existing = tmp_path / "there"
    existing.mkdir()
    result = CliRunner().invoke(app, ["twin", "--out", str(existing)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {existing}: ")
    assert "--out" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(app, ["twin", "--checkpoint", str(existing), "--out", str(tmp_path / "new")])
    assert result.exit_code == 2
    assert "config.json" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_missing_weight_leaves_nothing(tmp_path: Path) -> None:
    tensors = load_file(CHECKPOINT / "model.safetensors")
    gone = "model.audio_tower.layers.1.fc1.weight"
    del tensors[gone]
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copyfile(CHECKPOINT / "config.json", broken / "config.json")
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointInvalidError, match=gone):
        write_twin(broken, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
