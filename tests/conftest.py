"""Loads the pack under its package name, whether it is installed or not."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _load_pack():
    if "flow_ttrl" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "flow_ttrl", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["flow_ttrl"] = module
    spec.loader.exec_module(module)


_load_pack()
