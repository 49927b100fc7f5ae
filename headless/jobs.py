"""What is to be made: one job an image, of a prompt or of a file of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

STEP = 16
"""Sides of SD3's and FLUX's images are multiples of this many pixels."""
KEYS = ("prompt", "negative", "seed", "size", "name")
"""What a line of JSON may say."""


@dataclass(frozen=True)
class Job:
    """An image to be made.

    Attributes:
        name: of its file, without ending.
        size: width and height in pixels; None is the model's own.
    """

    name: str
    prompt: str
    seed: int
    negative: str | None = None
    size: tuple[int, int] | None = None

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict) -> Job:
        known = {field.name: given[field.name] for field in fields(cls)}
        return cls(**known | {"size": tuple(known["size"]) if known["size"] else None})

    def call(self) -> dict:
        """As arguments of a pipeline's call."""
        asked: dict = {"prompt": self.prompt}
        if self.negative is not None:
            asked["negative_prompt"] = self.negative
        if self.size is not None:
            asked |= {"width": self.size[0], "height": self.size[1]}
        return asked


def parse_size(text: str) -> tuple[int, int]:
    """Turns "1024x768" into (1024, 768).

    Raises:
        ValueError: no size, or sides that are no multiples of :data:`STEP`.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", str(text).strip().lower())
    size = tuple(int(side) for side in found.groups()) if found else (0,)
    if not all(side and side % STEP == 0 for side in size):
        raise ValueError(
            f"expected a size of width x height, both divisible by {STEP}, such as 1024x768, got "
            f"{text!r}"
        )
    return size


def jobs_of(
    prompts: Sequence[str], usual: Job, images: int = 1, file: Path | None = None
) -> list[Job]:
    """A job for every image of ``prompts`` and of the prompts in ``file``.

    Args:
        usual: what a prompt has that says nothing else; its name and prompt do not matter.
        images: of every prompt, from seeds that follow each other.

    Raises:
        OSError, ValueError: a file that cannot be read, a line that is wrong, a name twice.
    """
    asked = [replace(usual, name="", prompt=prompt) for prompt in prompts]
    if file is not None:
        asked += _of_file(file, usual)
    if not asked:
        raise ValueError("expected at least one prompt, got none; give --prompt or --prompts FILE")
    jobs = []
    for number, one in enumerate(asked):
        for image in range(images):
            name = one.name or f"{number:05d}"
            name = f"{name}_{one.seed + image}" if images > 1 or not one.name else name
            jobs.append(replace(one, name=name, seed=one.seed + image))
    names = [job.name for job in jobs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"expected every image to have a file of its own, got {twice[0]}.png twice; change a "
            "name"
        )
    return jobs


def _of_file(file: Path, usual: Job) -> list[Job]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8 in {file}, got {error}") from None
    except OSError as error:
        raise OSError(f"expected a file of prompts at {file}, got {error.strerror}") from None
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            jobs.append(_of_line(line.strip(), usual))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
    return jobs


def _of_line(line: str, usual: Job) -> Job:
    if not line.startswith("{"):
        return replace(usual, name="", prompt=line)
    try:
        given = json.loads(line)
    except ValueError as error:
        raise ValueError(f"expected a JSON object, got {error}") from None
    strange = [key for key in given if key not in KEYS]
    if strange or not isinstance(given.get("prompt"), str):
        got = ", ".join(strange) or "no prompt"
        raise ValueError(f"expected {', '.join(KEYS)}, the prompt at least; got {got}")
    seed, name = given.get("seed", usual.seed), given.get("name", "")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"expected seed to be a whole number from 0, got {seed!r}")
    if not re.fullmatch(r"[\w .+-]*", name) or name.startswith("."):
        raise ValueError(f"expected a name of letters, digits, spaces and ._+-, got {name!r}")
    size = parse_size(given["size"]) if given.get("size") else usual.size
    negative = given.get("negative", usual.negative)
    return Job(name, given["prompt"], seed, negative, size)
