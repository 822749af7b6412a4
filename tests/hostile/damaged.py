"""Read damaged audio files: none may end in a traceback, a crash or a message of a library, or need much of anything.

    python -m tests.hostile.damaged --files 10000

Each file is read by the reader in a worker process, and by the command ``transcribe`` with the small model, many
files in one process. Prints a table of outcomes. The exit code is 1 if a file broke a rule.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.audio import open_audio
from runtime.errors import AsrError
from runtime.host.memory import peak_resident_bytes
from tests.conftest import ARTIFACT, REPOSITORY
from tests.hostile.files import DAMAGES, FORMATS, damaged

MAX_SECONDS = 10.0
"""Processor time that one file may take."""
MAX_BYTES = 500_000_000
"""Resident memory that a process may have while it reads files."""
_RATE = 16_000
# Files of one process of the command line.
_AT_ONCE = 200
# A file that hangs is found by the clock, which other processes delay.
_PATIENCE = 12

# The command ``transcribe``, which writes its peak memory to its first argument at the end.
_TRANSCRIBE = """
import atexit, pathlib, sys
from runtime.host.memory import peak_resident_bytes
peak = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: peak.write_text(str(peak_resident_bytes())))
sys.argv[1:1] = ["transcribe"]
from runtime.cli.process import run
run("runtime.cli.app")
"""


def read_in_process(seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Read the files of ``seeds`` in worker processes; yield an outcome for each, also where the process crashes."""
    left = list(seeds)
    while left:
        with subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.damaged", "--worker"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            process.stdin.write("\n".join(map(str, left)))
            process.stdin.close()
            for line in process.stdout:
                outcome = json.loads(line)
                left.remove(outcome["seed"])
                yield outcome
            messages = process.stderr.read()
        if left:
            outcome = f"ends the process with {process.returncode}: {messages[-500:]}"
            yield {"seed": left.pop(0), "outcome": outcome, "seconds": 0.0, "bytes": 0}
        elif messages:
            yield {"seed": seeds[-1], "outcome": f"prints {messages[:500]!r}", "seconds": 0.0, "bytes": 0}


def _work() -> None:
    """Read the files of the seeds on standard input; write an outcome for each to standard output."""
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            path = Path(folder, "a.bin")
            path.write_bytes(damaged(int(line)).data)
            _read(int(line), path)


def _read(seed: int, path: Path) -> None:
    began = time.process_time()
    try:
        with open_audio(path, _RATE, warn=lambda _: None) as reader:
            seconds = sum(map(len, reader.blocks())) / _RATE
        outcome = "read" if seconds else "empty"
    except AsrError as error:
        outcome = "refused" if "\n" not in str(error) and str(error).startswith(f"{path}: ") else f"says {error!r}"
    except Exception as error:  # noqa: BLE001 (any other error breaks a rule, and is reported)
        outcome = f"raises {type(error).__name__}: {error}"
    used = peak_resident_bytes()
    entry = {"seed": seed, "outcome": outcome, "seconds": time.process_time() - began, "bytes": used}
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


def problems_of(outcomes: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each outcome that breaks a rule."""
    found = []
    for entry in outcomes:
        where = f"seed {entry['seed']} ({damaged(entry['seed']).kind})"
        if entry["outcome"] not in ("read", "refused"):
            found.append(f"{where}: {entry['outcome']}")
        if entry["seconds"] > MAX_SECONDS:
            found.append(f"{where}: takes {entry['seconds']:.1f} s")
        if entry["bytes"] > MAX_BYTES:
            found.append(f"{where}: the process has {entry['bytes'] / 1e6:.0f} MB")
            break  # the peak of a process does not fall
    return found


def transcribe(seeds: Sequence[int]) -> list[str]:
    """Transcribe the files of ``seeds`` by one command; return a line for each rule that is broken."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{seed}.bin") for seed in seeds]
        for seed, path in zip(seeds, paths, strict=True):
            path.write_bytes(damaged(seed).data)
        where = f"transcribe of seeds {seeds[0]} to {seeds[-1]}"
        try:
            peak = Path(folder, "peak")
            command = [sys.executable, "-c", _TRANSCRIBE, str(peak), "--model", str(ARTIFACT), "--format", "json"]
            done = subprocess.run(
                [*command, *map(str, paths)],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=_PATIENCE * len(seeds) + 60,
                check=False,
            )
            used = int(peak.read_text()) if peak.exists() else 0
        except subprocess.TimeoutExpired:
            return [f"{where}: hangs"]
    found = [f"{where}: exit code {done.returncode}"] if done.returncode not in (0, 2) else []
    lines = done.stderr.splitlines()
    found += [f"{where}: prints {line!r}" for line in lines if not line.startswith(("error: ", "warning: "))][:3]
    # A line for each file, and the number of failures at the end.
    failed = sum(any(line.startswith(f"error: {path}: ") for path in paths) for line in lines)
    written = len(done.stdout.splitlines())
    if failed + written != len(seeds):
        found.append(f"{where}: {written} texts and {failed} errors for {len(seeds)} files")
    if used > MAX_BYTES:
        found.append(f"{where}: a process has {used / 1e6:.0f} MB")
    return found


def main() -> None:
    """Run the command line described above."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.damaged")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--reader-only", action="store_true", help="do not transcribe")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work()
        return
    seeds = range(options.first, options.first + options.files)
    outcomes = list(read_in_process(seeds))
    problems = problems_of(outcomes)
    if not options.reader_only:
        for start in range(0, len(seeds), _AT_ONCE):
            problems += transcribe(seeds[start : start + _AT_ONCE])
            sys.stderr.write(f"\r{start + _AT_ONCE} files")
        sys.stderr.write("\n")
    counts = Counter(entry["outcome"] if entry["outcome"] in ("read", "refused") else "broken" for entry in outcomes)
    sys.stdout.write(
        f"{len(seeds)} files of {len(FORMATS)} formats with {len(DAMAGES)} kinds of damage, seeds {seeds[0]} to "
        f"{seeds[-1]}:\n{counts['read']} read, {counts['refused']} refused with one sentence, "
        f"{len(problems)} broke a rule\n"
        f"longest: {max(entry['seconds'] for entry in outcomes):.2f} s of processor time; largest process: "
        f"{max(entry['bytes'] for entry in outcomes) / 1e6:.0f} MB\n"
    )
    sys.stdout.writelines(f"{problem}\n" for problem in problems)
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
