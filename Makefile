# Two commands suffice: `make demo` and `make test`. Each makes its own environment first.

# The newest Python >= 3.11 that runs here.
PYTHON := $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin

.PHONY: demo serve test test-slow lint types check sample soak install clean

demo: install
	$(BIN)/lsd demo --out out

serve: install
	$(BIN)/lsd serve

# An empty one has Python write bytecode, so that what one process of the tests has compiled serves
# the hundreds that they start.
test test-slow: export PYTHONDONTWRITEBYTECODE :=

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow -n 0 --timeout 3600

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

check: lint types test

sample: install
	$(BIN)/python -m lsd_jax.data.sample

soak: install
	$(BIN)/python -m benchmarks.soak --frames 10000 --json out/soak.json
	$(BIN)/python -m benchmarks.serve --model lsd_jax.live.video:VideoModel --sessions 4 --fps 4 \
		--seconds 0 --overload 0 --fuzz 0 --soak 3600 --json out/serve-soak.json

install: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; install one first" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv out build *.egg-info
