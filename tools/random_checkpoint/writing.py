"""Write random tensors in shards of safetensors, with index and configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD_BYTES = 2 * 10**9


def write_config(out: Path, config: dict[str, Any]) -> None:
    """Create the folder and its ``config.json``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def write_tensors(out: Path, shapes: Iterable[tuple[str, list[int]]], seed: int = 1) -> None:
    """Write bfloat16 tensors by name and shape; at most one shard is in memory."""
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        file = f"model-{len({*weight_map.values()}) + 1:05d}.safetensors"
        save_file(shard, out / file)
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, shape in shapes:
        shard[name] = values(name, shape, generator)
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            flush()
    if shard:
        flush()
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def values(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Return 1 for gains and variances of norms, 0 for other vectors, else normal values with variance 1/fan-in."""
    if len(shape) == 1:
        gain = name.endswith(("running_var", "weight")) and ("norm" in name or "ln_post" in name)
        return torch.full(shape, 1.0 if gain or name.endswith("running_var") else 0.0, dtype=torch.bfloat16)
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=generator).mul_(fan_in**-0.5).to(torch.bfloat16)


def model_shapes(kind: Any, config: Any) -> list[tuple[str, list[int]]]:
    """Return names and shapes of a model's floating-point tensors without allocating them; tied ones once."""
    with torch.device("meta"):
        model = kind(config)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    return [
        (name, list(tensor.shape))
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and name not in tied
    ]
