# The first target that needs Python packages creates .venv. Settings:
#   PYTHON=/path/to/python3.12   the Python for .venv; default: the first suitable one of PYTHONS
#   ARGS="--epochs 20"           more flags for the command of train, watch, test, test-all, faults or bench
#   GPU=1                        for horovod: build with NCCL (6 GB with TensorFlow's CUDA libraries; not tested on several GPUs)

PYTHON ?=
PYTHONS := python3 python3.13 python3.12 python3.11
ARGS ?=

GPU := $(shell timeout 20 nvidia-smi -L 2>/dev/null | grep '^GPU ')
REQUIREMENTS := $(if $(GPU),requirements-gpu.txt,requirements.txt)
DOWNLOAD := $(if $(GPU),3.6 GB,750 MB)

BIN := .venv/bin
INSTALLED := .venv/installed-$(REQUIREMENTS)
LINT_INSTALLED := .venv/installed-lint
BENCH_INSTALLED := .venv/installed-bench
NCCL := $(and $(filter command,$(firstword $(origin GPU))),$(GPU))
HOROVOD_INSTALLED := $(or $(wildcard .venv/installed-horovod-nccl),.venv/installed-horovod$(if $(NCCL),-nccl))
# Tests of the launcher and of Slurm mostly wait, so two cores can run four processes.
IN_PARALLEL := $(BIN)/python -m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-versions faults horovod lint bench watch picture clean FORCE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

# Without a GPU, two virtual devices exercise the distributed path, unless ARGS select a single device.
train: $(INSTALLED) ## train recipes.mnist, or resume from its newest checkpoint
	$(BIN)/python -m recipes.mnist $(if $(GPU)$(filter single --strategy=single,$(ARGS)),,--virtual-devices 2) $(ARGS)

test: $(HOROVOD_INSTALLED) ## run the fast tests
	$(IN_PARALLEL) -m "not slow" $(ARGS)

test-all: $(HOROVOD_INSTALLED) ## run all tests
	$(IN_PARALLEL) $(ARGS)

test-versions: $(INSTALLED) ## run selected tests on TensorFlow 2.17 to 2.21 and Keras 3.5 to 3.15 (30 minutes, 8 GB in .venv-versions)
	VERSIONS=all $(BIN)/python -m pytest -s tests/versions $(ARGS)

faults: $(INSTALLED) ## end trainings a hundred times with kills, signals, disk errors and clock jumps (15 minutes; ARGS="--seed 7 --rounds 20")
	PYTHONPATH=.:tests/helpers $(BIN)/python tests/programs/soak.py $(ARGS)

# Exit code 2 means that there is no compiler: the tests run, and those of Horovod are skipped.
test test-all: OR_CONTINUE := || [ $$? -eq 2 ]

horovod: $(HOROVOD_INSTALLED) ## build Horovod once, and test it with two processes
	@$(BIN)/python -m launch.horovod.prove

lint: $(LINT_INSTALLED) ## check format, lint and types; change nothing
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy

bench: $(BENCH_INSTALLED) ## run all benchmarks, or those in ARGS (up to 10 GB of disk)
	$(BIN)/python -m benchmarks $(ARGS)

watch: $(INSTALLED) ## start TensorBoard on runs/, for this machine only (another port: ARGS="--port 6007")
	$(BIN)/python -m tensorboard.main --logdir runs --host 127.0.0.1 $(ARGS)

picture: $(BENCH_INSTALLED) ## make tensorboard.png from a real run (needs chromium-headless-shell from Debian)
	$(BIN)/python -m benchmarks.picture

clean: ## remove .venv, .venv-versions and caches; keep runs/
	rm -rf .venv .venv-versions build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find callbacks recipes launch tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Keep .venv if an installation was completed and PYTHON is not another version. Otherwise create it anew, because pip regards a
# package that an interrupted installation has left incomplete as installed. For the same reason, touch the stamps last.
KEEP := $(shell has=$$($(BIN)/python -V 2>&1) && ls .venv/installed-* >/dev/null 2>&1 && \
    [ "$$($(or $(PYTHON),$(BIN)/python) -V 2>&1)" = "$$has" ] && echo yes)

$(INSTALLED): requirements.txt $(REQUIREMENTS) pyproject.toml $(if $(KEEP),,FORCE)
	@$(if $(KEEP),,$(FIND_PYTHON); "$$found" -m venv --clear .venv)
	@echo "Installing the pinned requirements into .venv ($$($(BIN)/python -V), $(REQUIREMENTS)): up to $(DOWNLOAD) to download, once."
	@$(PIP) --requirement $(REQUIREMENTS) --editable .
	@touch $@

$(HOROVOD_INSTALLED): $(INSTALLED) $(addprefix launch/horovod/, build.py horovod.patch requirements.txt)
	@rm -f .venv/installed-horovod*
	@{ $(BIN)/python -m launch.horovod.build $(if $(findstring nccl,$@),--gpu) && touch $@; } $(OR_CONTINUE)

$(LINT_INSTALLED): $(INSTALLED)
	@echo "Installing ruff and mypy into .venv, once."
	@$(PIP) --editable '.[lint]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED) benchmarks/requirements.txt
	@echo "Installing PyTorch (up to 3 GB to download), JAX and Orbax into .venv for comparison, once."
	@$(PIP) --requirement $(REQUIREMENTS) --requirement benchmarks/requirements.txt
	@touch $@

FORCE:

# Sets `found` to the first Python that works: a name on the PATH may be a shim that fails, and Debian's Python may lack venv.
define FIND_PYTHON
found= bare=; \
for python in $(or $(PYTHON),$(PYTHONS)); do \
    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
    "$$python" -c 'import ensurepip, venv' 2>/dev/null && found=$$python && break; \
    bare=$$python; \
done; \
if [ "$$bare" ] && [ -z "$$found" ]; then \
    echo "error: $$bare has no venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
elif [ -z "$$found" ]; then \
    echo "error: Python 3.11, 3.12 or 3.13 is needed; none of these is: $(or $(PYTHON),$(PYTHONS))." \
        "Give its path: make PYTHON=/path/to/python3.12" >&2; exit 1; \
fi
endef
