"""``flow-ttrl estimate``: what a search will cost, before it is run."""

from __future__ import annotations

import argparse

from ..sampling import plan, shifted_sigmas
from .options import add_json, add_search, add_steps, search_settings


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_estimate)
    command.add_argument(
        "--arch",
        choices=("sd3", "flux"),
        default="sd3",
        help="sd3: two forwards a call (CFG); flux: one. Default: sd3",
    )
    add_search(command)
    add_steps(command)
    add_json(command)


def _estimate(args) -> tuple[dict, str]:
    settings, sigmas = search_settings(args), shifted_sigmas(args.steps).tolist()
    made = plan(settings, sigmas, forwards_per_call=2 if args.arch == "sd3" else 1)
    cost = made.cost
    answer = {
        "strategy": settings.strategy,
        "budget": settings.budget,
        "steps": args.steps,
        "calls": cost.calls,
        "plain_calls": 0 if made.makes_plain or not settings.keep_better else args.steps,
        **cost.report(args.steps),
    }
    return answer, "\n".join(f"{name:12s} {value}" for name, value in answer.items())
