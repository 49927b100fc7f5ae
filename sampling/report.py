"""What a search tells: one record per step that judged images, and the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .flow import Cost, Values
from .run import Run
from .settings import SearchSettings
from .state import State, width


@dataclass(frozen=True)
class StepRecord:
    """One step's look-aheads, in plain numbers; lists over items are as long as the batch.

    Attributes:
        index, sigma: the level that the step came to.
        rewards: totals of the look-aheads, a list of the candidates' for each item.
        values: the same for each reward by name.
        not_finite: totals that were NaN or infinite, which are never chosen.
        missing: images that a reward could not judge, by its name; they count as average there.
        flat: rewards that were the same for every candidate and told the search nothing.
        price: calls of this step in the whole batch, a backward counted as two.
        calls: the same for the whole run so far.
        detail: what the strategy tells.
    """

    index: int
    sigma: float
    rewards: list[list[float]]
    values: dict[str, list[list[float]]]
    not_finite: int
    missing: dict[str, int]
    flat: list[str]
    price: int
    calls: int
    seconds: float
    detail: dict


def step_record(run: Run, state: State, *, calls_before: int, seconds: float) -> StepRecord | None:
    """The record of the step that led to ``state``; None where it judged nothing."""
    judged, run.judged = run.judged, []
    if not judged:
        return None
    names = judged[0].values
    values = {name: torch.cat([part.values[name] for part in judged]) for name in names}
    asked = torch.cat([p.active.expand(len(next(iter(p.values.values()))), -1) for p in judged])
    totals = run.totals(values)
    lost = {name: int((asked & ~value.isfinite()).sum()) for name, value in values.items()}
    return StepRecord(
        index=state.index,
        sigma=run.sigmas[state.index],
        rewards=totals.T.tolist(),
        values={name: value.T.tolist() for name, value in values.items()},
        not_finite=int((asked & ~totals.isfinite()).sum()),
        missing={name: count for name, count in lost.items() if count},
        flat=[n for n, v in values.items() if len(v) > 1 and bool((v == v[:1]).all())],
        price=run.cost.calls - calls_before,
        calls=run.cost.calls,
        seconds=round(seconds, 4),
        detail=state.detail,
    )


@dataclass(frozen=True)
class StepEvent:
    """What ``on_step`` is told after every step, searching or not.

    Attributes:
        index: the level that was reached, of ``steps``. It falls back where the next one of
            several samples begins.
        part: whether more is to come that the same record will tell of.
        latent: the latent there [B, ...]; of a population the first candidate's.
        denoised: its clean estimate [B, ...], or the best look-ahead's so far.
        calls, planned: calls an item has cost and will at most, the plain sample included.
        record: the step's look-aheads; None where it made none.
        best, plain: totals [B] of the best look-ahead so far and of the plain sample, where known.
    """

    index: int
    steps: int
    latent: Tensor
    denoised: Tensor
    calls: float
    planned: int
    record: StepRecord | None = None
    best: list[float] | None = None
    plain: list[float] | None = None
    part: bool = False


OnStep = Callable[[StepEvent], None]
"""Told of every step; may raise to cancel."""


def step_event(
    run: Run, state: State, planned: int, record: StepRecord | None, plain: PlainSample | None
) -> StepEvent:
    """What is told of the step that led to ``state``; ``plain``: the plain sample before it."""
    before = 0 if plain is None else plain.cost.calls / run.items
    return StepEvent(
        index=state.index,
        steps=run.steps,
        latent=state.x[0],
        denoised=run.preview(state),
        calls=before + run.calls_spent,
        planned=planned,
        record=record,
        best=None if run.best is None else run.totals(run.best.values)[0].tolist(),
        plain=None if plain is None else run.totals_beside(plain.values)[0].tolist(),
        part=state.part,
    )


@dataclass(frozen=True)
class PlainSample:
    """What plain sampling gives from the same start.

    Attributes:
        latents: latents at the schedule's end [B, ...]; ``clean``: what they come to.
        values: their rewards by name [1, B].
        cost: what it took beside the search; nothing where the strategy made it anyway.
    """

    latents: Tensor
    clean: Tensor
    values: Values
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class SearchResult:
    """The searched latents and how they came about.

    Attributes:
        latents: latents at the schedule's end [B, ...]; ``clean``: what they come to, the same
            where it ends at 0.
        rewards: the decoded results' total reward [B]; ``values`` the same by name.
        plain_calls: calls of a plain sample of an item and its judging, what a budget is in.
        planned: calls that the search might have spent on an item.
        cost: what it did spend on the whole batch, without the plain sample's.
        stopped: why the search ended before its time: ``max_seconds``, ``target_reward``,
            ``finish_now`` or None.
        plain: the plain sample, if one was made; ``plain_rewards`` its totals [B].
        kept_plain: items whose plain sample was kept (``keep_better``), else None.
        warnings: what is wrong with the result, as sentences.
    """

    latents: Tensor
    clean: Tensor
    rewards: Tensor
    values: Values
    settings: SearchSettings
    seed: int
    steps: int
    plain_calls: int
    planned: int
    records: tuple[StepRecord, ...] = ()
    cost: Cost = field(default_factory=Cost)
    stopped: str | None = None
    plain: PlainSample | None = None
    plain_rewards: Tensor | None = None
    kept_plain: list[bool] | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    def report(self) -> dict:
        """Everything but the latents, as a JSON object."""
        plain = self.plain
        report = {
            "settings": self.settings.to_json(),
            "seed": self.seed,
            "steps": self.steps,
            "stopped": self.stopped,
            "rewards": self.rewards.tolist(),
            "values": {name: value.tolist() for name, value in self.values.items()},
            "plain_rewards": None if plain is None else self.plain_rewards.tolist(),
            "plain_values": {k: v[0].tolist() for k, v in plain.values.items()} if plain else None,
            "plain_calls": 0 if plain is None else plain.cost.calls,
            "kept_plain": self.kept_plain,
            "warnings": list(self.warnings),
            "cost": self.cost.report(len(self.rewards) * self.plain_calls),
            "planned_calls": self.planned * len(self.rewards),
            "seconds": round(self.seconds, 3),
            "search_steps": [asdict(record) for record in self.records],
        }
        return jsonable(report)


FAR_WIDER = 4.0
"""Times as wide as usual, beyond which a latent is no image."""


def trouble(latents: Tensor, usual: Tensor) -> Iterator[str]:
    """What is wrong with final ``latents`` [B, ...], if anything.

    Args:
        usual: width [B] of plain samples, or of what sampling began with, where there are none.
    """
    for number, (found, wanted) in enumerate(zip(width(latents), usual, strict=True)):
        if not found.isfinite():
            yield (
                f"image {number} is not finite: the model gave NaN or infinity on the way (a "
                "precision too low, or patches or guidance at an extreme)"
            )
        elif found > FAR_WIDER * wanted:
            yield (
                f"image {number} is {float(found / wanted):.3g} times as wide as usual and no "
                "image any more: lower scale_factor, or guidance and patches that are at an extreme"
            )


def fallen_witnesses(result: SearchResult, weights: dict[str, float]) -> Iterator[str]:
    """What a reward of weight 0 says of a search that raised the others: fell, or nothing.

    A reward that drives is over-optimised where another of the kind falls while it rises.
    """
    plain = result.plain
    if plain is None or not result.rewards.mean() > result.plain_rewards.mean():
        return
    for name, weight in weights.items():
        before, after = (float(v[name].mean()) for v in (plain.values, result.values))
        if weight == 0 and after < before:
            yield (
                f"{name}, which did not drive, fell from {before:.3f} to {after:.3f} while the "
                "reward rose: look whether the image is better, or give it a weight"
            )


def jsonable(value):
    """``value`` with NaN and infinities, which JSON does not know, as None."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
