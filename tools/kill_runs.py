"""Kill commands at random moments and check what they leave.

    python -m tools.kill_runs --runs 100 --seed 0

Runs ``export``, ``quantize``, ``prepare`` and ``batch`` (into a folder, and into a file of JSON lines) and ends each
run with SIGKILL at a random moment of its work. After every kill three things must hold: nothing incomplete has a final
name, nothing that was finished is lost, and a later run finishes the work. The commands run in forks of this process,
which has imported their modules: a moment of the work is hit, not one of the imports. So this must be a process of its
own, which has computed nothing: a fork has only the thread that made it, and waits forever for the others of torch.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from runtime.model.artifact import open_artifact

_REPOSITORY = Path(__file__).resolve().parent.parent
_SPEECH = _REPOSITORY / "tests" / "data"
_MODEL = _REPOSITORY / "artifacts" / "qwen3-asr-tiny-int8"
# The families whose small checkpoints are exported and quantized in the shortest time.
_EXPORTED = "gigaam-v3-tiny"
# The model whose checkpoint `--checkpoint` takes: of the same family.
_FAMILY_MODEL = "gigaam-v3-ctc"
# A run that is not killed takes seconds; one that hangs is an error, not a wait without end.
_LIMIT_SECONDS = 300.0


class KillError(AssertionError):
    """A killed run left something incomplete, lost something, or the next run did not finish."""


class Work(ABC):
    """A command and the output that its runs share.

    Attributes:
        name: name of the work.
        module: module with the command line, imported before the first run.
        heavy: other modules that the command imports.
    """

    name: str
    module = "runtime.cli.app"
    heavy: Sequence[str] = ()

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"

    @abstractmethod
    def arguments(self) -> list[str]:
        """Return the arguments of the command."""

    @abstractmethod
    def finished(self) -> dict[str, str]:
        """Return what has a final name: the content by name.

        Raises:
            KillError: something with a final name is incomplete.
        """

    def make_inputs(self) -> None:  # noqa: B027 (most commands need none)
        """Make the command's inputs."""

    def reset(self) -> None:
        """Remove the output and what killed runs left beside it."""
        for path in [self.out, *self.folder.glob(f".{self.out.name}*")]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


class Export(Work):
    """``export`` of a small checkpoint: the artifact's folder appears complete or not at all.

    Attributes:
        checkpoint: name and folder of another checkpoint of the same family, if not the small one.
    """

    name, module = "export", "export.cli"
    heavy: Sequence[str] = ("export.package", "export.families", f"export.families.{_EXPORTED.split('-')[0]}.exporter")

    checkpoint: tuple[str, Path] | None = None

    def arguments(self) -> list[str]:
        if self.checkpoint is None:
            return [_EXPORTED, "--out", str(self.out)]
        return [self.checkpoint[0], "--checkpoint", str(self.checkpoint[1]), "--out", str(self.out)]

    def finished(self) -> dict[str, str]:
        if not self.out.exists():
            return {}
        try:
            artifact = open_artifact(self.out)
        except (OSError, ValueError) as error:
            raise KillError(f"{self.name}: {error}") from None
        return {name: file.sha256 for name, file in artifact.manifest.files.items()}


class Quantize(Export):
    """``quantize`` of an exported small checkpoint."""

    name, module = "quantize", "quantize.cli"
    heavy = ("quantize.package",)

    def make_inputs(self) -> None:
        export = Export(self.folder)
        export.out, export.checkpoint = self.folder / "parent", self.checkpoint
        _import(export)
        code = _run(export)
        if code:
            raise KillError(f"export ended with {code}")

    def arguments(self) -> list[str]:
        return [str(self.folder / "parent"), "--recipe", "int4", "--out", str(self.out), "--force"]


class Prepare(Work):
    """``prepare`` of the bundled model: each graph's folder appears complete or not at all, and stays."""

    name, heavy = "prepare", ("runtime.ort.prepacked",)

    def arguments(self) -> list[str]:
        return ["prepare", "--model", str(_MODEL), "--out", str(self.out)]

    def finished(self) -> dict[str, str]:
        from runtime.errors import AsrError
        from runtime.model.artifact import check_files
        from runtime.ort import prepacked

        found = {}
        for home in self.out.iterdir() if self.out.exists() else ():
            if home.name.startswith("."):
                continue
            record = prepacked._read(home)
            if record is None:
                raise KillError(f"{home}: has no record")
            try:
                check_files(home, record.files, remedy="")
            except AsrError as error:
                raise KillError(str(error)) from None
            found[home.name] = record.origin.graph_sha256
        return found


class BatchFolder(Work):
    """``batch`` into a folder: every file is a whole transcript, and stays."""

    name, heavy = "batch into a folder", ("runtime.families.qwen3_asr.engine",)

    def arguments(self) -> list[str]:
        return ["batch", str(_SPEECH / "*.wav"), "--model", str(_MODEL), "--out", str(self.out), "--format", "txt"]

    def finished(self) -> dict[str, str]:
        files = [path for path in self.out.glob("*") if not path.name.startswith(".")]
        return {path.name: path.read_text(encoding="utf-8") for path in files}


