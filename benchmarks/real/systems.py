"""Systems that recognize the real recordings, all with the weights of one checkpoint, and the files that they read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.artifacts import FLOAT, exported, quantized
from benchmarks.children import module
from runtime.errors import AsrError
from runtime.host.files import sha256_file
from runtime.model.artifact import open_artifact

MODEL = "openai/whisper-base"
RECIPES = ("fp16", "q8", "int8", "mixed", "int4", "int4-small")
#: The system that all others are compared with, and the reference implementation.
BASELINE = f"asr-deploy, {FLOAT}"
REFERENCE = f"transformers, {FLOAT}"
_CHILD = "benchmarks.real.child"
_MARK = "checkpoint.sha256"

# One hypothesis, no second attempt at a higher temperature, no timestamps: what transformers' ``generate`` and our
# runtime do. A recording is at most two windows long, so the text of the window before is left out too.
_FASTER_WHISPER = {
    "task": "transcribe",
    "beam_size": 1,
    "best_of": 1,
    "temperature": 0.0,
    "without_timestamps": True,
    "condition_on_previous_text": False,
}
_WHISPER_CPP = {
    "no_timestamps": True,
    "temperature_inc": 0.0,
    "greedy": {"best_of": 1},
    "suppress_nst": True,  # the tokens that the others suppress too
    "no_context": True,
}


class ReportError(AsrError, RuntimeError):
    """The comparison cannot run: a checkpoint of another layout, or files of another run."""


@dataclass(frozen=True, slots=True)
class System:
    """A package with settings and a number format.

    Attributes:
        name: package and format, such as ``faster-whisper, int8``.
        own: name of the system of the same package in its most exact format, whose text this one should write.
        job: job of :mod:`benchmarks.real.child`, without ``warm_up``.
        bytes: size of the files that it reads.
        peer: whether it runs in the environment of the other packages.
        detects: whether its language detection is measured. It is left out where another system does the same.
    """

    name: str
    own: str
    job: dict[str, Any] = field(repr=False)
    bytes: int
    peer: bool = False
    detects: bool = True

    @property
    def package(self) -> str:
        """Name of the package."""
        return self.name.partition(", ")[0]

    @property
    def command(self) -> list[str | Path]:
        """Command of the child process."""
        return module(_CHILD, peers.command()[0]) if self.peer else module(_CHILD)


def prepare(work: Path, checkpoint: Path, recipes: tuple[str, ...] = RECIPES, threads: int = 2) -> list[System]:
    """Make what all systems read, in ``work``; what exists is used again.

    Args:
        work: folder of artifacts and of the other packages' files.
        checkpoint: folder in the layout of CTranslate2, which faster-whisper reads as it is.
        recipes: recipes of this project to compare.
        threads: threads of every system.

    Raises:
        CheckpointNotFoundError: the checkpoint is missing.
        CheckpointInvalidError: it cannot be read.
        ReportError: it is not in the layout of CTranslate2, or ``work`` was made from another one.
        subprocess.CalledProcessError: exporting, quantizing or installing failed.
    """
    layout = _open(checkpoint)
    _mark(work, sha256_file(checkpoint / "model.bin"))
    peers.make_environment()
    float32 = exported(MODEL, work / "artifacts", checkpoint)
    artifacts = {FLOAT: float32} | {recipe: quantized(float32, recipe)[0] for recipe in recipes}
    ours = [_ours(recipe, path) for recipe, path in artifacts.items()]
    ours.insert(1, _ours(FLOAT, float32, vad=False))
    reference = _made(work / "transformers", lambda path: write_transformers(layout, path))
    job = _job("transformers", reference, ["transformers", "torch"], {})
    others = [System(REFERENCE, REFERENCE, job, (reference / "model.safetensors").stat().st_size)]
    others += _faster_whisper(checkpoint)
    others += _whisper_cpp(work, layout)
    return [replace(system, job=system.job | {"threads": threads}) for system in (*ours, *others)]


def batched(systems: Sequence[System], rows: int) -> list[System]:
    """Return faster-whisper, greedy, with its pipeline that decodes ``rows`` windows of long audio together."""
    greedy = [each for each in systems if each.package == "faster-whisper" and each.job["options"]]
    return [
        replace(
            each,
            name=f"{each.name}, {rows} together",
            job=each.job | {"options": {"beam_size": 1, "batch_size": rows}},
        )
        for each in greedy
    ]


def _open(checkpoint: Path) -> Any:
    """Return the checkpoint's layout; importing its reader takes seconds."""
    from export.checkpoints import find_checkpoint, locate
    from export.families.whisper.layouts import find_layout
    from export.families.whisper.layouts.ctranslate2 import CTranslate2Layout

    folder = locate(find_checkpoint(MODEL), checkpoint)
    kind = find_layout(folder)
    if kind is not CTranslate2Layout:
        raise ReportError(
            f"{checkpoint}: is not in the layout of CTranslate2 (model.bin), the only one that faster-whisper reads; "
            "`make real-model` writes such a folder"
        )
    return kind(folder)


