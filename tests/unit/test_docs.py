"""The documentation agrees with the code: commands, fields, names, links."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantize import recipe
from runtime.model import manifest
from tests.conftest import REPOSITORY
from tools import cli_reference, readme

DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ]
)
MANIFEST_STRUCTS = (
    manifest.Manifest,
    manifest.Source,
    manifest.GraphSpec,
    manifest.TensorSpec,
    manifest.FileSpec,
    manifest.Language,
    manifest.Parity,
    manifest.Quantization,
    manifest.GraphQuantization,
    manifest.FallbackNode,
    manifest.Gate,
    manifest.TextDifference,
    manifest.ErrorRate,
)
RECIPE_STRUCTS = (
    recipe.Recipe,
    recipe.Bounds,
    recipe.Cache,
    recipe.Rule,
    recipe.WeightOnly,
    recipe.W8A8,
    recipe.Float16,
    recipe.Keep,
    recipe.Smoothing,
    recipe.Sensitive,
    recipe.Fallback,
)


def section(page: str, title: str) -> str:
    return f"\n{page}\n".split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, str]:
    """The second column of a table by its first column."""
    return dict(re.findall(r"^\| `([a-z0-9_]+)` \| (.*?) \|", text, re.MULTILINE))


def test_the_page_of_commands_is_what_they_print() -> None:
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.render_page(), (
        f"{cli_reference.PAGE} is out of date; run: python -m tools.cli_reference"
    )


def test_a_page_that_is_out_of_date_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "cli.md"
    monkeypatch.setattr(cli_reference, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["cli_reference", "--check"])
    assert cli_reference.main() == 1
    monkeypatch.setattr(sys, "argv", ["cli_reference"])
    assert cli_reference.main() == 0
    monkeypatch.setattr(sys, "argv", ["cli_reference", "--check"])
    assert cli_reference.main() == 0


def test_the_tables_of_the_measurements_are_up_to_date() -> None:
    text = readme.MEASUREMENTS.read_text(encoding="utf-8")
    assert text == readme.renewed(text, readme.MEASUREMENTS), "run: python -m tools.readme"


@pytest.mark.parametrize("struct", MANIFEST_STRUCTS, ids=lambda struct: str(struct.__name__))
def test_every_field_of_the_manifest_is_documented(struct: Any) -> None:
    documented = rows(section((DOCS / "reference" / "manifest.md").read_text(encoding="utf-8"), struct.__name__))
    assert list(documented) == [field.name for field in msgspec.structs.fields(struct)]
    for field in msgspec.structs.fields(struct):
        assert ("default" in documented[field.name]) is not field.required, field.name


@pytest.mark.parametrize("struct", RECIPE_STRUCTS, ids=lambda struct: str(struct.__name__))
def test_every_key_of_a_recipe_is_documented(struct: Any) -> None:
    documented = rows(section((DOCS / "reference" / "recipe.md").read_text(encoding="utf-8"), struct.__name__))
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    if struct is not recipe.Rule and issubclass(struct, recipe.Rule):
        fields = {name: field for name, field in fields.items() if name not in recipe.Rule.__struct_fields__}
    fields.pop("name", None)  # the file's name
    assert documented.keys() - {"method"} == fields.keys()
    for name, field in fields.items():
        assert ("default" in documented[name] or "optional" in documented[name]) is not field.required, name


def test_no_struct_is_missing_from_the_pages() -> None:
    for module, structs in ((manifest, MANIFEST_STRUCTS), (recipe, RECIPE_STRUCTS)):
        defined = {
            value
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, msgspec.Struct)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        }
        assert defined == set(structs)


def test_every_kind_and_recipe_is_documented() -> None:
    kinds = section((DOCS / "reference" / "recipe.md").read_text(encoding="utf-8"), "Kinds")
    assert re.findall(r"^\| `(\w+)` \|", kinds, re.MULTILINE) == list(recipe.KINDS)
    choice = section((DOCS / "quantization.md").read_text(encoding="utf-8"), "Choose a recipe")
    assert set(re.findall(r"^\| `([\w-]+)` \|", choice, re.MULTILINE)) == set(recipe.shipped())


def test_the_recipe_of_the_guide_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (DOCS / "howto" / "recipe.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert recipe.load_recipe(str(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in {"CHANGELOG.md", "changelog.md"}],  # those have old names too
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_python_names_exist(page: Path) -> None:
    names = set(re.findall(r"`((?:runtime|export|quantize)(?:\.\w+)+)`", page.read_text(encoding="utf-8")))
    for name in names:
        parts = name.split(".")
        if any(part.startswith(("mine", "py")) for part in parts):  # an example, or a file
            continue
        for length in range(len(parts), 0, -1):
            try:
                value: Any = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[length:]:
                assert hasattr(value, attribute), name
                value = getattr(value, attribute)
            break


def test_architecture_shows_the_floors_of_the_contract() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    floors = re.findall(r"<!-- floors:.*?<!-- end of floors -->", text, re.DOTALL)[0]
    shown = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", floors, re.MULTILINE)]
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [each["layers"] for each in contracts["contracts"] if each["name"] == "floors of the runtime"]
    assert shown == [[name.strip().removeprefix("runtime.") for name in layer.split("|")] for layer in layers]


def test_the_example_of_a_family_is_that_of_the_tests() -> None:
    toy = REPOSITORY / "tests" / "helpers" / "toy_family"
    lines = {line for path in toy.glob("*.py") for line in path.read_text(encoding="utf-8").splitlines()}
    page = (DOCS / "howto" / "family.md").read_text(encoding="utf-8")
    examples = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if block.startswith("class ")]
    assert len(examples) == 2
    assert not [line for block in examples for line in block.splitlines() if line not in lines]


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    defined = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    texts = [page.read_text(encoding="utf-8") for page in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md")]
    texts.append((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    used = {target for text in texts for target in re.findall(r"(?:`|    |run: )make ([a-z][\w-]*)", text)}
    assert used <= defined


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_changelog_has_the_version() -> None:
    from runtime.version import __version__

    assert f"\n## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_workflow_has_the_commands_of_ci() -> None:
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    for command in re.findall(r"^make [\w-]+$", script, re.MULTILINE):
        assert f"run: {command}\n" in workflow
