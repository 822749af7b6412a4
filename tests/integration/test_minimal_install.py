"""Build the container image's virtual environment in a folder, check its packages and size, and run its server.

No container engine is needed. The tests show that the installed packages are sufficient in a process that has no home
folder, writes only temporary files, and inherits no environment variables.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.conftest import DATA, REPOSITORY
from tests.helpers import containerfile

pytestmark = pytest.mark.slow

# Bytes of everything but the bundled model, and of the bundled model; --build-arg BUNDLED_MODEL=no leaves that out.
LARGEST_INSTALL, LARGEST_MODEL = 300 * 10**6, 85 * 10**6
# Packages that the image must not have: for export and quantization, optional dependencies, and installers.
ABSENT = (
    *("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime_genai", "safetensors", "jiwer"),
    *("sentencepiece", "ray", "pandas", "pyarrow", "av", "scipy", "sympy", "openai", "pytest", "pip", "setuptools"),
)
START_SECONDS = 60.0
RECORDING = DATA / "real" / "en-conf-invalid.opus"
TEXT = "That is not a valid conference number. Please try again."
NAME = re.compile(r"[-_.]+")


class Image(msgspec.Struct, frozen=True):
    """The virtual environment of the image, and the final stage of the Containerfile."""

    environment: Path
    stage: containerfile.Stage

    @property
    def packages(self) -> Path:
        (packages,) = self.environment.glob("lib/python3.*/site-packages")
        return packages

    def variables(self, temporary: Path) -> dict[str, str]:
        """Return the environment variables of a process in the image. Its home folder is missing but can be created."""
        variables = self.stage.environment
        moved = {name: value.replace("/opt/asr-deploy", str(self.environment)) for name, value in variables.items()}
        return moved | {"HOME": str(temporary.parent / "no-home"), "TMPDIR": str(temporary)}

    def command(self, words: list[str]) -> list[str]:
        """Return a command of the Containerfile that runs the virtual environment's Python."""
        assert words[0] == "python"
        return [str(self.environment / "bin" / "python"), *words[1:]]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Run the Containerfile's build stages on the files that it copies and .containerignore does not exclude."""
    file = containerfile.read(REPOSITORY / "Containerfile")
    root = tmp_path_factory.mktemp("image").resolve()
    containerfile.build(file, REPOSITORY, containerfile.Ignored(REPOSITORY / ".containerignore"), root)
    shutil.rmtree(root / "stages")
    yield Image(root / "opt" / "asr-deploy", file.final)
    shutil.rmtree(root)


def sizes(packages: Path) -> Counter[str]:
    """Return the bytes of each distribution's files, including bytecode."""
    owners = {
        path.parts[0]: distribution.name
        for distribution in importlib.metadata.distributions(path=[str(packages)])
        for path in distribution.files or ()
        if path.parts[0] != ".."
    }
    sizes_by_name: Counter[str] = Counter()
    for path in packages.rglob("*"):
        if path.is_file():
            top = path.relative_to(packages).parts
            name = top[1].partition(".")[0] + ".py" if top[0] == "__pycache__" else top[0]
            sizes_by_name[owners[name]] += path.stat().st_size
    return sizes_by_name


