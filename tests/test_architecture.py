"""DESIGN.md's layers, kept by walking the imports; and what importing the pack may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes"}
MAY_IMPORT_HOST = {"nodes/", "sampling/hosts/comfy", "rewards/comfy", "world/comfy.py"}
LAYERS = {"sampling": set(), "rewards": set(), "world": {"sampling", "rewards", "plots"}}
LAYERS["cli"] = {"sampling", "rewards", "world", "headless", "console"}
LAYERS["headless"] = {"sampling", "rewards", "world", "version"}


def sources() -> list[Path]:
    folders = ("sampling", "rewards", "world", "nodes", "headless", "cli")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [*files, *ROOT.glob("*.py")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


def our_imports(path: Path, root: Path = ROOT) -> set[Path]:
    """Our files that ``path`` imports from, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for alias in node.names:
            # a name is a module of the folder, or something that the folder's own file has
            files = (folder / f"{alias.name}.py", folder / alias.name / "__init__.py")
            files += (folder.with_suffix(".py"), folder / "__init__.py")
            target = next((file for file in files if file.is_file()), None)
            assert target, f"{path.relative_to(root)} imports {alias.name} from nowhere"
            found.add(target)
    return found


def circles(graph: dict[Path, set[Path]]) -> list[list[Path]]:
    """A circle for every import that closes one."""
    found, done = [], set()

    def walk(path: Path, trail: list[Path]) -> None:
        if path in trail:
            found.append(trail[trail.index(path) :])
        elif path not in done:
            for other in sorted(graph.get(path, ())):
                walk(other, [*trail, path])
            done.add(path)

    for path in sorted(graph):
        walk(path, [])
    return found


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_layers(path):
    name, found = name_of(path), imports(path)
    if not any(name.startswith(prefix) for prefix in MAY_IMPORT_HOST):
        assert not found & HOST_MODULES, name
    layer = name.split("/")[0]
    if layer in LAYERS:
        allowed = {f"<{other}>" for other in LAYERS[layer] | {layer}}
        ours = {item for item in found if item.startswith("<")}
        assert ours <= allowed, (name, ours - allowed)


SAMPLING = [path for path in sources() if name_of(path).startswith("sampling/")]
PURE = [path for path in SAMPLING if not name_of(path).startswith("sampling/hosts/")]


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_the_method_is_pure_torch(path):
    """Outside its hosts, nothing but torch, the standard library and itself."""
    assert imports(path) <= {"torch", "<sampling>"} | sys.stdlib_module_names
    hosts = ROOT / "sampling" / "hosts"
    assert not [file for file in our_imports(path) if hosts in file.parents]


def test_the_method_is_found():
    assert len(PURE) > 20
    assert {name_of(path) for path in PURE} >= {"sampling/run.py", "sampling/strategies/glass.py"}


def test_no_import_goes_round_in_a_circle():
    """Nor one that a function puts off until it is called."""
    found = circles({path: our_imports(path) for path in sources()})
    told = [" -> ".join(name_of(path) for path in [*circle, circle[0]]) for circle in found]
    assert not told, "\n".join(told)


def test_a_circle_would_be_seen(tmp_path):
    files = {"a.py": "from .b import x", "b.py": "def f():\n    from . import c", "c.py": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "__init__.py").write_text("from .a import y")
    paths = sorted(tmp_path.glob("*.py"))
    assert not circles({path: our_imports(path, tmp_path) for path in paths})
    (tmp_path / "c.py").write_text("def g():\n    from .a import x")
    (circle,) = circles({path: our_imports(path, tmp_path) for path in paths})
    assert sorted(path.name for path in circle) == ["a.py", "b.py", "c.py"]


def test_a_strategy_is_one_file_that_knows_no_other():
    """They share what common.py has, and nothing of each other."""
    folder = ROOT / "sampling" / "strategies"
    strategies = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    for path in strategies:
        others = {file.name for file in our_imports(path) if file.parent == folder}
        assert others <= {"common.py"}, path.name


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


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_sources_are_readable_in_windows_own_encoding(path):
    """What checks packs for ComfyUI on Windows asks for it; other letters are escapes."""
    path.read_text("utf-8").encode("cp1252")
