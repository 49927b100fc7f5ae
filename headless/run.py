"""A run: a recipe, its jobs, and a worker that makes them one by one, going on where it stopped."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import diffusers
import torch
from tqdm import tqdm

from ..rewards import default_folders
from ..rewards.image_files import read_image
from ..rewards.loading import load_mix, load_reward
from ..rewards.networks import found_device, on_device
from ..sampling import STRATEGIES
from ..sampling.hosts.diffusers import search_images
from ..sampling.report import jsonable
from ..version import VERSION
from ..world.draw import IMAGE_SIZE
from .images import prepare_folder, read_made, write_image
from .jobs import Job, image_path, plain_path
from .models import TINY, Machine, load_decoder, load_pipeline
from .recipe import Recipe, others_of

log = logging.getLogger("flow_ttrl")

USUAL_SIDE = 1024
"""In pixels, of an image whose size is the model's own, for the room that it takes."""


class Worker:
    """A pipeline and its rewards, loaded, that makes images.

    Args:
        prompts: of all jobs, which the rewards have a look at before the first image.
    """

    def __init__(
        self,
        recipe: Recipe,
        machine: Machine,
        folders: Sequence[Path] | None = None,
        prompts: Sequence[str] = (),
    ):
        self.recipe = recipe
        self.device = found_device(machine.device)
        self.reward = load_mix(
            recipe.rewards,
            recipe.mode,
            folders=folders or default_folders(),
            others=others_of(recipe.model),
            place=on_device(machine.device, visiting=machine.offload != "none"),
            reference=read_image(Path(recipe.reference)) if recipe.reference else None,
            **recipe.options,
        )
        self.reward.check(list(prompts))
        if STRATEGIES[recipe.settings.strategy].needs_image_gradients:
            self.reward.check_differentiable()
        self.pipe = load_pipeline(recipe.model, machine)
        self.decoder = None
        if recipe.decoder:
            self.decoder = load_decoder(recipe.decoder, self.pipe.vae.dtype, self.device)

    def make(self, job: Job, folder: Path) -> dict:
        """One image, in ``folder`` with its plain sample beside it; what is told of it."""
        began, recipe = time.monotonic(), self.recipe
        image_path(folder, job).parent.mkdir(parents=True, exist_ok=True)
        found = search_images(
            self.pipe,
            self.reward,
            recipe.settings,
            seed=job.seed,
            baseline=recipe.baseline,
            decoder=self.decoder,
            **recipe.call | job.call(),
        )
        made = {
            "recipe": recipe.to_json(),
            "job": job.to_json(),
            "report": _untimed(found.report),
            "versions": versions(self.device),
        }
        if recipe.baseline:  # first, so that the searched image means that all is there
            write_image(plain_path(folder, job), found.plain[0], made | {"plain": True})
        write_image(image_path(folder, job), found.images[0], made)
        return row(folder, job, made) | {"seconds": round(time.monotonic() - began, 3)}


def versions(device: torch.device) -> dict[str, str]:
    """What an image depends on beside its recipe and job, in its rounding at least."""
    return {
        "flow_ttrl": VERSION,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": device.type,
    }


def _untimed(report: dict) -> dict:
    """Without what differs from run to run, so that the same image is the same file."""
    steps = [
        {name: value for name, value in step.items() if name != "seconds"}
        for step in report["search_steps"]
    ]
    kept = {name: value for name, value in report.items() if name != "seconds"}
    return kept | {"search_steps": steps}


def row(folder: Path, job: Job, made: dict, skipped: bool = False) -> dict:
    """What is told of an image, of what it says of itself."""
    report, plain = made["report"], made["report"]["plain_rewards"]
    return jsonable(
        {
            "name": job.name,
            "file": str(image_path(folder, job)),
            "plain_file": str(plain_path(folder, job)) if made["recipe"]["baseline"] else None,
            "prompt": job.prompt,
            "seed": job.seed,
            "reward": report["rewards"][0],
            "plain_reward": plain[0] if plain else None,
            "values": {name: value[0] for name, value in report["values"].items()},
            "cost": report["cost"],
            "skipped": skipped,
        }
    )


