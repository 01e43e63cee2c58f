# One door for developers. `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
BIN := .venv/bin
# What `make sanitize` runs: everything but what makes large environments or counts seconds.
SANITIZED := tests --ignore tests/test_end_to_end.py --ignore tests/test_kills.py --deselect \
	tests/test_hostile.py::test_100_000_tiny_members_in_bounded_memory

.PHONY: demo test check bench build sanitize clean

demo: .venv/built
	$(BIN)/fastpack demo

# Most tests wait for processes: side by side they take two thirds of the time, on two cores.
test: .venv/dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastpack._relocate fastpack._batch fastpack._marshal
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint fastpack/*.pyx

# What to measure: small, gpu (needs the network and 30 GB), gpu-conda (and CHANNEL=DIR), many. BENCH: options of run.py.
ENVIRONMENTS ?= small
bench: .venv/bench
	$(BIN)/python -m pytest benchmarks --benchmark-columns=min,median,ops --benchmark-sort=name
	$(BIN)/python benchmarks/run.py $(ENVIRONMENTS) $(if $(CHANNEL),--channel $(CHANNEL)) $(BENCH)

build: .venv/built

# The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer, in a copy with an environment of its own.
sanitize: .venv/dev
	rm -rf build/sanitize
	mkdir -p build/sanitize
	cp -r fastpack tests docs pyproject.toml setup.py README.md LICENSE build/sanitize/
	rm -f build/sanitize/fastpack/*.so build/sanitize/fastpack/*.c
	cd build/sanitize && FASTPACK_SANITIZE=1 $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
		PYTHONPATH=. $(CURDIR)/$(BIN)/python -m pytest $(SANITIZED)

# The environment and the extension, made anew when what they are made from changes.
.venv/built: pyproject.toml setup.py $(wildcard fastpack/*.pyx)
	PYTHON="$(PYTHON)" .ci/machine
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: .venv/built
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv/bench: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv build fastpack/*.so fastpack/_*.c *.egg-info
