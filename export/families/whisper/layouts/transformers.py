"""The layout of transformers: safetensors with ``config.json`` and ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from transformers import WhisperConfig

from export.checkpoints import CheckpointFolder
from export.checks import check_front_end, check_model_type, check_values, parse_config
from export.errors import CheckpointInvalidError
from export.families.whisper.front_end import FRONT_END
from export.families.whisper.layouts.base import Generation, Layout, check_generation, check_heads
from export.tokenizer import load_tokenizer
from export.weights import NamedTensor


class TransformersLayout(Layout):
    """A folder in the layout of transformers."""

    name = "native"
    described_by = "config.json"

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder
        self.config = _load_config(folder)
        self.generation = self._load_generation()
        self.tokenizer = load_tokenizer(folder)

    @property
    def settings(self) -> Path:
        """``generation_config.json``."""
        return self.folder.path / "generation_config.json"

    def tensors(self) -> Iterator[NamedTensor]:
        """Yield every tensor; the names in the file are those of the model."""
        return ((name, name, tensor) for name, tensor in self.folder.tensors())

    def check_front_end(self, window_samples: int) -> None:
        """Check ``preprocessor_config.json``, if there is one."""
        path = self.folder.path / "preprocessor_config.json"
        if path.is_file():
            seconds = window_samples / FRONT_END["sampling_rate"]
            supported = FRONT_END | {"feature_size": self.config.num_mel_bins, "chunk_length": seconds}
            check_front_end(path, self.folder.read_json(path.name), supported)

    def _load_generation(self) -> Generation:
        try:
            generation = msgspec.convert(self.folder.read_json(self.settings.name), Generation)
        except msgspec.ValidationError as error:
            raise CheckpointInvalidError(f"{self.settings}: {error}; update it from a published checkpoint") from None
        check_generation(self.settings, generation, self.config.vocab_size)
        # Published files list languages by code. Every layout gives them by id, as the vocabulary does.
        languages = dict(sorted(generation.lang_to_id.items(), key=lambda item: item[1]))
        return msgspec.structs.replace(generation, lang_to_id=languages)


def _load_config(folder: CheckpointFolder) -> WhisperConfig:
    raw, path = folder.config(), folder.path / "config.json"
    check_model_type(raw, "whisper", path)
    config: WhisperConfig = parse_config(WhisperConfig, raw, path)
    check_values(
        path,
        {
            "activation_function": (config.activation_function, "gelu"),
            "scale_embedding": (config.scale_embedding, False),
            "tie_word_embeddings": (config.tie_word_embeddings, True),
        },
    )
    heads = {key: getattr(config, key) for key in ("encoder_attention_heads", "decoder_attention_heads")}
    check_heads(path, heads, config.d_model)
    return config
