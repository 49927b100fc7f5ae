"""``flow-ttrl demo``: the embedded tiny world, before and after the search."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from ..rewards.files import given_path
from .options import add_json, add_search, add_steps, search_settings


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_demo)
    command.add_argument("--prompt", help="a sentence of the world; default: a held-out one")
    command.add_argument("--half", choices=("test", "dev"), default="test", help="held-out half")
    command.add_argument("--arch", choices=("sd3", "flux"), default="sd3", help="default: sd3")
    command.add_argument("--reward", choices=("verifier", "scorer"), default="verifier")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--out", type=given_path, default=Path("out"), help="folder of the demo's files"
    )
    add_search(command)
    add_steps(command)
    add_json(command)


def _demo(args) -> tuple[dict, str]:
    from ..world.demo import demo
    from ..world.prompts import held_out

    answer = demo(
        args.prompt or random.Random(args.seed).choice(held_out(args.half, 100)),
        arch=args.arch,
        reward=args.reward,
        settings=search_settings(args),
        steps=args.steps,
        seed=args.seed,
        out=args.out,
    )
    return answer, _before_and_after(answer)


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
