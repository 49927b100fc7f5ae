"""What is to be made: one job an image, of a prompt or of a file of them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

STEP = 16
"""Sides of SD3's and FLUX's images are multiples of this many pixels."""
KEYS = ("prompt", "negative", "seed", "size", "name")
"""What a line of JSON may say."""
SEEDS = 2**64
"""A seed is below it, as torch's are."""
_NAME_BYTES = 200
"""Of a file's name, which a disk has 255 for, with its ending and what is added to it."""


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

    def __post_init__(self) -> None:
        """Raise ValueError for what no image can be made of, before the first one is."""
        for name in ("prompt", "negative"):
            text = getattr(self, name)
            if not isinstance(text, str) and not (name == "negative" and text is None):
                raise ValueError(f"expected {name} to be a text, got {text!r}")
        check_seed(self.seed)
        if self.size is not None:
            check_size(self.size)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict) -> Job:
        """Of what an image says of itself, which may be anybody's.

        Raises:
            KeyError, TypeError, ValueError: it is no job, or one whose name leads elsewhere.
        """
        known = {field.name: given[field.name] for field in fields(cls)}
        name = known["name"]
        for part in name.split("/") if isinstance(name, str) else [name]:
            check_name(part)
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
    size = tuple(int(side) for side in found.groups()) if found else text
    check_size(size)
    return size


def check_size(size) -> None:
    """Raise ValueError for what is no width and height in pixels."""
    pair = isinstance(size, tuple) and len(size) == 2
    if not pair or not all(isinstance(s, int) and s > 0 and s % STEP == 0 for s in size):
        got = "x".join(str(side) for side in size) if pair else repr(size)
        raise ValueError(
            f"expected a size of width x height, both divisible by {STEP}, such as 1024x768, got "
            f"{got}"
        )


def check_seed(seed) -> int:
    """``seed``; raises ValueError for what torch takes as none."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
        raise ValueError(f"expected seed to be a whole number from 0, below 2^64, got {seed!r}")
    return seed


def check_name(name) -> None:
    """Raise ValueError for what is no name of a file, without its ending, in a folder."""
    # marks, which \w does not know, are parts of letters: of composed ones, and in Indic scripts
    text = name if isinstance(name, str) else ""
    letters = "".join(character for character in text if not _is_mark(character))
    if not re.fullmatch(r"[\w+-][\w .+-]*", letters):
        raise ValueError(f"expected a name of letters, digits, spaces and ._+-, got {name!r}")
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE):
        raise ValueError(f"expected a name that Windows has for files, too, got {name!r}")
    if len(name.encode()) > _NAME_BYTES:
        raise ValueError(f"expected a name of at most {_NAME_BYTES} bytes, got {name!r}")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def check_apart(names: Iterable[str]) -> None:
    """Raise ValueError where two files, by their names without ending, would be the same."""
    # as some disks tell them apart
    count = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    twice = next((name for name, times in count.items() if times > 1), None)
    if twice is not None:
        raise ValueError(
            f"expected every image to have a file of its own, got {twice}.png twice; change a name"
        )


def jobs_of(
    prompts: Sequence[str], usual: Job, images: int = 1, file: Path | None = None
) -> list[Job]:
    """A job for every image of ``prompts`` and of the prompts in ``file``.

    Args:
        usual: what a prompt has that says nothing else; its name and prompt do not matter.
        images: of every prompt, from seeds that follow each other.

    Raises:
        OSError, ValueError: a file that cannot be read, or a line that is wrong.
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
    return jobs


def image_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.png"


def plain_path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}_plain.png"


def _of_file(file: Path, usual: Job) -> list[Job]:
    try:
        lines = read_lines(file)
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


def read_lines(file: Path) -> list[str]:
    """Lines of a text file; what Unicode calls an end of line besides is a part of one.

    Raises:
        OSError, ValueError: it cannot be read, or is not in UTF-8.
    """
    try:
        return file.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8 in {file}, got {error}") from None


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
    if "name" in given:
        check_name(given["name"])
    size = usual.size if given.get("size") is None else parse_size(given["size"])
    asked = {name: given[name] for name in ("prompt", "negative", "seed") if name in given}
    return replace(usual, name=given.get("name", ""), size=size, **asked)
