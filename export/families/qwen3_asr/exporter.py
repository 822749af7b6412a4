"""Qwen3-ASR: both checkpoint layouts to an encoder over windows and a decoder with past.

Sources: transformers ``models/qwen3_asr`` (architecture, native layout), the published checkpoints (original layout),
arXiv 2601.21337.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.export import Dim
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.qwen3_asr.processing_qwen3_asr import LANGUAGE_CODE_TO_NAME

from export.checkpoints import CheckpointFolder
from export.decoder import build_decoder, genai_config
from export.errors import CheckpointInvalidError
from export.families.qwen3_asr import parity
from export.families.qwen3_asr.encoder import CHUNK_FRAMES, CHUNK_TOKENS, WindowedEncoder
from export.tokenizer import load_tokenizer
from export.trace import save_traced, trace
from export.weights import fill
from quantize.graph import save_graph
from quantize.progress import Report
from runtime.model.manifest import GraphSpec, Language, Parity

# Prefixes of the original layout and their native names; the first match wins.
ORIGINAL_TO_NATIVE = (
    ("thinker.audio_tower.proj1.", "model.multi_modal_projector.linear_1."),
    ("thinker.audio_tower.proj2.", "model.multi_modal_projector.linear_2."),
    ("thinker.audio_tower.", "model.audio_tower."),
    ("thinker.model.", "model.language_model."),
    ("thinker.lm_head.", "lm_head."),
)
# Ids of the published vocabulary: a tokenizer of that size must have these, or it is not the model's.
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
# Positions of the rotary tables: ten minutes of audio in one prompt, four times the longest segment the runtime
# makes. The checkpoints say 65,536, which would cost 33 MB of tables.
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
    """A tensor's name in the native layout, whichever layout ``name`` is of."""
    for prefix, replacement in ORIGINAL_TO_NATIVE:
        if name.startswith(prefix):
            return replacement + name[len(prefix) :]
    return name


def native_config(raw: dict[str, Any], where: Path) -> tuple[Qwen3ASRConfig, str]:
    """The configuration of either layout, and the layout's name: ``native`` or ``original``."""
    if "thinker_config" not in raw:
        if raw.get("model_type") != "qwen3_asr":
            raise CheckpointInvalidError(
                f"{where}: model_type is {raw.get('model_type')!r}, not 'qwen3_asr': this is no Qwen3-ASR checkpoint"
            )
        return _checked(_parsed(where, raw), where), "native"
    thinker = raw["thinker_config"]
    if "classify_num" in thinker:
        raise CheckpointInvalidError(f"{where}: this is the Qwen3 forced aligner, which has no text decoder to export")
    try:
        audio, text = thinker["audio_config"], thinker["text_config"]
        rope = text.get("rope_parameters") or {}
        theta = text["rope_theta"] if "rope_theta" in text else rope["rope_theta"]
    except KeyError as error:
        raise CheckpointInvalidError(f"{where}: thinker_config has no key {error.args[0]!r}") from None
    # MRoPE sections are dropped: without images and video all three position rows are equal, which is plain RoPE.
    plain = {
        "audio_config": {key: audio[key] for key in AUDIO_FIELDS if key in audio},
        "text_config": {
            "model_type": "qwen3",
            **{key: text[key] for key in TEXT_FIELDS if key in text},
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        },
        "audio_token_id": thinker.get("audio_token_id", REAL_IDS["<|audio_pad|>"]),
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", True)),
    }
    return _checked(_parsed(where, plain), where), "original"


def _parsed(where: Path, raw: dict[str, Any]) -> Qwen3ASRConfig:
    """Transformers' configuration; what it refuses is one sentence."""
    try:
        return Qwen3ASRConfig.from_dict(raw)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise CheckpointInvalidError(f"{where}: contradicts itself or the architecture ({said})") from None


