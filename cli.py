"""The command line: ``flow-ttrl demo | score | rewards | estimate``."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from dataclasses import replace
from pathlib import Path

from .console import write
from .rewards import CATALOGUE, MODES, RewardMix, default_folders, load_reward
from .rewards.base import headings
from .rewards.catalogue import PREPROCESS, check_files, entry
from .rewards.files import given_path
from .rewards.image_files import read_image
from .rewards.networks import on_device
from .rewards.questions import COMBINE
from .rewards.recommend import recommend
from .rewards.scoring import score_files
from .sampling import (
    STRATEGIES,
    SearchSettings,
    make_settings,
    plan,
    settings_from_json,
    shifted_sigmas,
)
from .sampling.report import jsonable


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stderr)
    try:
        answer, table = args.run(args)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        write(sys.stderr, f"flow-ttrl: {error or type(error).__name__}")
        return 2
    except KeyboardInterrupt:
        return 130
    failed = answer.get("failed", [])
    for lost in failed:
        write(sys.stderr, f"flow-ttrl: {lost['error']}")
    if args.json or table:
        write(sys.stdout, json.dumps(answer, indent=1) if args.json else table)
    return 2 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flow-ttrl", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the embedded tiny world, before and after the search")
    demo.set_defaults(run=_demo)
    demo.add_argument("--prompt", help="a sentence of the world; default: a held-out one")
    demo.add_argument("--half", choices=("test", "dev"), default="test", help="held-out half")
    demo.add_argument("--arch", choices=("sd3", "flux"), default="sd3", help="default: sd3")
    demo.add_argument("--reward", choices=("verifier", "scorer"), default="verifier")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--out", type=given_path, default=Path("out"), help="folder of the demo's files"
    )

    estimate = commands.add_parser("estimate", help="what a search will cost, before it is run")
    estimate.set_defaults(run=_estimate)
    estimate.add_argument(
        "--arch",
        choices=("sd3", "flux"),
        default="sd3",
        help="sd3: two forwards a call (CFG); flux: one. Default: sd3",
    )
    score = commands.add_parser("score", help="scores of image files by any mix of rewards")
    score.set_defaults(run=_score)
    score.add_argument("images", nargs="+", type=given_path, metavar="IMG")
    score.add_argument(
        "--prompt", action="append", help="one for all images, or as many as there are images"
    )
    score.add_argument(
        "--reward",
        required=True,
        metavar="NAME[=WEIGHT],...",
        help="such as imagereward=1.0,hps=0.5; names as `flow-ttrl rewards` lists them",
    )
    score.add_argument("--mode", choices=MODES, default=MODES[0], help="of the mix; default: raw")
    score.add_argument("--reference", type=given_path, metavar="IMG", help="for image_similarity")
    score.add_argument("--text", default="", help="for ocr; default: what the prompt quotes")
    score.add_argument(
        "--question",
        action="append",
        metavar="TEXT",
        help="for vlm, as often as there are: '[weight*] [not:] question'; default: the prompt",
    )
    score.add_argument("--combine", choices=COMBINE, default=COMBINE[0], help="vlm's questions")
    score.add_argument(
        "--split-prompt", action="store_true", help="for vlm: ask for the prompt's parts, too"
    )
    score.add_argument(
        "--side",
        type=int,
        default=1024,
        metavar="PX",
        help="for vlm: scale down to the pixels of such a square; default: 1024",
    )
    score.add_argument("--preprocess", choices=PREPROCESS, default=PREPROCESS[0])
    score.add_argument("--device", default="auto", help="such as cpu or cuda:1; default: auto")

    rewards = commands.add_parser("rewards", help="which rewards are ready, what the others lack")
    rewards.set_defaults(run=_rewards)
    rewards.add_argument("--download", metavar="NAME", help="fetch the files of this reward")
    for command in (score, rewards):
        command.add_argument(
            "--models",
            type=given_path,
            action="append",
            metavar="DIR",
            help="folder of reward models, before others; default: FLOW_TTRL_MODELS, or ComfyUI's "
            "models/reward_models, or a cache",
        )
        command.add_argument("--json", action="store_true", help="one JSON object, nothing else")

    for command in (demo, estimate):
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
        command.add_argument("--steps", type=_positive, default=20, help="default: 20")
        command.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return value


def _settings(args) -> SearchSettings:
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


def _estimate(args) -> tuple[dict, str]:
    settings, sigmas = _settings(args), shifted_sigmas(args.steps).tolist()
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


def _score(args) -> tuple[dict, str]:
    weights = parse_weights(args.reward)
    prompts = args.prompt or [""]
    if len(prompts) not in (1, len(args.images)):
        raise ValueError(
            f"expected --prompt once, or once for each of {len(args.images)} images, got it "
            f"{len(prompts)} times; leave some out or add some"
        )
    for name in weights:  # all of them before the first is loaded
        check_files(name, _folders(args))
    reference = None if args.reference is None else read_image(args.reference)
    place = on_device(args.device)

    def load() -> RewardMix:
        rewards = [
            load_reward(
                name,
                folders=_folders(args),
                place=place,
                preprocess=args.preprocess,
                reference=reference,
                text=args.text,
                questions="\n".join(args.question or []),
                combine=args.combine,
                split_prompt=args.split_prompt,
                side=args.side,
            )
            for name in weights
        ]
        return RewardMix(tuple(zip(rewards, weights.values(), strict=True)), args.mode)

    answer = score_files(args.images, prompts, load)
    return jsonable(answer), _score_table(answer)


def _score_table(answer: dict) -> str:
    """A line an image, best first; nothing where there is none."""
    if not answer["images"]:
        return ""
    names = [name for name in answer["images"][0] if name not in ("image", "prompt")]
    above, below = headings(names)
    lines = ["  ".join(["rank", *(above[name].rjust(9) for name in names), "image"])]
    for rank, index in enumerate(answer["ranking"], 1):
        row = answer["images"][index]
        cells = (f"{row[name]:9.4f}".rjust(len(above[name])) for name in names)
        lines.append("  ".join([f"{rank:4d}", *cells, row["image"]]))
    return "\n".join([*lines, *below, *answer["reward"].get("notes", ())])


def parse_weights(text: str) -> dict[str, float]:
    """Turns "imagereward=0.5,hps" into {"imagereward": 0.5, "hps": 1.0}.

    Raises:
        ValueError: an unknown name, one that comes twice, or a weight that is no number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        entry(name)
        if name in weights:
            raise ValueError(f"expected each reward once, got {name!r} twice; add up its weights")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(
                f"expected a number as the weight of {name}, got {weight!r}; write {name}=1.0"
            ) from None
    return weights


