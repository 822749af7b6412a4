"""Containerfile, compose.yaml and docs/serving.md: what they promise, and that they agree with the rest."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]

from runtime.__main__ import app
from runtime.model.bundled import BUNDLED_MODEL
from runtime.server.metrics import Metrics
from runtime.server.settings import Settings
from tests.conftest import REPOSITORY
from tests.helpers.containerfile import Containerfile, Ignored, Stage, context_files, expand, read

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
SERVING = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def containerfile() -> Containerfile:
    return read(REPOSITORY / "Containerfile")


@pytest.fixture(scope="module")
def ignored() -> Ignored:
    return Ignored(REPOSITORY / ".containerignore")


def stage(file: Containerfile, name: str) -> Stage:
    (found,) = (each for each in file.stages if each.name == name)
    return found


def pip(file: Containerfile, name: str) -> list[list[str]]:
    """The words of a stage's calls of pip, after ``-m pip``."""
    commands = [shlex.split(each.value) for each in stage(file, name).all("RUN")]
    return [words[words.index("pip") + 1 :] for words in commands if "pip" in words]


def test_base_images_are_pinned(containerfile: Containerfile) -> None:
    names = {each.name for each in containerfile.stages}
    outside = {each.base for each in containerfile.stages if each.base not in names}
    (image,) = outside  # what is copied from one stage to another runs on the same system
    assert re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-[a-z]+(@sha256:[0-9a-f]{64})?", image)


def test_the_user_is_a_number_and_not_root(containerfile: Containerfile) -> None:
    user = containerfile.final.only("USER").value
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user)
    keywords = [each.keyword for each in containerfile.final.instructions]
    assert {"RUN", "COPY", "ADD"}.isdisjoint(keywords[keywords.index("USER") :])
    assert all(service["user"] == user for service in COMPOSE["services"].values())


def test_only_the_base_and_serve_dependencies_are_installed(containerfile: Containerfile) -> None:
    first, *_ = stage(containerfile, "dependencies").all("RUN")
    assert "['dependencies']" in first.value
    assert re.findall(r"\['optional-dependencies'\]\['(\w+)'\]", first.value) == ["serve"]
    (install,) = pip(containerfile, "dependencies")
    assert install[2:4] == ["install", "--no-compile"]
    assert "--only-binary=:all:" in install
    assert [install[index + 1] for index, word in enumerate(install) if word == "--requirement"] == ["requirements.txt"]
    assert "constraints.txt" in [install[index + 1] for index, word in enumerate(install) if word == "--constraint"]
    wheel, project = pip(containerfile, "project")
    assert wheel[0] == "wheel"
    assert "--no-deps" in wheel
    assert {"--no-deps", "--no-index"} <= set(project)
    assert project[-1] == "wheels/*.whl"


def test_another_onnxruntime_takes_the_place_of_the_first(containerfile: Containerfile) -> None:
    """The line that is replaced is there, and one line only."""
    (argument,) = stage(containerfile, "dependencies").all("ARG")
    assert argument.value == "ONNXRUNTIME=onnxruntime"
    first, *_ = stage(containerfile, "dependencies").all("RUN")
    assert "s/^onnxruntime>.*/${ONNXRUNTIME}/" in first.value
    requirements = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["serve"]]
    assert sum(bool(re.match(r"onnxruntime>", each)) for each in requirements) == 1
    name = COMPOSE["services"]["cuda"]["build"]["args"]["ONNXRUNTIME"].partition("[")[0]
    pins = (REPOSITORY / "constraints-cuda.txt").read_text(encoding="utf-8")
    assert re.search(rf"^{name}==", pins, re.MULTILINE)


def test_cuda_is_the_same_release(containerfile: Containerfile) -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    cpu, cuda = pins("constraints.txt"), pins("constraints-cuda.txt")
    assert cuda.pop("onnxruntime-gpu") == cpu["onnxruntime"]
    assert cuda
    assert all(name.startswith("nvidia-") for name in cuda)


