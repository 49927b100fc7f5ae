"""What images are made by, apart from their jobs, and what can be known to be wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import diffusers

from ..rewards.catalogue import entry
from ..rewards.image_files import check_image_file
from ..rewards.loading import check_mix
from ..sampling import SearchSettings, settings_from_json
from ..sampling.hosts.diffusers_call import arguments_of
from .jobs import Job, check_apart, image_path, plain_path
from .models import (
    FAMILIES,
    TINY,
    Machine,
    Model,
    check_decoder,
    check_machine,
    check_model,
    longest_side,
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
LISTS = ("sigmas", "skip_guidance_layers")
"""Of its other arguments those that are lists of numbers."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made by, apart from its job; every image carries it.

    Attributes:
        rewards: weights by name; ``mode``: how they are mixed.
        call: arguments of the pipeline's call, besides the job's.
        baseline: the plain image, too.
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
        kept = {name: dict(given[name]) for name in ("rewards", "call", "options")}
        settings = settings_from_json(given["settings"])
        return cls(**given | kept | {"model": model, "settings": settings})


def others_of(model: Model) -> dict:
    """Rewards beside the catalogue's: the tiny world has two of its own."""
    if model.name not in TINY:
        return {}
    from ..world.rewards import WORLD_REWARDS

    return WORLD_REWARDS


def check(
    recipe: Recipe,
    machine: Machine,
    folders: Sequence[Path],
    jobs: Sequence[Job],
    *,
    elsewhere: bool = False,
) -> None:
    """Raise for what can be known to be wrong before anything is loaded.

    Args:
        elsewhere: it runs on other machines, whose devices are not this one's.
    """
    family = check_model(recipe.model)
    if not elsewhere:
        check_machine(recipe.model, machine)
    _check_call(recipe, family)
    _check_jobs(recipe, family, jobs)
    _check_sizes(recipe, jobs)
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


def _check_call(recipe: Recipe, family: str) -> None:
    usual = arguments_of(PIPELINES[family], {})
    arguments_of(PIPELINES[family], recipe.call)
    own = [name for name in recipe.call if name in OWN_ARGUMENTS or "callback" in name]
    if own:
        raise ValueError(
            f"expected arguments that a job does not set itself, got {', '.join(own)}; use the "
            "options for them, or leave them out"
        )
    for name, value in recipe.call.items():
        wanted = _wanted(name, usual[name], value)
        if wanted:
            raise ValueError(
                f"expected {name} of the pipeline's call to be {wanted}, got {value!r}"
            )


def _wanted(name: str, usual, value) -> str:
    """What an argument of the pipeline's call has to be, in words, where ``value`` is not that."""
    if value is None and usual is None:
        return ""
    if name in LISTS:
        right = isinstance(value, list) and value and all(_is_number(one) for one in value)
        return "" if right else "a list of numbers"
    if name.endswith("_kwargs"):
        return "" if isinstance(value, dict) else "a JSON object"
    if isinstance(usual, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(usual, int) or name == "clip_skip":
        least = 0 if usual is None else 1
        right = _is_number(value) and isinstance(value, int) and value >= least
        return "" if right else f"a whole number from {least}, such as {usual or 1}"
    if isinstance(usual, float) or name == "mu":
        return "" if _is_number(value) else f"a number, such as {usual or 1.0}"
    return ""


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_sizes(recipe: Recipe, jobs: Sequence[Job]) -> None:
    most = longest_side(recipe.model.name)
    for job in jobs:
        if most and job.size and max(job.size) > most:
            raise ValueError(
                f"expected sides of at most {most} pixels, which is as far as {recipe.model.name} "
                f"counts, got {job.size[0]}x{job.size[1]} for {job.name}; name a smaller size"
            )


def _check_jobs(recipe: Recipe, family: str, jobs: Sequence[Job]) -> None:
    kinds = (image_path, plain_path) if recipe.baseline else (image_path,)
    check_apart(kind(Path(), job).with_suffix("").as_posix() for job in jobs for kind in kinds)
    unheard = [job.name for job in jobs if job.negative]
    if family == "flux" and unheard and recipe.call.get("true_cfg_scale", 1) <= 1:
        raise ValueError(
            f"expected true_cfg_scale above 1 for the negative prompt of {unheard[0]}, which FLUX "
            "heeds by it alone; give --call '{\"true_cfg_scale\": 3}', or no negative prompt"
        )
