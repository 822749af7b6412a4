"""Whisper in every size: an encoder that gives cross-attention its keys and values, and a decoder with past.

Sources: transformers ``models/whisper`` (architecture, ``generate``), arXiv 2212.04356, the published checkpoints.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.export import Dim
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from export.checkpoints import CheckpointFolder, untaught
from export.errors import CheckpointInvalidError
from export.families.whisper import parity
from export.families.whisper.graphs import CachedDecoder, CrossEncoder, cross_names, past_names
from export.logits import keep_rows, name_logits, tied_head
from export.tokenizer import load_tokenizer
from export.trace import trace
from export.weights import fill
from quantize.graph import Editor, save_graph
from quantize.progress import Report
from runtime.model.manifest import GraphSpec, Language, Parity

EMBEDDING = "model.decoder.embed_tokens.weight"
HEAD = "proj_out.weight"
# Of Whisper's front end; a checkpoint with a preprocessor_config.json must say the same.
FRONT_END = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160}
# Frames of features a row of the encoder: its second convolution has this stride.
FRAMES_PER_ROW = 2


class Generation(msgspec.Struct, frozen=True):
    """What is read of ``generation_config.json``; transformers' ``generate`` goes by the same."""

    decoder_start_token_id: int
    eos_token_id: int
    no_timestamps_token_id: int
    is_multilingual: bool = False
    lang_to_id: dict[str, int] = {}
    task_to_id: dict[str, int] = {}
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    max_initial_timestamp_index: int | None = None
    prev_sot_token_id: int | None = None


def name_attention(graph: ir.Graph) -> None:
    """Call fused attention as the module whose output projection reads it; the operator itself is no module's."""
    for node in graph:
        if node.op_type in ("MultiHeadAttention", "GroupQueryAttention"):
            reader = next(use.node for use in node.outputs[0].uses())
            node.name = f"{(reader.name or '').removesuffix('/out_proj/MatMul')}/{node.op_type}"


def load_config(folder: CheckpointFolder) -> WhisperConfig:
    """The checked configuration.

    Raises:
        CheckpointInvalidError: no Whisper, or a geometry that graphs and runtime do not implement.
    """
    raw, where = folder.config(), folder.path / "config.json"
    if raw.get("model_type") != "whisper":
        raise CheckpointInvalidError(f"{where}: model_type is {raw.get('model_type')!r}, not 'whisper'")
    try:
        config = WhisperConfig.from_dict(raw)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointInvalidError(f"{where}: contradicts itself ({' '.join(str(error).split())})") from None
    expected = {
        "activation_function": (config.activation_function, "gelu"),
        "scale_embedding": (config.scale_embedding, False),
        "tie_word_embeddings": (config.tie_word_embeddings, True),
    }
    for key, (value, wanted) in expected.items():
        if value != wanted:
            raise CheckpointInvalidError(f"{where}: {key} is {value!r}, but this exporter knows only {wanted!r}")
    for key in ("encoder_attention_heads", "decoder_attention_heads"):
        heads = getattr(config, key)
        if heads < 1 or config.d_model % heads:
            raise CheckpointInvalidError(f"{where}: {key} is {heads}, which does not divide d_model, {config.d_model}")
    return config


def load_generation(folder: CheckpointFolder, config: WhisperConfig) -> Generation:
    """The checked ids of ``generation_config.json``.

    Raises:
        CheckpointInvalidError: something is missing, or an id is outside of the vocabulary.
    """
    where = folder.path / "generation_config.json"
    try:
        generation = msgspec.convert(folder.read_json(where.name), Generation)
    except msgspec.ValidationError as error:
        raise CheckpointInvalidError(f"{where}: {error}; update it as the published ones are") from None
    if generation.is_multilingual and not (generation.lang_to_id and "transcribe" in generation.task_to_id):
        raise CheckpointInvalidError(f"{where}: a multilingual model needs lang_to_id and task_to_id")
    ids = [
        generation.decoder_start_token_id,
        generation.eos_token_id,
        generation.no_timestamps_token_id + 1,
        *generation.lang_to_id.values(),
        *generation.task_to_id.values(),
        *(generation.suppress_tokens or ()),
        *(generation.begin_suppress_tokens or ()),
    ]
    if wrong := [each for each in ids if not 0 <= each < config.vocab_size]:
        raise CheckpointInvalidError(f"{where}: id {wrong[0]} is not in a vocabulary of {config.vocab_size}")
    return generation


