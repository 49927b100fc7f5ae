"""What only a card can show, on a real ComfyUI server that has one.

    COMFYUI_PATH=/path/to/ComfyUI python -m pytest tests/gpu

Diffusion models are of the true architectures and widths with random weights, a block deep, so that
nothing has to be downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def _host(name: str):
    """A module of tests/host, by its own name."""
    folder = HERE.parent / "host"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(f"flow_ttrl_host_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


host = _host("conftest")
home, python, in_host = host.home, host.python, host.in_host


def _missing() -> str | None:
    if "COMFYUI_PATH" not in os.environ:
        return "set COMFYUI_PATH to a ComfyUI checkout"
    try:
        import torch
    except ImportError:
        return "install torch"
    return None if torch.cuda.is_available() else "this machine has no CUDA device"


def pytest_collection_modifyitems(config, items):
    missing = _missing()
    if missing is None:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"NO GPU TESTS: {missing}"))


@pytest.fixture(scope="session")
def card(home, python, in_host, tmp_path_factory):
    """Starts a server on the card with the random models at hand: ``card(*flags)``, a context."""

    def start(*flags: str):
        base = tmp_path_factory.mktemp("card")
        folder = base / "models" / "diffusion_models"
        folder.mkdir(parents=True)
        in_host("random_models.py", str(folder))
        return host.started(home, python, base, host.FOLDER, *flags, device=())

    return start
