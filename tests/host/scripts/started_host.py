"""The host as its own program starts it, on the CPU, and the tree as a package.

What the scripts here begin with, by ``start_host()`` before anything of either is imported.
"""

import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def start_host(*flags: str, package: str = "pack") -> None:
    """Have ``comfy`` importable with these flags of its command line, and ``package``."""
    sys.argv[1:] = ["--cpu", *flags]
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing()
    pack = types.ModuleType(package)
    pack.__path__ = [str(ROOT)]
    sys.modules[package] = pack