def load_model(folder: CheckpointFolder, config: WhisperConfig) -> WhisperForConditionalGeneration:
    """The reference model in float32 with the checkpoint's tensors, matched strictly by name and shape.

    Raises:
        CheckpointInvalidError: see :func:`export.weights.fill`; or the head differs from the embedding.
    """
    with no_init_weights():
        model = WhisperForConditionalGeneration(config).eval()
    wanted: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    wanted.pop(HEAD, None)
    head: Tensor | None = None

    def given() -> Iterator[tuple[str, str, Tensor]]:
        nonlocal head
        for name, tensor in folder.tensors():
            if name == HEAD:
                head = tensor
            else:
                yield name, name, tensor

    fill(wanted, given(), folder.path)
    embedding = model.model.decoder.embed_tokens.weight
    if head is not None and not torch.equal(head.to(torch.float32), embedding.data):
        raise CheckpointInvalidError(f"{folder.path}: {HEAD} differs from the embedding, to which it should be tied")
    model.proj_out.weight = embedding
    return model


class Whisper:
    """One loaded checkpoint (see :class:`export.families.Family`)."""

    steps = 5
    layout = "native"

    def __init__(self, folder: CheckpointFolder) -> None:
        self.config = load_config(folder)
        self.generation = load_generation(folder, self.config)
        self.tokenizer = load_tokenizer(folder)
        self._check_tokenizer(folder.path)
        self._check_front_end(folder)
        self._languages = self._known_languages(folder.path)
        self._untaught = untaught(folder.repo)
        self.model = load_model(folder, self.config)

    def _check_tokenizer(self, path: Path) -> None:
        """Text ids are below the stop id, and the special ones from there on: the rules of decoding go by that."""
        generation, vocab = self.generation, self.config.vocab_size
        said = {
            "<|endoftext|>": generation.eos_token_id,
            "<|startoftranscript|>": generation.decoder_start_token_id,
            "<|notimestamps|>": generation.no_timestamps_token_id,
            **generation.lang_to_id,
            **{f"<|{task}|>": token for task, token in generation.task_to_id.items()},
        }
        for token, wanted in said.items():
            found = self.tokenizer.token_to_id(token)
            if found != wanted:
                raise CheckpointInvalidError(
                    f"{path}: generation_config.json has the id {wanted} for {token}, but the tokenizer {found}"
                )
            if wanted < generation.eos_token_id:
                raise CheckpointInvalidError(f"{path}: {token} has id {wanted}, below that of <|endoftext|>")
        if self.tokenizer.get_vocab_size() > vocab:
            raise CheckpointInvalidError(
                f"{path}: the tokenizer has {self.tokenizer.get_vocab_size()} tokens, more than the vocab_size {vocab} "
                "of config.json"
            )

    def _check_front_end(self, folder: CheckpointFolder) -> None:
        path = folder.path / "preprocessor_config.json"
        if not path.is_file():
            return
        seconds = self._window_samples / FRONT_END["sampling_rate"]
        expected = FRONT_END | {"feature_size": self.config.num_mel_bins, "chunk_length": seconds}
        raw = folder.read_json(path.name)
        for key, wanted in expected.items():
            if raw.get(key, wanted) != wanted:
                raise CheckpointInvalidError(f"{path}: {key} is {raw[key]!r}, but this model needs {wanted!r}")

    def _known_languages(self, path: Path) -> list[Language]:
        if not self.generation.is_multilingual:
            return [Language("English", "en")]
        codes = [token.strip("<|>") for token in self.generation.lang_to_id]
        if unknown := [code for code in codes if code not in LANGUAGES]:
            raise CheckpointInvalidError(f"{path / 'generation_config.json'}: unknown language {unknown[0]!r}")
        return [Language(LANGUAGES[code].title(), code) for code in codes]

    @property
    def _window_frames(self) -> int:
        return FRAMES_PER_ROW * int(self.config.max_source_positions)

    @property
    def _window_samples(self) -> int:
        return self._window_frames * FRONT_END["hop_length"]

    @property
    def languages(self) -> list[Language]:
        """Those of ``lang_to_id``; English alone for the models that have none."""
        return self._languages

    @property
    def front_end(self) -> dict[str, Any]:
        """Log-mel as ``runtime.features.log_mel`` reads it; every clip is padded to a whole window."""
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
        """What ``runtime.families.whisper.engine`` reads."""
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
            "timestamp_seconds": FRAMES_PER_ROW * FRONT_END["hop_length"] / FRONT_END["sampling_rate"],
            "start_id": generation.decoder_start_token_id,
            "stop_id": generation.eos_token_id,
            "previous_id": previous,
            "no_timestamps_id": generation.no_timestamps_token_id,
            # As transformers' generate has it; the token's name is not the same in all sizes.
            "no_speech_id": generation.no_timestamps_token_id - 1,
            "language_ids": {token.strip("<|>"): each for token, each in generation.lang_to_id.items()}
            if multilingual
            else {},
            "task_ids": self._tasks() if multilingual else {},
            "suppress_ids": sorted(set(generation.suppress_tokens or ())),
            "begin_suppress_ids": sorted(set(generation.begin_suppress_tokens or ())),
            "max_initial_timestamp": generation.max_initial_timestamp_index,
        }

    def _tasks(self) -> dict[str, int]:
        """Ids of the tasks that the model was trained for; the others would be done wrong without a word."""
        return {task: each for task, each in self.generation.task_to_id.items() if task not in self._untaught}

    def write(self, out: Path, report: Report) -> dict[str, GraphSpec]:
        """``encoder.onnx``, ``decoder.onnx`` and ``tokenizer.json``."""
        with report.step("encoder graph"):
            encoder = save_graph(self.encoder_graph(), out / "encoder.onnx")
        with report.step("decoder graph"):
            decoder = save_graph(self.decoder_graph(), out / "decoder.onnx")
        self.tokenizer.save(str(out / "tokenizer.json"))
        return {"encoder": encoder, "decoder": decoder}

    def encoder_graph(self) -> ir.Model:
        """``features[B, mels, frames]`` → ``cross_key_values.*[B, heads, positions, head_dim]``."""
        config = self.config
        mels, heads = int(config.num_mel_bins), int(config.decoder_attention_heads)
        names = cross_names(config.decoder_layers)
        graph = trace(
            CrossEncoder(self.model.model.encoder, self.model.model.decoder).eval(),
            {"features": torch.zeros(2, mels, self._window_frames)},
            names,
            {"features": {0: Dim("clips", min=1, max=65_536)}},
        )
        graph.graph.name = "encoder"
        name_attention(graph.graph)
        graph.graph.inputs[0].shape = ir.Shape(["clips", mels, self._window_frames])
        for value in graph.graph.outputs:
            value.shape = ir.Shape(["clips", heads, int(config.max_source_positions), int(config.d_model) // heads])
        return graph

    def decoder_graph(self) -> ir.Model:
        """``input_ids``, ``attention_mask``, past and cross keys and values → ``logits``, present keys and values."""
        config = self.config
        layers, heads, width = int(config.decoder_layers), int(config.decoder_attention_heads), int(config.d_model)
        size, positions, most = width // heads, int(config.max_source_positions), int(config.max_target_positions)
        rows, room = Dim("rows", min=1, max=65_536), Dim("room", min=0, max=most)
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
                "input_ids": {0: rows, 1: Dim("tokens", min=1, max=most)},
                "attention_mask": {0: rows, 1: Dim("total", min=1, max=most)},
                "past": {name: {0: rows, 2: room} for name in past},
                "cross": {name: {0: rows} for name in cross},
            },
        )
        graph = model.graph
        graph.name = "decoder"
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
            raise ValueError("the embedding has no table: the traced graph is not the one this code knows")
        graph.outputs[0] = name_logits(tied_head(graph, edit, selected, index, table), int(config.vocab_size))
        return model

    def parity(self, out: Path, graphs: dict[str, GraphSpec], report: Report) -> dict[str, Parity]:
        """Encoder and decoder against the reference model, whose weights are let go before graphs are opened."""
        generation = self.generation
        with report.step("reference outputs"):
            clips = parity.encoded_clips(self.model, self._window_samples)
            cases = parity.encoder_cases(self.model, clips)
            languages = list(generation.lang_to_id.values())[:1]
            start = [generation.decoder_start_token_id, *languages, generation.no_timestamps_token_id]
            rows = parity.decoder_rows(self.model, clips, start)
        del self.model
        gc.collect()
        with report.step("parity of the encoder"):
            encoder = parity.check_encoder(cases, out / graphs["encoder"].file)
        with report.step("parity of the decoder"):
            decoder = parity.check_decoder(rows, out / graphs["decoder"].file)
        return {"encoder": encoder, "decoder": decoder}
