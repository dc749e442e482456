# Everything has its set-up in itself: a target installs what it needs once, and does not do it again until
# pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is never imported need not be compiled: that takes longer than fetching it.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/paragone/kernels/*.cpp src/paragone/kernels/*.h)
MODELS := smollm2-135m-instruct gemma3-270m

.DEFAULT_GOAL := help
.PHONY: help run test lint bench bench-foundation bench-load bench-engine bench-kernels bench-serve clients peers parity docs fuzz sanitize clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/pip: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade 'pip>=25.1'
	@touch $@

# What every start imports is, now: where Python is told not to write bytecode, each would take 1.5 s longer.
COMPILE := @env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c 'import torch, paragone.cli.main, paragone.engine.load, paragone.serve.server'

$(VENV)/run: $(SOURCES) $(VENV)/pip
	$(INSTALL) --constraint constraints.txt --editable '.[report,serve]'
	$(COMPILE)
	@touch $@

# All at once, or the kernels would be compiled twice.
$(VENV)/dev: $(SOURCES) $(VENV)/pip
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(COMPILE)
	@touch $(VENV)/run $@

run: $(VENV)/run  ## set up, fetch two small models, compare them and say which to take
	@$(BIN)/paragone compare

test: $(VENV)/dev models  ## set up and run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: models
models: $(VENV)/run
	@for model in $(MODELS); do $(BIN)/paragone pull $$model >/dev/null || exit $$?; done

lint: $(VENV)/dev  ## ruff (rules and layout) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/dev  ## coverage-guided fuzzing of the readers of files, RUNS inputs each
	$(BIN)/python -m tests.fuzz $(or $(RUNS),200000)

SANITIZED := build/sanitize
sanitize: $(VENV)/dev  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(INSTALL) cmake ninja nanobind
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPARAGONE_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build $(SANITIZED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 PARAGONE_NATIVE=$$(ls $(SANITIZED)/_native*.so) \
		$(BIN)/python -m pytest -p no:cacheprovider --capture=sys tests/ops \
		tests/engine/test_plans.py -k "not real_model"

peers: $(VENV)/run  ## environments of the peers to measure beside, under the cache folder
	$(BIN)/python -m benchmarks.peers transformers

bench-foundation: models peers  ## speed, start and memory beside transformers; ends in one JSON line
	$(BIN)/python -m benchmarks.foundation

bench-load: $(VENV)/run  ## memory and time of loading 7 billion parameters (writes 14.5 GB, and deletes them)
	$(BIN)/python -m benchmarks.seven_billion

bench-engine: models  ## many requests at once beside vLLM (CPU) and transformers; ends in one JSON line
	$(BIN)/python -m benchmarks.peers transformers vllm
	$(BIN)/python -m benchmarks.engine --write

bench-kernels: $(VENV)/dev models  ## the kernels beside llama.cpp and vLLM (CPU), on the same files; ends in one JSON line
	$(BIN)/python -m benchmarks.peers llamacpp vllm
	$(BIN)/python -m benchmarks.bits --write
	$(BIN)/python -m benchmarks.cpu_kernels --write

bench-serve: $(VENV)/dev models  ## the server beside vllm serve and llama.cpp's; ends in one JSON line
	$(BIN)/python -m benchmarks.peers llamacpp llama-server vllm
	PARAGONE_LOAD_SECONDS=300 $(BIN)/python -m pytest --capture no tests/serve/test_load.py
	$(BIN)/python -m benchmarks.serve --write

clients: $(VENV)/dev models  ## clients that know nothing of Paragone, unchanged, against its server
	$(BIN)/python -m benchmarks.clients --write

bench: bench-foundation bench-load bench-engine bench-kernels bench-serve  ## all benchmarks

parity: $(VENV)/dev  ## largest difference of every family from its reference; the mistakes that its test sees
	@$(BIN)/python -m tests.parity.table --write

docs: $(VENV)/dev  ## write the generated pages: the commands' help, the families
	$(BIN)/python -m docs.generate

clean:  ## delete the environment and everything that tools left; downloaded models stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
