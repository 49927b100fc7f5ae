"""Rewards by name, and mixes of them ("imagereward=1.0,hps=0.5", or JSON of it), loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .base import Reward
from .catalogue import PREPROCESS, Options, entry
from .checkpoints import weights_file
from .files import default_folders, given_path, program, shell_word
from .mixer import MODES, RewardMix, check_weights
from .networks import Place, on_device

Makers = Mapping[str, Callable[[], Reward]]
"""Rewards that are in no catalogue, by name, and what makes them."""


def check_files(name: str, folders: Sequence[Path], path: str | Path | None = None) -> list[Path]:
    """The paths of a reward's files.

    Args:
        path: stands for the first file: a checkpoint or a Hugging Face folder anywhere.

    Raises:
        FileNotFoundError: each file that is missing, with folder, size, licence and source.
        ValueError: a path for a reward that has no file.
    """
    found = entry(name)
    if path and str(path).strip() and not found.files:
        raise ValueError(f"expected no path for {name!r}, which has no files, got {path}; clear it")
    own = [given_path(path)] if path and str(path).strip() else []
    if own and not own[0].exists():
        raise FileNotFoundError(f"expected a file or folder at {own[0]}, got none; mend the path")
    beside = [*folders, *(p if p.is_dir() else p.parent for p in own)]
    others = found.files[len(own) :]
    absent = [file for file in others if file.find(beside) is None]
    if absent:
        raise FileNotFoundError(
            f"{name}: expected {'; and '.join(file.lacking(folders) for file in absent)}; got no "
            f"such file in {' or '.join(str(folder) for folder in folders)}. Put it there, or run: "
            f"{program()} rewards --download {name} --models {shell_word(folders[0])}"
        )
    return own + [file.find(beside) for file in others]


def load_reward(
    name: str,
    *,
    folders: Sequence[Path] | None = None,
    path: str | Path | None = None,
    place: Place | None = None,
    preprocess: str = "official",
    reference: Tensor | None = None,
    text: str = "",
    engine: str = "auto",
    questions: str = "",
    combine: str = "mean",
    split_prompt: bool = False,
    side: int = 1024,
) -> Reward:
    """A reward of the catalogue, ready to score.

    Args:
        folders: models folders, first come first; :func:`default_folders` by default.
        path: instead of the first of the reward's files.
        place: where its networks run; by default on an accelerator where there is one.
        preprocess, reference and what follows: as in :class:`Options`.

    Raises:
        FileNotFoundError: files that are missing.
        ImportError: a package that is missing.
        ValueError: a wrong name or option, or a file that is damaged or of another model.
    """
    found = entry(name)
    if preprocess not in PREPROCESS:
        raise ValueError(f"expected preprocess {' or '.join(PREPROCESS)}, got {preprocess!r}")
    if found.needs_reference and reference is None:
        raise ValueError(
            f"expected a reference image for {name!r}, got none; wire or give the image that "
            "others are compared with"
        )
    paths = check_files(name, default_folders() if folders is None else folders, path)
    for file, found_path in zip(found.files, paths, strict=True):
        file.check_twin(found_path)
    options = Options(
        place=place or on_device(),
        preprocess=preprocess,
        reference=reference,
        text=text,
        engine=engine,
        questions=questions,
        combine=combine,
        split_prompt=split_prompt,
        side=side,
    )
    loaded = found.load(paths, options)
    beside = zip(found.files, paths, strict=True)
    if notes := tuple(told for file, path in beside if (told := file.doubt(weights_file(path)))):
        loaded.notes = notes
    return loaded


def weights_of(text: str, others: Makers | None = None) -> dict[str, float]:
    """Turns "imagereward=0.5,hps" into {"imagereward": 0.5, "hps": 1.0}; JSON of it stays that.

    Raises:
        ValueError: an unknown name, one that comes twice, or a weight that is no number.
    """
    weights: dict[str, float] = {}
    for name, weight in _pairs(text):
        if name not in (others or {}):
            entry(name)
        if name in weights:
            raise ValueError(f"expected each reward once, got {name!r} twice; add up its weights")
        try:
            weights[name] = float(1 if weight == "" else weight)
        except (TypeError, ValueError):
            raise ValueError(
                f"expected a number as the weight of {name}, got {weight!r}; write {name}=1.0"
            ) from None
    return weights


def _pairs(text: str) -> list[tuple[str, object]]:
    if not text.strip().startswith("{"):
        parts = (part.strip().partition("=") for part in text.split(","))
        return [(name, weight) for name, _, weight in parts]
    try:
        return list(json.loads(text).items())
    except ValueError as error:
        raise ValueError(f'expected JSON such as {{"hps": 1.0}}, got {error}') from None


def check_mix(
    weights: Mapping[str, float], folders: Sequence[Path], others: Makers | None = None
) -> None:
    """Raise unless these weights make a mix whose files are there, before any is loaded."""
    check_weights(weights)
    for name in weights:
        if name not in (others or {}):
            check_files(name, folders)


def load_mix(
    weights: Mapping[str, float] | str,
    mode: str = MODES[0],
    *,
    folders: Sequence[Path] | None = None,
    others: Makers | None = None,
    **options,
) -> RewardMix:
    """The mix of rewards by name, ready to judge.

    Args:
        weights: by name, or as text; see :func:`weights_of`.
        mode: as in :class:`RewardMix`.
        folders: of models; :func:`default_folders` by default.
        others: rewards beside the catalogue's.
        options: of every reward; see :func:`load_reward`.

    Raises:
        FileNotFoundError, ImportError, ValueError: as :func:`load_reward`, before any is loaded
            where it can be known.
    """
    weights = weights_of(weights, others) if isinstance(weights, str) else dict(weights)
    folders = default_folders() if folders is None else folders
    check_mix(weights, folders, others)
    parts = []
    for name, weight in weights.items():
        own = (others or {}).get(name)
        parts.append((own() if own else load_reward(name, folders=folders, **options), weight))
    return RewardMix(tuple(parts), mode)
