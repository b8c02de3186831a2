# SteadyDiffusion: `make help` lists what there is.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
# `make demo TORCH=cpu`: PyTorch's CPU build, for machines without an NVIDIA card on which
# plain torch would fetch gigabytes of CUDA libraries.
TORCH  ?=
N      ?= 1000
STATES ?= 440
DEVICE ?= 0
SEED   ?= 1
ifeq ($(TORCH),cpu)
TORCH_CPU = $(PIP) install --retries 1 --no-compile -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
	  || { echo "PyTorch's own index was not reached. The usual one is asked; its torch may fetch gigabytes more."; false; } ||
else ifneq ($(TORCH),)
$(error TORCH may be empty or cpu, not "$(TORCH)")
endif

# Without bytecode every process of the tests would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo test again slow postgres ray ray-once clients fuzz fuzz-files torture powercut serve lint format bench gpu wheel written screens starter starter-score clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- installing: two stamps, so nothing is installed again while nothing changed ---------------
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "SteadyDiffusion needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3 python3-venv), or name one: make PYTHON=python3.12 ..."; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing. Install it (Debian, Ubuntu: apt-get install python3-venv)."; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# Bytecode is written at the first import: compiling everything in advance doubles the wait.
# torch comes first and alone, so that nothing after it can choose another build.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(TORCH_CPU) $(PIP) install --no-compile -c constraints.txt torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --no-compile -c constraints.txt -e '.[test]'
	@touch $@

venv: $(VENV)/.installed-test ## .venv with everything for working on the code

# -- using ---------------------------------------------------------------------------------------
demo: $(VENV)/.installed ## make one picture from a dropped file, from start to end (TORCH=cpu without an NVIDIA card)
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

serve: $(VENV)/.installed ## watcher and api in this folder, until Ctrl-C
	@exec $(BIN)/steady serve

# -- working on it -------------------------------------------------------------------------------
test: $(VENV)/.installed-test ## all tests but the slow ones (real processes, the real pipeline)
	STEADY_MODEL=starter $(BIN)/python tests/suite.py

again: $(VENV)/.installed-test ## only the tests that failed last, one at a time
	STEADY_MODEL=starter $(BIN)/python tests/suite.py again

slow: $(VENV)/.installed-test ## the slow tests: storms, thousands of files, fuzzing the routes
	STEADY_MODEL=starter $(BIN)/python -m pytest -m "slow and not gpu and not postgres"

postgres: $(VENV)/.installed-test ## the record on a PostgreSQL server of its own: store, exactly once, standby
	$(BIN)/python tests/postgres.py $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" \
	  tests/record/test_store.py tests/http/test_find.py tests/process/test_exactly_once.py tests/record/test_postgres.py

# A machine of its own: loopback alone, where every link to another machine is one of the test's.
ALONE := $(if $(filter 0,$(shell id -u)),unshare --net,unshare --map-root-user --net) \
	sh -c 'ip link set lo up && exec "$$@"' sh
ray: ray-once ## executor: ray on real clusters whose parts fail, on both records (25 minutes)
	$(ALONE) $(BIN)/python -m pytest -m ray tests/process/test_ray.py
	STEADY_EXECUTOR=ray $(ALONE) $(BIN)/python tests/postgres.py \
	  $(BIN)/python -m pytest --timeout 300 tests/process/test_exactly_once.py

ray-once: $(VENV)/.installed-test ## of these, exactly once on Ray with SQLite (6 minutes)
	@$(ALONE) true || { \
	  echo "Ray's tests need a network namespace (util-linux, iproute2): be root, or allow them to users"; \
	  echo "(sysctl kernel.unprivileged_userns_clone=1)."; \
	  exit 1; }
	STEADY_EXECUTOR=ray $(ALONE) $(BIN)/python -m pytest --timeout 300 tests/process/test_exactly_once.py

tests/clients/.installed: tests/clients/requirements.txt tests/clients/package-lock.json $(VENV)/.installed-test
	$(PIP) install --no-deps --no-compile --upgrade --target tests/clients/python -r $<
	npm ci --prefix tests/clients --no-audit --no-fund --ignore-scripts
	@touch $@

clients: tests/clients/.installed ## unmodified clients of npm and PyPI against the service (fetches 230 MB; wants node)
	$(BIN)/python -m pytest -m clients tests/clients/test_clients.py

fuzz: $(VENV)/.installed-test ## some four thousand odd requests against the running API (SEED=1; random for others)
	STEADY_MODEL=starter FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -m slow tests/http/test_schemathesis.py

fuzz-files: $(VENV)/.installed-test ## a minute of odd bytes at the reader of job files (fetches atheris)
	$(PIP) install atheris
	mkdir -p .fuzz  # what it finds lies here; what is worth keeping is moved to the corpus by hand
	$(BIN)/python tests/fuzz/jobfile.py .fuzz tests/fuzz/corpus -max_total_time=60 -max_len=4096

torture: $(VENV)/.installed-test ## kill the service N times, then look for anything lost or doubled (N=1000)
	$(BIN)/python tests/torture.py --kills $(N)

powercut: $(VENV)/.installed-test ## cut the power at 440 instants of a recorded run, then look for anything lost (STATES=all; DEVICE=20: on a real ext4)
	$(BIN)/python -m pytest -m powercut tests/record/test_powercut.py
	$(BIN)/python tests/powercut.py --states $(STATES) --seed $(SEED) --device $(DEVICE)

lint: $(VENV)/.installed-test ## ruff, mypy --strict, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-test ## let ruff mend layout and imports
	$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: $(VENV)/.installed-test ## every promise of speed and memory, measured here (half an hour)
	$(BIN)/python -m benchmarks --json bench.jsonl

# No installing: a machine without network has torch of its own, and our packages beside it.
CARD  ?= cuda:0
LIMIT ?= 600
gpu: ## ten minutes on a graphics card: speed, memory, pixels (CARD=cuda:0, LIMIT=600; CARD=cpu rehearses)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu --card $(CARD) --limit $(LIMIT)

wheel: $(VENV)/.installed-test ## dist/: a wheel and an sdist
	$(BIN)/python -m build --no-isolation --outdir dist

written: $(VENV)/.installed-test ## config.yaml, docs/errors.md and docs/openapi.json, from the code
	$(BIN)/python tests/written.py

screens: $(VENV)/.installed-test ## the pictures of the page in docs/screens/
	$(BIN)/python docs/screens.py

starter: $(VENV)/.installed-test ## train the starter model anew (hours)
	$(BIN)/python -m starter.train

starter-score: $(VENV)/.installed-test ## how well the starter model follows its prompts
	$(BIN)/python -m starter.score

clean: ## remove what make made (never inbox/, outputs/ or the record)
	rm -rf $(VENV) demo dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find watcher api tests starter benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
