# make env | demo | test | test-all | host-test COMFYUI=path | browser-test COMFYUI=path | lint
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: env demo test test-all host-test browser-test lint clean

env: $(STAMP)

# Brought up to date whenever what is to be installed changes; PIP_CONSTRAINT is honoured.
$(STAMP): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[standalone,test]"
	@touch $@

demo: env
	$(BIN)/flow-ttrl demo

test: env
	$(BIN)/python -m pytest -m "not slow" --ignore=tests/host --ignore=tests/browser

test-all: env
	$(BIN)/python -m pytest --ignore=tests/host --ignore=tests/browser

host-test: env
	@test -n "$(COMFYUI)" || { echo "usage: make host-test COMFYUI=/path/to/ComfyUI"; exit 2; }
	COMFYUI_PATH="$(COMFYUI)" $(BIN)/python -m pytest tests/host --junitxml=out/host-tests.xml

browser-test: env
	@test -n "$(COMFYUI)" || { echo "usage: make browser-test COMFYUI=/path/to/ComfyUI"; exit 2; }
	COMFYUI_PATH="$(COMFYUI)" $(BIN)/python -m pytest tests/browser

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) out build *.egg-info
