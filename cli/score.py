"""``flow-ttrl score``: scores of image files by any mix of rewards."""

from __future__ import annotations

import argparse

from ..rewards import MODES
from ..rewards.base import headings
from ..rewards.catalogue import PREPROCESS
from ..rewards.files import given_path
from ..rewards.image_files import read_image
from ..rewards.loading import check_mix, load_mix, weights_of
from ..rewards.networks import on_device
from ..rewards.scoring import score_files
from ..sampling.report import jsonable
from .options import add_json, add_models, add_questions, folders, question_options


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_score)
    command.add_argument("images", nargs="+", type=given_path, metavar="IMG")
    command.add_argument(
        "--prompt", action="append", help="one for all images, or as many as there are images"
    )
    command.add_argument(
        "--reward",
        required=True,
        metavar="NAME[=WEIGHT],...",
        help="such as imagereward=1.0,hps=0.5; names as `flow-ttrl rewards` lists them",
    )
    command.add_argument("--mode", choices=MODES, default=MODES[0], help="of the mix; default: raw")
    command.add_argument("--reference", type=given_path, metavar="IMG", help="for image_similarity")
    command.add_argument("--text", default="", help="for ocr; default: what the prompt quotes")
    add_questions(command)
    command.add_argument("--preprocess", choices=PREPROCESS, default=PREPROCESS[0])
    command.add_argument("--device", default="auto", help="such as cpu or cuda:1; default: auto")
    add_models(command)
    add_json(command)


def _score(args) -> tuple[dict, str]:
    weights = weights_of(args.reward)
    prompts = args.prompt or [""]
    if len(prompts) not in (1, len(args.images)):
        raise ValueError(
            f"expected --prompt once, or once for each of {len(args.images)} images, got it "
            f"{len(prompts)} times; leave some out or add some"
        )
    check_mix(weights, folders(args))
    reference = None if args.reference is None else read_image(args.reference)
    place = on_device(args.device)
    answer = score_files(
        args.images,
        prompts,
        lambda: load_mix(
            weights,
            args.mode,
            folders=folders(args),
            place=place,
            preprocess=args.preprocess,
            reference=reference,
            text=args.text,
            **question_options(args),
        ),
    )
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
