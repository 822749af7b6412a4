"""Exporters of Parakeet: Fast Conformer encoders with a token-and-duration transducer (TDT) or a CTC head.

Sources: transformers ``models/parakeet`` (architecture, layout), the published checkpoints, arXiv 2305.05084 (encoder)
and 2304.06795 (TDT).
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import ParakeetCTCConfig, ParakeetFeatureExtractor, ParakeetForCTC, ParakeetForTDT, ParakeetTDTConfig
from transformers.initialization import no_init_weights

from export.checkpoints import CheckpointFolder
from export.checks import check_front_end, check_model_type, check_values, check_vocabulary, parse_config
from export.errors import CheckpointInvalidError
from export.families.base import FamilyExporter, ParityCheck
from export.families.parakeet import parity
from export.families.parakeet.modules import DecoderJoint, FastConformer, pointwise
from export.tokenizer import load_single
from export.trace import MAX_BATCH, save_traced, trace
from export.weights import fill
from runtime.model.manifest import GraphSpec, Language

# Vocabulary of TDT 0.6B v3, the only published model with this size, which has the 25 European languages below. All
# other published models have English alone.
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
# Longest segment that the runtime makes if the checkpoint names none.
SEGMENT_SECONDS = 30.0
# Largest number of feature frames in the encoder's graph: ten minutes.
MAX_FRAMES = 60_000
# Feature extractor settings that the runtime's front end implements. `feature_size` is the encoder's.
FRONT_END = {
    "sampling_rate": 16_000,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 160,
    "preemphasis": 0.97,
    "padding_value": 0.0,
}
# Buffers of batch norms that only training uses.
_COUNTER = ".num_batches_tracked"


class Parakeet(FamilyExporter):
    """Exporter of a Parakeet checkpoint, with either kind of head.

    Attributes:
        model_type: ``model_type`` in config.json.
        config_class: configuration class of transformers.
        model_class: model class of transformers.
        output: first output of the encoder's graph.
    """

    layout = "native"
    model_type: ClassVar[str]
    config_class: ClassVar[Any]
    model_class: ClassVar[Any]
    output: ClassVar[str]

    def __init__(self, folder: CheckpointFolder) -> None:
        raw, path = folder.config(), folder.path / "config.json"
        check_model_type(raw, self.model_type, path)
        self.config = parse_config(self.config_class, raw, path)
        self._check_config(path)
        self.extractor = _load_extractor(folder, int(self.config.encoder_config.num_mel_bins))
        self.tokenizer = load_single(folder)
        check_vocabulary(self.tokenizer, int(self.config.vocab_size), folder.path)
        self._languages = _parse_languages(raw.get("languages"), int(self.config.vocab_size), path)
        self._segment_seconds = _parse_segment_seconds(raw.get("segment_seconds", SEGMENT_SECONDS), path)
        self.model = _load_model(folder, self.model_class, self.config)

    def _check_config(self, path: Path) -> None:
        """Check that graphs and runtime support the geometry.

        Raises:
            CheckpointInvalidError: they do not.
        """
        encoder = self.config.encoder_config
        factor = int(encoder.subsampling_factor)
        check_values(
            path,
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
                f"{path}: encoder_config.subsampling_factor is {factor}, but this exporter supports only powers of two "
                f"that divide the {encoder.num_mel_bins} mel channels"
            )
        if not 0 <= self.blank_id < self.config.vocab_size:
            raise CheckpointInvalidError(
                f"{path}: the blank has the id {self.blank_id}, which is not in the vocabulary of "
                f"{self.config.vocab_size}"
            )

    @property
    @abstractmethod
    def blank_id(self) -> int:
        """Id of the blank."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """Linear layer that the encoder's graph applies to each frame."""

    @property
    def languages(self) -> list[Language]:
        """Languages that config.json lists, or those of the published models with this vocabulary."""
        return self._languages

    @property
    def front_end(self) -> dict[str, Any]:
        """NeMo log-mel settings, as ``runtime.features.nemo_mel`` reads them."""
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
        """Parameters that ``runtime.families.parakeet`` reads for both kinds of head."""
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
        """Torch module of the encoder's graph, which shares the loaded model's parameters."""
        return FastConformer(self.model.encoder, self.head).eval()

    def write_graph(self, role: str, out: Path) -> GraphSpec:
        """Write ``encoder.onnx``."""
        mels = int(self.config.encoder_config.num_mel_bins)
        rows = Dim("batch", min=1, max=MAX_BATCH)
        graph = trace(
            self.encoder,
            {"features": torch.zeros(3, 200, mels), "lengths": torch.tensor([200, 150, 30])},
            [self.output, "encoded_lengths"],
            {"features": {0: rows, 1: Dim("frames", min=1, max=MAX_FRAMES)}, "lengths": {0: rows}},
        )
        graph.graph.outputs[0].shape = ir.Shape(("batch", "encoded_frames", self.head.out_features))
        return save_traced(graph, role, out)


