"""Causal-LM decoder graphs with past, built by onnxruntime-genai's model builder and extended for audio.

The builder's graphs have GroupQueryAttention with rotary positions inside, and keys and values as graph inputs and
outputs. Three changes are made:

* ``audio_embeds[N,H]`` replace the embedding rows where ``input_ids`` is the audio placeholder, in order of rows and
  positions. Fewer rows than placeholders fail in the graph. Additional rows are ignored, so an engine may leave them
  bound while it steps.
* ``num_logits_to_keep[1]`` selects for how many positions logits are computed (see :mod:`export.logits`).
* A tied lm_head reads the embedding matrix itself (``Gemm`` with ``transB``) instead of a transposed copy.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime_genai.models  # noqa: F401  (adds the builder's packages to the import path)
import torch
from builders.qwen import Qwen3Model
from torch import nn
from transformers import PretrainedConfig

from export.logits import add_input, keep_rows, name_logits, tied_head
from quantize.graph import Editor

log = logging.getLogger(__name__)

GRAPH_FILE = "decoder.onnx"


class _InMemory(Qwen3Model):  # type: ignore[misc]
    """The model builder, reading modules in memory instead of a folder."""

    def __init__(self, config: PretrainedConfig, modules: nn.Module) -> None:
        self._modules_in_memory = modules
        super().__init__(config, ir.DataType.FLOAT, ir.DataType.FLOAT, "cpu", "", {"filename": GRAPH_FILE})

    def load_weights(self, input_path: str) -> nn.Module:  # noqa: ARG002  (the builder's signature)
        return self._modules_in_memory


class _CausalLM(nn.Module):
    """Final norm and head under the names that the builder looks up: ``model.norm`` and ``lm_head``."""

    def __init__(self, model: nn.Module, lm_head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.lm_head = lm_head


@torch.no_grad()
def build_decoder(
    text_model: nn.Module, lm_head: nn.Module, config: PretrainedConfig, *, audio_token_id: int, context_length: int
) -> ir.Model:
    """Build the merged graph for prefill and step of a Qwen3 text model.

    Args:
        text_model: transformers ``Qwen3Model`` in float32.
        lm_head: its output projection, ``weight[vocab, hidden]``.
        config: the text model's configuration.
        audio_token_id: id whose embedding rows are replaced by ``audio_embeds``.
        context_length: positions of the rotary tables, which limit the length of a sequence.

    Raises:
        ValueError: the builder's graph has an unexpected structure.
    """
    capped = type(config)(
        **{
            **config.to_dict(),
            "max_position_embeddings": context_length,
            "architectures": ["Qwen3ForCausalLM"],
        }
    )
    with contextlib.redirect_stdout(io.StringIO()) as output:  # the builder prints its progress
        builder = _InMemory(capped, _CausalLM(text_model, lm_head))
        builder.make_model("")
    log.debug("model builder: %s", output.getvalue().strip())
    model: ir.Model = builder.model
    model.graph.name = "decoder"
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and value.shape.rank() == 4:  # the builder leaves the cache's last axis symbolic
            value.shape = ir.Shape([*value.shape[:3], int(config.head_dim)])
    _graft_audio(model.graph, audio_token_id, int(config.hidden_size))
    tied = lm_head.weight.data_ptr() == text_model.embed_tokens.weight.data_ptr()  # type: ignore[union-attr,operator]
    _select_logits(model.graph, int(config.vocab_size), tied=tied)
    return model


def _graft_audio(graph: ir.Graph, audio_token_id: int, hidden: int) -> None:
    """Replace the embedding of the n-th placeholder by the n-th row of ``audio_embeds``.

    A running count of placeholders indexes a table: a row of zeros for all other positions, then the audio rows. The
    row of zeros also keeps the table non-empty without audio, which Gather requires.
    """
    (gather,) = (node for node in graph if node.op_type == "Gather" and node.name == "/model/embed_tokens/Gather")
    embedded = gather.outputs[0]
    readers = list(embedded.uses())
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    audio = add_input(graph, "audio_embeds", ir.DataType.FLOAT, ["audio_tokens", hidden])
    edit = Editor(graph, "/model/audio_graft")
    is_audio = edit.node("Equal", [ids, edit.constant("token", np.array(audio_token_id, np.int64))])
    ones = edit.node("Cast", [is_audio], to=ir.DataType.INT64)
    flat = edit.node("Reshape", [ones, edit.constant("flat", np.array([-1], np.int64))])
    running = edit.node("CumSum", [flat, edit.constant("axis", np.array(0, np.int64))])
    positions = edit.node("Reshape", [edit.node("Mul", [running, flat]), edit.node("Shape", [ids])])
    table = edit.node("Concat", [edit.constant("zeros", np.zeros((1, hidden), np.float32)), audio], axis=0)
    rows = edit.node("Gather", [table, positions], axis=0)
    mask = edit.node("Unsqueeze", [is_audio, edit.constant("last", np.array([-1], np.int64))])
    merged = edit.node("Where", [mask, rows, embedded])
    merged.shape, merged.type = embedded.shape, embedded.type
    for node, index in readers:
        node.replace_input_with(index, merged)


def _select_logits(graph: ir.Graph, vocab: int, *, tied: bool) -> None:
    """Select the positions that ``num_logits_to_keep`` requests before the lm_head."""
    (head,) = (node for node in graph if node.name == "/lm_head/MatMul")
    hidden, weight = head.inputs
    if hidden is None or weight is None:
        raise ValueError("the builder's lm_head has no inputs: its graph has an unexpected structure")
    edit = Editor(graph, "/lm_head/select")
    selected, index = keep_rows(graph, edit, hidden)
    if tied:
        graph.outputs[0] = tied_head(graph, edit, selected, index, graph.initializers["model.embed_tokens.weight"])
        graph.remove(head, safe=False)
        del graph.initializers["lm_head.MatMul.weight"]
    else:
        head.replace_input_with(0, selected)
    name_logits(graph.outputs[0], vocab)


def genai_config(
    config: PretrainedConfig,
    *,
    context_length: int,
    stop_ids: list[int],
    pad_id: int,
    providers: list[Any] | None = None,
) -> bytes:
    """Contents of ``genai_config.json``, with which onnxruntime-genai runs the decoder as a plain Qwen3.

    A caller of onnxruntime-genai sets the audio rows once, before ``append_tokens``:
    ``generator.set_model_input("audio_embeds", rows)``.

    Args:
        config: the text model's configuration.
        context_length: longest sequence, in tokens.
        stop_ids: ids that end a text.
        pad_id: id of padding, also recorded as the start token.
        providers: ``provider_options`` of onnxruntime-genai; None for the CPU.
    """
    return json.dumps(
        {
            "model": {
                "bos_token_id": pad_id,
                "context_length": context_length,
                "decoder": {
                    "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers or []},
                    "filename": GRAPH_FILE,
                    "head_size": int(config.head_dim),
                    "hidden_size": int(config.hidden_size),
                    "inputs": {
                        "input_ids": "input_ids",
                        "attention_mask": "attention_mask",
                        "past_key_names": "past_key_values.%d.key",
                        "past_value_names": "past_key_values.%d.value",
                    },
                    "outputs": {
                        "logits": "logits",
                        "present_key_names": "present.%d.key",
                        "present_value_names": "present.%d.value",
                    },
                    "num_attention_heads": int(config.num_attention_heads),
                    "num_hidden_layers": int(config.num_hidden_layers),
                    "num_key_value_heads": int(config.num_key_value_heads),
                },
                "eos_token_id": stop_ids,
                "pad_token_id": pad_id,
                "type": "qwen3",
                "vocab_size": int(config.vocab_size),
            },
            "search": {
                "do_sample": False,
                "max_length": context_length,
                "min_length": 0,
                "num_beams": 1,
                "past_present_share_buffer": True,
                "repetition_penalty": 1.0,
                "temperature": 1.0,
                "top_k": 1,
                "top_p": 1.0,
            },
        },
        indent=2,
    ).encode()
