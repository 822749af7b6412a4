# Two commands to start with: `make demo` transcribes real recordings, `make test` sets everything up and runs all checks.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := build/demo-venv
# Processes that run tests side by side; a file of tests stays in one, so that its fixtures are made once.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0 --durations 20

.PHONY: demo demo-export real-model lint test-fast test docs install install-check espeak chromium tiny benchmark clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(STAMP)

# The runtime in an environment of its own, without torch, and the packages that count word errors.
$(DEMO)/.installed: pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[evaluate]'
	touch $@

# Transcribe ten real recordings in five languages with the bundled model; print what was said beside what was heard.
demo: $(DEMO)/.installed
	$(DEMO)/bin/python -m tools.demo

# Export and quantize the small checkpoint; print its transcripts beside the true texts.
demo-export: $(STAMP)
	rm -rf build/demo-export
	$(BIN)/python -m export qwen3-asr-tiny --int8 --out build/demo-export/qwen3-asr-tiny-int8
	$(BIN)/python -m tools.demo_export build/demo-export/qwen3-asr-tiny-int8

# Make the bundled model again: download OpenAI's Whisper base (130 MB), export and quantize it, and replace
# artifacts/whisper-base-int8.
real-model: $(STAMP)
	$(BIN)/python -m tools.real_model

# An onnxruntime with OpenVINO built in, outside of the environment, for processors that OpenVINO's plugin does not
# support: the comparison of providers runs it in a separate process.
build/onnxruntime-openvino: $(STAMP)
	rm -rf $@
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $@ onnxruntime-openvino

OPENVINO := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),build/onnxruntime-openvino)

# Format, lint, types, import contracts, generated pages: no test runs.
lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks --check
	$(BIN)/python -m tools.readme --check
	$(BIN)/python -m tools.cli_reference --check

# The tests that take no more than a few seconds each: under two minutes.
test-fast: $(STAMP) espeak
	$(PYTEST) -m "not slow"

# Lint, then all tests; with COVERAGE=1, as CI runs it, they take longer and must cover 90 %.
test: lint espeak chromium $(OPENVINO)
	$(PYTEST) $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=90)

# The documentation as HTML in build/docs; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going docs build/docs

# A plain `pip install .` in an empty environment: no torch, and the bundled model works from any folder. The wheel stays
# below 100 MB, the largest that the Python Package Index takes by default.
install-check:
	rm -rf build/plain
	$(PYTHON) -m venv build/plain
	build/plain/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/plain/wheel .
	build/plain/bin/python -c "from pathlib import Path; (wheel,) = Path('build/plain/wheel').glob('*.whl'); \
		size = wheel.stat().st_size / 1e6; print(f'{wheel.name}: {size:.1f} MB'); assert size < 100"
	build/plain/bin/python -m pip install --quiet --constraint constraints.txt build/plain/wheel/*.whl
	! build/plain/bin/python -m pip list 2>/dev/null | grep -iE '^(torch|transformers|onnx|onnxscript|onnx-ir) '
	cd build/plain && bin/python -c "from quantize.recipe import shipped; from quantize.audio_sets import evaluation_folder, real_folder; \
		assert len(shipped()) == 6 and (evaluation_folder() / 'index.json').is_file(); \
		assert (real_folder() / 'LICENSES' / 'README.md').is_file() and len(list(real_folder().glob('*.opus'))) == 60"
	cd build/plain && test "$$(bin/asr-deploy transcribe '$(CURDIR)/tests/data/real/en-conf-invalid.opus')" \
		= "That is not a valid conference number. Please try again."

# The tests and the small checkpoints' training data use espeak-ng, a system package.
espeak:
	@command -v espeak-ng >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq espeak-ng; } \
	|| { echo "error: espeak-ng is not installed: apt-get install espeak-ng, or brew install espeak-ng" >&2; exit 2; }

# The tests of the server's page drive a browser, a system package.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium; } \
	|| { echo "error: no Chromium is installed: apt-get install chromium, or brew install --cask chromium" >&2; exit 2; }

# Train the small checkpoints from scratch: about two hours on two cores for the first, three hours on one core for
# Whisper, one hour for each other.
tiny: $(STAMP) espeak
	$(BIN)/python -m tools.tiny make
	$(BIN)/python -m tools.tiny.whisper make
	$(BIN)/python -m tools.tiny.parakeet make
	$(BIN)/python -m tools.tiny.gigaam make

# Random weights at the real sizes, and their export, as random-qwen3-asr-0.6b, random-whisper-large-v3-turbo, …: for
# time, memory and size, not for text.
random-%: $(STAMP)
	$(BIN)/python -m tools.random_checkpoint $* build/checkpoints/$*-random
	$(BIN)/python -m export $* --checkpoint build/checkpoints/$*-random --out build/artifacts/$*-random

# Every figure and picture of docs/ (about three and a half hours, 25 GB of disk).
benchmark: $(STAMP) espeak
	$(BIN)/python -m benchmarks

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
