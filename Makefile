# On a fresh clone, `make test` and `make demo` first create .venv with the files of requirements.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
PIP    := $(PY) -m pip --disable-pip-version-check --no-input
# Two test processes with one thread each, since the threads of PyTorch would compete for the same cores.
TEST_WORKERS ?= 2
TESTS  ?= tests

export PIP_CONSTRAINT := constraints.txt
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help install test test-slow test-web fuzz faults soak bench gpu-bundle lint hashes format demo clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(STAMP) ## create .venv with the pinned dependencies (other targets do this if needed)

$(PY):
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  f"The pinned dependencies need Python 3.11 or 3.12; this is {v.major}.{v.minor}. Try: make PYTHON=/path/to/python3.11")'
	@echo "== Creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)

# The packages that are distributed as source need setuptools and wheel; sam2 builds no CUDA extension.
$(STAMP): requirements.txt pyproject.toml scripts/install_detectron2.sh scripts/build_detectron2_wheel.sh | $(PY)
	@echo "== Installing into $(VENV) (about 6 GB and some minutes the first time) 1/4: dependencies, with their hashes"
	@$(PIP) install --quiet setuptools wheel
	@SAM2_BUILD_CUDA=0 $(PIP) install --no-deps --no-build-isolation -r requirements.txt
	@echo "== 2/4: detectron2"
	@scripts/install_detectron2.sh $(PY)
	@echo "== 3/4: this project"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@echo "== 4/4: checking"
	@$(PIP) check
	@$(PY) -c 'from samcp import SAMCP'
	@touch $@
	@echo "== Installed"

test: $(STAMP) ## run the tests except the slow ones
	OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow and not web' -n $(TEST_WORKERS) $(TESTS)

test-slow: $(STAMP) ## run the slow tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow $(TESTS)

test-web: $(STAMP) ## drive the page of samcp web in headless Chromium; screenshots are in output/web
	scripts/install_chromium.sh $(PY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m web tests/samcp/web

N ?= 300
SEED ?= 0
fuzz: $(STAMP) ## read N mutated files of every format (N=300, SEED=0); figures in docs/reliability.md
	OMP_NUM_THREADS=1 PYTHONPATH=.:projects/samcp $(PY) -m tests.fuzz.run --inputs $(N) --seed $(SEED)

KILLS ?= 200
faults: $(STAMP) ## kill generation KILLS times and training KILLS/4 times at random (KILLS=200, SEED=0)
	OMP_NUM_THREADS=1 PYTHONPATH=.:projects/samcp $(PY) -m tests.faults.run --kills $(KILLS) --seed $(SEED)

IMAGES  ?= 2000
MINUTES ?= 120
soak: $(STAMP) ## measure memory and open files of long runs (IMAGES=2000, MINUTES=120 of training)
	OMP_NUM_THREADS=1 PYTHONPATH=.:projects/samcp $(PY) -m tests.faults.soak --images $(IMAGES) --minutes $(MINUTES)

bench: $(STAMP) ## run all benchmarks (40 minutes on two idle cores); figures in docs/benchmarks.md
	$(PY) scripts/benchmark.py all --update docs

TARGET_PYTHON ?= 3.12
gpu-bundle: $(STAMP) ## collect wheels for scripts/gpu_check.sh in output/gpu-bundle (TARGET_PYTHON=3.12)
	$(PY) scripts/make_gpu_bundle.py --python-version $(TARGET_PYTHON)

lint: $(STAMP) ## check with ruff and mypy, and the dependencies for known vulnerabilities if their list can be reached
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	scripts/audit_dependencies.sh $(PY)
	@echo "lint: clean"

hashes: $(STAMP) ## write requirements.txt from constraints.txt, and docs/licenses.md
	scripts/pin_hashes.sh $(PY)
	scripts/list_licenses.sh $(PY)

format: $(STAMP) ## format and fix the code with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

demo: $(STAMP) ## train and evaluate a small model in minutes; writes a page of pictures to output/demo
	$(PY) scripts/run_demo.py --output output/demo

clean: ## remove build and cache files (keeps .venv and output)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info projects/samcp/*.egg-info
	find proposal_cache projects scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV)
