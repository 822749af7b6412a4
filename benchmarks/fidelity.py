"""Compare Whisper in the runtime with transformers, token by token, on real weights and recordings.

python -m benchmarks.fidelity CHECKPOINT ARTIFACT --recordings DIR --films DIR --int8 ARTIFACT
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import typer

from benchmarks import report
from benchmarks.fidelity_reference import Reference, Text
from benchmarks.fidelity_summary import summary
from benchmarks.fidelity_systems import KERNELS, ROWS, WAYS, System
from benchmarks.recordings import RATE, Record, Recordings, Records, fingerprint
from runtime.audio import load_audio
from runtime.errors import AsrError
from runtime.features.log_mel import LogMelConfig, log_mel
from runtime.model.artifact import open_artifact
from runtime.model.tokenizer import open_tokenizer

Floats = npt.NDArray[np.float32]

REPOSITORY = Path(__file__).resolve().parents[1]
# Recordings that transformers decodes together.
TOGETHER = 8
#: Parts in the order in which they run; those after the first need its results.
PARTS = ("reference", *KERNELS, "films", "rows")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Comparison:
    """A checkpoint and its artifact, and the results of the parts that were run."""

    def __init__(
        self, checkpoint: Path, artifact: Path, int8: Path | None, recordings: Recordings, work: Path, threads: int
    ) -> None:
        """Results are stored in ``work``, in a folder for each version of the files."""
        self.checkpoint, self.artifact, self.recordings, self.threads = checkpoint, artifact, recordings, threads
        self.records = Records(work / fingerprint(checkpoint, artifact))
        # Artifacts whose rows are compared, and where. int8 has a folder of its own: its recipe may change alone.
        self.rows = {"float32": (artifact, self.records)}
        if int8:
            self.rows["int8"] = (int8, Records(work / fingerprint(int8)))
        self.front_end = msgspec.convert(open_artifact(artifact).manifest.front_end, LogMelConfig)
        self._tokenizer = open_tokenizer(open_artifact(artifact))
        self._reference: Reference | None = None

    @property
    def reference(self) -> Reference:
        """transformers' model, loaded when it is first needed."""
        if self._reference is None:
            self._reference = Reference(self.checkpoint, self.threads)
        return self._reference

    def window(self, name: str) -> Floats:
        """Return the samples [n] of a recording, of a longer one its first window."""
        return self.recordings.load(name)[: self.front_end.min_samples]

    def spell(self, token: int) -> str:
        """Return the text of a token id; special tokens have names, timestamps their id."""
        name = self._tokenizer.id_to_token(token)
        if name is None or name.startswith("<|"):
            return name or f"<{token}>"
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def run_reference(self) -> dict[str, Record]:
        """Decode every recording in transformers, with the language given and as detected, and compare the features."""

        def make(names: list[str]) -> list[Record]:
            reference, clips = self.reference, [self.window(name) for name in names]
            features = reference.features(clips)
            given = [self.recordings.languages[name] for name in names]
            detected = reference.detect(features)
            texts = {
                way: reference.texts(features, given if is_given else detected, timestamps=timestamps)
                for way, (is_given, timestamps) in WAYS.items()
                if is_given or given != detected
            }
            results = []
            for index, clip in enumerate(clips):
                differences = np.abs(log_mel(clip, self.front_end) - features[index].numpy())
                own = {way: msgspec.to_builtins(each[index]) for way, each in texts.items()}
                for way, (is_given, timestamps) in WAYS.items():
                    if not is_given and given[index] == detected[index]:
                        own[way] = own["given, timestamps" if timestamps else "given"]
                results.append(
                    {
                        "seconds": len(clip) / RATE,
                        "given": given[index],
                        "detected": detected[index],
                        "features": float(differences.max()),
                        "texts": own,
                    }
                )
            return results

        return self.records.complete("reference", self.recordings.names, make, TOGETHER)

    def run_system(self, part: str) -> dict[str, Record]:
        """Decode every recording in the runtime on some kernels, and compare it with the reference's stored texts."""
        reference = self.records.complete("reference", self.recordings.names, _needs_reference)
        system = System(self.artifact, KERNELS[part], self.threads)

        def make(names: list[str]) -> list[Record]:
            return [self._compared(system, name, reference[name]) for name in names]

        return self.records.complete(part, self.recordings.names, make)

    def _compared(self, system: System, name: str, expected: Record) -> Record:
        clip, given = self.window(name), expected["given"]
        texts: dict[str, Any] = {}
        for way, (is_given, timestamps) in WAYS.items():
            text = msgspec.convert(expected["texts"][way], Text)
            outcome = system.text(clip, given if is_given else None, timestamps=timestamps)
            texts[way] = msgspec.to_builtins(outcome)
            language = given if is_given else expected["detected"]
            if outcome.tokens != text.tokens:
                texts[way]["difference"] = self._difference(
                    system, clip, text.tokens, outcome.tokens, language, timestamps=timestamps
                )
            texts[way]["lead_change"] = system.lead_change(clip, language, text, timestamps=timestamps)
        for way, text in texts.items():
            if "difference" in text:
                typer.echo(f"{name}, language {way}: {self._sentence(text['difference'])}", err=True)
        return {"texts": texts}

    def _sentence(self, difference: Record) -> str:
        """Describe a difference in one line."""
        expected, actual = (f"{difference[key]} {self.spell(difference[key])!r}" for key in ("expected", "actual"))
        return (
            f"token {difference['position']} is {actual}, not {expected}, which leads by "
            f"{difference['reference_lead']:.2e} in transformers and by {difference['lead']:.2e} here"
        )

    def _difference(
        self,
        system: System,
        clip: Floats,
        expected: Sequence[int],
        actual: Sequence[int],
        language: str,
        *,
        timestamps: bool,
    ) -> Record:
        """Describe the first difference of two texts: position, both ids (None: the end), and the leads of both."""
        pairs = zip(expected, actual, strict=False)
        position = next((i for i, (left, right) in enumerate(pairs) if left != right), min(len(expected), len(actual)))
        stop = system.engine.parameters.stop_id
        first = expected[position] if position < len(expected) else stop
        second = actual[position] if position < len(actual) else stop
        prefix = list(expected[:position])
        features = self.reference.features([clip])
        theirs = self.reference.logits(features, [*system.prompt(language, timestamps=timestamps), *prefix])
        ours = system.logits(clip, language, prefix, timestamps=timestamps)[-1]
        return {
            "position": position,
            "expected": first,
            "actual": second,
            "reference_lead": system.decisive_lead(theirs, prefix, first, second, timestamps=timestamps),
            "lead": system.decisive_lead(ours, prefix, first, second, timestamps=timestamps),
        }

    def run_films(self, films: Path) -> dict[str, Record]:
        """Decode the files of ``films`` in long form, with the language given (English) and detected."""
        system = System(self.artifact, KERNELS["cpu"], self.threads)
        front_end = msgspec.structs.replace(self.front_end, min_samples=self.front_end.n_fft)

        def make(names: list[str]) -> list[Record]:
            (name,) = names
            clip, reference = load_audio(films / name, RATE), self.reference
            whole = reference.features([clip], whole=True)[0].numpy()
            detected = reference.detect(reference.features([clip]))[0]
            texts: dict[str, Any] = {}
            for language in dict.fromkeys(["en", detected]):
                expected = reference.long_form(clip, language)
                texts["given" if language == "en" else "detected"] = {
                    "expected": msgspec.to_builtins(expected),
                    "actual": msgspec.to_builtins(system.long_form(clip, language)),
                }
            unknown = system.long_form(clip, None)
            texts["detected"] = {
                "expected": texts["given" if detected == "en" else "detected"]["expected"],
                "actual": msgspec.to_builtins(unknown),
            }
            features = log_mel(clip, front_end)
            return [
                {
                    "seconds": len(clip) / RATE,
                    "detected": detected,
                    "features": float(np.abs(features - whole[:, : features.shape[1]]).max()),
                    "texts": texts,
                }
            ]

        return self.records.complete("films", sorted(path.name for path in films.glob("*.wav")), make)

    def run_rows(self, name: str) -> dict[str, Record]:
        """Decode every recording alone and together with others, with the artifact of ``name``."""
        artifact, records = self.rows[name]
        alone, together = (System(artifact, KERNELS["cpu"], self.threads, rows=rows) for rows in (1, ROWS))

        def make(names: list[str]) -> list[Record]:
            clips = [(self.window(name), self.recordings.languages[name]) for name in names]
            single = [alone.text(clip, language, timestamps=False) for clip, language in clips]
            joined = together.together(clips)
            return [{"alone": one.tokens, "together": other.tokens} for one, other in zip(single, joined, strict=True)]

        return records.complete(f"rows-{name}", self.recordings.names, make, 2 * ROWS)

    def run(self, part: str, films: Path | None) -> None:
        """Run a part; long form is skipped without ``films``."""
        if part == "reference":
            self.run_reference()
        elif part in KERNELS:
            self.run_system(part)
        elif part == "films" and films:
            self.run_films(films)
        elif part == "rows":
            for name in self.rows:
                self.run_rows(name)

    def stored(self) -> dict[str, dict[str, Record]]:
        """Return the records of every part that is complete."""
        parts = {part: self.records.read(part) for part in ("reference", *KERNELS, "films")}
        parts |= {f"rows-{name}": records.read(f"rows-{name}") for name, (_, records) in self.rows.items()}
        names = set(self.recordings.names)
        return {
            part: records if part == "films" else {name: records[name] for name in self.recordings.names}
            for part, records in parts.items()
            if records and (part == "films" or names <= records.keys())
        }


