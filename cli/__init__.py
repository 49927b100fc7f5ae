"""The command line: ``flow-ttrl demo | generate | geneval | score | rewards | estimate``.

One file a command, imported when it is asked for: what it needs need not be there for the others.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import redirect_stdout
from importlib import import_module

from ..console import write

COMMANDS = {
    "demo": "the embedded tiny world, before and after the search",
    "generate": "images by FLUX.1, SD3.5 or the tiny world",
    "geneval": "GenEval's images: searched, best of N, plain",
    "estimate": "what a search will cost, before it is run",
    "score": "scores of image files by any mix of rewards",
    "rewards": "which rewards are ready, what the others lack",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="flow-ttrl", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    try:
        for name, about in COMMANDS.items():
            command = commands.add_parser(name, help=about)
            if argv[:1] == [name]:
                import_module(f".{name}", __package__).add_to(command)
        args = parser.parse_args(argv)
        with redirect_stdout(sys.stderr):  # whatever a library has to say
            answer, table = args.run(args)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        told = str(error) or type(error).__name__
        if isinstance(error, ModuleNotFoundError) and error.name:
            told = f"expected the package {error.name}, got none; run: pip install {error.name}"
        write(sys.stderr, f"flow-ttrl: {told}")
        return 2
    except KeyboardInterrupt:
        return 130
    failed = answer.get("failed", [])
    for lost in failed:
        write(sys.stderr, f"flow-ttrl: {lost['error']}")
    if args.json or table:
        write(sys.stdout, json.dumps(answer, indent=1) if args.json else table)
    return 2 if failed else 0
