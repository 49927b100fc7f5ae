"""What several commands ask for alike."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ..rewards import default_folders
from ..rewards.files import given_path
from ..rewards.questions import COMBINE
from ..sampling import STRATEGIES, SearchSettings, make_settings, settings_from_json


def add_search(command: argparse.ArgumentParser) -> None:
    """What a search is asked to do; :func:`search_settings` reads it."""
    command.add_argument("--strategy", choices=tuple(STRATEGIES), help="default: steered")
    command.add_argument(
        "--budget",
        type=float,
        metavar="B",
        help="what the search may cost, in times a plain sample; default: 6",
    )
    command.add_argument(
        "--settings",
        type=given_path,
        metavar="FILE",
        help="JSON of settings, or a report with them",
    )


def add_steps(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=positive, default=20, help="default: 20")


def add_models(command: argparse.ArgumentParser) -> None:
    """Where reward models are; :func:`folders` reads it."""
    command.add_argument(
        "--models",
        type=given_path,
        action="append",
        metavar="DIR",
        help="folder of reward models, before others; default: FLOW_TTRL_MODELS, or ComfyUI's "
        "models/reward_models, or a cache",
    )


def add_questions(command: argparse.ArgumentParser) -> None:
    """What ``vlm`` is to ask; :func:`question_options` reads it."""
    command.add_argument(
        "--question",
        action="append",
        metavar="TEXT",
        help="for vlm, as often as there are: '[weight*] [not:] question'; default: the prompt",
    )
    command.add_argument("--combine", choices=COMBINE, default=COMBINE[0], help="vlm's questions")
    command.add_argument(
        "--split-prompt", action="store_true", help="for vlm: ask for the prompt's parts, too"
    )
    command.add_argument(
        "--side",
        type=positive,
        default=1024,
        metavar="PX",
        help="for vlm: scale down to the pixels of such a square; default: 1024",
    )


def question_options(args) -> dict:
    """Options of a reward."""
    return {
        "questions": "\n".join(args.question or []),
        "combine": args.combine,
        "split_prompt": args.split_prompt,
        "side": args.side,
    }


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object, nothing else")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return value


def search_settings(args) -> SearchSettings:
    """From --settings FILE, then --strategy and --budget where they are given."""
    given = {}
    if args.settings:
        try:
            given = json.loads(args.settings.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"expected JSON in {args.settings}, got {error}") from None
        given = given.get("settings", given) if isinstance(given, dict) else given
    settings = settings_from_json(given)
    if args.strategy and args.strategy != settings.strategy:
        parameters = make_settings(args.strategy).parameters
        settings = replace(settings, parameters=parameters)
    return settings if args.budget is None else replace(settings, budget=args.budget)


def folders(args) -> list[Path]:
    return [*(args.models or []), *default_folders()]