def _folders(args) -> list[Path]:
    return [*(args.models or []), *default_folders()]


def _rewards(args) -> tuple[dict, str]:
    folders = _folders(args)
    if args.download:
        from .rewards.download import download

        fetched = download(args.download, folders[0], others=folders[1:])
        answer = {"downloaded": [str(path) for path in fetched]}
        return answer, "\n".join(answer["downloaded"]) or f"{args.download}: nothing is missing"
    rows = {
        name: {
            "about": item.about,
            "ready": not item.lacks(folders),
            "lacks": item.lacks(folders),
            "files": [str(file.find(folders) or "") for file in item.files],
            "odd": [
                told
                for file in item.files
                if (found := file.find(folders)) and (told := file.doubt(found))
            ],
        }
        for name, item in CATALOGUE.items()
    }
    width = max(map(len, rows))
    lines = [f"in {', '.join(map(str, folders))}:"]
    for name, row in rows.items():
        lines.append(f"{name:{width}}  {'ready  ' if row['ready'] else 'missing'}  {row['about']}")
        lines += [f"{'':{width}}           needs {what}" for what in row["lacks"]]
        lines += [f"{'':{width}}           but {what}" for what in row["odd"]]
    first = recommend(folders)
    lines += ["", f"to begin with: {first.reward or 'none'} ({first.why})", f"    {first.command}"]
    answer = {"folders": [str(folder) for folder in folders], "rewards": rows}
    return answer | {"recommended": first.report()}, "\n".join(lines)


def _demo(args) -> tuple[dict, str]:
    from .world.demo import demo
    from .world.prompts import held_out

    answer = demo(
        args.prompt or random.Random(args.seed).choice(held_out(args.half, 100)),
        arch=args.arch,
        reward=args.reward,
        settings=_settings(args),
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
