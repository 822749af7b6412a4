"""Parakeet: Fast Conformer encoders with a transducer that also says durations (TDT), or with a CTC head.

Sources: transformers ``models/parakeet`` (architecture, layout), the published checkpoints, arXiv 2305.05084 (encoder)
and 2304.06795 (TDT).
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.export import Dim
from transformers import ParakeetCTCConfig, ParakeetFeatureExtractor, ParakeetForCTC, ParakeetForTDT, ParakeetTDTConfig
from transformers.initialization import no_init_weights

from export.checkpoints import CheckpointFolder
from export.errors import CheckpointInvalidError
from export.families.parakeet import parity
from export.families.parakeet.modules import DecoderJoint, FastConformer, pointwise
from export.tokenizer import load_single
from export.trace import save_traced, trace
from export.weights import fill
from quantize.progress import Report
from runtime.model.manifest import GraphSpec, Language, Parity

# The 25 European languages of TDT 0.6B v3, the only published model with this vocabulary; the others know English.
MULTILINGUAL_VOCABULARY = 8193
LANGUAGES = {
    "Bulgarian": "bg",
    "Croatian": "hr",
    "Czech": "cs",
    "Danish": "da",
    "Dutch": "nl",
    "English": "en",
    "Estonian": "et",
    "Finnish": "fi",
    "French": "fr",
    "German": "de",
    "Greek": "el",
    "Hungarian": "hu",
    "Italian": "it",
    "Latvian": "lv",
    "Lithuanian": "lt",
    "Maltese": "mt",
    "Polish": "pl",
    "Portuguese": "pt",
    "Romanian": "ro",
    "Russian": "ru",
    "Slovak": "sk",
    "Slovenian": "sl",
    "Spanish": "es",
    "Swedish": "sv",
    "Ukrainian": "uk",
}
# Longest segment that the runtime is let to make, where the checkpoint names none.
SEGMENT_SECONDS = 30.0
# Largest sizes of the graphs' dynamic axes: of rows, and of feature frames (ten minutes).
MOST_ROWS, MOST_FRAMES = 65_536, 60_000
# What of a feature extractor's configuration the runtime's front end does; `feature_size` goes with the encoder.
FRONT_END = {
    "sampling_rate": 16_000,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 160,
    "preemphasis": 0.97,
    "padding_value": 0.0,
}
# Not a weight, and only for training.
_COUNTER = ".num_batches_tracked"


class Parakeet(ABC):
    """One loaded checkpoint of either kind (see :class:`export.families.Family`)."""

    model_type: ClassVar[str]
    config_class: ClassVar[Any]
    model_class: ClassVar[Any]
    output: ClassVar[str]  # the encoder graph's first

    def __init__(self, folder: CheckpointFolder) -> None:
        raw, where = folder.config(), folder.path / "config.json"
        self.layout = "native"
        self.config = self._parsed(raw, where)
        self._check_config(where)
        self.extractor = _extractor(folder, int(self.config.encoder_config.num_mel_bins))
        self.tokenizer = load_single(folder)
        if self.tokenizer.get_vocab_size() > self.config.vocab_size:
            raise CheckpointInvalidError(
                f"{folder.path}: the tokenizer has {self.tokenizer.get_vocab_size()} tokens, more than the vocab_size "
                f"{self.config.vocab_size} of config.json"
            )
        self._languages = _languages(raw.get("languages"), int(self.config.vocab_size), where)
        self._segment_seconds = _segment_seconds(raw.get("segment_seconds", SEGMENT_SECONDS), where)
        self.model = _load(folder, self.model_class, self.config)

    def _parsed(self, raw: dict[str, Any], where: Path) -> Any:
        """Transformers' configuration; what it refuses is one sentence."""
        if raw.get("model_type") != self.model_type:
            raise CheckpointInvalidError(
                f"{where}: model_type is {raw.get('model_type')!r}, not {self.model_type!r}: this is another kind of "
                "checkpoint"
            )
        try:
            return self.config_class.from_dict(raw)
        except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise CheckpointInvalidError(f"{where}: contradicts itself or the architecture ({said})") from None

    def _check_config(self, where: Path) -> None:
        """Refuse geometries that the graphs and the runtime do not implement."""
        encoder = self.config.encoder_config
        factor = int(encoder.subsampling_factor)
        self._expect(
            where,
            {
                "encoder_config.hidden_act": (encoder.hidden_act, "silu"),
                "encoder_config.subsampling_conv_stride": (encoder.subsampling_conv_stride, 2),
                "encoder_config.subsampling_conv_kernel_size": (encoder.subsampling_conv_kernel_size, 3),
                "encoder_config.conv_kernel_size % 2": (encoder.conv_kernel_size % 2, 1),
                "encoder_config.hidden_size % num_attention_heads": (
                    encoder.hidden_size % encoder.num_attention_heads,
                    0,
                ),
            },
        )
        if factor < 2 or factor & (factor - 1) or encoder.num_mel_bins % factor:
            raise CheckpointInvalidError(
                f"{where}: encoder_config.subsampling_factor is {factor}, but this exporter knows only powers of two "
                f"that divide the {encoder.num_mel_bins} mel channels"
            )
        if not 0 <= self.blank_id < self.config.vocab_size:
            raise CheckpointInvalidError(
                f"{where}: the blank has the id {self.blank_id}, which is not in the vocabulary of "
                f"{self.config.vocab_size}"
            )

    @staticmethod
    def _expect(where: Path, values: dict[str, tuple[Any, Any]]) -> None:
        for key, (value, wanted) in values.items():
            if value != wanted:
                raise CheckpointInvalidError(f"{where}: {key} is {value!r}, but this exporter knows only {wanted!r}")

    @property
    @abstractmethod
    def blank_id(self) -> int:
        """The id that stands for no token."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """What is applied to each of the encoder's frames in its graph."""

    @property
    def languages(self) -> list[Language]:
        """The languages the checkpoint lists, or those that models with its vocabulary know."""
        return self._languages

    @property
    def front_end(self) -> dict[str, Any]:
        """NeMo's log-mel, as ``runtime.features.nemo_mel`` reads it."""
        return {
            "kind": "nemo-log-mel",
            "sample_rate": FRONT_END["sampling_rate"],
            "n_fft": FRONT_END["n_fft"],
            "win_length": FRONT_END["win_length"],
            "hop_length": FRONT_END["hop_length"],
            "n_mels": int(self.config.encoder_config.num_mel_bins),
            "preemphasis": FRONT_END["preemphasis"],
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """What ``runtime.families.parakeet`` reads of both kinds."""
        factor = int(self.config.encoder_config.subsampling_factor)
        return {
            "vocab_size": int(self.config.vocab_size),
            "blank_id": self.blank_id,
            "subsampling": factor,
            "stem_channels": int(self.config.encoder_config.subsampling_conv_channels),
            "frame_seconds": FRONT_END["hop_length"] * factor / FRONT_END["sampling_rate"],
            "segment_seconds": self._segment_seconds,
        }

    @property
    def encoder(self) -> FastConformer:
        """The encoder's graph as a module, over the loaded model's parameters."""
        return FastConformer(self.model.encoder, self.head).eval()

    def _write_encoder(self, out: Path) -> GraphSpec:
        mels = int(self.config.encoder_config.num_mel_bins)
        rows = Dim("batch", min=1, max=MOST_ROWS)
        graph = trace(
            self.encoder,
            {"features": torch.zeros(3, 200, mels), "lengths": torch.tensor([200, 150, 30])},
            [self.output, "encoded_lengths"],
            {"features": {0: rows, 1: Dim("frames", min=1, max=MOST_FRAMES)}, "lengths": {0: rows}},
        )
        graph.graph.outputs[0].shape = ir.Shape(("batch", "encoded_frames", self.head.out_features))
        return _save(graph, "encoder", out)


class ParakeetTdt(Parakeet):
    """A Parakeet with a token-and-duration transducer."""

    steps = 5
    model_type, config_class, model_class = "parakeet_tdt", ParakeetTDTConfig, ParakeetForTDT
    output = "encoded"

    def _check_config(self, where: Path) -> None:
        super()._check_config(where)
        self._expect(where, {"hidden_act": (self.config.hidden_act, "relu")})
        durations = list(self.config.durations)
        # The reference takes the choice's index for the duration, NeMo the value that is listed there.
        if not durations or durations != list(range(len(durations))):
            raise CheckpointInvalidError(
                f"{where}: durations is {durations}, but this exporter knows only those that count from 0"
            )

    @property
    def blank_id(self) -> int:
        """The blank, which also stands before the first token."""
        return int(self.config.blank_token_id)

    @property
    def head(self) -> nn.Linear:
        """The joint network's projection of a frame."""
        made: nn.Linear = self.model.encoder_projector
        return made

    @property
    def parameters(self) -> dict[str, Any]:
        """What ``runtime.families.parakeet`` reads."""
        return super().parameters | {
            "hidden_size": int(self.config.decoder_hidden_size),
            "predictor_layers": int(self.config.num_decoder_layers),
            "predictor_size": int(self.config.decoder_hidden_size),
            "durations": [int(each) for each in self.config.durations],
            "max_symbols": int(self.config.max_symbols_per_step),
        }

    def write(self, out: Path, report: Report) -> dict[str, GraphSpec]:
        """``encoder.onnx``, ``decoder_joint.onnx`` and ``tokenizer.json``."""
        with report.step("encoder graph"):
            encoder = self._write_encoder(out)
        with report.step("decoder_joint graph"):
            joint = self._write_decoder_joint(out)
        self.tokenizer.save(str(out / "tokenizer.json"))
        return {"encoder": encoder, "decoder_joint": joint}

    def _write_decoder_joint(self, out: Path) -> GraphSpec:
        layers, width = int(self.config.num_decoder_layers), int(self.config.decoder_hidden_size)
        rows = Dim("batch", min=1, max=MOST_ROWS)
        graph = trace(
            DecoderJoint(self.model.decoder, self.model.joint.head, int(self.config.vocab_size)),
            {
                "token": torch.zeros(3, dtype=torch.int64),
                "hidden": torch.zeros(layers, 3, width),
                "cell": torch.zeros(layers, 3, width),
                "frame": torch.zeros(3, width),
            },
            ["token_logits", "duration_logits", "next_hidden", "next_cell"],
            {"token": {0: rows}, "hidden": {1: rows}, "cell": {1: rows}, "frame": {0: rows}},
        )
        return _save(graph, "decoder_joint", out)

    def parity(self, out: Path, graphs: dict[str, GraphSpec], report: Report) -> dict[str, Parity]:
        """Both graphs against the reference model; its weights are let go before the graphs are opened."""
        with report.step("reference outputs"):
            cases = parity.encoder_cases(self.model, self.extractor, ctc=False)
            steps = parity.step_cases(self.model, cases)
        layers, width = int(self.config.num_decoder_layers), int(self.config.decoder_hidden_size)
        del self.model
        gc.collect()
        with report.step("parity of the encoder"):
            encoder = parity.check_encoder(cases, out / graphs["encoder"].file, self.output)
        with report.step("parity of decoder_joint"):
            joint = parity.check_decoder_joint(steps, out / graphs["decoder_joint"].file, layers, width)
        return {"encoder": encoder, "decoder_joint": joint}


class ParakeetCtc(Parakeet):
    """A Parakeet with a CTC head, which is part of the encoder's graph."""

    steps = 3
    model_type, config_class, model_class = "parakeet_ctc", ParakeetCTCConfig, ParakeetForCTC
    output = "logits"

    @property
    def blank_id(self) -> int:
        """The blank, which the checkpoints call padding."""
        return -1 if self.config.pad_token_id is None else int(self.config.pad_token_id)

    @property
    def head(self) -> nn.Linear:
        """The classes of a frame."""
        return pointwise(self.model.ctc_head)

    def write(self, out: Path, report: Report) -> dict[str, GraphSpec]:
        """``encoder.onnx`` and ``tokenizer.json``."""
        with report.step("encoder graph"):
            encoder = self._write_encoder(out)
        self.tokenizer.save(str(out / "tokenizer.json"))
        return {"encoder": encoder}

    def parity(self, out: Path, graphs: dict[str, GraphSpec], report: Report) -> dict[str, Parity]:
        """The graph against the reference model; its weights are let go before the graph is opened."""
        with report.step("reference outputs"):
            cases = parity.encoder_cases(self.model, self.extractor, ctc=True)
        del self.model
        gc.collect()
        with report.step("parity of the encoder"):
            return {"encoder": parity.check_encoder(cases, out / graphs["encoder"].file, self.output)}


def _save(graph: ir.Model, role: str, out: Path) -> GraphSpec:
    graph.graph.name = role
    return save_traced(graph, out / f"{role}.onnx")


def _extractor(folder: CheckpointFolder, mels: int) -> ParakeetFeatureExtractor:
    """The reference's feature extractor, when it is the one that the runtime has."""
    name = next(
        (each for each in ("processor_config.json", "preprocessor_config.json") if (folder.path / each).is_file()), None
    )
    if name:
        said = folder.read_json(name)
        said = said.get("feature_extractor", said)
        for key, wanted in (FRONT_END | {"feature_size": mels}).items():
            if said.get(key, wanted) != wanted:
                raise CheckpointInvalidError(
                    f"{folder.path / name}: {key} is {said[key]!r}, but the front end has {wanted!r}"
                )
    return ParakeetFeatureExtractor(feature_size=mels, **FRONT_END)


def _languages(listed: Any, vocabulary: int, where: Path) -> list[Language]:
    """The languages named in the configuration; if none are, those that models with such a vocabulary know."""
    if listed is None:
        names = list(LANGUAGES) if vocabulary == MULTILINGUAL_VOCABULARY else ["English"]
        return [Language(name, LANGUAGES[name]) for name in names]
    codes = {code: name for name, code in LANGUAGES.items()}
    found = []
    for each in listed if isinstance(listed, list) else [listed]:
        name = codes.get(each, each) if isinstance(each, str) else None
        if name not in LANGUAGES:
            raise CheckpointInvalidError(f"{where}: unknown language {each!r}")
        found.append(Language(name, LANGUAGES[name]))
    return found


def _segment_seconds(said: Any, where: Path) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float) or not 1 <= said <= 600:
        raise CheckpointInvalidError(f"{where}: segment_seconds is {said!r}, not a number from 1 to 600")
    return float(said)


def _load(folder: CheckpointFolder, kind: Any, config: Any) -> Any:
    """The reference model in float32 with the checkpoint's tensors, matched strictly by name and shape.

    Raises:
        CheckpointInvalidError: a tensor is missing, left over, of the wrong shape, or not a floating-point tensor.
    """
    with no_init_weights():
        model = kind(config).eval()
    wanted: dict[str, Tensor] = {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not name.endswith(_COUNTER)
    }
    given = ((name, name, tensor) for name, tensor in folder.tensors() if not name.endswith(_COUNTER))
    fill(wanted, given, folder.path)
    return model.requires_grad_(False)