def _needs_reference(names: list[str]) -> list[Record]:
    raise typer.BadParameter(f"the part reference has no result of {names[0]}; run it first: --only reference")


@app.command()
def main(
    checkpoint: Annotated[Path, typer.Argument(help="Whisper checkpoint, in any layout.")],
    artifact: Annotated[Path, typer.Argument(help="Its float32 artifact.")],
    recordings: Annotated[Path, typer.Option(help="Folder of recordings with index.json (file, language, text).")],
    films: Annotated[Path | None, typer.Option(help="Folder of longer .wav files for the long form.")] = None,
    int8: Annotated[Path | None, typer.Option(help="An int8 artifact: its rows are compared too.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of results; a second run continues there.")] = (
        REPOSITORY / "build" / "fidelity"
    ),
    docs: Annotated[Path | None, typer.Option(help="Folder where fidelity.json and fidelity.md are written.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PART", help=f"Run this part only; repeatable: {', '.join(PARTS)}.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of recordings, spread over the index.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each library.")] = 1,
) -> None:
    """Compare tokens, languages, features and times of Whisper with those of transformers."""
    chosen = only or list(PARTS)
    if unknown := set(chosen) - {*PARTS}:
        raise typer.BadParameter(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    try:
        comparison = Comparison(checkpoint, artifact, int8, Recordings(recordings, limit), work, threads)
        for part in PARTS:
            if part in chosen:
                comparison.run(part, films)
    except AsrError as error:
        raise typer.BadParameter(str(error)) from None
    results = summary(comparison.stored(), comparison.spell)
    if docs is None:
        typer.echo(json.dumps(results, indent=1, ensure_ascii=False))
        return
    report.store(docs, "fidelity", results)
    typer.echo(report.write(docs))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    app()
