"""Read the Containerfile, and run its build stages in a folder, without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import msgspec

_NAMES = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class Instruction(msgspec.Struct, frozen=True):
    """An instruction of a Containerfile: its keyword, its ``--options``, and the unparsed rest."""

    keyword: str
    options: tuple[str, ...]
    value: str

    @property
    def words(self) -> list[str]:
        """The rest as a list: a JSON array (``ENTRYPOINT ["python"]``) parsed as such, else split into shell words."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)


class Stage(msgspec.Struct, frozen=True):
    """A build stage: its base image, its name, and its instructions."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, keyword: str) -> list[Instruction]:
        """Return the instructions with this keyword, in order."""
        return [each for each in self.instructions if each.keyword == keyword]

    def only(self, keyword: str) -> Instruction:
        """Return the only instruction with this keyword."""
        (instruction,) = self.all(keyword)
        return instruction

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its ``ENV`` instructions set."""
        return dict(word.split("=", 1) for each in self.all("ENV") for word in each.words)


class Containerfile(msgspec.Struct, frozen=True):
    """A parsed Containerfile: the arguments before the first stage with their defaults, and the stages."""

    arguments: dict[str, str]
    stages: tuple[Stage, ...]

    @property
    def final(self) -> Stage:
        """The stage that becomes the image."""
        return self.stages[-1]


def read(path: Path) -> Containerfile:
    """Parse a Containerfile. Heredocs and escapes other than a backslash at a line's end are not supported."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            base, *name = re.split(r"\s+AS\s+", rest)
            stages.append(Stage(expand(base, arguments), name[0] if name else "", ()))
            continue
        words = rest.split()
        count = next((index for index, word in enumerate(words) if not word.startswith("--")), len(words))
        value = rest.strip()
        for option in words[:count]:
            value = value.removeprefix(option).lstrip()
        instruction = Instruction(keyword, tuple(words[:count]), value)
        if not stages:
            arguments |= _arguments([instruction])
        else:
            last = stages.pop()
            stages.append(Stage(last.base, last.name, (*last.instructions, instruction)))
    return Containerfile(arguments, tuple(stages))


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}`` in ``text`` by their values.

    Raises:
        KeyError: a name has no value.
    """
    return _NAMES.sub(lambda match: values[match[1] or match[2]], text)


def _arguments(instructions: Sequence[Instruction]) -> dict[str, str]:
    return dict(each.value.split("=", 1) for each in instructions)


class Ignored:
    """The patterns of a ``.containerignore`` file.

    The last pattern that matches a path or a folder above it decides whether the path is ignored.
    """

    def __init__(self, path: Path) -> None:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        self._patterns = [line for line in lines if line and not line.startswith("#")]

    def __contains__(self, path: PurePosixPath) -> bool:
        ignored = False
        for pattern in self._patterns:
            if _matches(path, pattern.removeprefix("!")):
                ignored = not pattern.startswith("!")
        return ignored


def _matches(path: PurePosixPath, pattern: str) -> bool:
    names = pattern.strip("/").split("/")
    for above in (path, *path.parents):
        parts = above.parts
        if names[0] == "**" and any(_equal(parts[start:], names[1:]) for start in range(len(parts))):
            return True
        if _equal(parts, names):
            return True
    return False


def _equal(parts: Sequence[str], names: Sequence[str]) -> bool:
    return len(parts) == len(names) and all(map(fnmatchcase, parts, names))


def context_files(repository: Path, source: str, ignored: Ignored) -> Iterator[PurePosixPath]:
    """Yield the files that ``COPY source`` copies, relative to the repository."""
    start = repository / source
    for path in sorted(start.rglob("*")) if start.is_dir() else [start]:
        below = PurePosixPath(path.relative_to(repository))
        if path.is_file() and below not in ignored:
            yield below


def build(file: Containerfile, repository: Path, ignored: Ignored, root: Path) -> None:
    """Run the ``COPY`` and ``RUN`` instructions of all stages before the final one, in order, with ``root`` as ``/``.

    All stages share one folder for their outputs. This equals the result of the final stage's ``COPY --from``, because
    the stages write the same paths, and it keeps the virtual environment where it was created, which it requires. The
    commands are those of the Containerfile, with absolute paths moved below ``root``, without ``--mount`` and with this
    interpreter as ``python``. Each stage has its own folder of sources, so it sees only the files that it copies.

    Raises:
        ValueError: a stage has an instruction that cannot be replayed.
    """
    directories: dict[str, str] = {}
    for stage in file.stages[:-1]:
        inside = root / "stages" / stage.name
        directory = directories.get(stage.base, "/")
        variables: dict[str, str] = {}
        for each in stage.instructions:
            folder = inside / directory.lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            if each.keyword == "WORKDIR":
                directory = each.value
            elif each.keyword == "ARG":
                variables |= _arguments([each])
            elif each.keyword == "COPY":
                _copy(each, repository, ignored, folder)
            elif each.keyword == "RUN":
                _run(each.value.replace("/opt/", f"{root}/opt/"), folder, variables)
            else:
                raise ValueError(f"{each.keyword} in the stage {stage.name} cannot be replayed")
        directories[stage.name] = directory


def _copy(instruction: Instruction, repository: Path, ignored: Ignored, folder: Path) -> None:
    *sources, target = instruction.words
    for source in sources:
        for path in context_files(repository, source, ignored):
            # A folder's files go into the target, a file under its own name.
            below = path.relative_to(source) if source.endswith("/") else PurePosixPath(path.name)
            copy = folder / target / below
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / path, copy)


def _run(command: str, folder: Path, variables: Mapping[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", command],
        cwd=folder,
        env={**inherited, **variables, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