def _checked(config: Qwen3ASRConfig, where: Path) -> Qwen3ASRConfig:
    """Refuse geometries that the encoder graph and the runtime do not implement."""
    audio, text = config.audio_config, config.text_config
    expected = {
        "audio_config.n_window": (audio.n_window, CHUNK_FRAMES // 2),
        "audio_config.activation_function": (audio.activation_function, "gelu"),
        "audio_config.scale_embedding": (audio.scale_embedding, False),
        "audio_config.n_window_infer": (audio.n_window_infer % CHUNK_FRAMES, 0),
        "audio_config.output_dim": (audio.output_dim, text.hidden_size),
        "text_config.hidden_act": (text.hidden_act, "silu"),
        "text_config.rope_parameters.rope_type": (text.rope_parameters["rope_type"], "default"),
    }
    for key, (value, wanted) in expected.items():
        if value != wanted:
            raise CheckpointInvalidError(f"{where}: {key} is {value!r}, but this exporter knows only {wanted!r}")
    return config


def load_model(folder: CheckpointFolder, config: Qwen3ASRConfig) -> Qwen3ASRForConditionalGeneration:
    """The reference model in float32 with the checkpoint's tensors, matched strictly by name and shape.

    Raises:
        CheckpointInvalidError: a tensor is missing, left over, of the wrong shape, or not a floating-point tensor, or
            an untied copy of a tied lm_head differs from the embedding.
    """
    with no_init_weights():
        model = Qwen3ASRForConditionalGeneration(config).eval()
    wanted: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    tied = bool(config.tie_word_embeddings)
    head: Tensor | None = None

    def given() -> Iterator[tuple[str, str, Tensor]]:
        nonlocal head
        for name, tensor in folder.tensors():
            native = native_name(name)
            if native == "lm_head.weight" and tied:
                head = tensor
            else:
                yield name, native, tensor

    if tied:
        wanted.pop("lm_head.weight", None)
    fill(wanted, given(), folder.path)
    if tied:
        embedding = wanted["model.language_model.embed_tokens.weight"].data
        if head is not None and not torch.equal(head.to(torch.float32), embedding):
            raise CheckpointInvalidError(
                f"{folder.path}: config.json ties lm_head to the embedding, but the checkpoint's lm_head differs"
            )
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return model


class Qwen3Asr:
    """One loaded checkpoint (see :class:`export.families.Family`)."""

    steps = 5

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
        for token, real in REAL_IDS.items():
            found = self.tokenizer.token_to_id(token)
            if found is None:
                raise CheckpointInvalidError(f"{path}: the tokenizer has no token {token!r}")
            if self.config.text_config.vocab_size == REAL_VOCABULARY and found != real:
                raise CheckpointInvalidError(
                    f"{path}: token {token!r} has id {found}, but the real vocabulary has {real}"
                )
        audio_pad = self._id("<|audio_pad|>")
        if audio_pad != self.config.audio_token_id:
            raise CheckpointInvalidError(
                f"{path}: config.json says audio_token_id {self.config.audio_token_id}, but the tokenizer's "
                f"<|audio_pad|> is {audio_pad}"
            )
        if self.tokenizer.get_vocab_size() > self.config.text_config.vocab_size:
            raise CheckpointInvalidError(
                f"{path}: the tokenizer has {self.tokenizer.get_vocab_size()} tokens, more than the vocab_size "
                f"{self.config.text_config.vocab_size} of config.json"
            )

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        assert found is not None, token  # _check_tokenizer saw all that are asked for
        return found

    @property
    def languages(self) -> list[Language]:
        """The languages the checkpoint lists, or all that Qwen3-ASR knows."""
        return self._languages

    @property
    def front_end(self) -> dict[str, Any]:
        """Whisper's log-mel, as ``runtime.features.log_mel`` reads it."""
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
        """What ``runtime.families.qwen3_asr.engine`` reads."""
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

    def write(self, out: Path, report: Report) -> dict[str, GraphSpec]:
        """``encoder.onnx``, ``decoder.onnx``, ``tokenizer.json`` and ``genai_config.json``."""
        with report.step("encoder graph"):
            encoder = self._write_encoder(out)
        with report.step("decoder graph"):
            decoder = self._write_decoder(out)
        self.tokenizer.save(str(out / "tokenizer.json"))
        return {"encoder": encoder, "decoder": decoder}

    @property
    def encoder(self) -> WindowedEncoder:
        """The windowed encoder over the loaded model's modules."""
        return WindowedEncoder(self.model.model.audio_tower, self.model.model.multi_modal_projector).eval()

    def _write_encoder(self, out: Path) -> GraphSpec:
        mels, most = (
            int(self.config.audio_config.num_mel_bins),
            int(self.config.audio_config.n_window_infer) // CHUNK_FRAMES,
        )
        graph = trace(
            self.encoder,
            {"features": torch.zeros(3, mels, 2 * CHUNK_FRAMES), "lengths": torch.tensor([200, 150, 30])},
            ["audio_embeds"],
            {
                "features": {0: Dim("windows", min=1, max=65_536), 2: CHUNK_FRAMES * Dim("chunks", min=1, max=most)},
                "lengths": {0: Dim("windows", min=1, max=65_536)},
            },
        )
        graph.graph.name = "encoder"
        graph.graph.inputs[0].shape = _shape("windows", mels, "frames")
        graph.graph.outputs[0].shape = _shape("windows", "tokens", int(self.config.text_config.hidden_size))
        return save_traced(graph, out / "encoder.onnx")

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

    def parity(self, out: Path, graphs: dict[str, GraphSpec], report: Report) -> dict[str, Parity]:
        """Encoder and decoder against the reference model (see :mod:`export.families.qwen3_asr.parity`).

        The reference's outputs are computed first and its weights let go: together with the graphs, opened as the
        runtime opens them, they would not fit where each does.
        """
        with report.step("reference outputs"):
            cases = parity.encoder_cases(self.model)
            rows = parity.decoder_rows(self.model, self.tokenizer)
        del self.model
        gc.collect()
        with report.step("parity of the encoder"):
            encoder = parity.check_encoder(cases, out / graphs["encoder"].file)
        with report.step("parity of the decoder"):
            decoder = parity.check_decoder(rows, out / graphs["decoder"].file, self._id("<|audio_pad|>"))
        return {"encoder": encoder, "decoder": decoder}


def _shape(*dims: int | str) -> Any:
    import onnx_ir as ir

    return ir.Shape(dims)
