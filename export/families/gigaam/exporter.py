"""GigaAM v3 with a CTC head: characters (``ctc``) or cased text with punctuation from SentencePiece (``e2e_ctc``).

Sources: ``config.json`` and ``modeling_gigaam.py`` of ai-sage/GigaAM-v3; see :mod:`export.families.gigaam.model`.
"""

from __future__ import annotations

import gc
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from torch.export import Dim
from transformers.initialization import no_init_weights

from export import compare
from export.checkpoints import SENTENCEPIECE, CheckpointFolder
from export.errors import CheckpointInvalidError
from export.families.gigaam.model import GigaAMCtc, GigaAMSizes
from export.sentencepiece_tokenizer import load_sentencepiece
from export.trace import save_traced, trace
from export.weights import fill
from quantize.progress import Report
from runtime.features.htk_log_mel import HtkLogMelConfig, htk_log_mel, htk_mel_filters
from runtime.features.log_mel import periodic_hann
from runtime.model.manifest import GraphSpec, Language, Parity
from runtime.ort.providers import ProviderSpec
from runtime.ort.session import make_session

Floats = npt.NDArray[np.float32]

SUBSAMPLING = 4
# Frames of 40 ms that the rotary tables reach: a minute, more than twice what the model is made for.
POSITIONS = 1500
# The published code refuses longer clips.
SEGMENT_SECONDS = 25.0
TOLERANCE = 1e-4
# Seconds of audio whose log-probabilities are compared: one window, fractions of a second, the longest segment.
PARITY_SECONDS = (0.02, 0.6, 2.3, 25.0)
# Tables of the front end that the published weights carry, and how far ours may be from them: they are float32, made
# by other orders of the same operations.
WINDOW, FILTERS = "preprocessor.featurizer.0.spectrogram.window", "preprocessor.featurizer.0.mel_scale.fb"
TABLE_TOLERANCE = 1e-3


class PreprocessorSettings(msgspec.Struct, frozen=True):
    """``preprocessor`` of the published configuration; defaults are those of its code."""

    sample_rate: int
    features: int
    n_fft: int | None = None
    win_length: int | None = None
    hop_length: int | None = None
    center: bool = True
    mel_scale: str = "htk"
    mel_norm: str | None = None


class EncoderSettings(msgspec.Struct, frozen=True):
    """``encoder`` of the published configuration; defaults are those of its code."""

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


@dataclass(frozen=True, slots=True)
class ParityCase:
    """Features [clips, mels, frames] as the graph takes them, valid frames, and the rows [frames, classes] expected."""

    name: str
    features: Floats
    lengths: npt.NDArray[np.int64]
    expected: list[Floats]


