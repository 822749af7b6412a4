"""Compare execution providers: each in a process of its own, all with the CPU on the same inputs."""

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
    on_progress: Callable[[str], object] | None = None,
) -> Comparison:
    """Measure providers one after the other and compare each with the reference.

    The reference is ``model`` on the CPU or, if ``reference`` is given, that model on the CPU, such as the float32
    parent of a quantized model. A provider that is not available, rejects a graph or crashes its process gets a row
    with the error, and the comparison continues.

    Args:
        model: folder of an artifact.
        providers: lists of providers, as :func:`runtime.ort.providers.split_list` returns them.
        audio: files to transcribe, at least one.
        reference: folder of another artifact of the same family and with the same tokenizer.
        runs: counted runs, after a warm-up.
        threads: threads of a session; None: the cores this process may use.
        new_tokens: tokens to force for every segment, for a model with random weights.
        packages: folders of packages that come first on the path of a provider's process, by the provider's name:
            another build of onnxruntime (``pip install --no-deps --target FOLDER onnxruntime-gpu``).
        on_progress: called with the name of the next measurement.

    Raises:
        OptionError: no audio, a folder of ``packages`` that does not exist, or models that cannot be compared.
        CapabilityError: ``new_tokens`` is given and the model cannot be forced to a number of tokens.
        ProviderError: an unknown provider or option.
        ComparisonError: the reference cannot be measured.
        ArtifactNotFoundError: a model's folder or one of its files does not exist.
        ArtifactInvalidError: a model's manifest or one of its files is invalid.
    """
    if not audio:
        raise OptionError("no audio was given; a comparison needs at least one file")
    chains = list(dict.fromkeys(providers))
    for texts in chains:
        check_order([read_provider(text) for text in texts])
    overlays = dict(packages or {})
    for name, overlay in overlays.items():
        if not overlay.is_dir():
            raise OptionError(f"{overlay}: no such folder of packages for {name!r}; make it with pip install --target")
    if reference is None and _REFERENCE not in chains:
        chains.insert(0, _REFERENCE)
    artifact = open_artifact(model)
    parent = open_artifact(reference) if reference else artifact
    check_request(artifact.manifest, capabilities_of(artifact), forcing=new_tokens is not None)
    _check_comparable(artifact, parent)
    with tempfile.TemporaryDirectory(prefix="asr-deploy-compare-") as folder:
        outputs = str(Path(folder) / "reference.npz")

        def run(path: Path, texts: Sequence[str], compared_with: str | None) -> Measured:
            if on_progress:
                on_progress("+".join(texts) if compared_with or not reference else "the reference")
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
        for texts in chains:
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
    """Check that two models have the same family and the same tokenizer.

    Raises:
        OptionError: they differ.
    """
    ours, theirs = artifact.manifest, parent.manifest
    tokenizers = [manifest.files[manifest.tokenizer].sha256 for manifest in (ours, theirs)]
    if ours.family != theirs.family or tokenizers[0] != tokenizers[1]:
        raise OptionError(
            f"{parent.path}: its family or tokenizer differs from that of {artifact.path}; "
            "give the model that it was made from"
        )


def _in_process(request: Request, folder: Path, overlay: Path | None) -> Measured:
    """Run one request in a new process.

    Args:
        request: what to measure.
        folder: where the request and the result are written.
        overlay: folder of packages that come first on the process's path.

    Raises:
        ProviderError: the process ended without a result; the message has its last line or its exit code or signal.
    """
    request_path, result_path = folder / "request.json", folder / "result.json"
    request_path.write_bytes(msgspec.json.encode(request))
    result_path.unlink(missing_ok=True)
    root = str(Path(runtime.__file__).resolve().parent.parent)
    paths = [*([str(overlay.resolve())] if overlay else []), root, os.environ.get("PYTHONPATH", "")]
    process = subprocess.run(
        [sys.executable, "-m", "runtime.bench.provider_run", str(request_path), str(result_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if process.returncode == 0 and result_path.is_file():
        return msgspec.json.decode(result_path.read_bytes(), type=Measured)
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "no output on standard error"
    if process.returncode == 2 and last.startswith("error: "):
        raise ProviderError(last.removeprefix("error: "))
    raise ProviderError(f"its process {_ending(process.returncode)}: {last}")


def _ending(code: int) -> str:
    """Describe an exit code or a signal, as the predicate of a sentence."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