def test_everything_that_the_wheel_is_made_of_is_copied(containerfile: Containerfile, ignored: Ignored) -> None:
    copied: set[PurePosixPath] = set()
    for copy in stage(containerfile, "project").all("COPY"):
        *sources, _ = copy.words
        for source in sources:
            found = list(context_files(REPOSITORY, source, ignored))
            assert found, f"COPY {source}: nothing is there, or .containerignore hides it"
            copied |= set(found)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    metadata = PROJECT["project"]
    needed = [
        *("pyproject.toml", "constraints.txt", metadata["readme"], *metadata["license-files"]),
        *(*wheel["packages"], *wheel["force-include"], PROJECT["tool"]["hatch"]["version"]["path"]),
        *("hatch_build.py", f"artifacts/{BUNDLED_MODEL}"),
    ]
    for name in needed:
        path = REPOSITORY / name
        assert path.exists()
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert PurePosixPath(file.relative_to(REPOSITORY)) in copied, file
    for copy in stage(containerfile, "dependencies").all("COPY"):
        assert all((REPOSITORY / source).is_file() for source in copy.words[:-1])


def test_the_bundled_model_can_be_left_out(containerfile: Containerfile) -> None:
    """The build argument reaches the variable of hatch_build.py; test_minimal_install.py builds a wheel with it."""
    project = stage(containerfile, "project")
    assert project.only("ARG").value == "BUNDLED_MODEL=yes"
    wheel, *_ = project.all("RUN")
    assert 'ASR_DEPLOY_BUNDLED_MODEL="${BUNDLED_MODEL}"' in wheel.value
    page = (REPOSITORY / "docs" / "howto" / "container.md").read_text(encoding="utf-8")
    assert "--build-arg BUNDLED_MODEL=no" in page


def test_stages_exist_that_are_copied_from(containerfile: Containerfile) -> None:
    copies = [each for each in containerfile.final.instructions if each.keyword == "COPY"]
    assert [each.options for each in copies] == [("--from=dependencies",), ("--from=project",)]
    assert {each.value for each in copies} == {"/opt/asr-deploy /opt/asr-deploy"}


@pytest.mark.parametrize(
    "name", ["api-keys.txt", ".git/config", ".venv/bin/python", "artifacts/other/x.onnx", "build/x"]
)
def test_nothing_else_reaches_the_builder(ignored: Ignored, name: str) -> None:
    assert PurePosixPath(name) in ignored
    assert PurePosixPath("runtime/__pycache__/x.pyc") in ignored
    assert PurePosixPath("runtime/server/__pycache__/x.pyc") in ignored
    assert PurePosixPath("runtime/__init__.py") not in ignored


def test_docker_ignores_the_same() -> None:
    """Podman and Buildah read .containerignore, Docker reads .dockerignore."""
    assert (REPOSITORY / ".dockerignore").read_bytes() == (REPOSITORY / ".containerignore").read_bytes()


def test_the_keys_of_the_compose_file_are_not_tracked() -> None:
    assert "/api-keys.txt" in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "./api-keys.txt" in COMPOSE["secrets"]["api_keys"]["file"]


def test_the_health_check_asks_the_port_that_is_served(containerfile: Containerfile) -> None:
    final = containerfile.final
    entry = final.only("ENTRYPOINT").words
    assert entry[:4] == ["python", "-m", "runtime", "serve"]
    options = dict(zip(entry[4::2], entry[5::2], strict=True))
    assert options == {"--host": "0.0.0.0", "--port": final.only("EXPOSE").value}
    kind, _, command = final.only("HEALTHCHECK").value.partition(" ")
    assert kind == "CMD"
    words = json.loads(command)
    assert words[0] == "python"
    assert f"http://127.0.0.1:{options['--port']}/ready" in words[-1]
    assert final.only("STOPSIGNAL").value == "SIGTERM"
    for service in COMPOSE["services"].values():
        assert service["healthcheck"]["test"] == ["CMD", *words]
        assert service["ports"] == [f"127.0.0.1:${{ASR_PORT:-8000}}:{options['--port']}"]


