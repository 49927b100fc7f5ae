"""``python -m flow_ttrl``; or ``python`` and the pack's folder, whatever that is called."""

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _name() -> str:
    """The pack's name as a package, which a folder that is run has yet to become."""
    if __package__:
        return __package__
    del sys.path[0]  # the folder itself, whose modules are the package's and nobody else's
    spec = spec_from_file_location("flow_ttrl", Path(__file__).absolute().with_name("__init__.py"))
    sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return spec.name


if __name__ == "__main__":
    raise SystemExit(importlib.import_module(f"{_name()}.cli").main())