def _mark(work: Path, digest: str) -> None:
    """Note which checkpoint the folder is made from.

    Raises:
        ReportError: it was made from another one.
    """
    work.mkdir(parents=True, exist_ok=True)
    mark = work / _MARK
    if not mark.exists():
        mark.write_text(digest)
    elif mark.read_text() != digest:
        raise ReportError(f"{work}: was made from another checkpoint; remove it, or give another folder with --work")


def _made(path: Path, write: Callable[[Path], None]) -> Path:
    """Return ``path``, written beside it first if it does not exist, so that an interrupt leaves nothing half done."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.new")
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
        write(partial)
        partial.replace(path)
    return path


def _job(package: str, model: Path, versions: list[str], options: dict[str, Any], **more: Any) -> dict[str, Any]:
    job = {"package": package, "model": str(model.resolve()), "versions": versions}
    return job | {"options": options} | more


def _ours(recipe: str, path: Path, *, vad: bool = True) -> System:
    name = f"asr-deploy, {recipe}" if vad else f"asr-deploy, {recipe}, not cut"
    # The digest is only for recognizing that an artifact was made again; the manifest has the hashes of its files.
    digest = sha256_file(path / "manifest.json")
    job = _job("asr-deploy", path, ["onnxruntime"], {"vad": vad}, digest=digest)
    return System(name, BASELINE, job, open_artifact(path).size, detects=vad)


def _faster_whisper(checkpoint: Path) -> list[System]:
    systems = []
    size = (checkpoint / "model.bin").stat().st_size
    own = f"faster-whisper, {FLOAT}"
    for name, kind, options in (
        (own, FLOAT, _FASTER_WHISPER),
        ("faster-whisper, int8", "int8", _FASTER_WHISPER),
        # Its own defaults: five beams, timestamps, further attempts where a text seems wrong.
        ("faster-whisper, float32, 5 beams", FLOAT, {}),
    ):
        versions = ["faster-whisper", "ctranslate2"]
        job = _job("faster-whisper", checkpoint, versions, options, compute_type=kind)
        systems.append(System(name, own, job, size, peer=True, detects=bool(options)))
    return systems


def _whisper_cpp(work: Path, layout: Any) -> list[System]:
    from benchmarks.real.ggml import FILE_TYPES, write_ggml

    systems = []
    for kind in FILE_TYPES:
        path = _made(work / f"ggml-{kind}.bin", lambda path, kind=kind: write_ggml(layout, path, kind))  # type: ignore[misc]
        job = _job("whisper.cpp", path, ["pywhispercpp"], _WHISPER_CPP)
        systems.append(System(f"whisper.cpp, {kind}", "whisper.cpp, f16", job, path.stat().st_size, peer=True))
    return systems


def write_transformers(layout: Any, path: Path) -> None:
    """Write the checkpoint in the layout of transformers, in float32, as its users load it.

    Args:
        layout: the checkpoint, an ``export.families.whisper.layouts.Layout``.
        path: the new folder.
    """
    import msgspec
    from transformers import GenerationConfig

    from export.families.whisper.exporter import load_model

    model = load_model(layout)
    special = {key: getattr(layout.config, key) for key in ("bos_token_id", "pad_token_id")}
    settings = msgspec.to_builtins(layout.generation) | special
    model.generation_config = GenerationConfig(**settings, max_length=layout.config.max_target_positions)
    model.save_pretrained(path)
    layout.tokenizer.save(str(path / "tokenizer.json"))
