"""What commands that make images ask for alike: model, rewards, and where they run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..headless import paper
from ..headless.jobs import check_seed, parse_size
from ..headless.models import DTYPES, OFFLOAD, QUANTIZE, TINY, Machine, Model, usual_dtype
from ..headless.recipe import Recipe, others_of
from ..headless.run import Engine, here
from ..rewards import MODES
from ..rewards.catalogue import PREPROCESS
from ..rewards.files import given_path
from ..rewards.loading import weights_of
from ..rewards.networks import found_device
from ..sampling import SearchSettings
from ..world.diffusers import GUIDANCE as WORLD_GUIDANCE
from .options import add_json, add_models, add_questions, positive, question_options


def add_images(command: argparse.ArgumentParser) -> None:
    """What images are made by and judged by."""
    images = command.add_argument_group("model")
    images.add_argument(
        "--model",
        help=f"{', '.join(TINY)} (embedded), a folder, or a hub id in the local cache such as "
        "black-forest-labs/FLUX.1-dev",
    )
    images.add_argument("--size", type=_size, metavar="WxH", help="default: the model's own")
    images.add_argument("--steps", type=positive, help="default: the pipeline's own, 28")
    images.add_argument("--guidance", type=float, help="guidance_scale; default: its own")
    images.add_argument(
        "--call", type=_object, default={}, metavar="JSON", help="more for the pipeline's call"
    )
    images.add_argument("--lora", action="append", default=[], metavar="PATH")
    rewards = command.add_argument_group("rewards")
    rewards.add_argument(
        "--reward",
        "--score_dict",
        metavar="NAME[=WEIGHT],...",
        help='such as imagereward=1.0,hps=0.5, or JSON: {"imagereward": 1.0}; for the tiny world '
        "verifier and scorer, too",
    )
    rewards.add_argument("--mode", choices=MODES, default=MODES[0], help="of the mix; default: raw")
    rewards.add_argument("--text", default="", help="for ocr; default: what the prompt quotes")
    add_questions(rewards)
    rewards.add_argument("--preprocess", choices=PREPROCESS, default=PREPROCESS[0])
    rewards.add_argument("--reference", type=given_path, metavar="IMG", help="for image_similarity")
    add_models(rewards)


def add_run(command: argparse.ArgumentParser) -> None:
    """Where it runs and where the images go."""
    run = command.add_argument_group("run")
    run.add_argument("--out", type=given_path, default=Path("out"), help="folder; default: out")
    run.add_argument("--device", default="auto", help="such as cpu or cuda:1; default: auto")
    run.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    run.add_argument("--quantize", choices=QUANTIZE, default="none")
    run.add_argument("--offload", choices=OFFLOAD, default="none")
    run.add_argument(
        "--vae-tiling", action="store_true", help="the VAE decodes in tiles of half its usual side"
    )
    run.add_argument("--vae-slicing", action="store_true", help="it decodes images one by one")
    run.add_argument(
        "--tiny-decoder", default="", metavar="ID", help="judges by it, such as madebyollin/taef1"
    )
    run.add_argument(
        "--engine", choices=("here", "ray"), default="here", help="ray: many GPUs and machines"
    )
    run.add_argument("--address", help="of a Ray cluster; default: one on this machine")
    run.add_argument(
        "--num-gpus", type=int, default=0, metavar="N", help="workers of Ray with a GPU each"
    )
    run.add_argument(
        "--num-cpus", type=int, default=0, metavar="N", help="or workers of Ray on CPUs"
    )
    add_json(run)


def elsewhere(args) -> bool:
    """Whether the images are made on other machines' GPUs, perhaps."""
    return args.num_gpus > 0


def engine_of(args) -> Engine:
    """Where the jobs are made.

    Raises:
        ImportError, ValueError: no Ray, or no workers for it.
    """
    if args.engine == "here":
        given = [n for n in ("address", "num_gpus", "num_cpus") if getattr(args, n)]
        if given:
            option = given[0].replace("_", "-")
            raise ValueError(f"expected --engine ray with --{option}, got {args.engine}; add it")
        return here
    from ..headless.ray_engine import on_ray

    return on_ray(args.address, gpus=args.num_gpus, cpus=args.num_cpus)


def machine_of(args) -> Machine:
    return Machine(args.device, args.offload, args.vae_slicing)


def model_of(args) -> Model:
    """As an image can be made of again anywhere: precision decided, paths whole."""
    if not args.model:
        raise ValueError(f"expected --model, got none; try --model {next(iter(TINY))}")
    dtype = args.dtype
    if dtype == "auto":
        dtype = "bf16" if elsewhere(args) else usual_dtype(found_device(args.device))
    lora = tuple(str(Path(path).expanduser().absolute()) for path in args.lora)
    name = args.model if args.model in TINY else _absolute(args.model)
    return Model(name, dtype, args.quantize, lora, args.vae_tiling)


def _absolute(name: str) -> str:
    """A folder's whole path; a hub id as it is."""
    place = Path(name).expanduser()
    return str(place.absolute()) if name and place.exists() else name


def recipe_of(args, settings: SearchSettings, *, baseline: bool) -> Recipe:
    """What the options come to; the model's family is looked up on the way."""
    model = model_of(args)
    text = args.reward or ("verifier" if args.model in TINY else "")
    if not text:
        raise ValueError("expected --reward, got none; such as --reward imagereward=1.0,hps=0.5")
    return Recipe(
        model,
        weights_of(text, others_of(model)),
        settings,
        args.mode,
        _call(args),
        baseline,
        _absolute(args.tiny_decoder),
        str(args.reference.absolute()) if args.reference else "",
        {"text": args.text, "preprocess": args.preprocess} | question_options(args),
    )


def _call(args) -> dict:
    """Arguments of the pipeline's call; --call has the last word."""
    steps = args.steps or (paper.STEPS if args.paper else None)
    guidance = args.guidance
    if guidance is None and args.model in TINY:
        guidance = WORLD_GUIDANCE[TINY[args.model]]
    elif guidance is None and args.paper:
        guidance = paper.GUIDANCE
    usual = {"num_inference_steps": steps, "guidance_scale": guidance}
    return {name: value for name, value in usual.items() if value is not None} | args.call


def seed(text: str) -> int:
    return _of_option(check_seed, int(text))


def _size(text: str) -> tuple[int, int]:
    return _of_option(parse_size, text)


def _of_option(function, given):
    """Its answer; what it says is wrong is said with the option's name."""
    try:
        return function(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _object(text: str) -> dict:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {error}") from None
    if not isinstance(given, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    return given
