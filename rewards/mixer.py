"""Several rewards as one: the paper's score_dict."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Reward, Scores, check_images, check_prompts
from .faults import attempt, attempt_each, not_finite
from .networks import Network, sharing

log = logging.getLogger("flow_ttrl")

MODES = ("raw", "standardised", "rank")
_FLAT = 1e-6
"""A spread below this share of the mean is rounding."""


@dataclass(frozen=True)
class RewardMix:
    """Rewards and weights; each value is kept by name beside the total.

    Attributes:
        parts: (reward, weight); a reward with weight 0 is measured but does not drive.
        mode: what a total adds up, each times its weight:
            ``raw``: the rewards as they are (the paper's weighted sum);
            ``standardised``: each reward's distance from its mean over what it is compared with, in
            units of its spread there, so that weights mean the same for every reward;
            ``rank``: the share of what it is compared with that an image beats, ties by half, 0..1.
    """

    parts: tuple[tuple[Reward, float], ...]
    mode: str = "raw"

    def __post_init__(self):
        names = self.names
        if self.mode not in MODES:
            raise ValueError(f"expected mode {' or '.join(MODES)}, got {self.mode!r}; choose one")
        check_weights(dict(zip(names, (weight for _, weight in self.parts), strict=True)))

    @property
    def names(self) -> list[str]:
        """A name for each part: the reward's own, with a number where there are several of it."""
        own, found = [reward.name for reward, _ in self.parts], []
        for number, name in enumerate(own):
            before = own[:number].count(name)
            found.append(f"{name}_{before + 1}" if before else name)
        return found

    @property
    def notes(self) -> list[str]:
        """What has to be said beside the scores, by the reward's name."""
        named = zip(self.names, self.parts, strict=True)
        return [f"{name}: {note}" for name, (reward, _) in named for note in reward.notes]

    @property
    def needs_prompt(self) -> bool:
        """Whether a reward that drives judges by the prompt."""
        return any(reward.needs_prompt for reward, weight in self.parts if weight)

    @property
    def patchers(self) -> list:
        """Model patchers, under ComfyUI, of what scoring images has to have on the device."""
        return _patchers(network for reward, _ in self.parts for network in reward.networks)

    @property
    def working_memory(self) -> int:
        """Bytes that scoring images takes at most, beside what has to be on the device."""
        return max((n.working_memory for r, _ in self.parts for n in r.networks), default=0)

    def get_models(self) -> list:
        """All of the rewards' model patchers; ComfyUI's cache asks for them by this name."""
        return _patchers(self._networks())

    def rest(self) -> None:
        """Let all networks leave their devices until they are called again, where they are to."""
        for network in self._networks():
            network.rest()

    def check_differentiable(self) -> None:
        """Raise ValueError unless the total of one image has a gradient."""
        if self.mode != "raw":
            raise ValueError(
                f"expected rewards mixed by mode 'raw', got {self.mode!r}, which compares "
                "images and gives one alone no gradient; take 'raw' or choose another strategy"
            )
        without = [r.name for r, weight in self.parts if weight and not r.differentiable]
        if without:
            raise ValueError(
                f"expected rewards that have a gradient, got {', '.join(without)}; leave them out "
                "or choose another strategy"
            )

    def _networks(self) -> list[Network]:
        rewards = [reward for reward, _ in self.parts]
        return [n for reward in rewards for n in (*reward.networks, *reward.text_networks)]

    def check(self, prompts: list[str]) -> None:
        """Raise ValueError for a prompt that a reward of the mix cannot judge. Runs no model."""
        check_prompts(prompts)
        for reward, _ in self.parts:
            reward.check(prompts)

    def judge(self, prompts: list[str], patience: int = 0) -> Judge:
        """This mix at work on ``prompts`` for a whole run; see :class:`Judge`."""
        return Judge(self, prompts, patience)

    def score(self, images: Tensor, prompts: list[str]) -> Scores:
        """Scores of ``images`` [B, H, W, 3] in 0..1, as by a :class:`Judge` of ``prompts``."""
        values = self.judge(prompts).score(images)
        columns = {name: value[:, None] for name, value in values.items()}
        return Scores(self.totals(columns)[:, 0], values)

    def totals(self, values: dict[str, Tensor], seen: dict[str, Tensor] | None = None) -> Tensor:
        """Totals [K, B] of images with these values [K, B], comparable within a column.

        A reward that has no finite value for an image counts there as average over what the
        image is compared with; an image that no reward could judge gets NaN.

        Args:
            seen: values [M, B] of all that the images are compared with, themselves included;
                by default themselves alone.
        """
        unit = {"raw": _raw, "standardised": _standardised, "rank": _rank}[self.mode]
        terms, known = [], []
        for name, (_, weight) in zip(self.names, self.parts, strict=True):
            if weight:
                value = values[name]
                terms.append(weight * unit(value, value if seen is None else seen[name]))
                known.append(value.isfinite())
        return torch.stack(terms).sum(0).where(torch.stack(known).any(0), torch.nan)


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError for weights that make no mix: none but 0, or one that is no number."""
    if not any(weights.values()):
        names = list(weights) or "none"
        raise ValueError(
            f"expected at least one reward with a weight other than 0, got {names}; set a weight"
        )
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"expected a finite weight for {name!r}, got {weight}; set a number")


def _patchers(networks: Iterable[Network]) -> list:
    return [n.patcher for n in dict.fromkeys(networks) if hasattr(n, "patcher")]


def _mean(values: Tensor) -> Tensor:
    """Mean [B] of the finite ones of ``values`` [M, B]; 0 where there is none."""
    finite = values.isfinite()
    return values.where(finite, 0).sum(0) / finite.sum(0).clamp(min=1)


def _raw(values: Tensor, seen: Tensor) -> Tensor:
    return values.where(values.isfinite(), _mean(seen))


def _standardised(values: Tensor, seen: Tensor) -> Tensor:
    mean = _mean(seen)
    spread = _mean((seen - mean) ** 2).sqrt()
    flat = spread <= _FLAT * mean.abs().clamp(min=_FLAT)
    distance = ((values - mean) / spread.where(~flat, 1)).where(~flat, 0)
    return distance.where(values.isfinite(), 0)


def _rank(values: Tensor, seen: Tensor) -> Tensor:
    finite = seen.isfinite()
    others = finite.sum(0) - 1
    below = ((seen[None] < values[:, None]) & finite).sum(1)
    level = ((seen[None] == values[:, None]) & finite).sum(1) - 1
    rank = (below + 0.5 * level) / others.clamp(min=1)
    return rank.where(values.isfinite() & (others > 0), 0.5).to(values.dtype)


class Judge:
    """A mix at work on the prompts of one run.

    Whatever depends on the prompts alone is done once, here: they are checked, a part that does not
    fit a model is warned of, and text features are computed. A reward that fails on an image, or
    gives a score that is not finite, has no value there and is named in the report. What is not of
    that image ends the run with its error: a fault of device or program, or a reward that no longer
    judges the first image that it judged.

    Args:
        prompts: one per image, or fewer that are used again and again (image b gets prompt b modulo
            their number).
        patience: images that a reward with a weight may fail on before it has ever worked; on one
            more, the run ends with its error.

    Raises:
        ValueError: a prompt that a reward cannot judge.
    """

    def __init__(self, mix: RewardMix, prompts: list[str], patience: int = 0):
        if not prompts:
            raise ValueError("expected at least one prompt, got none; an empty one will do")
        mix.check(prompts)
        for reward, weight in mix.parts:
            if weight and reward.needs_prompt and not all(prompt.strip() for prompt in prompts):
                log.warning("%s judges by the prompt, and there is an empty one", reward.name)
            reward.prepare(prompts)
        mix.rest()
        self.mix, self.prompts, self.patience = mix, prompts, patience
        named = zip(mix.names, mix.parts, strict=True)
        self.columns = {
            name: [name, *(f"{name}: {part}" for part in reward.parts(prompts))]
            for name, (reward, _) in named
        }
        self.failures: dict[str, dict] = {}
        self._proven: dict[str, tuple[Tensor, list[str]]] = {}

    def score(self, images: Tensor, item: Tensor | None = None) -> dict[str, Tensor]:
        """Rewards [N] by name of ``images`` [N, H, W, 3] in 0..1; a reward's parts after it.

        Args:
            item: which of the run's items each image belongs to [N], and so which prompt is its
                own; by default the images are the items.
        """
        check_images(images)
        numbers = range(len(images)) if item is None else item.tolist()
        asked = [self.prompts[number % len(self.prompts)] for number in numbers]
        with sharing():
            tables = [
                (self.columns[name], self._values(name, reward, weight, images, asked))
                for name, (reward, weight) in zip(self.mix.names, self.mix.parts, strict=True)
            ]
        if not any(table.requires_grad for _, table in tables):  # it goes through the networks
            self.mix.rest()
        return {
            name: column
            for names, table in tables
            for name, column in zip(names, table.unbind(1), strict=True)
        }

    def totals(self, values: dict[str, Tensor], seen: dict[str, Tensor]) -> Tensor:
        """See :meth:`RewardMix.totals`."""
        return self.mix.totals(values, seen)

    def check_differentiable(self) -> None:
        """See :meth:`RewardMix.check_differentiable`."""
        self.mix.check_differentiable()

    def report(self) -> dict:
        """Weights, mode, how rewards judge, what failed and notes where there are any.

        As a JSON object.
        """
        named = dict(zip(self.mix.names, self.mix.parts, strict=True))
        details = {name: reward.describe(self.prompts) for name, (reward, _) in named.items()}
        report = {
            "mode": self.mix.mode,
            "weights": {name: weight for name, (_, weight) in named.items()},
            "prompts": self.prompts,
            "details": {name: told for name, told in details.items() if told},
            "failures": self.failures,
        }
        return report | ({"notes": self.mix.notes} if self.mix.notes else {})

    def begin(self) -> None:
        """Forget what failed in an earlier run."""
        self.failures, self._proven = {}, {}

    def _values(
        self, name: str, reward: Reward, weight: float, images: Tensor, prompts: list[str]
    ) -> Tensor:
        """A reward's values [N, 1 + P], in the order of ``columns``."""
        parts = reward.parts(self.prompts)
        table, error = attempt_each(reward, images, prompts, parts)
        finite = table[:, 0].isfinite()
        if name not in self._proven and finite.any():
            first = int(finite.int().argmax())
            self._proven[name] = images[first : first + 1].detach().clone(), [prompts[first]]
        if not finite.all():
            error = error or not_finite(reward, images, table[:, 0])
            self._note(name, error, int((~finite).sum()))
            if weight and self._is_its_own(name, reward):
                raise error
        return table

    def _is_its_own(self, name: str, reward: Reward) -> bool:
        """Whether a failure is the reward's, not an image's.

        It is where the reward no longer judges an image that it has judged before, or has failed on
        more than the run is patient with before it ever judged one.
        """
        if name not in self._proven:
            return self.failures[name]["images"] > self.patience
        table, _ = attempt(reward, *self._proven[name])
        return not table[:, 0].isfinite().all()

    def _note(self, name: str, error: Exception, images: int) -> None:
        told = f"{type(error).__name__}: {error}"
        if name not in self.failures:
            log.warning("%s failed on an image, which counts as average there: %s", name, told)
            self.failures[name] = {"images": 0, "error": told}
        self.failures[name]["images"] += images
