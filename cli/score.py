"""``flow-ttrl score``: scores of image files by any mix of rewards."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..rewards import MODES, RewardMix, Scores, load_reward
from ..rewards.catalogue import PREPROCESS, check_files
from ..rewards.loading import weights_of
from ..sampling.report import jsonable
from .options import add_json, add_models, folders


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_score)
    command.add_argument("images", nargs="+", type=Path, metavar="IMG")
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
    command.add_argument("--reference", type=Path, metavar="IMG", help="for image_similarity")
    command.add_argument("--text", default="", help="for ocr; default: what the prompt quotes")
    command.add_argument("--preprocess", choices=PREPROCESS, default=PREPROCESS[0])
    command.add_argument("--device", default="auto", help="such as cpu or cuda:1; default: auto")
    add_models(command)
    add_json(command)


def _score(args) -> tuple[dict, str]:
    from ..rewards.networks import on_device

    weights = weights_of(args.reward)
    prompts = args.prompt or [""]
    if len(prompts) not in (1, len(args.images)):
        raise ValueError(
            f"expected --prompt once, or once for each of {len(args.images)} images, got it "
            f"{len(prompts)} times; leave some out or add some"
        )
    for name in weights:  # all of them before the first is loaded
        check_files(name, folders(args))
    images = [_image(path) for path in args.images]
    reference = None if args.reference is None else _image(args.reference)
    rewards = [
        load_reward(
            name,
            folders=folders(args),
            place=on_device(args.device),
            preprocess=args.preprocess,
            reference=reference,
            text=args.text,
        )
        for name in weights
    ]
    mix = RewardMix(tuple(zip(rewards, weights.values(), strict=True)), args.mode)
    return _scored(args.images, prompts, mix, images)


def _scored(
    paths: list[Path], prompts: list[str], mix: RewardMix, images: list[Tensor]
) -> tuple[dict, str]:
    """Each image alone, since they may differ in size; then compared with each other."""
    judge = mix.judge(prompts, patience=len(images) - 1)
    with torch.inference_mode():
        each = [judge.score(image, torch.tensor([n])) for n, image in enumerate(images)]
    columns = {name: torch.stack([values[name] for values in each]) for name in mix.names}
    scores = Scores(mix.totals(columns)[:, 0], {n: value[:, 0] for n, value in columns.items()})
    rows = [
        {
            "image": str(path),
            "prompt": prompts[index % len(prompts)],
            "total": scores.total[index].item(),
            **{name: value[index].item() for name, value in scores.values.items()},
        }
        for index, path in enumerate(paths)
    ]
    answer = {"images": rows, "ranking": scores.ranking, "reward": judge.report()}
    names = ["total", *mix.names]
    lines = ["  ".join(["rank", *(name.rjust(9) for name in names), "image"])]
    for rank, index in enumerate(scores.ranking, 1):
        cells = (f"{rows[index][name]:9.4f}".rjust(len(name)) for name in names)
        lines.append("  ".join([f"{rank:4d}", *cells, rows[index]["image"]]))
    return jsonable(answer), "\n".join(lines)


def _image(path: Path) -> Tensor:
    """An image file as [1, H, W, 3] in 0..1."""
    try:
        with Image.open(path) as opened:
            pixels = _rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        told = f"expected an image at {path}, got no such file; check the path"
        raise FileNotFoundError(told) from None
    except (OSError, ValueError) as error:
        told = f"expected a whole image file, got {path} ({error}); name a PNG, JPEG or the like"
        raise ValueError(told) from None
    return torch.from_numpy(pixels)[None]


def _rgb(image: Image.Image) -> np.ndarray:
    """[H, W, 3] in 0..1, on white where it is transparent."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image, dtype=np.float32) / 65535
        return np.repeat(grey[..., None], 3, -1)
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers without a range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255
