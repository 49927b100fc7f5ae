"""The search's options of commands that make images, the paper's parameters among them."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from ..headless import paper
from ..headless.models import family_of
from ..sampling import SearchSettings
from ..sampling.strategies.flow_ttrl import FlowTTRL
from .options import add_search, search_settings
from .pipelines import model_of

SPELLINGS = {"rl_iterations": ("--RL_interation_num",), "clip": ("--clip_range",)}
"""Names of the paper's code for parameters that have another here."""


def add_settings(command: argparse.ArgumentParser) -> None:
    """What the search is asked to do; :func:`made_settings` reads it."""
    search = command.add_argument_group("search")
    add_search(search)
    search.add_argument(
        "--keep-better",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also sample plainly and keep the better; default: on, with --paper off",
    )
    search.add_argument(
        "--micro-batch", type=int, metavar="N", help="candidates at once; default: by the size"
    )
    search.add_argument(
        "--paper", action="store_true", help="Flow-TTRL's published settings: 40 steps and all"
    )
    own = command.add_argument_group("the paper's parameters (each takes --strategy flow_ttrl)")
    own.add_argument("--beta", type=float, metavar="B", help="beta1 and beta2")
    for field in fields(FlowTTRL):
        own.add_argument(f"--{field.name}", *SPELLINGS.get(field.name, ()), **_typed(field.default))


def spelt(name: str) -> str:
    """An option as it is typed, of its name among the parsed ones; the paper's have underscores."""
    paper = any(field.name == name for field in fields(FlowTTRL))
    return f"--{name if paper else name.replace('_', '-')}"


def made_settings(args) -> SearchSettings:
    """From --paper or --settings and --strategy, then the paper's parameters where given."""
    settings = _strategy(args)
    own = {name: getattr(args, name) for name in ("keep_better", "micro_batch")}
    return replace(settings, **{name: value for name, value in own.items() if value is not None})


def _strategy(args) -> SearchSettings:
    names = {field.name for field in fields(FlowTTRL)}
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.beta is not None:
        given = {"beta1": args.beta, "beta2": args.beta} | given
    if not (args.paper or given):
        return search_settings(args)
    if args.strategy not in (None, FlowTTRL.strategy):
        named = ", ".join(given) or "--paper"
        raise ValueError(
            f"expected strategy {FlowTTRL.strategy}, whose parameters {named} are, got "
            f"{args.strategy}; leave one out"
        )
    if args.settings and args.paper:
        raise ValueError(
            f"expected --paper or --settings, got both, {args.settings}; leave one out"
        )
    if args.settings:
        settings = search_settings(args)
        if settings.strategy != FlowTTRL.strategy:
            raise ValueError(
                f"expected settings of {FlowTTRL.strategy} in {args.settings}, got "
                f"{settings.strategy}"
            )
    else:
        published = paper.paper_settings(family_of(model_of(args).name))
        settings = replace(published, keep_better=not args.paper)
        if args.budget is not None:
            settings = replace(settings, budget=args.budget)
    return replace(settings, parameters=replace(settings.parameters, **given))


def _typed(default) -> dict:
    """How an option of a parameter with this default is read."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if isinstance(default, tuple):
        return {"type": float, "nargs": 2, "metavar": ("FIRST", "LAST")}
    return {"type": type(default), "metavar": "V"}
