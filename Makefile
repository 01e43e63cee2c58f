# One door for developers. `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench build clean

demo: .venv/built
	$(BIN)/fastpack demo

test: .venv/dev
	$(BIN)/python -m pytest

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastpack._relocate
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint fastpack/*.pyx

# PREFIX=DIR measures that environment instead of the demo's.
bench: .venv/dev
	$(BIN)/python -m pytest benchmarks --benchmark-columns=min,median,ops --benchmark-sort=name
	$(BIN)/python benchmarks/run.py $(PREFIX)

build: .venv/built

# The environment and the extension, made anew when what they are made from changes.
.venv/built: pyproject.toml setup.py fastpack/_relocate.pyx
	PYTHON="$(PYTHON)" .ci/machine
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: .venv/built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build fastpack/*.so fastpack/_relocate.c *.egg-info
