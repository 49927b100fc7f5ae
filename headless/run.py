"""A run: a recipe, its jobs, and a worker that makes them one by one, going on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import diffusers
import torch
from tqdm import tqdm

from ..rewards import default_folders
from ..rewards.catalogue import entry
from ..rewards.image_files import check_image_file, read_image
from ..rewards.loading import check_mix, load_mix
from ..rewards.networks import found_device, on_device
from ..sampling import SearchSettings, settings_from_json
from ..sampling.hosts.diffusers import search_images
from ..sampling.hosts.diffusers_call import arguments_of
from ..sampling.report import jsonable
from ..version import VERSION
from .images import prepare_folder, read_made, write_image
from .jobs import Job
from .models import (
    FAMILIES,
    TINY,
    Machine,
    Model,
    check_decoder,
    check_model,
    load_decoder,
    load_pipeline,
)

PIPELINES = {family: getattr(diffusers, name) for name, family in FAMILIES.items()}
OWN_ARGUMENTS = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "generator",
    "latents",
    "num_images_per_prompt",
    "output_type",
    "return_dict",
)
"""Of a pipeline's call: what a job says, and how one image comes out of it."""
USUAL_PIXELS = 1024 * 1024
"""Of an image whose size is the model's own, for the room that it takes."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made by, apart from its job; every image carries it.

    Attributes:
        rewards: weights by name; ``mode``: how they are mixed.
        call: arguments of the pipeline's call, besides the job's.
        decoder: a tiny decoder that decodes images to be judged; "" for the pipeline's VAE.
        reference: the image, by its path, that ``image_similarity`` compares with.
        options: of the rewards; see :func:`load_reward`.
    """

    model: Model
    rewards: dict[str, float]
    settings: SearchSettings
    mode: str = "raw"
    call: dict = field(default_factory=dict)
    baseline: bool = False
    decoder: str = ""
    reference: str = ""
    options: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        return asdict(self) | {"settings": self.settings.to_json()}

    @classmethod
    def from_json(cls, given: dict) -> Recipe:
        model = Model(**given["model"] | {"lora": tuple(given["model"]["lora"])})
        return cls(**given | {"model": model, "settings": settings_from_json(given["settings"])})


def others_of(model: Model) -> dict:
    """Rewards beside the catalogue's: the tiny world has two of its own."""
    if model.name not in TINY:
        return {}
    from ..world.rewards import WORLD_REWARDS

    return WORLD_REWARDS


def check(recipe: Recipe, machine: Machine, folders: Sequence[Path], jobs: Sequence[Job]) -> None:
    """Raise for what can be known to be wrong before anything is loaded."""
    family = check_model(recipe.model, machine)
    arguments_of(PIPELINES[family], recipe.call)
    own = [name for name in recipe.call if name in OWN_ARGUMENTS or "callback" in name]
    if own:
        raise ValueError(
            f"expected arguments that a job does not set itself, got {', '.join(own)}; use the "
            "options for them, or leave them out"
        )
    if recipe.decoder:
        check_decoder(recipe.decoder)
    others = others_of(recipe.model)
    check_mix(recipe.rewards, folders, others)
    if recipe.reference:
        check_image_file(Path(recipe.reference))
    for name in recipe.rewards:
        if name not in others and entry(name).needs_reference and not recipe.reference:
            raise ValueError(f"expected --reference for {name}, got none; name an image file")
        if name in others:
            others[name]().check([job.prompt for job in jobs])


class Worker:
    """A pipeline and its rewards, loaded, that makes images."""

    def __init__(self, recipe: Recipe, machine: Machine, folders: Sequence[Path] | None = None):
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
            "versions": {
                "flow_ttrl": VERSION,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "device": self.device.type,
            },
        }
        if recipe.baseline:  # first, so that the searched image means that all is there
            write_image(plain_path(folder, job), found.plain[0], made | {"plain": True})
        write_image(image_path(folder, job), found.images[0], made)
        return row(folder, job, made) | {"seconds": round(time.monotonic() - began, 3)}


def _untimed(report: dict) -> dict:
    """Without what differs from run to run, so that the same image is the same file."""
    steps = [
        {name: value for name, value in step.items() if name != "seconds"}
        for step in report["search_steps"]
    ]
    kept = {name: value for name, value in report.items() if name != "seconds"}
    return kept | {"search_steps": steps}


def image_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.png"


def plain_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}_plain.png"


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
    if not path.exists():
        return None
    made = read_made(path)
    wanted = {"recipe": recipe.to_json(), "job": job.to_json()}
    found = {name: made.get(name) for name in wanted}
    if found != jsonable(wanted):
        raise ValueError(
            f"expected {path} to be missing or of this very run, got one of other settings or "
            "another prompt; name another folder, or move it away"
        )
    return row(folder, job, made, skipped=True)


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
    worker = Worker(recipe, machine, folders)
    worker.reward.check([job.prompt for job in jobs])
    for number, job in enumerate(jobs, 1):
        worker.pipe.set_progress_bar_config(desc=f"image {number} of {len(jobs)}", leave=False)
        yield worker.make(job, folder)


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
    todo, rows = without_finished(jobs, folder, recipe)
    pixels = max(job.size[0] * job.size[1] if job.size else USUAL_PIXELS for job in jobs)
    prepare_folder(folder, len(todo) * (1 + recipe.baseline), pixels)
    with tqdm(total=len(jobs), initial=len(rows), unit="image", disable=len(jobs) == 1) as bar:
        for made in engine(recipe, machine, folders, todo, folder) if todo else ():
            rows.append(made)
            bar.update()
    order = {job.name: number for number, job in enumerate(jobs)}
    return sorted(rows, key=lambda row: order[row["name"]])


def from_image(path: Path) -> tuple[Recipe, Job]:
    """The recipe and the job of an image that was made here before."""
    made = read_made(path)
    try:
        return Recipe.from_json(made["recipe"]), Job.from_json(made["job"])
    except (KeyError, TypeError) as error:
        version = made.get("versions", {}).get("flow_ttrl")
        raise ValueError(
            f"expected an image made by version {VERSION}, got {path}, by {version} ({error}); "
            "make it with that version"
        ) from None
