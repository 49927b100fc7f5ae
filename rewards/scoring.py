"""Image files to scores: a file that cannot be judged loses nothing of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .base import Scores
from .image_files import check_image_file, read_image
from .mixer import RewardMix

_ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
"""What may go wrong with one file, a lack of memory for it included."""


def score_files(
    paths: Sequence[Path], prompts: Sequence[str], load: Callable[[], RewardMix]
) -> dict:
    """Scores of image files, one after the other, compared with each other.

    Args:
        prompts: one, or as many as there are paths.
        load: the rewards; called once a file is seen to be an image.

    Returns:
        A JSON object: ``images`` (``image``, ``prompt``, ``total`` and each reward by name of
        every file that was read), ``ranking`` (places in ``images``, best first), ``reward``, and
        ``failed`` (``image`` and ``error`` of every file that some reward has no score for).

    Raises:
        ValueError: rewards that do not load, or a prompt that one cannot judge.
    """
    errors: dict[int, str] = {}
    for number, path in enumerate(paths):
        _try(errors, number, check_image_file, path)
    answer = {"images": [], "ranking": [], "reward": None}
    if len(errors) < len(paths):
        answer = _judged(paths, list(prompts), load(), errors)
    failed = [{"image": str(paths[n]), "error": error} for n, error in sorted(errors.items())]
    return answer | {"failed": failed}


def _judged(
    paths: Sequence[Path], prompts: list[str], mix: RewardMix, errors: dict[int, str]
) -> dict:
    judge = mix.judge(prompts, patience=len(paths))
    found: dict[int, dict[str, torch.Tensor]] = {}

    def judged(number: int) -> dict[str, torch.Tensor]:
        return judge.score(read_image(paths[number]), torch.tensor([number]))

    with torch.inference_mode():
        for number in range(len(paths)):
            if number not in errors and (values := _try(errors, number, judged, number)):
                found[number] = values
                lost = [name for name in mix.names if not values[name].isfinite().all()]
                if lost:
                    error = judge.failures[lost[0]]["error"]
                    errors[number] = f"{paths[number]}: no score by {', '.join(lost)} ({error})"
    report = judge.report()
    if not found:
        return {"images": [], "ranking": [], "reward": report}
    names = next(iter(found.values()))
    columns = {n: torch.stack([values[n].cpu() for values in found.values()]) for n in names}
    totals = mix.totals(columns)[:, 0]
    rows = [
        {
            "image": str(paths[number]),
            "prompt": prompts[number % len(prompts)],
            "total": totals[row].item(),
            **{name: column[row, 0].item() for name, column in columns.items()},
        }
        for row, number in enumerate(found)
    ]
    return {"images": rows, "ranking": Scores(totals).ranking, "reward": report}


def _try(errors: dict[int, str], number: int, function: Callable, *given):
    """``function(*given)``; None where it raises, and why under ``number``, on one line."""
    try:
        return function(*given)
    except _ERRORS as error:
        errors[number] = " ".join(str(error).split()) or type(error).__name__
        return None
