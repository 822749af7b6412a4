"""Whisper in transformers, for ``benchmarks.fidelity``: features, language, tokens with their leads, long form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from export.checkpoints import CheckpointFolder
from export.families.whisper.exporter import load_model
from export.families.whisper.layouts import find_layout
from runtime.families.whisper.fallback import LOG_PROBABILITY, NO_SPEECH

Floats = npt.NDArray[np.float32]
RATE = 16_000
_POSITIONS_A_SECOND = 50


class Text(msgspec.Struct, frozen=True):
    """A decoded text: token ids without prompt and stop token, and what was decided by how much.

    ``seconds`` and ``leads`` have an entry for each token and the stop token: the second best id, and the score of the
    chosen id minus that of the second best. Both are None where the rules leave one id only. ``edges`` are the start
    and end of each timed part, in seconds.
    """

    tokens: list[int]
    seconds: list[int | None] = []
    leads: list[float | None] = []
    edges: list[tuple[float, float]] = []


class Reference:
    """transformers' ``WhisperForConditionalGeneration`` in float32, with the settings of a checkpoint."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        """Load a checkpoint in any layout.

        Raises:
            CheckpointNotFoundError: a file is missing.
            CheckpointInvalidError: a file cannot be read, or is not that of a Whisper model.
        """
        torch.set_num_threads(threads)
        folder = CheckpointFolder(checkpoint, "", None)
        layout = find_layout(folder)(folder)
        self.settings = layout.generation
        self._model = load_model(layout)
        for key, value in msgspec.structs.asdict(layout.generation).items():
            setattr(self._model.generation_config, key, value)
        self._extract = WhisperFeatureExtractor(
            feature_size=layout.config.num_mel_bins,
            chunk_length=layout.config.max_source_positions // _POSITIONS_A_SECOND,
        )
        self._encode_once()

    def _encode_once(self) -> None:
        """Keep the encoder's last output: each recording is decoded several times."""
        encoder = self._model.model.encoder
        forward = encoder.forward
        last: list[Any] = []

        def remembered(input_features: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if not (last and torch.equal(last[0], input_features)):
                last[:] = [input_features.clone(), forward(input_features, *arguments, **options)]
            return last[1]

        encoder.forward = remembered

    def features(self, clips: Sequence[Floats], *, whole: bool = False) -> torch.Tensor:
        """Return features [clips, mels, frames], padded to a window; ``whole``: those of the longest clip's length."""
        options = {"truncation": False, "padding": "longest"} if whole else {}
        mel: torch.Tensor = self._extract(list(clips), sampling_rate=RATE, return_tensors="pt", **options)[
            "input_features"
        ]
        return mel

    def detect(self, features: torch.Tensor) -> list[str]:
        """Return the code of each clip's language by ``detect_language``; English if the model has no other."""
        if not self.settings.is_multilingual:
            return ["en"] * len(features)
        codes = {each: name.strip("<|>") for name, each in self.settings.lang_to_id.items()}
        return [codes[token] for token in self._model.detect_language(features).tolist()]

    @torch.no_grad()
    def texts(self, features: torch.Tensor, languages: Sequence[str], *, timestamps: bool) -> list[Text]:
        """Decode windows [clips, mels, frames] by one call of ``generate``, with each one's language and the task."""
        model, settings = self._model, self.settings
        prompt = self._prompt(timestamps=timestamps)
        output = model.generate(
            features,
            **self._prompted(list(languages)),
            return_timestamps=timestamps,
            do_sample=False,
            max_new_tokens=model.config.max_target_positions - prompt,
            force_unique_generate_call=True,
            return_dict_in_generate=True,
            output_scores=True,
        )
        scores = torch.stack(output.scores)  # [steps, clips, vocab]
        best = scores.topk(2)
        texts = []
        for index, row in enumerate(output.sequences.tolist()):
            tokens = row[row.index(settings.decoder_start_token_id) + prompt :]
            if settings.eos_token_id in tokens:
                tokens = tokens[: tokens.index(settings.eos_token_id)]
            values, ids = (part[: len(tokens) + 1, index].tolist() for part in best)
            leads = [first - second for first, second in values]
            known = [bool(np.isfinite(lead)) for lead in leads]
            texts.append(
                Text(
                    tokens,
                    [second if ok else None for (_, second), ok in zip(ids, known, strict=True)],
                    [round(lead, 6) if ok else None for lead, ok in zip(leads, known, strict=True)],
                    self._edges(tokens) if timestamps else [],
                )
            )
        return texts

    def _prompted(self, language: str | list[str]) -> dict[str, Any]:
        """Return what makes ``generate`` write the prompt's tokens; English-only models refuse both."""
        return {"language": language, "task": "transcribe"} if self.settings.is_multilingual else {}

    def _prompt(self, *, timestamps: bool) -> int:
        """Return the number of the prompt's tokens."""
        return 1 + 2 * self.settings.is_multilingual + (not timestamps)

    def _edges(self, tokens: Sequence[int]) -> list[tuple[float, float]]:
        """Return start and end of each part of a text, as ``WhisperTokenizer`` decodes offsets, if it has text.

        The tokenizer finds the first timestamp behind its last special token, which only a tokenizer with
        ``tokenizer_config.json`` knows; here the generation settings have it.
        """
        settings = self.settings
        lengths: list[int] = []
        ids = SimpleNamespace(
            all_special_ids=[settings.no_timestamps_token_id],
            _preprocess_token_ids=lambda part: lengths.append(int((part < settings.eos_token_id).sum())),
            _decode=lambda _: "",
            _filter_timestamp_ids=lambda text: text,
        )
        offsets = WhisperTokenizer._compute_offsets(ids, tokens)
        edges = [(round(each["timestamp"][0], 3), round(each["timestamp"][1], 3)) for each in offsets]
        return [edge for edge, length in zip(edges, lengths, strict=True) if length]

    @torch.no_grad()
    def long_form(self, samples: Floats, language: str) -> Text:
        """Decode audio of any length window by window, without previous text, and skip windows without speech."""
        output = self._model.generate(
            self.features([samples], whole=True),
            **self._prompted(language),
            return_timestamps=True,
            return_segments=True,
            do_sample=False,
            temperature=0.0,
            no_speech_threshold=NO_SPEECH,
            logprob_threshold=LOG_PROBABILITY,
            max_new_tokens=self._model.config.max_target_positions - self._prompt(timestamps=True),
        )
        stop = self.settings.eos_token_id
        segments = [each for each in output["segments"][0] if (each["tokens"] < stop).any()]
        return Text(
            [token for each in segments for token in each["tokens"].tolist() if token != stop],
            edges=[(round(float(each["start"]), 3), round(float(each["end"]), 3)) for each in segments],
        )

    @torch.no_grad()
    def logits(self, features: torch.Tensor, ids: Sequence[int]) -> Floats:
        """Return the logits [vocab] after the tokens ``ids``, prompt included."""
        output = self._model(input_features=features, decoder_input_ids=torch.tensor([list(ids)]), use_cache=False)
        values: Floats = output.logits[0, -1].numpy().astype(np.float32)
        return values
