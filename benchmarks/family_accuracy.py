"""The small trained checkpoints of all families: errors, what quantization costs, word times, long audio, and peers.

What a checkpoint gave is kept in ``WORK/families/NAME.json``; a second run goes on with those that are not there.
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
from tools.tiny.synth import UNHEARD
from tools.tiny.word_times import summary

log = logging.getLogger("benchmarks")

Floats = npt.NDArray[np.float32]

RATE = 16_000
RECIPES = (FLOAT, "int8", "int4")
# Silence between the utterances of a long recording.
BETWEEN_SECONDS = 0.4
# Longest segment that long recordings are cut into besides the default: what the small checkpoints were trained on is
# mostly a single sentence.
SHORT_SECONDS = 8.0
# Languages whose words espeak marks as they are written.
SPACED = ("English", "Russian")


@dataclass(frozen=True, slots=True)
class Speech:
    """The held-out set: recordings with texts, true word starts of each, and long recordings by language."""

    utterances: list[Utterance]
    marks: list[list[tuple[float, str]]]
    long: dict[str, Utterance]

    def of(self, languages: Sequence[str]) -> Speech:
        """The part in some languages."""
        rows = [index for index, each in enumerate(self.utterances) if each.language in languages]
        return Speech(
            [self.utterances[row] for row in rows],
            [self.marks[row] for row in rows],
            {name: each for name, each in self.long.items() if name in languages},
        )


def measure(work: Path) -> dict[str, Any]:
    """Figures of every small checkpoint that is there, by name and recipe."""
    known = [each for each in CHECKPOINTS.values() if each.bundled and each.bundled.is_dir()]
    speech: Speech | None = None
    for checkpoint in known:
        piece = work / "families" / f"{checkpoint.name}.json"
        if piece.exists():
            continue
        speech = speech or load_speech(work)
        found = measure_checkpoint(work, checkpoint, speech) | {"stamp": stamp()}
        piece.parent.mkdir(parents=True, exist_ok=True)
        piece.write_text(json.dumps(found, indent=1))
    return {each.name: json.loads((work / "families" / f"{each.name}.json").read_text()) for each in known}


def load_speech(work: Path) -> Speech:
    """The 300 held-out utterances, made if they are not there, and a long recording in each language.

    That is all that the voice says which no training heard, one utterance after the other, as they were spoken: without
    the gains and noises of the single ones, for a recording has one speaker and one microphone.
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
        said = [item for item in items if item.language == code and item.voice.split("+")[1] == UNHEARD[code]]
        path = work / "families" / f"long-{code}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, join([corpus.samples(item) for item in said]), RATE, subtype="PCM_16")
        long[language] = Utterance(path, " ".join(item.text for item in said), language)
    return Speech(utterances, marks, long)


def join(clips: Sequence[Floats]) -> Floats:
    """One recording of clips, with silence between them."""
    silence = np.zeros(round(BETWEEN_SECONDS * RATE), np.float32)
    return np.concatenate([part for clip in clips for part in (clip, silence)][:-1])


def _samples(path: Path) -> Floats:
    samples: Floats = soundfile.read(path, dtype="float32")[0]
    return samples


def measure_checkpoint(work: Path, checkpoint: Checkpoint, speech: Speech) -> dict[str, Any]:
    """All recipes of a checkpoint, then its peers over the float32 weights."""
    parent = exported(checkpoint.name, work / "families" / "small" / checkpoint.name, checkpoint.bundled)
    languages = [language.name for language in open_artifact(parent).manifest.languages]
    heard = speech.of(languages)
    rows: dict[str, Any] = {}
    reference: list[Transcript] = []
    for recipe in RECIPES:
        folder = parent if recipe == FLOAT else quantized(parent, recipe)[0]
        transcripts, rows[recipe] = measure_recipe(folder, heard)
        reference = reference or transcripts
        rows[recipe]["identical"] = identical(reference, transcripts)
        log.info("%s, %s: %s", checkpoint.name, recipe, rows[recipe])
    return {
        "family": checkpoint.family,
        "languages": sorted({str(each.language) for each in heard.utterances}),
        "utterances": len(heard.utterances),
        "minutes": {name: len(_samples(each.audio)) / RATE / 60 for name, each in heard.long.items()},
        "recipes": rows,
        "peers": _peers(work, checkpoint, parent, heard.utterances, [each.text for each in reference]),
    }


def measure_recipe(folder: Path, speech: Speech) -> tuple[list[Transcript], dict[str, Any]]:
    """Texts of all utterances, and a row: size, error rates by language, times of words or parts, long audio."""
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
    """Error rates by language."""
    return {each.language: each.rate for each in score(utterances, texts)}


def identical(reference: Sequence[Transcript], found: Sequence[Transcript]) -> float:
    """The share of transcripts whose tokens are those of the reference."""
    pairs = zip(reference, found, strict=True)
    same = ([a.tokens for a in one.segments] == [b.tokens for b in other.segments] for one, other in pairs)
    return sum(same) / len(reference)


def starts(transcripts: Sequence[Transcript], speech: Speech) -> dict[str, Any]:
    """Errors of starts against espeak's, where words stand apart: of words, or of the first word of each part."""
    rows = zip(transcripts, speech.utterances, speech.marks, strict=True)
    return asdict(summary((timed_words(each), marks) for each, said, marks in rows if said.language in SPACED))


def timed_words(transcript: Transcript) -> list[Word]:
    """Words with their times; of a segment without any, its text, whose first word begins with it."""
    found: list[Word] = []
    for segment in transcript.segments:
        whole = Word(segment.text, segment.start, segment.end, segment.confidence)
        found += segment.words if segment.words is not None else [whole]
    return found


def _peers(
    work: Path, checkpoint: Checkpoint, parent: Path, utterances: Sequence[Utterance], ours: Sequence[str]
) -> dict[str, Any]:
    """Error rates of other packages over the same weights, and the share of texts that are ours to the letter."""
    found: dict[str, Any] = {}
    known = peers.PEERS.get(checkpoint.family, ())
    if known:
        peers.make_environment()
    clips = [_array(work, each.audio) for each in utterances] if known else []
    for peer in known:
        job = peer.job("texts", peer.folder(parent), clips, None, "one by one")
        try:
            _, answer = first_answer(peers.command(), job)
        except ChildError as error:
            found[peer.package] = {"failed": error.reason}
            log.warning("%s, %s: %s", checkpoint.name, peer.package, error)
            continue
        found[peer.package] = {
            "rates": rates(utterances, answer["texts"]),
            "same": same_texts(utterances, ours, answer["texts"]),
        }
        log.info("%s, %s: %s", checkpoint.name, peer.package, found[peer.package])
    return found


def same_texts(utterances: Sequence[Utterance], ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The share of texts that are the same as they are compared for error rates."""
    rows = zip(utterances, ours, theirs, strict=True)
    same = (normalize(a, str(each.language)) == normalize(b, str(each.language)) for each, a, b in rows)
    return sum(same) / len(utterances)


def _array(work: Path, audio: Path) -> Path:
    path = work / "families" / "held-out" / f"{audio.stem}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        np.save(path, _samples(audio))
    return path