class BatchLines(BatchFolder):
    """``batch`` into a file of JSON lines: every line is whole, and stays."""

    name = "batch into JSON lines"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.out = folder / "out.jsonl"

    def arguments(self) -> list[str]:
        return super().arguments()[:-2]

    def finished(self) -> dict[str, str]:
        data = self.out.read_bytes() if self.out.exists() else b""
        if data and not data.endswith(b"\n"):
            raise KillError(f"{self.out}: ends with a part of a line")
        try:
            lines = [json.loads(line) for line in data.splitlines()]
        except ValueError as error:
            raise KillError(f"{self.out}: {error}") from None
        return {line["id"]: line["text"] for line in lines}


WORKS: dict[str, type[Work]] = {
    "export": Export,
    "quantize": Quantize,
    "prepare": Prepare,
    "batch": BatchFolder,
    "batch-jsonl": BatchLines,
}


def _import(work: Work) -> None:
    for module in (work.module, *work.heavy):
        importlib.import_module(module)


def _fork(work: Work) -> int:
    """Run the command in a fork, in a process group of its own; return the process id."""
    command: Callable[..., object] = importlib.import_module(work.module).app
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        with (work.folder / "log").open("w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            command(work.arguments(), prog_name=work.name)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        os._exit(code)


def _run(work: Work) -> int:
    """Run the command to its end; return its exit code.

    Raises:
        KillError: it does not end.
    """
    code = _run_for(work, _LIMIT_SECONDS)
    if code is None:
        log = (work.folder / "log").read_text(encoding="utf-8")
        raise KillError(f"{work.name}: did not end in {_LIMIT_SECONDS:.0f} s: {log}")
    return code


def _run_for(work: Work, seconds: float) -> int | None:
    """Run the command and kill it after ``seconds``; return its exit code, None if it was killed."""
    process = _fork(work)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))
    os.killpg(process, signal.SIGKILL) if os.getpgid(process) == process else os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def kill_runs(work: Work, runs: int, seed: int, on_run: Callable[[int], object] = lambda _: None) -> str:
    """Kill ``runs`` runs of a command at random moments, and let the last one finish.

    Args:
        work: the command and its output, which is empty before and after.
        runs: number of runs that are killed.
        seed: seed of the moments.
        on_run: called with the number of each killed run.

    Returns:
        One line with the numbers of kills and of finished outputs.

    Raises:
        KillError: something is incomplete or was lost, or a run did not finish.
    """
    random_moment = random.Random(f"{work.name} {seed}")
    _import(work)
    work.make_inputs()
    start = time.monotonic()
    if code := _run(work):
        raise KillError(f"{work.name}: ended with {code}: {(work.folder / 'log').read_text(encoding='utf-8')}")
    duration, whole = time.monotonic() - start, work.finished()
    work.reset()
    before: dict[str, str] = {}
    kills = completed = 0
    while kills < runs:
        if _run_for(work, random_moment.uniform(0.0, duration)) is None:
            kills += 1
            on_run(kills)
        found = work.finished()
        for name in found:
            if found[name] != whole.get(name):
                raise KillError(f"{work.name}: {name} is not what a whole run writes")
        if lost := before.keys() - found.keys():
            raise KillError(f"{work.name}: {', '.join(sorted(lost))} was finished and is lost")
        before = found
        if found.keys() == whole.keys():
            completed += 1
            work.reset()
            before = {}
    if code := _run(work):
        raise KillError(f"{work.name}: the next run ended with {code}")
    if work.finished() != whole:
        raise KillError(f"{work.name}: the next run did not finish the work")
    work.reset()
    return f"{work.name}: {kills} kills in runs of {duration:.1f} s, {completed} outputs were complete, none damaged"


def main(
    runs: Annotated[int, typer.Option(min=1, help="Killed runs of each command.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    command: Annotated[list[str] | None, typer.Option(help=f"{', '.join(WORKS)}. [default: all]")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"Export this checkpoint of {_FAMILY_MODEL}, instead of {_EXPORTED}."),
    ] = None,
) -> None:
    """Kill commands at random moments and check what they leave."""
    if unknown := set(command or ()) - {*WORKS}:
        raise typer.BadParameter(f"unknown command {', '.join(sorted(unknown))}; known are {', '.join(WORKS)}")
    for name in command or WORKS:
        with tempfile.TemporaryDirectory() as folder:
            work = WORKS[name](Path(folder))
            if isinstance(work, Export) and checkpoint is not None:
                work.checkpoint = (_FAMILY_MODEL, checkpoint)
            typer.echo(kill_runs(work, runs, seed))


if __name__ == "__main__":
    typer.run(main)
