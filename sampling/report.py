"""What a search tells: one record per search step, and the result."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from torch import Tensor

from .flow import Cost
from .settings import SearchSettings


@dataclass(frozen=True)
class StepRecord:
    """One search step, in plain numbers; lists over items are as long as the batch.

    Attributes:
        eta: noise level of the stochastic step; lower than ``eta_asked`` where it was capped.
        rewards: look-ahead rewards, a list of the candidates' for each item.
        values: the same for each reward by name.
        look_ahead: Euler steps that a look-ahead took, where the schedule had as many left.
        kept: the steered latent's own look-ahead; None where it was not asked for.
        not_finite: totals that were NaN or infinite and counted as the group's mean.
        missing: images that a reward could not judge, by its name; they count as average there.
        flat: rewards that were the same for every candidate and told the search nothing.
        price: calls of this step in the whole batch, a backward counted as two.
        calls: the same for the whole run so far.
    """

    index: int
    sigma: float
    eta: float
    eta_asked: float
    objective: str
    look_ahead: int
    rewards: list[list[float]]
    values: dict[str, list[list[float]]]
    kept: list[float] | None
    not_finite: int
    missing: dict[str, int]
    flat: list[str]
    price: int
    calls: int
    seconds: float

    @property
    def best(self) -> list[float]:
        return [max(group) for group in self.rewards]


@dataclass(frozen=True)
class StepEvent:
    """What ``on_step`` is told after every sampling step, searching or not.

    Attributes:
        sigma: the level the step started from.
        latent, denoised: the latent [B, ...] there and the clean estimate seen from it.
        record: the search step's record, None for an ordinary step.
    """

    index: int
    steps: int
    sigma: float
    latent: Tensor
    denoised: Tensor
    record: StepRecord | None


@dataclass(frozen=True)
class SearchResult:
    """The searched latents and how they came about.

    Attributes:
        latents: clean latents [B, ...].
        rewards: the decoded results' total reward [B]; ``values`` the same by name.
        stopped: why the search ended before its window: ``max_calls``, ``max_seconds``,
            ``target_reward``, ``finish_now`` or None.
        kept_plain: items whose plain sample was kept (``keep_better``), else None.
        plain_rewards: the plain sample's total reward [B], if one was made or given.
    """

    latents: Tensor
    rewards: Tensor
    values: dict[str, Tensor]
    settings: SearchSettings
    seed: int
    steps: int
    records: tuple[StepRecord, ...] = ()
    cost: Cost = field(default_factory=Cost)
    stopped: str | None = None
    kept_plain: list[bool] | None = None
    plain_rewards: Tensor | None = None
    seconds: float = 0.0

    def report(self) -> dict:
        """Everything but the latents, as a JSON object."""
        report = {
            "settings": asdict(self.settings),
            "seed": self.seed,
            "steps": self.steps,
            "stopped": self.stopped,
            "kept_plain": self.kept_plain,
            "rewards": self.rewards.tolist(),
            "plain_rewards": None if self.plain_rewards is None else self.plain_rewards.tolist(),
            "values": {name: value.tolist() for name, value in self.values.items()},
            "cost": self.cost.report(len(self.rewards) * self.steps),
            "seconds": round(self.seconds, 3),
            "search_steps": [asdict(record) for record in self.records],
        }
        return jsonable(report)


def jsonable(value):
    """``value`` with NaN and infinities, which JSON does not know, as None."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
