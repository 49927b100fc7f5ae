"""``flow-ttrl generate``: images by FLUX.1, SD3.5 or the tiny world, of a prompt or a file."""

from __future__ import annotations

import argparse

from ..headless.jobs import Job, jobs_of
from ..headless.recipe import check
from ..headless.run import from_image, run
from ..rewards.files import given_path
from .options import folders, positive
from .pipelines import add_images, add_run, elsewhere, engine_of, machine_of, recipe_of, seed
from .published import add_settings, made_settings, spelt

OF_A_MACHINE = ("device", "offload", "vae_slicing", "engine", "address", "num_gpus", "num_cpus")
"""Options that go with --from-image, beside --out, --models and --json: they change no image."""


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_generate)
    add_images(command)
    add_run(command)
    command.add_argument(
        "--from-image",
        type=given_path,
        metavar="FILE",
        help="make this image again, of what it says",
    )
    prompts = command.add_argument_group("prompts")
    prompts.add_argument("--prompt", action="append", default=[], help="as often as you like")
    prompts.add_argument(
        "--prompts",
        type=given_path,
        metavar="FILE",
        help="one a line, or JSON a line: prompt, negative, seed, size, name",
    )
    prompts.add_argument(
        "--negative", help="negative prompt; FLUX heeds it with --call '{\"true_cfg_scale\": 3}'"
    )
    prompts.add_argument(
        "--seed", type=seed, default=0, help="of a prompt's first image; default: 0"
    )
    prompts.add_argument("--baseline", action="store_true", help="the plain image beside each")
    prompts.add_argument("--images", type=positive, default=1, help="of every prompt; default 1")
    add_settings(command)
    command.set_defaults(usual=vars(command.parse_args([])))


def _generate(args) -> tuple[dict, str]:
    machine, places, engine = machine_of(args), folders(args), engine_of(args)
    if args.from_image:
        kept = (*OF_A_MACHINE, "out", "models", "json", "from_image")
        given = [n for n, v in args.usual.items() if n not in kept and getattr(args, n) != v]
        if given:
            raise ValueError(
                f"expected --from-image without {', '.join(map(spelt, given))}: what the "
                "image is made by it says itself; leave them out"
            )
        recipe, job = from_image(args.from_image, args.device)
        jobs = [job]
    else:
        usual = Job("", "", args.seed, args.negative, args.size)
        jobs = jobs_of(args.prompt, usual, args.images, args.prompts)
        recipe = recipe_of(args, made_settings(args), baseline=args.baseline)
    check(recipe, machine, places, jobs, elsewhere=elsewhere(args))
    rows = run(recipe, machine, places, jobs, args.out, engine)
    answer = {"model": recipe.model.name, "settings": recipe.settings.to_json(), "images": rows}
    return answer, "\n".join(_told(row) for row in rows)


def _told(row: dict) -> str:
    """A line of the table."""
    plain = "" if row["plain_reward"] is None else f" (plain {row['plain_reward']:.4f})"
    reward = "none" if row["reward"] is None else f"{row['reward']:.4f}"
    state = "there already" if row["skipped"] else f"{row['seconds']:.1f} s"
    return f"{row['file']}  {reward}{plain}  {row['cost']['times_plain']:g}x  {state}"
