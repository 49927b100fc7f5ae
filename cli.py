"""The command line: ``flow-ttrl demo`` and ``flow-ttrl estimate``."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from pathlib import Path

from .sampling import PRESETS, plan, preset, shifted_sigmas


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    try:
        answer, table = args.run(args)
    except (ValueError, FileNotFoundError) as error:
        sys.stderr.write(f"flow-ttrl: {error}\n")
        return 2
    sys.stdout.write(json.dumps(answer, indent=1) if args.json else table)
    sys.stdout.write("\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flow-ttrl", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the embedded tiny world, before and after the search")
    demo.set_defaults(run=_demo)
    demo.add_argument("--prompt", help="a sentence of the world; default: a held-out one")
    demo.add_argument("--evaluate", type=_positive, metavar="N", help="rates over N prompts")
    demo.add_argument("--half", choices=("test", "dev"), default="test", help="held-out half")
    demo.add_argument("--arch", choices=("sd3", "flux"), default="sd3", help="default: sd3")
    demo.add_argument("--reward", choices=("verifier", "scorer"), default="verifier")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder of the demo's files")

    estimate = commands.add_parser("estimate", help="what a search will cost, before it is run")
    estimate.set_defaults(run=_estimate)
    estimate.add_argument(
        "--arch",
        choices=("sd3", "flux"),
        default="sd3",
        help="sd3: two forwards a call (CFG); flux: one. Default: sd3",
    )
    for command in (demo, estimate):
        names = sorted({name for name, _ in PRESETS})
        command.add_argument("--preset", choices=names, default="balanced")
        command.add_argument("--steps", type=_positive, default=20, help="default: 20")
        command.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return value


def _estimate(args) -> tuple[dict, str]:
    sigmas = shifted_sigmas(args.steps).tolist()
    cost = plan(preset(args.preset), sigmas, forwards_per_call=2 if args.arch == "sd3" else 1).cost
    answer = {"preset": args.preset, "steps": args.steps, **cost.report(args.steps)}
    return answer, "\n".join(f"{name:12s} {value}" for name, value in answer.items())


def _demo(args) -> tuple[dict, str]:
    from .world import evaluate as world
    from .world.prompts import held_out

    settings = preset(args.preset)
    common = {
        "arch": args.arch,
        "reward": args.reward,
        "settings": settings,
        "steps": args.steps,
        "seed": args.seed,
    }
    if args.evaluate:
        answer = world.evaluate(args.evaluate, half=args.half, **common)
        return answer, _rates(answer)
    prompt = args.prompt or random.Random(args.seed).choice(held_out(args.half, 100))
    answer = world.demo(prompt, out=args.out, **common)
    return answer, _before_and_after(answer)


def _rates(answer: dict) -> str:
    """The table of an evaluation."""
    families = list(answer["plain"]["families"])
    columns = ["accuracy", "verifier", "scorer", *families]
    lines = [
        f"{answer['prompts']} held-out prompts ({answer['half']} half), {answer['arch']}, "
        f"driven by the {answer['driver']}, {answer['cost']['times_plain']:g}x the calls of plain",
        " " * 12 + "".join(column.rjust(10) for column in columns),
    ]
    labels = {"plain": "plain", "best_of_n": f"best of {answer['best_of']}", "search": "search"}
    for method, label in labels.items():
        rates = {**answer[method], **answer[method]["families"]}
        cells = ("-" if rates[c] is None else f"{rates[c]:.3f}" for c in columns)
        lines.append(label.ljust(12) + "".join(cell.rjust(10) for cell in cells))
    return "\n".join(lines)


def _before_and_after(answer: dict) -> str:
    """The table of a single prompt."""
    lines = [f"prompt: {answer['prompt']}", " " * 10 + "reward  verifier  scorer  accurate"]
    for method in ("plain", "search"):
        judged = answer[method]
        lines.append(
            f"{method:8s}  {judged['reward']:6.3f}  {judged['verifier']:8.3f}  "
            f"{judged['scorer']:6.3f}  {'yes' if judged['accurate'] else 'no'}"
        )
    cost = answer["cost"]
    lines.append(
        f"{cost['model_calls']} model calls ({cost['times_plain']:g}x plain), "
        f"{cost['backwards']} backwards, {cost['decodes']} decodes, {answer['seconds']} s"
    )
    return "\n".join([*lines, *answer["files"]])
