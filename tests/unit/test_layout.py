"""The layout of the code: names that explain themselves, few entries at the top of the runtime, no module too long."""

from __future__ import annotations

import tokenize
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGES = ("runtime", "quantize", "export", "benchmarks", "tools", "tests", "examples")
# Names that were replaced by standard terms: index, is_cancelled, on_progress, on_timing, on_segment, max_tokens,
# capabilities.
REPLACED_NAMES = {"place", "places", "alive", "told", "spent", "kept", "most", "asking"}
REPLACED_MODULES = {"asking.py", "work.py", "prepared.py", "sites.py", "probing.py", "kinds.py"}
LONGEST_MODULE = 470


def python_files(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((REPOSITORY / package).rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_replaced_names_do_not_come_back(package: str) -> None:
    found = []
    for path in python_files(package):
        with path.open("rb") as stream:
            found += [
                f"{path.relative_to(REPOSITORY)}:{token.start[0]}: {token.string}"
                for token in tokenize.tokenize(stream.readline)
                if token.type == tokenize.NAME and token.string in REPLACED_NAMES
            ]
    assert not found


def test_replaced_modules_do_not_come_back() -> None:
    assert not [path for path in python_files("runtime", "quantize", "export") if path.name in REPLACED_MODULES]


def test_the_top_of_the_runtime_has_about_25_entries() -> None:
    entries = [path.name for path in (REPOSITORY / "runtime").iterdir() if not path.name.startswith("__pycache__")]
    assert len(entries) <= 26, sorted(entries)


def test_no_module_is_too_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in python_files("runtime", "quantize", "export")}
    assert not [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > LONGEST_MODULE]


def test_no_docstring_only_points_elsewhere() -> None:
    found = []
    for path in python_files("runtime", "quantize", "export"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.strip().startswith(('"""See :', '"""As :', '"""The same as :')):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}")
    assert not found
