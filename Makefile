# make env | demo | test | test-all | bench | parity | lint
# make host-test | browser-test | gpu-test COMFYUI=path
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

PARITY := .venv-parity

.PHONY: env demo test test-all bench parity host-test browser-test gpu-test lint clean

env: $(STAMP)

# Brought up to date whenever what is to be installed changes; PIP_CONSTRAINT is honoured.
$(STAMP): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[standalone,test]"
	@touch $@

demo: env
	$(BIN)/flow-ttrl demo

test: env
	$(BIN)/python -m pytest -m "not slow" --ignore=tests/host --ignore=tests/browser -n 2 --dist loadfile

# With the optional packages, too (LoRA, offloading, bitsandbytes, Ray), some 300 MB.
test-all: env
	$(BIN)/python -m pip install --quiet --editable ".[standalone,test,headless,ray]"
	$(BIN)/python -m pytest --ignore=tests/host --ignore=tests/browser

# A few minutes' worth; `benchmarks/search_quality.py --table` makes the whole table.
bench: env
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/search_quality.py --quick

# Our scores against the official packages', which have an environment of their own. Takes about 20
# minutes and 16 GB of disk in out/parity; not part of the tests.
parity: env
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet -r tests/parity/requirements.txt
	$(PARITY)/bin/python -m pip install --quiet --no-deps --no-build-isolation -r tests/parity/no_deps.txt
	$(PARITY)/bin/python tests/parity/cases.py out/parity/images
	$(PARITY)/bin/python tests/parity/official.py out/parity
	$(BIN)/python tests/parity/compare.py out/parity out/parity/table.md

host-test: env
	@test -n "$(COMFYUI)" || { echo "usage: make host-test COMFYUI=/path/to/ComfyUI"; exit 2; }
	COMFYUI_PATH="$(COMFYUI)" $(BIN)/python -m pytest tests/host --junitxml=out/host-tests.xml

browser-test: env
	@test -n "$(COMFYUI)" || { echo "usage: make browser-test COMFYUI=/path/to/ComfyUI"; exit 2; }
	COMFYUI_PATH="$(COMFYUI)" $(BIN)/python -m pytest tests/browser

gpu-test: env
	@test -n "$(COMFYUI)" || { echo "usage: make gpu-test COMFYUI=/path/to/ComfyUI"; exit 2; }
	COMFYUI_PATH="$(COMFYUI)" $(BIN)/python -m pytest tests/gpu tests/headless/test_card.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) $(PARITY) out build *.egg-info
