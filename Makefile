# make setup       a virtual environment in .venv with everything for the CPU
# make quickstart  train, export, build a memory, ask it, evaluate (two cores, under 20 minutes)
# make test        the tests (two cores, under 15 minutes)
# make test-faults-training   kill -9 at 100 random moments of short runs
# make test-faults-memory     death and errors at every write of a memory bank, 1,000 random kill -9
# make test-faults            both
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed

export TOKENIZERS_PARALLELISM := false

.PHONY: setup browser quickstart test test-slow test-faults test-faults-training test-faults-memory lint clean

setup: $(STAMP)

# torch first: packages that depend on it would otherwise pull the CUDA build.
# DeepSpeed is an sdist: build it against the installed torch, without its CUDA ops.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: torch"
	@$(PIP) torch
	@echo "setup: build tools"
	@$(PIP) setuptools wheel numpy py-cpuinfo ninja
	@echo "setup: DeepSpeed, Megatron-core, Triton, W&B and the rest"
	@DS_BUILD_OPS=0 $(PIP) --no-build-isolation -e ".[train,eval,serve,bench,dev]" 2>&1 | grep -v "is ignored: it is" || true
	@$(VENV)/bin/python -c "import msa_train, deepspeed, megatron.core, wandb, triton" >/dev/null 2>&1
	@touch $(STAMP)
	@echo "setup: done, the command is $(VENV)/bin/msa"

quickstart: setup
	@$(VENV)/bin/msa quickstart --config configs/quickstart.yaml

# The memory explorer's tests drive Chromium; without it they are skipped, saying so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "setup: chromium"; export DEBIAN_FRONTEND=noninteractive; \
	  timeout 300 sh -c 'apt-get -qq update && apt-get -qq -y install --no-install-recommends chromium' \
	    >/dev/null 2>&1 || echo "setup: chromium could not be installed: tests that need it are skipped"; \
	else echo "setup: no chromium, and not root to install it: tests that need it are skipped"; fi

test: setup browser
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not slow"

test-slow: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "slow"

test-faults: test-faults-training test-faults-memory

test-faults-training: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/faults/test_training_faults.py

test-faults-memory: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/faults/test_memory_faults.py

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