def read_settings(raw: dict[str, Any], where: Path) -> Settings:
    """The configuration, typed and checked.

    Raises:
        CheckpointInvalidError: not a GigaAM checkpoint, one without a CTC head, or of another geometry.
    """
    try:
        inner = raw["cfg"]["model"]["cfg"]
    except (KeyError, TypeError):
        raise CheckpointInvalidError(f"{where}: has no cfg.model.cfg, so it is no GigaAM checkpoint") from None
    kind = inner.get("model_class") if isinstance(inner, dict) else None
    if kind != "ctc":
        raise CheckpointInvalidError(
            f"{where}: cfg.model.cfg.model_class is {kind!r}: this exporter knows 'ctc' alone, which the revisions ctc "
            "and e2e_ctc have"
        )
    try:
        settings = msgspec.convert(inner, Settings)
    except msgspec.ValidationError as error:
        raise CheckpointInvalidError(f"{where}: cfg.model.cfg: {error}") from None
    front, encoder, head = settings.preprocessor, settings.encoder, settings.head
    window = front.n_fft or front.sample_rate // 40
    for key, value, wanted in (
        ("preprocessor.center", front.center, False),
        ("preprocessor.mel_scale", front.mel_scale, "htk"),
        ("preprocessor.mel_norm", front.mel_norm, None),
        ("preprocessor.win_length", front.win_length or front.sample_rate // 40, window),
        ("encoder.feat_in", encoder.feat_in, front.features),
        ("encoder.subsampling", encoder.subsampling, "conv1d"),
        ("encoder.subsampling_factor", encoder.subsampling_factor, SUBSAMPLING),
        ("encoder.subs_kernel_size modulo 2", encoder.subs_kernel_size % 2, 1),
        ("encoder.self_attention_model", encoder.self_attention_model, "rotary"),
        ("encoder.conv_norm_type", encoder.conv_norm_type, "layer_norm"),
        ("encoder.conv_kernel_size modulo 2", encoder.conv_kernel_size % 2, 1),
        ("head.feat_in", head.feat_in, encoder.d_model),
    ):
        if value != wanted:
            raise CheckpointInvalidError(
                f"{where}: cfg.model.cfg.{key} is {value!r}, but this exporter knows only {wanted!r}"
            )
    sizes = (front.features, front.sample_rate // 100, encoder.n_layers, encoder.n_heads, encoder.ff_expansion_factor)
    if min(sizes) < 1 or encoder.pos_emb_max_len < 2 or encoder.d_model % (2 * encoder.n_heads) or encoder.d_model < 1:
        raise CheckpointInvalidError(
            f"{where}: cfg.model.cfg.encoder contradicts itself: d_model {encoder.d_model}, n_heads {encoder.n_heads}, "
            f"n_layers {encoder.n_layers}, ff_expansion_factor {encoder.ff_expansion_factor}, "
            f"pos_emb_max_len {encoder.pos_emb_max_len}"
        )
    return settings


def sizes_of(settings: Settings) -> GigaAMSizes:
    """The module's geometry."""
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
    """A tokenizer whose ids are the places of characters in ``vocabulary``; others are left out of a text."""
    tokenizer = Tokenizer(models.BPE({character: at for at, character in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def load_tokenizer(folder: CheckpointFolder, settings: Settings) -> Tokenizer:
    """The tokenizer that the configuration names: its characters, or the folder's ``tokenizer.model``.

    Raises:
        CheckpointNotFoundError: no ``tokenizer.model``.
        CheckpointInvalidError: it cannot be used, or has another size than the head without its blank.
    """
    where, decoding = folder.path / "config.json", settings.decoding
    if decoding.model_path is not None:
        # The published code takes this file whatever path is named.
        tokenizer = load_sentencepiece(folder.path / SENTENCEPIECE)
    elif decoding.vocabulary:
        alone = all(len(each) == 1 and unicodedata.category(each) != "Cs" for each in decoding.vocabulary)
        if not alone or len({*decoding.vocabulary}) != len(decoding.vocabulary):
            raise CheckpointInvalidError(
                f"{where}: cfg.model.cfg.decoding.vocabulary must be single characters, once each"
            )
        tokenizer = character_tokenizer(decoding.vocabulary)
    else:
        raise CheckpointInvalidError(f"{where}: cfg.model.cfg.decoding has neither a vocabulary nor a model_path")
    if tokenizer.get_vocab_size() + 1 != settings.head.num_classes:
        raise CheckpointInvalidError(
            f"{where}: cfg.model.cfg.head.num_classes is {settings.head.num_classes}, but the vocabulary's "
            f"{tokenizer.get_vocab_size()} tokens and the blank are {tokenizer.get_vocab_size() + 1}"
        )
    return tokenizer


def load_model(folder: CheckpointFolder, sizes: GigaAMSizes, front_end: HtkLogMelConfig) -> GigaAMCtc:
    """The model in float32 with the checkpoint's tensors, matched strictly by name and shape.

    Names may begin with ``model.``, as those of the published checkpoints do. The tables of the front end, if there
    are any, are compared with the runtime's.

    Raises:
        CheckpointInvalidError: a tensor is missing, left over, of the wrong shape, or not a floating-point tensor.
    """
    with no_init_weights():
        model = GigaAMCtc(sizes).eval()
    wanted = dict(model.named_parameters())
    tables: dict[str, npt.NDArray[Any]] = {
        WINDOW: periodic_hann(front_end.n_fft),
        FILTERS: htk_mel_filters(front_end.n_mels, front_end.n_fft, front_end.sample_rate).T,
    }

    def given() -> Iterator[tuple[str, str, Tensor]]:
        for published, tensor in folder.tensors():
            name = published.removeprefix("model.")
            if name not in wanted and name not in tables:
                yield published, name, tensor
                continue
            where = f"{folder.path}: tensor {published!r}"
            shape = list(tables[name].shape) if name in tables else model.published_shape(name)
            if list(tensor.shape) != shape:
                raise CheckpointInvalidError(
                    f"{where} has shape {list(tensor.shape)} where config.json asks for {shape}"
                )
            if name in wanted:
                # A copy: what was read may be mapped from the file.
                yield published, name, tensor.clone().reshape(wanted[name].shape)
                continue
            difference = float(np.abs(tensor.double().numpy() - tables[name]).max())
            if not difference <= TABLE_TOLERANCE:
                raise CheckpointInvalidError(
                    f"{where} differs by {difference:.1e} from that of the runtime, whose features would be others"
                )

    fill(wanted, given(), folder.path)
    return model


class GigaAM:
    """One loaded checkpoint (see :class:`export.families.Family`)."""

    layout = "original"
    steps = 3

    def __init__(self, folder: CheckpointFolder) -> None:
        raw = folder.config()
        where = folder.path / "config.json"
        self.settings = read_settings(raw, where)
        self.tokenizer = load_tokenizer(folder, self.settings)
        front = self.settings.preprocessor
        window = front.n_fft or front.sample_rate // 40
        hop = front.hop_length or front.sample_rate // 100
        try:
            self._front_end = HtkLogMelConfig("htk-log-mel", front.sample_rate, window, hop, front.features, window)
        except ValueError as error:
            raise CheckpointInvalidError(f"{where}: cfg.model.cfg.preprocessor: {error}") from None
        longest = POSITIONS * SUBSAMPLING * hop / front.sample_rate
        seconds = raw.get("segment_seconds", SEGMENT_SECONDS)
        if not isinstance(seconds, int | float) or not 0 < seconds <= longest:
            raise CheckpointInvalidError(
                f"{where}: segment_seconds is {seconds!r}, not a number within the {longest:g} s of the positions"
            )
        self._segment_seconds = float(seconds)
        self.model = load_model(folder, sizes_of(self.settings), self._front_end)

    @property
    def languages(self) -> list[Language]:
        """Russian alone."""
        return [Language("Russian", "ru")]

    @property
    def front_end(self) -> dict[str, Any]:
        """The log-mel that ``runtime.features.htk_log_mel`` reads."""
        return msgspec.to_builtins(self._front_end)  # type: ignore[no-any-return]

    @property
    def parameters(self) -> dict[str, Any]:
        """What ``runtime.families.gigaam`` reads."""
        return {
            "subsampling": SUBSAMPLING,
            "positions": POSITIONS,
            "vocab_size": self.settings.head.num_classes,
            "blank_id": self.settings.head.num_classes - 1,
            "heads": self.settings.encoder.n_heads,
            "hidden": self.settings.encoder.d_model * self.settings.encoder.ff_expansion_factor,
            "segment_seconds": self._segment_seconds,
        }

    def write(self, out: Path, report: Report) -> dict[str, GraphSpec]:
        """``encoder.onnx`` and ``tokenizer.json``."""
        with report.step("encoder graph"):
            encoder = self._write_encoder(out)
        self.tokenizer.save(str(out / "tokenizer.json"))
        return {"encoder": encoder}

    def _write_encoder(self, out: Path) -> GraphSpec:
        mels = self._front_end.n_mels
        clips, frames = Dim("clips", min=1, max=65_536), Dim("frames", min=1, max=POSITIONS * SUBSAMPLING)
        graph = trace(
            self.model,
            {"features": torch.zeros(3, mels, 50), "lengths": torch.tensor([50, 33, 7])},
            ["log_probs", "encoded_lengths"],
            {"features": {0: clips, 2: frames}, "lengths": {0: clips}},
        )
        graph.graph.name = "encoder"
        graph.graph.outputs[0].shape = _shape("clips", "tokens", self.settings.head.num_classes)
        return save_traced(graph, out / "encoder.onnx")

    def parity(self, out: Path, graphs: dict[str, GraphSpec], report: Report) -> dict[str, Parity]:
        """The graph, opened as the runtime opens it, against the torch module on clips of speech.

        The module sees each clip alone and without padding; the graph sees it alone, and in a batch padded with what
        is no silence.
        """
        with report.step("reference outputs"):
            cases = self.parity_cases()
        del self.model
        gc.collect()
        with report.step("parity of the encoder"):
            return {"encoder": check_encoder(cases, out / graphs["encoder"].file)}

    @torch.no_grad()
    def parity_cases(self) -> list[ParityCase]:
        """The module's outputs on clips of several lengths."""
        clips = [htk_log_mel(compare.speech(seconds), self._front_end) for seconds in PARITY_SECONDS]
        expected = []
        for clip in clips:
            rows, _ = self.model(torch.from_numpy(clip)[None], torch.tensor([clip.shape[1]]))
            expected.append(rows[0].numpy())
        cases = [
            ParityCase(f"{seconds:g} s", clip[None], np.array([clip.shape[1]]), [rows])
            for seconds, clip, rows in zip(PARITY_SECONDS, clips, expected, strict=True)
        ]
        width = max(clip.shape[1] for clip in clips)
        padded = np.stack([np.pad(clip, ((0, 0), (0, width - clip.shape[1])), "wrap") for clip in clips])
        lengths = np.array([clip.shape[1] for clip in clips])
        return [*cases, ParityCase(f"batch of {len(clips)}", padded, lengths, expected)]


def check_encoder(cases: list[ParityCase], graph: Path) -> Parity:
    """``encoder.onnx`` against the expected rows.

    Raises:
        ParityError: out of tolerance, or rows of another number.
    """
    session = make_session(graph, ProviderSpec())
    worst = 0.0
    for case in cases:
        rows, lengths = session.run(
            ["log_probs", "encoded_lengths"], {"features": case.features, "lengths": case.lengths}
        )
        for ours, length, expected in zip(rows, lengths, case.expected, strict=True):
            worst = max(worst, compare.difference(ours[:length], expected, f"encoder, {case.name}", TOLERANCE))
    return Parity(worst, TOLERANCE, [case.name for case in cases])


def _shape(*dims: int | str) -> Any:
    import onnx_ir as ir

    return ir.Shape(dims)
