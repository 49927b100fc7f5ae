"""``flow-ttrl generate``: images by FLUX.1, SD3.5 or the tiny world, of a prompt or a file."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

from ..headless import paper
from ..headless.jobs import Job, jobs_of, parse_size
from ..headless.models import DTYPES, OFFLOAD, QUANTIZE, TINY, Machine, Model, check_model
from ..headless.run import Engine, Recipe, check, from_image, here, others_of, run
from ..rewards import MODES
from ..rewards.loading import weights_of
from ..sampling import SearchSettings
from ..sampling.strategies.flow_ttrl import FlowTTRL
from .options import add_json, add_models, add_search, folders, positive, search_settings

SPELLINGS = {"rl_iterations": ("--RL_interation_num",), "clip": ("--clip_range",)}
"""Names of the paper's code for parameters that have another here."""


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_generate)
    add_images(command)
    add_run(command)
    command.add_argument(
        "--from-image", type=Path, metavar="FILE", help="make this image again, of what it says"
    )
    prompts = command.add_argument_group("prompts")
    prompts.add_argument("--prompt", action="append", default=[], help="as often as you like")
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="one a line, or JSON a line: prompt, negative, seed, size, name",
    )
    prompts.add_argument(
        "--negative", help="negative prompt; FLUX heeds it with --call '{\"true_cfg_scale\": 3}'"
    )
    prompts.add_argument("--seed", type=int, default=0, help="of a prompt's first image; default 0")
    prompts.add_argument("--images", type=positive, default=1, help="of every prompt; default 1")
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
    search.add_argument("--baseline", action="store_true", help="the plain image beside each")
    search.add_argument(
        "--paper", action="store_true", help="Flow-TTRL's published settings: 40 steps and all"
    )
    own = command.add_argument_group("the paper's parameters (each takes --strategy flow_ttrl)")
    own.add_argument("--beta", type=float, metavar="B", help="beta1 and beta2")
    for field in fields(FlowTTRL):
        own.add_argument(f"--{field.name}", *SPELLINGS.get(field.name, ()), **_typed(field.default))


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
    images.add_argument("--guidance", type=float, help="guidance_scale; default: the model's own")
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
    add_models(rewards)


def add_run(command: argparse.ArgumentParser) -> None:
    """Where it runs and where the images go."""
    run = command.add_argument_group("run")
    run.add_argument("--out", type=Path, default=Path("out"), help="folder; default: out")
    run.add_argument("--device", default="auto", help="such as cpu or cuda:1; default: auto")
    run.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    run.add_argument("--quantize", choices=QUANTIZE, default="none")
    run.add_argument("--offload", choices=OFFLOAD, default="none")
    run.add_argument("--vae-tiling", action="store_true")
    run.add_argument("--vae-slicing", action="store_true")
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


def engine_of(args) -> Engine:
    """Where the jobs are made.

    Raises:
        ImportError, ValueError: no Ray, or no workers for it.
    """
    if args.engine == "here":
        return here
    from ..headless.ray_engine import on_ray

    return on_ray(args.address, gpus=args.num_gpus, cpus=args.num_cpus)


def machine_of(args) -> Machine:
    vae = [way for way in ("tiling", "slicing") if getattr(args, f"vae_{way}")]
    return Machine(args.device, args.offload, tuple(vae))


def model_of(args) -> Model:
    if not args.model:
        raise ValueError(f"expected --model, got none; try --model {next(iter(TINY))}")
    return Model(args.model, args.dtype, args.quantize, tuple(args.lora))


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
        args.tiny_decoder,
        args.text,
    )


def _generate(args) -> tuple[dict, str]:
    machine, places = machine_of(args), folders(args)
    if args.from_image:
        if args.model or args.reward or args.prompt or args.prompts:
            raise ValueError(
                "expected --from-image without a model, reward or prompt of its own, which the "
                "image says; leave them out"
            )
        recipe, job = from_image(args.from_image)
        jobs = [job]
    else:
        usual = Job("", "", _whole_seed(args.seed), args.negative, args.size)
        jobs = jobs_of(args.prompt, usual, args.images, args.prompts)
        settings = _settings(args, machine)
        if args.keep_better is not None:
            settings = replace(settings, keep_better=args.keep_better)
        if args.micro_batch is not None:
            settings = replace(settings, micro_batch=args.micro_batch)
        recipe = recipe_of(args, settings, baseline=args.baseline)
    check(recipe, machine, places, jobs)
    engine = engine_of(args)
    rows = run(recipe, machine, places, jobs, args.out, engine)
    answer = {"model": recipe.model.name, "settings": recipe.settings.to_json(), "images": rows}
    return answer, "\n".join(told(row) for row in rows)


def told(row: dict) -> str:
    """A line of the table."""
    plain = "" if row["plain_reward"] is None else f" (plain {row['plain_reward']:.4f})"
    reward = "none" if row["reward"] is None else f"{row['reward']:.4f}"
    state = "there already" if row["skipped"] else f"{row['seconds']:.1f} s"
    return f"{row['file']}  {reward}{plain}  {row['cost']['times_plain']:g}x  {state}"


def _settings(args, machine: Machine) -> SearchSettings:
    """From --paper or --settings and --strategy, then the paper's parameters where given."""
    family = check_model(model_of(args), machine)
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
    if args.settings:
        settings = search_settings(args)
        if settings.strategy != FlowTTRL.strategy:
            raise ValueError(
                f"expected settings of {FlowTTRL.strategy} in {args.settings}, got "
                f"{settings.strategy}"
            )
    else:
        settings = replace(paper.paper_settings(family), keep_better=not args.paper)
        if args.budget is not None:
            settings = replace(settings, budget=args.budget)
    return replace(settings, parameters=replace(settings.parameters, **given))


def _call(args) -> dict:
    call = dict(args.call)
    steps = args.steps or (paper.STEPS if getattr(args, "paper", False) else None)
    guidance = args.guidance
    if guidance is None and args.model in TINY:
        from ..world.diffusers import GUIDANCE

        guidance = GUIDANCE[TINY[args.model]]
    elif guidance is None and getattr(args, "paper", False):
        guidance = paper.GUIDANCE
    if steps is not None:
        call["num_inference_steps"] = steps
    if guidance is not None:
        call["guidance_scale"] = guidance
    return call


def _typed(default) -> dict:
    """How an option of a parameter with this default is read."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if isinstance(default, tuple):
        return {"type": float, "nargs": 2, "metavar": ("FIRST", "LAST")}
    return {"type": type(default), "metavar": "V"}


def _size(text: str) -> tuple[int, int]:
    try:
        return parse_size(text)
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


def _whole_seed(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"expected --seed to be a whole number from 0, got {seed}")
    return seed