def finished(folder: Path, job: Job, recipe: Recipe) -> dict | None:
    """What is told of a job's image where it is there already.

    Raises:
        ValueError: a file in its place that something else has made.
    """
    path = image_path(folder, job)
    paths = [plain_path(folder, job), path] if recipe.baseline else [path]
    wanted = jsonable({"recipe": recipe.to_json(), "job": job.to_json()})
    there = {one: read_made(one) for one in paths if one.exists()}
    for one, made in there.items():
        found = {name: jsonable(made.get(name)) for name in wanted}
        if found != wanted or made.get("plain", False) != (one != path):
            raise ValueError(
                f"expected {one} to be missing or of this very run, got one of other settings or "
                "another prompt; name another folder, or move it away"
            )
    return row(folder, job, there[path], skipped=True) if len(there) == len(paths) else None


def without_finished(
    jobs: Sequence[Job], folder: Path, recipe: Recipe
) -> tuple[list[Job], list[dict]]:
    """Jobs that are still to be done, and what is told of those that are."""
    known = [(job, finished(folder, job, recipe)) for job in jobs]
    return [job for job, row in known if row is None], [row for _, row in known if row]


Engine = Callable[[Recipe, Machine, Sequence[Path], Sequence[Job], Path], Iterator[dict]]
"""Makes the jobs' images; yields what is told of each as it is there."""


def here(
    recipe: Recipe, machine: Machine, folders: Sequence[Path], jobs: Sequence[Job], folder: Path
) -> Iterator[dict]:
    """In this process, one after the other."""
    worker = Worker(recipe, machine, folders, [job.prompt for job in jobs])
    for number, job in enumerate(jobs, 1):
        worker.pipe.set_progress_bar_config(desc=f"image {number} of {len(jobs)}", leave=False)
        # it may have come from another process meanwhile
        yield finished(folder, job, recipe) or worker.make(job, folder)


def prepare(
    recipes: Mapping[Path, Recipe], jobs: Sequence[Job]
) -> dict[Path, tuple[list[Job], list[dict]]]:
    """By folder :func:`without_finished`, once there is room for all images together.

    Raises:
        OSError, ValueError: a folder that cannot hold the images, or holds others.
    """
    known = {folder: without_finished(jobs, folder, recipe) for folder, recipe in recipes.items()}
    images = sum(len(todo) * (1 + recipes[folder].baseline) for folder, (todo, _) in known.items())
    tiny = any(recipe.model.name in TINY for recipe in recipes.values())
    side = IMAGE_SIZE if tiny else USUAL_SIDE
    pixels = max(wide * high for wide, high in (job.size or (side, side) for job in jobs))
    for folder, (todo, _) in known.items():
        if todo:
            prepare_folder(folder, images, pixels)
    return known


def run(
    recipe: Recipe,
    machine: Machine,
    folders: Sequence[Path],
    jobs: Sequence[Job],
    folder: Path,
    engine: Engine = here,
) -> list[dict]:
    """What is told of each job's image, made by ``engine`` where it is not there already.

    Raises:
        OSError, ValueError: a folder that cannot hold the images, or holds others.
    """
    todo, rows = prepare({folder: recipe}, jobs)[folder]
    with tqdm(total=len(jobs), initial=len(rows), unit="image", disable=len(jobs) == 1) as bar:
        for made in engine(recipe, machine, folders, todo, folder) if todo else ():
            rows.append(made)
            bar.update()
    order = {job.name: number for number, job in enumerate(jobs)}
    return sorted(rows, key=lambda row: order[row["name"]])


def from_image(path: Path, device: str = "auto") -> tuple[Recipe, Job]:
    """The recipe and the job of an image that was made here before, perhaps by somebody else.

    Where it was made by other versions or on another kind of device, which may change it, that is
    said.
    """
    made, now = read_made(path), versions(found_device(device))
    then = made.get("versions")
    then = then if isinstance(then, dict) else {}
    try:
        recipe, job = Recipe.from_json(made["recipe"]), Job.from_json(made["job"])
        strange = recipe.options.keys() - inspect.signature(load_reward).parameters.keys()
        if strange:
            raise KeyError(*strange)
        if then != now:
            told = [f"{name} {then.get(name)} (now {now[name]})" for name in now]
            log.warning("%s was made by %s: it may come out another", path, ", ".join(told))
        return recipe, job
    except (KeyError, TypeError, AttributeError) as error:
        version = then.get("flow_ttrl")
        raise ValueError(
            f"expected an image made by version {VERSION}, got {path}, by {version} ({error}); "
            "make it with that version"
        ) from None