def test_bytecode_is_made_once_and_never_written(containerfile: Containerfile) -> None:
    for name in ("dependencies", "project"):
        *_, last = stage(containerfile, name).all("RUN")
        assert last.words[:3] == ["python", "-m", "compileall"]
    environment = containerfile.final.environment
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    version = containerfile.final.base.partition(":")[2].split("-")[0]
    minor = ".".join(version.split(".")[:2])
    assert all(f"/python{minor}/" in folder for folder in environment["LD_LIBRARY_PATH"].split(":"))


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_services_are_locked(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    (temporary,) = service["tmpfs"]
    assert re.fullmatch(r"/tmp:size=\d+[mg],mode=1777", temporary)
    (models,) = service["volumes"]
    assert (models["target"], models["read_only"]) == ("/models", True)
    assert service["secrets"] == list(COMPOSE["secrets"])
    assert (
        service["command"][service["command"].index("--api-keys-file") + 1] == f"/run/secrets/{service['secrets'][0]}"
    )
    assert service["mem_limit"] == service["memswap_limit"]
    assert service["pids_limit"] > 0
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().grace


def test_cuda_is_asked_for_where_it_is_installed() -> None:
    cpu, cuda = COMPOSE["services"]["cpu"], COMPOSE["services"]["cuda"]
    assert "profiles" not in cpu
    assert cuda["profiles"] == ["cuda"]
    assert cuda["gpus"] == "all"
    assert cuda["command"] == [*cpu["command"], "--provider", "cuda"]
    assert cuda["image"] != cpu["image"]


def rows(section: str) -> dict[str, str]:
    """The last column of a table of the page, by the options that its first one names."""
    text = SERVING.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found: dict[str, str] = {}
    for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        first, *_, last = line.split("|")
        found |= {option: last.strip() for option in re.findall(r"`(--[a-z-]+)", first)}
    return found


def test_every_option_is_documented_with_its_default() -> None:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {
        name: parameter.default
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name != "--help"
    }
    documented = rows("Options")
    assert documented.keys() == options.keys()
    for name, default in options.items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            (number,) = re.findall(r"^[0-9]+", documented[name].replace(",", ""))
            assert float(number) == default, name
        elif isinstance(default, str):
            assert documented[name] == f"`{default}`"


def test_every_metric_is_documented() -> None:
    names = {metric.name for metric in Metrics().registry.collect()}
    assert names
    section = SERVING.split("\n## Metrics\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"`(asr_[a-z_]+)`", section))
    assert {name.removesuffix("_total") for name in documented} == names


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", SERVING):
        if "://" not in target:
            assert (REPOSITORY / "docs" / target).exists(), target


@pytest.mark.parametrize(
    ("line", "keyword", "options", "words"),
    [
        ("RUN a \\\n  # why\n  && b", "RUN", (), ["a", "&&", "b"]),
        ("COPY --from=x --chown=1 a b/", "COPY", ("--from=x", "--chown=1"), ["a", "b/"]),
        ('CMD ["a b", "--c"]', "CMD", (), ["a b", "--c"]),
    ],
)
def test_instructions_are_read(
    tmp_path: Path, line: str, keyword: str, options: tuple[str, ...], words: list[str]
) -> None:
    path = tmp_path / "Containerfile"
    path.write_text(f"# x\nARG A=b\nFROM ${{A}}:1 AS one\n{line}\nFROM one\n", encoding="utf-8")
    file = read(path)
    assert file.arguments == {"A": "b"}
    first, last = file.stages
    assert (first.base, first.name, last.base, last.name) == ("b:1", "one", "one", "")
    (instruction,) = first.instructions
    assert (instruction.keyword, instruction.options, instruction.words) == (keyword, options, words)


def test_an_argument_without_a_value() -> None:
    with pytest.raises(KeyError):
        expand("${UNKNOWN}", {})
