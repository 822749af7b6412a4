"""Exporter of Qwen3-ASR in both checkpoint layouts: an encoder over windows, and a decoder with past.

Sources: transformers ``models/qwen3_asr`` (architecture, native layout), the published checkpoints (original layout),
arXiv 2601.21337.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.export import Dim
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

from export.checkpoints import CheckpointFolder
from export.checks import check_model_type, check_values, check_vocabulary, parse_config
from export.decoder import build_decoder, genai_config
from export.errors import CheckpointInvalidError
from export.families.base import FamilyExporter, ParityCheck
from export.families.qwen3_asr import parity
from export.families.qwen3_asr.encoder import CHUNK_FRAMES, CHUNK_TOKENS, WindowedEncoder
from export.tokenizer import load_tokenizer
from export.trace import MAX_BATCH, save_traced, trace
from export.weights import fill, fill_tied
from quantize.graph import save_graph
from runtime.model.manifest import GraphSpec, Language

# Tensor name prefixes of the original layout and of the native one. The first match applies.
ORIGINAL_TO_NATIVE = (
    ("thinker.audio_tower.proj1.", "model.multi_modal_projector.linear_1."),
    ("thinker.audio_tower.proj2.", "model.multi_modal_projector.linear_2."),
    ("thinker.audio_tower.", "model.audio_tower."),
    ("thinker.model.", "model.language_model."),
    ("thinker.lm_head.", "lm_head."),
)
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
# Special token ids of the published vocabulary. A tokenizer for this vocabulary size must have them.
REAL_VOCABULARY = 151_936
REAL_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|audio_start|>": 151669,
    "<|audio_end|>": 151670,
    "<|audio_pad|>": 151676,
    "<asr_text>": 151704,
}
# Positions of the rotary tables: ten minutes of audio in one prompt, four times the longest segment of the runtime.
# The checkpoints allow 65,536, which would add 33 MB of tables.
CONTEXT_LENGTH = 8192
AUDIO_FIELDS = (
    "num_mel_bins",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "d_model",
    "activation_function",
    "scale_embedding",
    "n_window",
    "n_window_infer",
    "output_dim",
    "downsample_hidden_size",
)
TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
)


def native_name(name: str) -> str:
    """Name of a tensor in the native layout, for a name in either layout."""
    for prefix, replacement in ORIGINAL_TO_NATIVE:
        if name.startswith(prefix):
            return replacement + name[len(prefix) :]
    return name


def native_config(raw: dict[str, Any], path: Path) -> tuple[Qwen3ASRConfig, str]:
    """Parse and check the configuration ``raw`` of either layout, read from ``path``.

    Returns:
        The configuration, and the name of the layout: ``native`` or ``original``.

    Raises:
        CheckpointInvalidError: it is not a Qwen3-ASR configuration, or a key is missing.
        CheckpointInvalidError: graphs and runtime do not support its geometry.
    """
    if "thinker_config" not in raw:
        check_model_type(raw, "qwen3_asr", path)
        return _checked(parse_config(Qwen3ASRConfig, raw, path), path), "native"
    thinker = raw["thinker_config"]
    if "classify_num" in thinker:
        raise CheckpointInvalidError(f"{path}: this is the Qwen3 forced aligner, which has no text decoder to export")
    try:
        audio, text = thinker["audio_config"], thinker["text_config"]
        rope = text.get("rope_parameters") or {}
        theta = text["rope_theta"] if "rope_theta" in text else rope["rope_theta"]
    except KeyError as error:
        raise CheckpointInvalidError(f"{path}: thinker_config has no key {error.args[0]!r}") from None
    # MRoPE sections are dropped: without images and video all three position rows are equal, which is plain RoPE.
    native = {
        "audio_config": {key: audio[key] for key in AUDIO_FIELDS if key in audio},
        "text_config": {
            "model_type": "qwen3",
            **{key: text[key] for key in TEXT_FIELDS if key in text},
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        },
        "audio_token_id": thinker.get("audio_token_id", REAL_IDS["<|audio_pad|>"]),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", True)),
    }
    return _checked(parse_config(Qwen3ASRConfig, native, path), path), "original"


def _checked(config: Qwen3ASRConfig, path: Path) -> Qwen3ASRConfig:
    """Return ``config`` if graphs and runtime support its geometry."""
    audio, text = config.audio_config, config.text_config
    check_values(
        path,
        {
            "audio_config.n_window": (audio.n_window, CHUNK_FRAMES // 2),
            "audio_config.activation_function": (audio.activation_function, "gelu"),
            "audio_config.scale_embedding": (audio.scale_embedding, False),
            "audio_config.n_window_infer": (audio.n_window_infer % CHUNK_FRAMES, 0),
            "audio_config.output_dim": (audio.output_dim, text.hidden_size),
            "text_config.hidden_act": (text.hidden_act, "silu"),
            "text_config.rope_parameters.rope_type": (text.rope_parameters["rope_type"], "default"),
        },
    )
    return config


def load_model(folder: CheckpointFolder, config: Qwen3ASRConfig) -> Qwen3ASRForConditionalGeneration:
    """Load the reference model in float32 with the checkpoint's tensors, matched strictly by name and shape.

    Raises:
        CheckpointInvalidError: a tensor is missing, unexpected, of the wrong shape, or not a floating-point tensor.
        CheckpointInvalidError: the configuration ties lm_head to the embedding, but the checkpoint's lm_head differs.
    """
    with no_init_weights():
        model = Qwen3ASRForConditionalGeneration(config).eval()
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors = ((name, native_name(name), tensor) for name, tensor in folder.tensors())
    if config.tie_word_embeddings:
        fill_tied(parameters, tensors, folder.path, head=HEAD, embedding=EMBEDDING)
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    else:
        fill(parameters, tensors, folder.path)
    return model


class Qwen3Asr(FamilyExporter):
    """Exporter of a Qwen3-ASR checkpoint."""

    roles = ("encoder", "decoder")

    def __init__(self, folder: CheckpointFolder) -> None:
        raw = folder.config()
        self.config, self.layout = native_config(raw, folder.path / "config.json")
        self.tokenizer = load_tokenizer(folder)
        self._check_tokenizer(folder.path)
        supported = raw.get("support_languages") or raw.get("languages")
        names = {name: code for code, name in LANGUAGE_CODE_TO_NAME.items()}
        unknown = [name for name in supported or () if name not in names]
        if unknown:
            raise CheckpointInvalidError(f"{folder.path / 'config.json'}: unknown language {unknown[0]!r}")
        self._languages = [Language(name, code) for name, code in names.items() if not supported or name in supported]
        self._segment_seconds = float(raw.get("segment_seconds", 30.0))
        self.context_length = min(CONTEXT_LENGTH, int(self.config.text_config.max_position_embeddings))
        self.model = load_model(folder, self.config)

    def _check_tokenizer(self, path: Path) -> None:
        """Check the special tokens that prompts use.

        Raises:
            CheckpointInvalidError: a token is missing, or has another id than in the published vocabulary.
            CheckpointInvalidError: tokenizer and ``config.json`` have different ids for the audio placeholder.
            CheckpointInvalidError: the tokenizer has more tokens than the embedding has rows.
        """
        vocab_size = int(self.config.text_config.vocab_size)
        for token, published in REAL_IDS.items():
            actual = self.tokenizer.token_to_id(token)
            if actual is None:
                raise CheckpointInvalidError(f"{path}: the tokenizer has no token {token!r}")
            if vocab_size == REAL_VOCABULARY and actual != published:
                raise CheckpointInvalidError(
                    f"{path}: token {token!r} has id {actual}, but {published} in the published vocabulary"
                )
        audio_pad = self._id("<|audio_pad|>")
        if audio_pad != self.config.audio_token_id:
            raise CheckpointInvalidError(
                f"{path}: audio_token_id is {self.config.audio_token_id} in config.json, but the tokenizer's "
                f"<|audio_pad|> is {audio_pad}"
            )
        check_vocabulary(self.tokenizer, vocab_size, path)

    def _id(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        assert token_id is not None, token  # _check_tokenizer has checked every token that is looked up
        return token_id

    @property
    def languages(self) -> list[Language]:
        """Languages that config.json lists, or all languages of Qwen3-ASR."""
        return self._languages

    @property
    def front_end(self) -> dict[str, Any]:
        """Whisper log-mel settings, as ``runtime.features.log_mel`` reads them."""
        return {
            "kind": "whisper-log-mel",
            "sample_rate": 16_000,
            "n_fft": 400,
            "hop_length": 160,
            "n_mels": int(self.config.audio_config.num_mel_bins),
            "min_samples": 8_000,
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters that ``runtime.families.qwen3_asr.engine`` reads."""
        text = self.config.text_config
        return {
            "chunk_frames": CHUNK_FRAMES,
            "chunk_tokens": CHUNK_TOKENS,
            "window_frames": int(self.config.audio_config.n_window_infer),
            "hidden_size": int(text.hidden_size),
            "vocab_size": int(text.vocab_size),
            "layers": int(text.num_hidden_layers),
            "kv_heads": int(text.num_key_value_heads),
            "head_dim": int(text.head_dim),
            "context_length": self.context_length,
            "segment_seconds": self._segment_seconds,
            "stop_ids": [self._id("<|endoftext|>"), self._id("<|im_end|>")],
            "audio_pad_id": self._id("<|audio_pad|>"),
            "text_tag_id": self._id("<asr_text>"),
            "prompt": {
                "before_context": "<|im_start|>system\n",
                "before_audio": "<|im_end|>\n<|im_start|>user\n<|audio_start|>",
                "after_audio": "<|audio_end|><|im_end|>\n<|im_start|>assistant\n",
                "language": "language {name}<asr_text>",
            },
        }

    def write_graph(self, role: str, out: Path) -> GraphSpec:
        """Write ``encoder.onnx``, or ``decoder.onnx`` and ``genai_config.json``."""
        return self._write_encoder(out) if role == "encoder" else self._write_decoder(out)

    @property
    def encoder(self) -> WindowedEncoder:
        """Torch module of the encoder's graph, which shares the loaded model's parameters."""
        return WindowedEncoder(self.model.model.audio_tower, self.model.model.multi_modal_projector).eval()

    def _write_encoder(self, out: Path) -> GraphSpec:
        audio = self.config.audio_config
        mels, max_chunks = int(audio.num_mel_bins), int(audio.n_window_infer) // CHUNK_FRAMES
        windows = Dim("windows", min=1, max=MAX_BATCH)
        graph = trace(
            self.encoder,
            {"features": torch.zeros(3, mels, 2 * CHUNK_FRAMES), "lengths": torch.tensor([200, 150, 30])},
            ["audio_embeds"],
            {
                "features": {0: windows, 2: CHUNK_FRAMES * Dim("chunks", min=1, max=max_chunks)},
                "lengths": {0: windows},
            },
        )
        graph.graph.inputs[0].shape = ir.Shape(("windows", mels, "frames"))
        graph.graph.outputs[0].shape = ir.Shape(("windows", "tokens", int(self.config.text_config.hidden_size)))
        return save_traced(graph, "encoder", out)

    def _write_decoder(self, out: Path) -> GraphSpec:
        text = self.config.text_config
        graph = build_decoder(
            self.model.model.language_model,
            self.model.lm_head,
            text,
            audio_token_id=self._id("<|audio_pad|>"),
            context_length=self.context_length,
        )
        spec = save_graph(graph, out / "decoder.onnx")
        stop_ids = [self._id("<|endoftext|>"), self._id("<|im_end|>")]
        config = genai_config(text, context_length=self.context_length, stop_ids=stop_ids, pad_id=stop_ids[0])
        (out / "genai_config.json").write_bytes(config)
        return spec

    def parity_checks(self) -> dict[str, ParityCheck]:
        """Compute the reference's audio embeddings, and its logits for prompts with them."""
        cases = parity.encoder_cases(self.model)
        rows = parity.decoder_rows(self.model, self.tokenizer)
        return {
            "encoder": partial(parity.check_encoder, cases),
            "decoder": partial(parity.check_decoder, rows, self._id("<|audio_pad|>")),
        }
