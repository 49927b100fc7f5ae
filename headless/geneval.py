"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): its prompts, and what its evaluator reads.

A folder a method, and in it one a prompt: ``00000/metadata.jsonl`` and ``00000/samples/0000.png``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .jobs import Job, read_lines

TEXTS = ("tag", "prompt")
"""What every line of its metadata says."""
RESULTS = "results.jsonl"
"""What its evaluator is told to write into a method's folder."""


def read_metadata(path: Path) -> list[dict]:
    """The prompts with what each asks for.

    Raises:
        OSError, ValueError: a file that cannot be read, or is not GenEval's.
    """
    try:
        lines = read_lines(path)
    except OSError as error:
        raise OSError(
            f"expected GenEval's evaluation_metadata.jsonl at {path}, got {error.strerror}"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected JSON, got {error}") from None
        if not isinstance(one, dict) or not all(isinstance(one.get(k), str) for k in TEXTS):
            raise ValueError(f"{path}, line {number}: expected tag, prompt and include")
        found.append(one)
    if not found:
        raise ValueError(f"expected at least one prompt in {path}, got none")
    return found


def geneval_jobs(
    prompts: Sequence[dict], images: int, seed: int, size: tuple[int, int] | None = None
) -> list[Job]:
    """``images`` of each prompt, from seeds that follow each other."""
    return [
        Job(f"{number:05d}/samples/{image:04d}", one["prompt"], seed + image, size=size)
        for number, one in enumerate(prompts)
        for image in range(images)
    ]


def check_folder(folder: Path, prompts: Sequence[dict], images: int) -> None:
    """Raise ValueError where a method's folder holds more than these, which would be judged, too.

    So does one of a longer run; of a shorter one it holds a part.
    """
    for sample in folder.glob("[0-9]*/samples/*.png"):
        number, image = sample.parents[1].name, sample.stem
        if not (number.isdigit() and image.isdigit()):
            continue  # none of the evaluator's names
        if int(number) >= len(prompts) or int(image) >= images:
            raise ValueError(
                f"expected {folder} to hold no image but of these {len(prompts)} prompts, "
                f"{images} of each, got {sample}; name another --out, or move it away"
            )


def write_metadata(folder: Path, prompts: Sequence[dict]) -> None:
    """Each prompt's own line beside its samples."""
    for number, one in enumerate(prompts):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        (place / "metadata.jsonl").write_text(json.dumps(one), "utf-8")


def verdicts(folder: Path, images: int) -> dict[str, float] | None:
    """Share of right images by tag, and their mean as ``overall``.

    None before the evaluator ran on these ``images``: results of fewer are of an earlier run.

    Raises:
        ValueError: results that are not the evaluator's.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    by_tag: dict[str, list[bool]] = defaultdict(list)
    try:
        for line in filter(str.strip, read_lines(path)):
            one = json.loads(line)
            by_tag[one["tag"]].append(bool(one["correct"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected the evaluator's results in {path}, got {error!r}") from None
    if sum(len(right) for right in by_tag.values()) != images:
        return None
    shares = {tag: sum(right) / len(right) for tag, right in by_tag.items()}
    return shares | {"overall": sum(shares.values()) / len(shares)}