def test_only_pinned_packages_are_installed(image: Image) -> None:
    pinned = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    pins = {NAME.sub("-", name).lower(): version for name, version in pinned.items()}
    installed = {
        NAME.sub("-", each.name).lower(): each.version
        for each in importlib.metadata.distributions(path=[str(image.packages)])
    }
    del installed["asr-deploy"]
    assert installed == {name: pins.get(name, "not pinned") for name in installed}
    assert {"starlette", "uvicorn", "websockets", "prometheus-client", "python-multipart"} <= installed.keys()
    check = [sys.executable, "-m", "pip", "--python", str(image.environment / "bin" / "python"), "check"]
    process = subprocess.run(check, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


def test_unneeded_packages_are_not_installed(image: Image, tmp_path: Path) -> None:
    code = "from importlib.util import find_spec as find; import sys; print(*filter(find, sys.argv[1:]))"
    process = subprocess.run(
        image.command(["python", "-c", code, *ABSENT, "numpy"]),
        env=image.variables(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == ["numpy"]


def test_the_install_is_small(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    package_sizes = sizes(image.packages)
    model = sum(path.stat().st_size for path in (image.packages / "runtime" / "default_model").iterdir())
    lines = [f"  {size / 1e6:6.1f} MB  {name}" for name, size in package_sizes.most_common(10)]
    with capsys.disabled():
        sys.stdout.write(f"\ninstalled: {package_sizes.total() / 1e6:.1f} MB, including\n" + "\n".join(lines) + "\n")
    assert 0 < model <= LARGEST_MODEL
    assert package_sizes.total() - model <= LARGEST_INSTALL


def test_the_model_can_be_left_out(image: Image, tmp_path: Path) -> None:
    """A wheel without it, over the image's packages: a command without a model ends with one sentence."""
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(REPOSITORY),
    ]
    subprocess.run(wheel, env={**os.environ, "ASR_DEPLOY_BUNDLED_MODEL": "no"}, check=True)
    (built,) = tmp_path.glob("*.whl")
    assert built.stat().st_size < 10 * 10**6
    with zipfile.ZipFile(built) as archive:
        assert not [name for name in archive.namelist() if "default_model" in name]
        archive.extractall(tmp_path / "packages")
    process = subprocess.run(
        image.command(["python", "-m", "runtime", "transcribe", str(DATA / "en-1.wav")]),
        env={**image.variables(tmp_path), "PYTHONPATH": str(tmp_path / "packages")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line == ("error: this installation has no bundled model; give the folder of a model with --model DIR")


def test_every_module_has_bytecode(image: Image) -> None:
    """With a read-only root, modules without bytecode would be compiled at every start."""
    sources = list((image.packages / "runtime").rglob("*.py"))
    assert sources
    missing = [path for path in sources if not list(path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc"))]
    assert not missing


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fetch(request: urllib.request.Request | str) -> tuple[int, str, bytes]:
    """Return status, content type and body; ignore any proxy of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def wait_until_ready(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Poll ``/ready`` until the server is ready: another process has no event to wait for."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        try:
            if fetch(f"{address}/ready")[0] == 200:
                return
        except urllib.error.URLError:  # the server does not listen yet
            pass
        time.sleep(0.05)
    pytest.fail(f"not ready after {START_SECONDS:.0f} s: {log.read_text(encoding='utf-8')}")


def multipart(fields: dict[str, str], name: str, audio: bytes) -> tuple[str, bytes]:
    """Return content type and body of a form with one file."""
    boundary = uuid.uuid4().hex
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return f"multipart/form-data; boundary={boundary}", "".join([*parts, head]).encode() + audio + (
        f"\r\n--{boundary}--\r\n".encode()
    )


def websocket_status(port: int, path: str, key: str) -> str:
    """Return the first line of the response to a WebSocket handshake."""
    head = [
        *(f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: Upgrade", "Upgrade: websocket"),
        *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", f"Authorization: Bearer {key}"),
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as answer:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        return answer.readline().decode().strip()


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_image_serves(image: Image, tmp_path: Path) -> None:
    """Use the entry point, the health check and the stop signal of the Containerfile on a loopback port."""
    temporary, working, keys, log = (tmp_path / name for name in ("tmp", "cwd", "keys.txt", "log.txt"))
    temporary.mkdir()
    working.mkdir()
    keys.write_text("a-key-of-this-test\n", encoding="utf-8")
    keys.chmod(0o600)
    before = files(image.environment)
    variables = image.variables(temporary)
    port = str(free_port())
    health = image.stage.only("HEALTHCHECK").value.removeprefix("CMD ")
    check = image.command([word.replace(":8000", f":{port}") for word in json.loads(health)])
    entry = [*image.stage.only("ENTRYPOINT").words, "--host", "127.0.0.1", "--port", port, "--api-keys-file", str(keys)]
    address = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        return subprocess.run(check, env=variables, cwd=working, stderr=subprocess.DEVNULL).returncode == 0

    assert not healthy()
    with log.open("wb") as output:
        server = subprocess.Popen(
            image.command(entry), env=variables, cwd=working, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_until_ready(address, server, log)
        assert healthy()

        models = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": "Bearer a-key-of-this-test"})
        status, _, answer = fetch(models)
        assert status == 200
        model = json.loads(answer)["data"][0]["id"]
        kind, body = multipart({"model": model}, RECORDING.name, RECORDING.read_bytes())
        request = urllib.request.Request(
            f"{address}/v1/audio/transcriptions", data=body, headers={"Content-Type": kind}
        )
        assert fetch(request)[0] == 401
        request.add_header("Authorization", "Bearer a-key-of-this-test")
        status, _, answer = fetch(request)
        assert status == 200, answer
        assert json.loads(answer)["text"] == TEXT

        status, kind, answer = fetch(f"{address}/")
        assert status == 200
        assert kind.startswith("text/html")
        assert b"</html>" in answer
        status, kind, answer = fetch(f"{address}/metrics")
        assert status == 200
        assert kind.startswith("text/plain")
        assert b"asr_requests_total" in answer

        realtime = "/v1/realtime?intent=transcription"
        assert websocket_status(int(port), realtime, "a-key-of-this-test") == "HTTP/1.1 101 Switching Protocols"
        assert websocket_status(int(port), realtime, "another").startswith("HTTP/1.1 401 ")

        server.send_signal(getattr(signal, image.stage.only("STOPSIGNAL").value))
        assert server.wait(60) == 0, log.read_text(encoding="utf-8")
    finally:
        server.kill()
        server.wait()
    assert "conference" not in log.read_text(encoding="utf-8")
    assert not list(temporary.iterdir())
    assert not list(working.iterdir())
    assert not Path(variables["HOME"]).exists()  # for example, by an identifier or database of telemetry
    assert files(image.environment) == before
