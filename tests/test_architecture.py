"""DESIGN.md's layers, kept by walking the imports; and what importing the pack may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes"}
MAY_IMPORT_HOST = {"nodes/", "sampling/hosts/comfy", "rewards/comfy.py", "world/comfy.py"}
LAYERS = {"sampling": set(), "rewards": set(), "world": {"sampling", "rewards", "plots"}}


def sources() -> list[Path]:
    folders = ("sampling", "rewards", "world", "nodes")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [*files, *ROOT.glob("*.py")]


def imports(path: Path) -> set[str]:
    """Absolute names, and ours as "<layer>", of everything that ``path`` imports anywhere."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                found.add(node.module.split(".")[0])
                continue
            target = package[: len(package) - node.level + 1]
            names = [*target, *(node.module or "").split(".")]
            first = next((name for name in names if name), None)
            found |= {f"<{first}>"} if first else {f"<{a.name}>" for a in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    name = path.relative_to(ROOT).as_posix()
    found = imports(path)
    if not any(name.startswith(prefix) for prefix in MAY_IMPORT_HOST):
        assert not found & HOST_MODULES, name
    layer = name.split("/")[0]
    if layer in LAYERS:
        allowed = {f"<{other}>" for other in LAYERS[layer] | {layer}}
        ours = {item for item in found if item.startswith("<")}
        assert ours <= allowed, (name, ours - allowed)


def test_no_print_in_library_code():
    for path in sources():
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        assert not [c for c in calls if getattr(c.func, "id", None) == "print"], path


def test_importing_the_pack_does_no_work():
    code = "import sys, flow_ttrl; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers')))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent)  # noqa: S603
    assert run.returncode == 0


def test_no_tests_or_tooling_lists_torch_as_a_requirement():
    listed = (ROOT / "requirements.txt").read_text("utf-8").lower().split()
    for name in ("torch", "torchvision", "numpy", "transformers", "pillow"):
        assert name not in listed
