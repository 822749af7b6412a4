"""Exporter of Whisper in every size: an encoder with cross-attention projections, and a decoder with past.

Sources: transformers ``models/whisper`` (architecture, ``generate``), arXiv 2212.04356, the published checkpoints.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim
from transformers import WhisperForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from export.checkpoints import CheckpointFolder, untrained_tasks
from export.checks import check_vocabulary
from export.errors import CheckpointInvalidError
from export.families.base import FamilyExporter, ParityCheck
from export.families.whisper import parity
from export.families.whisper.front_end import FRAMES_PER_POSITION, FRONT_END
from export.families.whisper.graphs import CachedDecoder, CrossEncoder, cross_names, past_names
from export.families.whisper.layouts import Layout, find_layout
from export.families.whisper.layouts.base import EMBEDDING, HEAD
from export.logits import keep_rows, name_logits, tied_head
from export.trace import MAX_BATCH, save_traced, trace
from export.weights import fill_tied
from quantize.graph import Editor
from runtime.model.manifest import GraphSpec, Language


def name_attention(graph: ir.Graph) -> None:
    """Name fused attention nodes by the module whose output projection reads them; they have no module of their own."""
    for node in graph:
        if node.op_type in ("MultiHeadAttention", "GroupQueryAttention"):
            reader = next(use.node for use in node.outputs[0].uses())
            node.name = f"{(reader.name or '').removesuffix('/out_proj/MatMul')}/{node.op_type}"


def load_model(layout: Layout) -> WhisperForConditionalGeneration:
    """Load the reference model in float32 with the layout's tensors, matched strictly by name and shape.

    Raises:
        CheckpointInvalidError: a tensor is missing, unexpected, of the wrong shape, or not a floating-point tensor.
        CheckpointInvalidError: the checkpoint has an output head that differs from the embedding.
    """
    with no_init_weights():
        model = WhisperForConditionalGeneration(layout.config).eval()
    fill_tied(
        dict(model.named_parameters(remove_duplicate=False)),
        layout.tensors(),
        layout.folder.path,
        head=HEAD,
        embedding=EMBEDDING,
        described_by=layout.described_by,
    )
    model.proj_out.weight = model.model.decoder.embed_tokens.weight
    return model


class Whisper(FamilyExporter):
    """Exporter of a Whisper checkpoint in any of its layouts."""

    roles = ("encoder", "decoder")

    def __init__(self, folder: CheckpointFolder) -> None:
        layout = find_layout(folder)(folder)
        self.layout = layout.name
        self.config, self.generation, self.tokenizer = layout.config, layout.generation, layout.tokenizer
        self._check_tokenizer(layout.settings)
        layout.check_front_end(self._window_samples)
        self._languages = self._parse_languages(layout.settings)
        self._untrained_tasks = untrained_tasks(folder.repo)
        self.model = load_model(layout)

    def _check_tokenizer(self, path: Path) -> None:
        """Check the special tokens. The decoding rules rely on their ids: text below the stop id, the rest above.

        Raises:
            CheckpointInvalidError: the tokenizer and the file ``path`` have different ids for a token.
            CheckpointInvalidError: a special token has an id below that of the stop token.
            CheckpointInvalidError: the tokenizer has more tokens than the embedding has rows.
        """
        generation = self.generation
        special_ids = {
            "<|endoftext|>": generation.eos_token_id,
            "<|startoftranscript|>": generation.decoder_start_token_id,
            "<|notimestamps|>": generation.no_timestamps_token_id,
            **generation.lang_to_id,
            **{f"<|{task}|>": token for task, token in generation.task_to_id.items()},
        }
        for token, expected in special_ids.items():
            actual = self.tokenizer.token_to_id(token)
            if actual != expected:
                raise CheckpointInvalidError(f"{path}: has the id {expected} for {token}, but the tokenizer {actual}")
            if expected < generation.eos_token_id:
                raise CheckpointInvalidError(f"{path}: {token} has id {expected}, below that of <|endoftext|>")
        check_vocabulary(self.tokenizer, int(self.config.vocab_size), path.parent)

    def _parse_languages(self, path: Path) -> list[Language]:
        if not self.generation.is_multilingual:
            return [Language("English", "en")]
        codes = [token.strip("<|>") for token in self.generation.lang_to_id]
        if unknown := [code for code in codes if code not in LANGUAGES]:
            raise CheckpointInvalidError(f"{path}: unknown language {unknown[0]!r}")
        return [Language(LANGUAGES[code].title(), code) for code in codes]

    @property
    def _window_frames(self) -> int:
        return FRAMES_PER_POSITION * int(self.config.max_source_positions)

    @property
    def _window_samples(self) -> int:
        return self._window_frames * FRONT_END["hop_length"]

    @property
    def languages(self) -> list[Language]:
        """Languages of ``lang_to_id``; English for models that are not multilingual."""
        return self._languages

    @property
    def front_end(self) -> dict[str, Any]:
        """Log-mel settings, as ``runtime.features.log_mel`` reads them. Every clip is padded to a whole window."""
        return {
            "kind": "whisper-log-mel",
            "sample_rate": FRONT_END["sampling_rate"],
            "n_fft": FRONT_END["n_fft"],
            "hop_length": FRONT_END["hop_length"],
            "n_mels": int(self.config.num_mel_bins),
            "min_samples": self._window_samples,
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters that ``runtime.families.whisper.engine`` reads."""
        config, generation = self.config, self.generation
        multilingual = generation.is_multilingual
        previous = generation.prev_sot_token_id or self.tokenizer.token_to_id("<|startofprev|>")
        return {
            "vocab_size": int(config.vocab_size),
            "layers": int(config.decoder_layers),
            "heads": int(config.decoder_attention_heads),
            "head_dim": int(config.d_model) // int(config.decoder_attention_heads),
            "audio_positions": int(config.max_source_positions),
            "context_length": int(config.max_target_positions),
            "segment_seconds": self._window_samples / FRONT_END["sampling_rate"],
            "timestamp_seconds": FRAMES_PER_POSITION * FRONT_END["hop_length"] / FRONT_END["sampling_rate"],
            "start_id": generation.decoder_start_token_id,
            "stop_id": generation.eos_token_id,
            "previous_id": previous,
            "no_timestamps_id": generation.no_timestamps_token_id,
            # As in transformers' generate; the token's name differs between sizes.
            "no_speech_id": generation.no_timestamps_token_id - 1,
            "language_ids": {token.strip("<|>"): each for token, each in generation.lang_to_id.items()}
            if multilingual
            else {},
            "task_ids": self._trained_tasks() if multilingual else {},
            "suppress_ids": sorted(set(generation.suppress_tokens or ())),
            "begin_suppress_ids": sorted(set(generation.begin_suppress_tokens or ())),
            "max_initial_timestamp": generation.max_initial_timestamp_index,
        }

    def _trained_tasks(self) -> dict[str, int]:
        """Token ids of the tasks that the model was trained for. For others it would write wrong text silently."""
        return {task: token for task, token in self.generation.task_to_id.items() if task not in self._untrained_tasks}

    def write_graph(self, role: str, out: Path) -> GraphSpec:
        """Write ``encoder.onnx`` or ``decoder.onnx``."""
        return save_traced(self.encoder_graph() if role == "encoder" else self.decoder_graph(), role, out)

    def encoder_graph(self) -> ir.Model:
        """Trace the encoder: ``features[B, mels, frames]`` to ``cross_key_values.*[B, heads, positions, head_dim]``."""
        config = self.config
        mels, heads = int(config.num_mel_bins), int(config.decoder_attention_heads)
        graph = trace(
            CrossEncoder(self.model.model.encoder, self.model.model.decoder).eval(),
            {"features": torch.zeros(2, mels, self._window_frames)},
            cross_names(config.decoder_layers),
            {"features": {0: Dim("clips", min=1, max=MAX_BATCH)}},
        )
        name_attention(graph.graph)
        graph.graph.inputs[0].shape = ir.Shape(["clips", mels, self._window_frames])
        for value in graph.graph.outputs:
            value.shape = ir.Shape(["clips", heads, int(config.max_source_positions), int(config.d_model) // heads])
        return graph

    def decoder_graph(self) -> ir.Model:
        """Trace the decoder with its output head.

        Inputs are ``input_ids``, ``attention_mask``, past and cross-attention keys and values, and
        ``num_logits_to_keep``. Outputs are ``logits`` and present keys and values.
        """
        config = self.config
        layers, heads, width = int(config.decoder_layers), int(config.decoder_attention_heads), int(config.d_model)
        size, positions, max_tokens = width // heads, int(config.max_source_positions), int(config.max_target_positions)
        rows, room = Dim("rows", min=1, max=MAX_BATCH), Dim("room", min=0, max=max_tokens)
        past, cross = past_names(layers), cross_names(layers)
        model = trace(
            CachedDecoder(self.model.model.decoder).eval(),
            {
                "input_ids": torch.zeros(3, 2, dtype=torch.int64),
                "attention_mask": torch.ones(3, 7, dtype=torch.int64),
                "past": {name: torch.zeros(3, heads, 5, size) for name in past},
                "cross": {name: torch.zeros(3, heads, positions, size) for name in cross},
            },
            ["hidden", *past_names(layers, "present")],
            {
                "input_ids": {0: rows, 1: Dim("tokens", min=1, max=max_tokens)},
                "attention_mask": {0: rows, 1: Dim("total", min=1, max=max_tokens)},
                "past": {name: {0: rows, 2: room} for name in past},
                "cross": {name: {0: rows} for name in cross},
            },
        )
        graph = model.graph
        name_attention(graph)
        shapes: dict[str, list[int | str]] = {
            "input_ids": ["batch_size", "sequence_length"],
            "attention_mask": ["batch_size", "total_sequence_length"],
            **{name: ["batch_size", heads, "past_sequence_length", size] for name in past},
            **{name: ["batch_size", heads, positions, size] for name in cross},
            **{name: ["batch_size", heads, "present_sequence_length", size] for name in past_names(layers, "present")},
        }
        for value in (*graph.inputs, *graph.outputs):
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
        edit = Editor(graph, "/lm_head/select")
        selected, index = keep_rows(graph, edit, graph.outputs[0])
        table = next(node for node in graph if node.name == "/model/embed_tokens/Gather").inputs[0]
        if table is None:
            raise ValueError("the embedding has no table: the traced graph has an unexpected structure")
        graph.outputs[0] = name_logits(tied_head(graph, edit, selected, index, table), int(config.vocab_size))
        return model

    def parity_checks(self) -> dict[str, ParityCheck]:
        """Compute the reference's cross-attention keys and values, and its logits for them."""
        generation = self.generation
        clips = parity.encoded_clips(self.model, self._window_samples)
        cases = parity.encoder_cases(self.model, clips)
        languages = list(generation.lang_to_id.values())[:1]
        start = [generation.decoder_start_token_id, *languages, generation.no_timestamps_token_id]
        rows = parity.decoder_rows(self.model, clips, start)
        return {"encoder": partial(parity.check_encoder, cases), "decoder": partial(parity.check_decoder, rows)}
