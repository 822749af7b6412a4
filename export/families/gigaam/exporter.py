"""Exporter of GigaAM v3 with a CTC head.

The revision ``ctc`` has characters as its vocabulary, ``e2e_ctc`` SentencePiece pieces of cased text with punctuation.

Sources: ``config.json`` and ``modeling_gigaam.py`` of ai-sage/GigaAM-v3; see :mod:`export.families.gigaam.model`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from tokenizers import Tokenizer, decoders, models
from torch.export import Dim
from transformers.initialization import no_init_weights

from export.checkpoints import SENTENCEPIECE, CheckpointFolder
from export.checks import check_values
from export.errors import CheckpointInvalidError
from export.families.base import FamilyExporter, ParityCheck
from export.families.gigaam import parity
from export.families.gigaam.model import GigaAMCtc, GigaAMSizes
from export.sentencepiece_tokenizer import load_sentencepiece
from export.trace import MAX_BATCH, save_traced, trace
from export.weights import NamedTensor, fill
from runtime.features.htk_log_mel import HtkLogMelConfig, htk_mel_filters
from runtime.features.log_mel import periodic_hann
from runtime.model.manifest import GraphSpec, Language

# Feature frames in one encoder frame.
SUBSAMPLING = 4
# Encoder frames (40 ms) that the rotary tables cover: 60 s, more than twice the longest segment.
POSITIONS = 1500
# Longest segment. The published code rejects longer clips.
SEGMENT_SECONDS = 25.0
# Front-end tables that published checkpoints contain, and the largest difference from the runtime's tables. The stored
# ones are float32, computed by the same operations in another order.
WINDOW, FILTERS = "preprocessor.featurizer.0.spectrogram.window", "preprocessor.featurizer.0.mel_scale.fb"
TABLE_TOLERANCE = 1e-3


class PreprocessorSettings(msgspec.Struct, frozen=True):
    """``preprocessor`` of the published configuration. Defaults are those of the published code."""

    sample_rate: int
    features: int
    n_fft: int | None = None
    win_length: int | None = None
    hop_length: int | None = None
    center: bool = True
    mel_scale: str = "htk"
    mel_norm: str | None = None

    @property
    def window(self) -> int:
        """Samples of the FFT window; 25 ms if the configuration has none."""
        return self.n_fft or self.sample_rate // 40


class EncoderSettings(msgspec.Struct, frozen=True):
    """``encoder`` of the published configuration. Defaults are those of the published code."""

    feat_in: int = 64
    n_layers: int = 16
    d_model: int = 768
    subsampling: str = "conv2d"
    subs_kernel_size: int = 3
    subsampling_factor: int = 4
    ff_expansion_factor: int = 4
    self_attention_model: str = "rotary"
    n_heads: int = 16
    pos_emb_max_len: int = 5000
    conv_norm_type: str = "batch_norm"
    conv_kernel_size: int = 31


class HeadSettings(msgspec.Struct, frozen=True):
    """``head`` of the published configuration."""

    feat_in: int
    num_classes: int


class DecodingSettings(msgspec.Struct, frozen=True):
    """``decoding`` of the published configuration: characters by id, or a SentencePiece model."""

    vocabulary: list[str] | None = None
    model_path: str | None = None


class Settings(msgspec.Struct, frozen=True):
    """``cfg.model.cfg`` of the published ``config.json``."""

    model_class: str
    preprocessor: PreprocessorSettings
    encoder: EncoderSettings
    head: HeadSettings
    decoding: DecodingSettings


def read_settings(raw: dict[str, Any], path: Path) -> Settings:
    """Parse and check the configuration ``raw``, read from ``path``.

    Raises:
        CheckpointInvalidError: it is not a GigaAM configuration.
        CheckpointInvalidError: the model has no CTC head.
        CheckpointInvalidError: graphs and runtime do not support its geometry.
    """
    try:
        inner = raw["cfg"]["model"]["cfg"]
    except (KeyError, TypeError):
        raise CheckpointInvalidError(f"{path}: has no cfg.model.cfg, so it is not a GigaAM checkpoint") from None
    model_class = inner.get("model_class") if isinstance(inner, dict) else None
    if model_class != "ctc":
        raise CheckpointInvalidError(
            f"{path}: cfg.model.cfg.model_class is {model_class!r}: this exporter supports only 'ctc', which the "
            "revisions ctc and e2e_ctc have"
        )
    try:
        settings = msgspec.convert(inner, Settings)
    except msgspec.ValidationError as error:
        raise CheckpointInvalidError(f"{path}: cfg.model.cfg: {error}") from None
    front, encoder, head = settings.preprocessor, settings.encoder, settings.head
    check_values(
        path,
        {
            "preprocessor.center": (front.center, False),
            "preprocessor.mel_scale": (front.mel_scale, "htk"),
            "preprocessor.mel_norm": (front.mel_norm, None),
            "preprocessor.win_length": (front.win_length or front.sample_rate // 40, front.window),
            "encoder.feat_in": (encoder.feat_in, front.features),
            "encoder.subsampling": (encoder.subsampling, "conv1d"),
            "encoder.subsampling_factor": (encoder.subsampling_factor, SUBSAMPLING),
            "encoder.subs_kernel_size modulo 2": (encoder.subs_kernel_size % 2, 1),
            "encoder.self_attention_model": (encoder.self_attention_model, "rotary"),
            "encoder.conv_norm_type": (encoder.conv_norm_type, "layer_norm"),
            "encoder.conv_kernel_size modulo 2": (encoder.conv_kernel_size % 2, 1),
            "head.feat_in": (head.feat_in, encoder.d_model),
        },
        prefix="cfg.model.cfg.",
    )
    sizes = (front.features, front.sample_rate // 100, encoder.n_layers, encoder.n_heads, encoder.ff_expansion_factor)
    if min(sizes) < 1 or encoder.pos_emb_max_len < 2 or encoder.d_model % (2 * encoder.n_heads) or encoder.d_model < 1:
        raise CheckpointInvalidError(
            f"{path}: cfg.model.cfg.encoder contradicts itself: d_model {encoder.d_model}, n_heads {encoder.n_heads}, "
            f"n_layers {encoder.n_layers}, ff_expansion_factor {encoder.ff_expansion_factor}, "
            f"pos_emb_max_len {encoder.pos_emb_max_len}"
        )
    return settings


def sizes_of(settings: Settings) -> GigaAMSizes:
    """Sizes of the torch module for a configuration."""
    encoder = settings.encoder
    return GigaAMSizes(
        mels=encoder.feat_in,
        layers=encoder.n_layers,
        width=encoder.d_model,
        heads=encoder.n_heads,
        hidden=encoder.d_model * encoder.ff_expansion_factor,
        subsampling_kernel=encoder.subs_kernel_size,
        convolution_kernel=encoder.conv_kernel_size,
        rotary_base=float(encoder.pos_emb_max_len),
        classes=settings.head.num_classes,
        positions=POSITIONS,
    )


def character_tokenizer(vocabulary: list[str]) -> Tokenizer:
    """Make a tokenizer whose ids are indices into ``vocabulary``. Other characters of a text are skipped."""
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def load_tokenizer(folder: CheckpointFolder, settings: Settings) -> Tokenizer:
    """Load the tokenizer that the configuration names: its list of characters, or the folder's ``tokenizer.model``.

    Raises:
        CheckpointNotFoundError: ``tokenizer.model`` is missing.
        CheckpointInvalidError: the vocabulary or ``tokenizer.model`` cannot be used.
        CheckpointInvalidError: the head's classes are not the vocabulary and the blank.
    """
    path, decoding = folder.path / "config.json", settings.decoding
    if decoding.model_path is not None:
        # The published code reads this file whatever path the configuration names.
        tokenizer = load_sentencepiece(folder.path / SENTENCEPIECE)
    elif decoding.vocabulary:
        # Category Cs: surrogates, which are not characters.
        single = all(len(each) == 1 and unicodedata.category(each) != "Cs" for each in decoding.vocabulary)
        if not single or len({*decoding.vocabulary}) != len(decoding.vocabulary):
            raise CheckpointInvalidError(
                f"{path}: cfg.model.cfg.decoding.vocabulary must be single characters, once each"
            )
        tokenizer = character_tokenizer(decoding.vocabulary)
    else:
        raise CheckpointInvalidError(f"{path}: cfg.model.cfg.decoding has neither a vocabulary nor a model_path")
    tokens = tokenizer.get_vocab_size()
    if tokens + 1 != settings.head.num_classes:
        raise CheckpointInvalidError(
            f"{path}: cfg.model.cfg.head.num_classes is {settings.head.num_classes}, but the vocabulary's {tokens} "
            f"tokens and the blank are {tokens + 1}"
        )
    return tokenizer


def load_model(folder: CheckpointFolder, sizes: GigaAMSizes, front_end: HtkLogMelConfig) -> GigaAMCtc:
    """Load the model in float32 with the checkpoint's tensors, matched strictly by name and shape.

    Names may begin with ``model.``, as in the published checkpoints. Front-end tables in the checkpoint are compared
    with the runtime's.

    Raises:
        CheckpointInvalidError: a tensor is missing, unexpected, of the wrong shape, or not a floating-point tensor.
        CheckpointInvalidError: a front-end table differs from the runtime's by more than :data:`TABLE_TOLERANCE`.
    """
    with no_init_weights():
        model = GigaAMCtc(sizes).eval()
    parameters = dict(model.named_parameters())
    tables: dict[str, npt.NDArray[Any]] = {
        WINDOW: periodic_hann(front_end.n_fft),
        FILTERS: htk_mel_filters(front_end.n_mels, front_end.n_fft, front_end.sample_rate).T,
    }

    def weights() -> Iterator[NamedTensor]:
        for stored_name, tensor in folder.tensors():
            name = stored_name.removeprefix("model.")
            if name not in parameters and name not in tables:
                yield stored_name, name, tensor
                continue
            label = f"{folder.path}: tensor {stored_name!r}"
            shape = list(tables[name].shape) if name in tables else model.published_shape(name)
            if list(tensor.shape) != shape:
                raise CheckpointInvalidError(
                    f"{label} has shape {list(tensor.shape)}, but config.json requires {shape}"
                )
            if name in parameters:
                # A copy, because the tensor may be mapped from the file.
                yield stored_name, name, tensor.clone().reshape(parameters[name].shape)
                continue
            difference = float(np.abs(tensor.double().numpy() - tables[name]).max())
            if not difference <= TABLE_TOLERANCE:
                raise CheckpointInvalidError(
                    f"{label} differs by {difference:.1e} from the runtime's table, so features would differ"
                )

    fill(parameters, weights(), folder.path)
    return model


class GigaAM(FamilyExporter):
    """Exporter of a GigaAM checkpoint."""

    roles = ("encoder",)
    layout = "original"

    def __init__(self, folder: CheckpointFolder) -> None:
        raw, path = folder.config(), folder.path / "config.json"
        self.settings = read_settings(raw, path)
        self.tokenizer = load_tokenizer(folder, self.settings)
        front = self.settings.preprocessor
        window, hop = front.window, front.hop_length or front.sample_rate // 100
        try:
            self._front_end = HtkLogMelConfig("htk-log-mel", front.sample_rate, window, hop, front.features, window)
        except ValueError as error:
            raise CheckpointInvalidError(f"{path}: cfg.model.cfg.preprocessor: {error}") from None
        longest = POSITIONS * SUBSAMPLING * hop / front.sample_rate
        seconds = raw.get("segment_seconds", SEGMENT_SECONDS)
        if not isinstance(seconds, int | float) or not 0 < seconds <= longest:
            raise CheckpointInvalidError(
                f"{path}: segment_seconds is {seconds!r}, but must be a number greater than 0 and at most {longest:g}, "
                "the seconds that the positions cover"
            )
        self._segment_seconds = float(seconds)
        self.model = load_model(folder, sizes_of(self.settings), self._front_end)

    @property
    def languages(self) -> list[Language]:
        """Russian, the only language of the published models."""
        return [Language("Russian", "ru")]

    @property
    def front_end(self) -> dict[str, Any]:
        """Log-mel settings, as ``runtime.features.htk_log_mel`` reads them."""
        return msgspec.to_builtins(self._front_end)  # type: ignore[no-any-return]

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters that ``runtime.families.gigaam`` reads."""
        encoder, classes = self.settings.encoder, self.settings.head.num_classes
        return {
            "subsampling": SUBSAMPLING,
            "positions": POSITIONS,
            "vocab_size": classes,
            "blank_id": classes - 1,
            "heads": encoder.n_heads,
            "hidden": encoder.d_model * encoder.ff_expansion_factor,
            "segment_seconds": self._segment_seconds,
        }

    def write_graph(self, role: str, out: Path) -> GraphSpec:
        """Write ``encoder.onnx``, which includes the CTC head."""
        clips, frames = Dim("clips", min=1, max=MAX_BATCH), Dim("frames", min=1, max=POSITIONS * SUBSAMPLING)
        graph = trace(
            self.model,
            {"features": torch.zeros(3, self._front_end.n_mels, 50), "lengths": torch.tensor([50, 33, 7])},
            ["log_probs", "encoded_lengths"],
            {"features": {0: clips, 2: frames}, "lengths": {0: clips}},
        )
        graph.graph.outputs[0].shape = ir.Shape(("clips", "tokens", self.settings.head.num_classes))
        return save_traced(graph, role, out)

    def parity_checks(self) -> dict[str, ParityCheck]:
        """Compute the module's log-probabilities on sample speech."""
        return {"encoder": partial(parity.check_encoder, parity.encoder_cases(self.model, self._front_end))}
