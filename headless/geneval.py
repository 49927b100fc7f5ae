"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): its prompts, and what its evaluator reads.

A folder a method, and in it one a prompt: ``00000/metadata.jsonl`` and ``00000/samples/0000.png``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .jobs import Job

RESULTS = "results.jsonl"
"""What its evaluator is told to write into a method's folder."""


def read_metadata(path: Path) -> list[dict]:
    """The prompts with what each asks for.

    Raises:
        OSError, ValueError: a file that cannot be read, or is not GenEval's.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8 in {path}, got {error}") from None
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
        if not isinstance(one, dict) or not {"tag", "prompt"} <= one.keys():
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


def write_metadata(folder: Path, prompts: Sequence[dict]) -> None:
    """Each prompt's own line beside its samples."""
    for number, one in enumerate(prompts):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        (place / "metadata.jsonl").write_text(json.dumps(one), "utf-8")


def verdicts(folder: Path) -> dict[str, float] | None:
    """Share of right images by tag, and their mean as ``overall``; None before the evaluator ran.

    Raises:
        ValueError: results that are not the evaluator's.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    by_tag: dict[str, list[bool]] = defaultdict(list)
    try:
        for line in path.read_text("utf-8").splitlines():
            one = json.loads(line)
            by_tag[one["tag"]].append(bool(one["correct"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected the evaluator's results in {path}, got {error!r}") from None
    if not by_tag:
        return None
    shares = {tag: sum(right) / len(right) for tag, right in by_tag.items()}
    return shares | {"overall": sum(shares.values()) / len(shares)}
