"""The small trained checkpoints of all families: error rates by recipe, word times, long audio, other packages.

The results of a checkpoint are stored in ``WORK/families/NAME.json``; a second run measures those without results.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks import peers
from benchmarks.artifacts import FLOAT, exported, quantized, run
from benchmarks.children import REPOSITORY, ChildError, first_answer
from benchmarks.stamp import stamp
from export.checkpoints import CHECKPOINTS, Checkpoint
from runtime import Request, Transcriber
from runtime.evaluation import Utterance, load_utterances, normalize, recognize, score
from runtime.model.artifact import open_artifact
from runtime.results import Transcript, Word
from tools.tiny.dataset import Corpus
from tools.tiny.evaluate import held_out
from tools.tiny.sentences import LANGUAGES
from tools.tiny.synth import HELD_OUT_VOICES
from tools.tiny.word_times import summary

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]

RATE = 16_000
RECIPES = (FLOAT, "int8", "int4")
# Silence between the utterances of a long recording.
BETWEEN_SECONDS = 0.4
# A second limit of segments for long recordings, beside the default: the small checkpoints were trained mostly on
# single sentences.
SHORT_SECONDS = 8.0
# Languages for which espeak reports the starts of written words.
SPACED = ("English", "Russian")


@dataclass(frozen=True, slots=True)
class Speech:
    """The held-out set: recordings with texts, true word starts of each, and long recordings by language."""

    utterances: list[Utterance]
    marks: list[list[tuple[float, str]]]
    long: dict[str, Utterance]

    def of(self, languages: Sequence[str]) -> Speech:
        """Return the part in ``languages``."""
        rows = [index for index, each in enumerate(self.utterances) if each.language in languages]
        return Speech(
            [self.utterances[row] for row in rows],
            [self.marks[row] for row in rows],
            {name: each for name, each in self.long.items() if name in languages},
        )


def measure(work: Path) -> dict[str, Any]:
    """Return the results of every bundled checkpoint by name."""
    known = [each for each in CHECKPOINTS.values() if each.bundled and each.bundled.is_dir()]
    speech: Speech | None = None
    for checkpoint in known:
        piece = work / "families" / f"{checkpoint.name}.json"
        if piece.exists():
            continue
        speech = speech or load_speech(work)
        results = measure_checkpoint(work, checkpoint, speech) | {"stamp": stamp()}
        piece.parent.mkdir(parents=True, exist_ok=True)
        piece.write_text(json.dumps(results, indent=1))
    return {each.name: json.loads((work / "families" / f"{each.name}.json").read_text()) for each in known}


def load_speech(work: Path) -> Speech:
    """Return the 300 held-out utterances, made if they do not exist, and a long recording in each language.

    A long recording joins all utterances of the voice that was not used in training, without the gains and noises of
    the single ones, since a real recording has one speaker and one microphone.
    """
    folder, evaluation = work / "held-out", REPOSITORY / "build" / "tiny" / "evaluation"
    if not folder.exists():
        run("tools.tiny", "held-out", "--out", folder)
    utterances = load_utterances(folder)
    items = held_out(evaluation).items
    marks = [items[int(each.audio.stem.rpartition("-")[2]) - 1].words for each in utterances]
    corpus = Corpus(evaluation / "held-out")
    long = {}
    for code, language in LANGUAGES.items():
        spoken = [item for item in items if item.language == code and item.voice.split("+")[1] == HELD_OUT_VOICES[code]]
        path = work / "families" / f"long-{code}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, join([corpus.samples(item) for item in spoken]), RATE, subtype="PCM_16")
        long[language] = Utterance(path, " ".join(item.text for item in spoken), language)
    return Speech(utterances, marks, long)


def join(clips: Sequence[Floats]) -> Floats:
    """Join clips with silence between them."""
    silence = np.zeros(round(BETWEEN_SECONDS * RATE), np.float32)
    return np.concatenate([part for clip in clips for part in (clip, silence)][:-1])


def _samples(path: Path) -> Floats:
    samples: Floats = soundfile.read(path, dtype="float32")[0]
    return samples


def measure_checkpoint(work: Path, checkpoint: Checkpoint, speech: Speech) -> dict[str, Any]:
    """Measure all recipes of a checkpoint, then other packages over its float32 graphs."""
    parent = exported(checkpoint.name, work / "families" / "small" / checkpoint.name, checkpoint.bundled)
    languages = [language.name for language in open_artifact(parent).manifest.languages]
    selected = speech.of(languages)
    rows: dict[str, Any] = {}
    reference: list[Transcript] = []
    for recipe in RECIPES:
        folder = parent if recipe == FLOAT else quantized(parent, recipe)[0]
        transcripts, rows[recipe] = measure_recipe(folder, selected)
        reference = reference or transcripts
        rows[recipe]["identical"] = identical(reference, transcripts)
        log.info("%s, %s: %s", checkpoint.name, recipe, rows[recipe])
    return {
        "family": checkpoint.family,
        "languages": sorted({str(each.language) for each in selected.utterances}),
        "utterances": len(selected.utterances),
        "minutes": {name: len(_samples(each.audio)) / RATE / 60 for name, each in selected.long.items()},
        "recipes": rows,
        "peers": _peers(work, checkpoint, parent, selected.utterances, [each.text for each in reference]),
    }


def measure_recipe(folder: Path, speech: Speech) -> tuple[list[Transcript], dict[str, Any]]:
    """Return the transcripts, and a row: bytes, error rates by language, word or segment times, long audio."""
    transcriber = Transcriber.from_artifact(folder)
    transcripts = recognize(transcriber, speech.utterances)
    quantization = transcriber.artifact.manifest.quantization
    row: dict[str, Any] = {
        "bytes": transcriber.artifact.size,
        "rates": rates(speech.utterances, [each.text for each in transcripts]),
        "relative_error": quantization.gate.relative_error if quantization else {},
        "long": {"segments": _long(transcriber, speech)},
    }
    if any(segment.words for each in transcripts for segment in each.segments):
        row["words"] = starts(transcripts, speech)
    if transcriber.capabilities.timestamps:
        requests = [Request(each.audio, timestamps=True) for each in speech.utterances]
        timed = sorted(transcriber.transcribe_many(requests), key=lambda outcome: outcome.index)
        row["parts"] = starts([outcome.result() for outcome in timed], speech)
    if transcriber.capabilities.long_form:
        row["long"]["windows"] = _long(transcriber, speech, long_form=True)
    row["long"]["short"] = _long(Transcriber.from_artifact(folder, segment_seconds=SHORT_SECONDS), speech)
    return transcripts, row


def _long(transcriber: Transcriber, speech: Speech, *, long_form: bool = False) -> dict[str, float | None]:
    utterances = list(speech.long.values())
    texts = [transcriber.transcribe(each.audio, long_form=long_form).text for each in utterances]
    return rates(utterances, texts)


def rates(utterances: Sequence[Utterance], texts: Sequence[str]) -> dict[str, float | None]:
    """Return error rates by language."""
    return {each.language: each.rate for each in score(utterances, texts)}


def identical(reference: Sequence[Transcript], transcripts: Sequence[Transcript]) -> float:
    """Return the share of transcripts with the same tokens as the reference."""
    pairs = zip(reference, transcripts, strict=True)
    same = ([a.tokens for a in one.segments] == [b.tokens for b in other.segments] for one, other in pairs)
    return sum(same) / len(reference)


def starts(transcripts: Sequence[Transcript], speech: Speech) -> dict[str, Any]:
    """Return errors of word starts against espeak's, for languages with spaces.

    Segments without word times count with their first word alone.
    """
    rows = zip(transcripts, speech.utterances, speech.marks, strict=True)
    return asdict(
        summary((timed_words(each), marks) for each, utterance, marks in rows if utterance.language in SPACED)
    )


def timed_words(transcript: Transcript) -> list[Word]:
    """Return all words with times; a segment without word times counts as one word with the times of the segment."""
    words: list[Word] = []
    for segment in transcript.segments:
        whole = Word(segment.text, segment.start, segment.end, segment.confidence)
        words += segment.words if segment.words is not None else [whole]
    return words


def _peers(
    work: Path, checkpoint: Checkpoint, parent: Path, utterances: Sequence[Utterance], ours: Sequence[str]
) -> dict[str, Any]:
    """Return error rates of other packages over the same graphs, and the share of texts that equal ours."""
    results: dict[str, Any] = {}
    known = peers.PEERS.get(checkpoint.family, ())
    if known:
        peers.make_environment()
    clips = [_array(work, each.audio) for each in utterances] if known else []
    for peer in known:
        job = peer.job("texts", peer.folder(parent), clips, None, "one by one")
        try:
            _, answer = first_answer(peers.command(), job)
        except ChildError as error:
            results[peer.package] = {"failed": error.reason}
            log.warning("%s, %s: %s", checkpoint.name, peer.package, error)
            continue
        results[peer.package] = {
            "rates": rates(utterances, answer["texts"]),
            "same": same_texts(utterances, ours, answer["texts"]),
        }
        log.info("%s, %s: %s", checkpoint.name, peer.package, results[peer.package])
    return results


def same_texts(utterances: Sequence[Utterance], ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return the share of texts that are equal after the normalization of error rates."""
    rows = zip(utterances, ours, theirs, strict=True)
    same = (normalize(a, str(each.language)) == normalize(b, str(each.language)) for each, a, b in rows)
    return sum(same) / len(utterances)


def _array(work: Path, audio: Path) -> Path:
    path = work / "families" / "held-out" / f"{audio.stem}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        np.save(path, _samples(audio))
    return path
