"""Mixes by name: "imagereward=1.0,hps=0.5", or the paper's score_dict as JSON, to a reward mix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .base import Reward
from .catalogue import check_files, entry, load_reward
from .files import default_folders
from .mixer import MODES, RewardMix

Makers = Mapping[str, Callable[[], Reward]]
"""Rewards that are in no catalogue, by name, and what makes them."""


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
    """Raise unless the files of every reward are there, before any is loaded."""
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
