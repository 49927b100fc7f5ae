"""The command line: ``flow-ttrl demo | generate | geneval | score | rewards | estimate``."""

from __future__ import annotations

import argparse
import json
import logging
import sys

from . import demo, estimate, generate, geneval, rewards, score

COMMANDS = (demo, generate, geneval, estimate, score, rewards)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="flow-ttrl", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    try:
        answer, table = args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"flow-ttrl: {error}\n")
        return 2
    sys.stdout.write(json.dumps(answer, indent=1) if args.json else table)
    sys.stdout.write("\n")
    return 0
