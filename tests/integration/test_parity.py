"""Parity checks refuse wrong graphs of every family, and accept correct ones of models with large activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from export.checkpoints import CheckpointFolder
from export.errors import ParityError
from export.families import load_family
from runtime import open_artifact
from runtime.__main__ import app as cli
from tests.conftest import CHECKPOINT
from tests.helpers import gigaam_checkpoint, parakeet_checkpoint, whisper_checkpoint
from tools.tiny.qwen3_asr.twin import write_twin

pytestmark = pytest.mark.slow

WRITERS: dict[str, Callable[[Path], object]] = {
    "whisper": whisper_checkpoint.write,
    "parakeet-tdt": lambda folder: parakeet_checkpoint.write(parakeet_checkpoint.tdt_model(), folder),
    "parakeet-ctc": lambda folder: parakeet_checkpoint.write(parakeet_checkpoint.ctc_model(), folder),
    "gigaam-ctc": lambda folder: gigaam_checkpoint.write("ctc", folder, **gigaam_checkpoint.TINY),
}
# Family, graph, a matrix, the projection of attention whose first head is transposed, a module with a bias.
FEED_FORWARD, VALUES = "encoder.layers.1.feed_forward1.linear1", "encoder.layers.1.self_attn"
QWEN, TEXT = "model.audio_tower.layers.1", "model.language_model.layers.1"
ENCODER, DECODER = "model.encoder.layers.0", "model.decoder.layers.0"
GRAPHS = [
    ("whisper", "encoder", f"{ENCODER}.fc1", f"{ENCODER}.self_attn.v_proj", f"{ENCODER}.self_attn.out_proj"),
    ("whisper", "decoder", f"{DECODER}.fc2", f"{DECODER}.self_attn.v_proj", f"{DECODER}.encoder_attn.q_proj"),
    ("qwen3-asr", "encoder", f"{QWEN}.fc1", f"{QWEN}.self_attn.v_proj", f"{QWEN}.fc2"),
    ("qwen3-asr", "decoder", f"{TEXT}.mlp.down_proj", f"{TEXT}.self_attn.v_proj", None),
    ("parakeet-tdt", "encoder", FEED_FORWARD, f"{VALUES}.v_proj", FEED_FORWARD),
    ("parakeet-tdt", "decoder_joint", "joint.head", None, "decoder.decoder_projector"),
    ("parakeet-ctc", "encoder", FEED_FORWARD, f"{VALUES}.v_proj", FEED_FORWARD),
    ("gigaam-ctc", "encoder", FEED_FORWARD, f"{VALUES}.linear_v", FEED_FORWARD),
]


@pytest.mark.parametrize(
    ("family", "role", "matrix", "attention", "bias"), GRAPHS, ids=[f"{each[0]}-{each[1]}" for each in GRAPHS]
)
def test_wrong_graphs_are_refused(
    family: str, role: str, matrix: str, attention: str | None, bias: str | None, tmp_path: Path
) -> None:
    """One wrong weight by the matrix's standard deviation, one transposed block of a head, one missing bias."""
    folder = CHECKPOINT
    if family in WRITERS:
        folder = tmp_path / "checkpoint"
        WRITERS[family](folder)
    exporter = load_family(family)(CheckpointFolder(folder, "x", None))
    parameters: dict[str, Any] = dict(exporter.model.named_parameters())
    graph = tmp_path / exporter.write_graph(role, tmp_path).file
    exporter.parity_checks()[role](graph)

    def refused(tensor: torch.Tensor, change: Callable[[torch.Tensor], object]) -> None:
        # The reference is changed instead of the graph: the difference is the same, and no graph is traced again.
        original = tensor.detach().clone()
        with torch.no_grad():
            change(tensor)
        assert not torch.equal(original, tensor)
        with pytest.raises(ParityError, match="differs from the reference"):
            exporter.parity_checks()[role](graph)
        with torch.no_grad():
            tensor.copy_(original)

    def change_one(tensor: torch.Tensor) -> None:
        tensor[1, 2] += tensor.std()

    def transpose_head(tensor: torch.Tensor) -> None:
        tensor[:6, :6] = tensor[:6, :6].T.clone()

    refused(parameters[f"{matrix}.weight"], change_one)
    if attention:
        refused(parameters[f"{attention}.weight"], transpose_head)
    if bias:
        refused(parameters[f"{bias}.bias"], torch.Tensor.zero_)


def test_large_activations_are_accepted(tmp_path: Path) -> None:
    """Channels of 1,000 times the others. The manifest and ``info`` have absolute and relative differences."""
    write_twin(CHECKPOINT, tmp_path / "twin", factors=(1000.0,))
    arguments = ["qwen3-asr-tiny", "--checkpoint", str(tmp_path / "twin"), "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for role, parity in open_artifact(tmp_path / "x").manifest.parity.items():
        assert parity.max_relative_difference is not None
        assert 0 < parity.max_relative_difference <= parity.tolerance
        assert f"{role}: at most {parity.max_abs_difference:.1e} from the reference" in result.stderr
    info = CliRunner().invoke(cli, ["info", str(tmp_path / "x")])
    assert info.exit_code == 0, info.output
    assert f"({parity.max_relative_difference:.1e} of the largest value)" in info.stdout