class ParakeetTdt(Parakeet):
    """Exporter of a Parakeet with a token-and-duration transducer."""

    roles = ("encoder", "decoder_joint")
    model_type, config_class, model_class = "parakeet_tdt", ParakeetTDTConfig, ParakeetForTDT
    output = "encoded"

    def _check_config(self, path: Path) -> None:
        super()._check_config(path)
        check_values(path, {"hidden_act": (self.config.hidden_act, "relu")})
        durations = list(self.config.durations)
        # The reference uses the index of the chosen duration, NeMo the value at that index.
        if not durations or durations != list(range(len(durations))):
            raise CheckpointInvalidError(
                f"{path}: durations is {durations}, but this exporter supports only consecutive numbers from 0"
            )

    @property
    def blank_id(self) -> int:
        """Id of the blank, which is also the token before the first one."""
        return int(self.config.blank_token_id)

    @property
    def head(self) -> nn.Linear:
        """The joint network's projection of an encoder frame."""
        projector: nn.Linear = self.model.encoder_projector
        return projector

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters that ``runtime.families.parakeet`` reads."""
        return super().parameters | {
            "hidden_size": int(self.config.decoder_hidden_size),
            "predictor_layers": int(self.config.num_decoder_layers),
            "predictor_size": int(self.config.decoder_hidden_size),
            "durations": [int(each) for each in self.config.durations],
            "max_symbols": int(self.config.max_symbols_per_step),
        }

    def write_graph(self, role: str, out: Path) -> GraphSpec:
        """Write ``encoder.onnx`` or ``decoder_joint.onnx``."""
        if role == "encoder":
            return super().write_graph(role, out)
        layers, width = int(self.config.num_decoder_layers), int(self.config.decoder_hidden_size)
        rows = Dim("batch", min=1, max=MAX_BATCH)
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
        return save_traced(graph, role, out)

    def parity_checks(self) -> dict[str, ParityCheck]:
        """Compute the reference's encoder frames, and its logits of steps over them."""
        cases = parity.encoder_cases(self.model, self.extractor, ctc=False)
        steps = parity.step_cases(self.model, cases)
        layers, width = int(self.config.num_decoder_layers), int(self.config.decoder_hidden_size)
        return {
            "encoder": partial(parity.check_encoder, cases, self.output),
            "decoder_joint": partial(parity.check_decoder_joint, steps, layers, width),
        }


class ParakeetCtc(Parakeet):
    """Exporter of a Parakeet with a CTC head, which is part of the encoder's graph."""

    roles = ("encoder",)
    model_type, config_class, model_class = "parakeet_ctc", ParakeetCTCConfig, ParakeetForCTC
    output = "logits"

    @property
    def blank_id(self) -> int:
        """Id of the blank, which the checkpoints store as the padding token; -1 if they have none."""
        return -1 if self.config.pad_token_id is None else int(self.config.pad_token_id)

    @property
    def head(self) -> nn.Linear:
        """The CTC head."""
        return pointwise(self.model.ctc_head)

    def parity_checks(self) -> dict[str, ParityCheck]:
        """Compute the reference's CTC logits."""
        cases = parity.encoder_cases(self.model, self.extractor, ctc=True)
        return {"encoder": partial(parity.check_encoder, cases, self.output)}


def _load_extractor(folder: CheckpointFolder, mels: int) -> ParakeetFeatureExtractor:
    """Make the reference's feature extractor, after a check that the checkpoint has the runtime's settings.

    Raises:
        CheckpointInvalidError: a setting differs from :data:`FRONT_END`.
    """
    files = [folder.path / name for name in ("processor_config.json", "preprocessor_config.json")]
    path = next((file for file in files if file.is_file()), None)
    if path:
        raw = folder.read_json(path.name)
        check_front_end(path, raw.get("feature_extractor", raw), FRONT_END | {"feature_size": mels})
    return ParakeetFeatureExtractor(feature_size=mels, **FRONT_END)


def _parse_languages(listed: Any, vocabulary: int, path: Path) -> list[Language]:
    """Languages for ``languages`` of config.json: a list of names or codes, or None for the vocabulary's default.

    Raises:
        CheckpointInvalidError: a language is unknown.
    """
    if listed is None:
        names = list(LANGUAGES) if vocabulary == MULTILINGUAL_VOCABULARY else ["English"]
        return [Language(name, LANGUAGES[name]) for name in names]
    by_code = {code: name for name, code in LANGUAGES.items()}
    languages = []
    for each in listed if isinstance(listed, list) else [listed]:
        name = by_code.get(each, each) if isinstance(each, str) else None
        if name not in LANGUAGES:
            raise CheckpointInvalidError(f"{path}: unknown language {each!r}")
        languages.append(Language(name, LANGUAGES[name]))
    return languages


def _parse_segment_seconds(value: Any, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 600:
        raise CheckpointInvalidError(f"{path}: segment_seconds is {value!r}, not a number from 1 to 600")
    return float(value)


def _load_model(folder: CheckpointFolder, model_class: Any, config: Any) -> Any:
    """Load the reference model in float32 with the checkpoint's tensors, matched strictly by name and shape.

    Raises:
        CheckpointInvalidError: a tensor is missing, unexpected, of the wrong shape, or not a floating-point tensor.
    """
    with no_init_weights():
        model = model_class(config).eval()
    parameters: dict[str, Tensor] = {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not name.endswith(_COUNTER)
    }
    fill(
        parameters,
        ((name, name, tensor) for name, tensor in folder.tensors() if not name.endswith(_COUNTER)),
        folder.path,
    )
    return model.requires_grad_(False)
