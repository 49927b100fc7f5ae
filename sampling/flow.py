"""The seam between the search and its host: what a flow offers, and the meter that counts it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .steps import Step

Values = dict[str, Tensor]


@dataclass(frozen=True)
class RewardBatch:
    """Scores of N images: the total that drives the search, and each reward by name, all [N].

    Attributes:
        mix: totals [K, B] of values [K, B] among all those [M, B] that a run has seen, each by
            name; for rewards whose total depends on what an image is compared with, such as a
            rank. None: ``total`` holds on its own.
    """

    total: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    mix: Callable[[Values, Values], Tensor] | None = None

    @staticmethod
    def cat(batches: list[RewardBatch]) -> RewardBatch:
        names = batches[0].values
        values = {name: torch.cat([b.values[name] for b in batches]) for name in names}
        return RewardBatch(torch.cat([b.total for b in batches]), values, batches[0].mix)

    def where(self, mask: Tensor, other: RewardBatch) -> RewardBatch:
        """These rewards where ``mask`` [N] holds, ``other``'s elsewhere."""
        values = {k: torch.where(mask, v, other.values[k]) for k, v in self.values.items()}
        return RewardBatch(torch.where(mask, self.total, other.total), values, self.mix)

    def __getitem__(self, rows: Tensor) -> RewardBatch:
        """The rewards of some ``rows`` [K]."""
        values = {name: value[rows] for name, value in self.values.items()}
        return RewardBatch(self.total[rows], values, self.mix)


class Comparison:
    """All rewards of a run, and totals that are comparable among them.

    Args:
        items: the batch that the run samples; row n of a batch of rewards belongs to item n % B.
    """

    def __init__(self, items: int):
        self.items = items
        self._seen: Values = {}

    def add(self, batch: RewardBatch) -> None:
        if batch.mix is not None:
            rows = self._rows(batch)
            self._seen = {
                name: torch.cat([self._seen[name], value]) if name in self._seen else value
                for name, value in rows.items()
            }

    def totals(self, batch: RewardBatch) -> Tensor:
        """float32 totals [K, B] of rewards that were added, as things stand now."""
        if batch.mix is None:
            return batch.total.float().view(-1, self.items)
        return batch.mix(self._rows(batch), self._seen)

    def _rows(self, batch: RewardBatch) -> Values:
        return {name: v.float().view(-1, self.items) for name, v in batch.values.items()}


class Flow(Protocol):
    """A flow-matching model, its decoder and its judge, as the search sees them.

    Rows of a batch run through the latents' batch again and again: row n belongs to item n % B.
    Any method may raise to cancel; the search keeps nothing behind.
    """

    sigmas: Tensor
    """Noise levels [T + 1], falling, the last one 0."""

    forwards_per_call: int
    """Network evaluations per model call: 2 where guidance needs a conditional pair."""

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        """Guided velocity [N, ...] at latents ``x`` [N, ...]; differentiable in ``gradients()``."""
        ...

    def gradients(self) -> AbstractContextManager:
        """Where autograd may run through ``velocity``."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images [N, H, W, 3], nominally 0..1, of clean latents ``x0`` [N, ...]."""
        ...

    def score(self, images: Tensor) -> RewardBatch:
        """Rewards of ``images`` [N, H, W, 3]; higher is better."""
        ...


@dataclass
class Cost:
    """What a run spends. A model call is one latent through the guided velocity."""

    model_calls: int = 0
    backwards: int = 0
    decodes: int = 0
    rewards: int = 0
    forwards: int = 0

    @property
    def calls(self) -> int:
        """Model calls with a backward counted as two."""
        return self.model_calls + 2 * self.backwards

    def report(self, plain_calls: int) -> dict[str, float]:
        """As a JSON object, with the price in plain samplings of ``plain_calls`` calls."""
        return asdict(self) | {"times_plain": round(self.calls / plain_calls, 3)}


class Meter:
    """A flow in micro-batches, with every evaluation counted.

    Args:
        micro_batch: candidates of each batch item evaluated at once; 0 for all of them.
    """

    def __init__(self, flow: Flow, items: int, micro_batch: int = 0):
        self.flow, self.items, self.cost = flow, items, Cost()
        self._rows = items * micro_batch

    def _batches(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(self._rows or len(rows))

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        """float32 velocity of rows ``x`` [N, ...]."""

        def call(rows: Tensor) -> Tensor:
            v = self.flow.velocity(rows, sigma).float()
            self.cost.model_calls += len(rows)
            self.cost.forwards += len(rows) * self.flow.forwards_per_call
            return v

        return torch.cat([call(rows) for rows in self._batches(x)])

    def score(self, x0: Tensor) -> RewardBatch:
        """Decode clean latents [N, ...] and score the images."""

        def call(rows: Tensor) -> RewardBatch:
            images = self.flow.decode(rows)
            self.cost.decodes += len(rows)
            rewards = self.flow.score(images)
            self.cost.rewards += len(rows)
            return rewards

        return RewardBatch.cat([call(rows) for rows in self._batches(x0)])

    def pullback(
        self, step: Step, x: Tensor, sigma: float, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """J^T ``cotangent(v)`` [B, ...] and v, J = d mean / d x of ``step`` through the model."""
        with self.flow.gradients(), torch.enable_grad():
            leaf = x.clone().requires_grad_()
            v = self.velocity(leaf, sigma)
            known = v.detach()
            with torch.no_grad():
                pulled = cotangent(known)
            (gradient,) = torch.autograd.grad(step.mean(leaf, v), leaf, pulled.clone())
        self.cost.backwards += len(x)
        return gradient.detach(), known
