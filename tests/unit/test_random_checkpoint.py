"""Random checkpoints of the real dimensions, one for every model that is not bundled."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import ParakeetForCTC, ParakeetForTDT

from export.checkpoints import CHECKPOINTS
from tools.random_checkpoint import parakeet, qwen3_asr
from tools.random_checkpoint.__main__ import WRITERS, main
from tools.random_checkpoint.writing import model_shapes, values


def test_every_model_whose_weights_are_not_here_has_a_writer() -> None:
    here = {checkpoint.name for checkpoint in CHECKPOINTS.values() if checkpoint.bundled} | {"whisper-base"}
    assert set(WRITERS) == set(CHECKPOINTS) - here


def test_main_calls_the_writer_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, Path]] = []
    monkeypatch.setitem(WRITERS, "qwen3-asr-0.6b", lambda name, out: written.append((name, out)))
    main("qwen3-asr-0.6b", tmp_path)
    assert written == [("qwen3-asr-0.6b", tmp_path)]
    with pytest.raises(SystemExit, match=r"7b.*qwen3-asr-0\.6b"):
        main("7b", tmp_path)


@pytest.mark.parametrize(("name", "billions"), [("parakeet-tdt-0.6b-v3", 0.627), ("parakeet-ctc-1.1b", 1.062)])
def test_a_parakeet_has_the_published_parameters(name: str, billions: float) -> None:
    kind = ParakeetForCTC if "ctc" in name else ParakeetForTDT
    shapes = dict(model_shapes(kind, parakeet.configuration(name)))
    assert sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(billions, abs=1e-3)
    assert not any(each.endswith("num_batches_tracked") for each in shapes)


def test_a_qwen3_asr_has_the_published_parameters() -> None:
    shapes = dict(qwen3_asr.tensor_shapes(qwen3_asr.configuration("0.6b")))
    assert sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(0.782, abs=1e-3)


def test_norms_have_unit_gains_and_weights_keep_the_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    ones = ("layers.0.norm_out.weight", "layers.0.conv.norm.running_var", "ln_post.weight")
    assert all(bool((values(name, [8], generator) == 1).all()) for name in ones)
    zeros = ("layers.0.norm_out.bias", "layers.0.conv.norm.running_mean", "linear.bias")
    assert all(bool((values(name, [8], generator) == 0).all()) for name in zeros)
    assert float(values("linear.weight", [64, 256], generator).float().std()) == pytest.approx(1 / 16, rel=0.05)
