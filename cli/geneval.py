"""``flow-ttrl geneval``: GenEval's images searched, best of N and plain, and their table."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..headless.geneval import (
    RESULTS,
    check_folder,
    geneval_jobs,
    read_metadata,
    verdicts,
    write_metadata,
)
from ..headless.recipe import Recipe, check
from ..headless.run import prepare, run
from ..rewards.files import given_path
from ..sampling import SearchSettings, make_settings
from .options import folders, positive
from .pipelines import add_images, add_run, elsewhere, engine_of, machine_of, recipe_of, seed
from .published import add_settings, made_settings

USUAL_STEPS = 28
"""Of both pipelines' calls where nothing is said."""


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_geneval)
    command.add_argument(
        "--metadata",
        type=given_path,
        required=True,
        metavar="FILE",
        help="GenEval's own evaluation_metadata.jsonl",
    )
    command.add_argument("--images", type=positive, default=4, help="of every prompt; default: 4")
    command.add_argument(
        "--seed", type=seed, default=0, help="of a prompt's first image; default: 0"
    )
    command.add_argument("--first", type=positive, metavar="N", help="only the first N prompts")
    add_images(command)
    add_settings(command)
    add_run(command)


def _geneval(args) -> tuple[dict, str]:
    machine, places = machine_of(args), folders(args)
    prompts = read_metadata(args.metadata)[: args.first]
    jobs = geneval_jobs(prompts, args.images, args.seed, args.size)
    if args.keep_better:
        raise ValueError(
            "expected geneval without --keep-better: no method of its table keeps a plain sample; "
            "leave it out"
        )
    engine = engine_of(args)
    recipe = recipe_of(args, made_settings(args), baseline=False)
    recipes = {
        name: replace(recipe, settings=settings) for name, settings in _methods(recipe).items()
    }
    for one in recipes.values():
        check(one, machine, places, jobs, elsewhere=elsewhere(args))
    for name in recipes:
        check_folder(args.out / name, prompts, args.images)
    prepare({args.out / name: one for name, one in recipes.items()}, jobs)
    methods = {}
    for name, one in recipes.items():
        folder = args.out / name
        rows = run(one, machine, places, jobs, folder, engine)
        write_metadata(folder, prompts)
        rewards = [row["reward"] for row in rows if row["reward"] is not None]
        methods[name] = {
            "folder": str(folder),
            "images": len(rows),
            "reward": sum(rewards) / len(rewards) if rewards else None,
            "times_plain": sum(row["cost"]["times_plain"] for row in rows) / len(rows),
            "geneval": verdicts(folder, len(rows)),
        }
    answer = {"model": recipe.model.name, "prompts": len(prompts), "methods": methods}
    return answer, _table(methods)


def _methods(recipe: Recipe) -> dict[str, SearchSettings]:
    """Plain, best of as many as the search costs, and the search; none keeps a plain sample."""
    ours, steps = recipe.settings, recipe.call.get("num_inference_steps", USUAL_STEPS)
    shared = {"keep_better": False, "micro_batch": ours.micro_batch}
    plain = make_settings("best_of_n", budget=1.0, **shared)
    best = make_settings("best_of_n", budget=ours.calls(steps) / steps, **shared)
    searched = {ours.strategy: replace(ours, keep_better=False)}
    return {"plain": plain, "best_of_n": best} | searched


def _table(methods: dict[str, dict]) -> str:
    """A row a method; and how the verdicts that are missing are come by."""
    tags = list(dict.fromkeys(tag for one in methods.values() for tag in one["geneval"] or ()))
    lines = ["  ".join([f"{'method':12s}", "  cost", " reward", *tags])]
    for name, one in methods.items():
        reward = "   none" if one["reward"] is None else f"{one['reward']:7.4f}"
        found = one["geneval"] or {}
        cells = [f"{100 * found[tag]:.1f}%".rjust(len(tag)) if tag in found else "" for tag in tags]
        lines.append("  ".join([f"{name:12s}", f"{one['times_plain']:5.2f}x", reward, *cells]))
    missing = [one["folder"] for one in methods.values() if one["geneval"] is None]
    if missing:
        lines.append("For the verdicts, in GenEval's checkout, then this command again:")
    for folder in missing:
        lines.append(
            f'python evaluation/evaluate_images.py "{folder}" --outfile "{folder}/{RESULTS}" '
            "--model-path <OBJECT_DETECTOR_FOLDER>"
        )
    return "\n".join(lines)
