"""Execution providers compared: each in a process of its own, all against the CPU on the same inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

import runtime
from runtime.bench import machine
from runtime.bench.compared import Comparison, Measured, Outcome, Request, compare_texts
from runtime.errors import ComparisonError, OptionError, ProviderError
from runtime.families import capabilities_of, check_request
from runtime.model.artifact import Artifact, open_artifact
from runtime.ort.providers import check_order, read_provider

_REFERENCE = ("cpu",)


def compare(
    model: Path,
    providers: Sequence[tuple[str, ...]],
    audio: Sequence[Path],
    *,
    reference: Path | None = None,
    runs: int = 3,
    threads: int | None = None,
    new_tokens: int | None = None,
    packages: Mapping[str, Path] | None = None,
    progress: Callable[[str], object] | None = None,
) -> Comparison:
    """Measure providers one after the other, and compare each with the reference.

    The reference is ``model`` on the CPU, or the model in ``reference`` on the CPU: a float32 parent, for one that is
    quantized. A provider that is not available, refuses a graph or takes its process down has a row that says so, and
    the others go on.

    Args:
        model: an artifact's folder.
        providers: lists of providers as :func:`runtime.ort.providers.split_list` makes them.
        audio: files to transcribe, at least one.
        reference: another artifact of the same family and vocabulary.
        runs: counted runs, after one that is not.
        threads: threads of a session; by default the cores this process may use.
        new_tokens: tokens to force of every segment, for a model of random weights.
        packages: folders of packages that a provider's process finds before all others, by the provider's name: an
            onnxruntime of another build (``pip install --no-deps --target FOLDER onnxruntime-gpu``).
        progress: called with what is about to be measured.

    Raises:
        OptionError: nothing to compare, or tokens to force of a model that cannot be forced.
        ProviderError: an unknown provider or option.
        ComparisonError: the reference itself could not be measured.
        ArtifactNotFoundError, ArtifactInvalidError: see :mod:`runtime.model.artifact`.
    """
    if not audio:
        raise OptionError("no audio was given; a comparison needs at least one file")
    wanted = list(dict.fromkeys(providers))
    for texts in wanted:
        check_order([read_provider(text) for text in texts])
    overlays = dict(packages or {})
    for name, added in overlays.items():
        if not added.is_dir():
            raise OptionError(f"{added}: no such folder of packages for {name!r}; make it with pip install --target")
    if reference is None and _REFERENCE not in wanted:
        wanted.insert(0, _REFERENCE)
    artifact = open_artifact(model)
    parent = open_artifact(reference) if reference else artifact
    check_request(artifact.manifest, capabilities_of(artifact), forcing=new_tokens is not None)
    _check_comparable(artifact, parent)
    with tempfile.TemporaryDirectory(prefix="asr-deploy-compare-") as folder:
        outputs = str(Path(folder) / "reference.npz")

        def run(path: Path, texts: Sequence[str], compared_with: str | None) -> Measured:
            if progress:
                progress("+".join(texts) if compared_with or not reference else "the reference")
            request = Request(
                str(path), list(texts), list(map(str, audio)), runs, threads, new_tokens, outputs, compared_with
            )
            overlay = next((overlays[name] for text in texts if (name := text.partition(":")[0]) in overlays), None)
            return _in_process(request, Path(folder), overlay)

        try:
            theirs = run(parent.path, _REFERENCE, None)
        except ProviderError as error:
            raise ComparisonError(f"{parent.path}: the reference cannot be measured ({error})") from None
        outcomes = []
        for texts in wanted:
            name = "+".join(texts)
            try:
                ours = theirs if texts == _REFERENCE and not reference else run(artifact.path, texts, outputs)
            except ProviderError as error:
                outcomes.append(Outcome(name, error=str(error)))
            else:
                outcomes.append(compare_texts(name, ours, theirs))
    return Comparison(
        model=artifact.manifest.name,
        reference=f"{parent.manifest.name} on the CPU",
        audio=[path.name for path in audio],
        audio_seconds=theirs.audio_seconds,
        runs=runs,
        new_tokens=new_tokens,
        machine=msgspec.to_builtins(machine.describe()),
        outcomes=outcomes,
    )


def _check_comparable(artifact: Artifact, parent: Artifact) -> None:
    """Models whose tokens mean different things have nothing to compare."""
    ours, theirs = artifact.manifest, parent.manifest
    tokenizers = [made.files[made.tokenizer].sha256 for made in (ours, theirs)]
    if ours.family != theirs.family or tokenizers[0] != tokenizers[1]:
        raise OptionError(
            f"{parent.path}: has another family or tokenizer than {artifact.path}; give the model that it was made from"
        )


def _in_process(request: Request, folder: Path, overlay: Path | None) -> Measured:
    """Run one request in a process of its own.

    Raises:
        ProviderError: it did not finish; the message is its last word, or how it ended.
    """
    asked, result = folder / "request.json", folder / "result.json"
    asked.write_bytes(msgspec.json.encode(request))
    result.unlink(missing_ok=True)
    root = str(Path(runtime.__file__).resolve().parent.parent)
    paths = [*([str(overlay.resolve())] if overlay else []), root, os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "runtime.bench.provider_run", str(asked), str(result)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0 and result.is_file():
        return msgspec.json.decode(result.read_bytes(), type=Measured)
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = said[-1] if said else "it said nothing"
    if done.returncode == 2 and last.startswith("error: "):
        raise ProviderError(last.removeprefix("error: "))
    raise ProviderError(f"its process {_ending(done.returncode)}: {last}")


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
