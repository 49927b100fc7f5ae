"""What a run will cost, found by making the run on a flow that computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .flow import Cost, RewardBatch
from .noise import KeyedNoise
from .settings import SearchSettings


@dataclass(frozen=True)
class Plan:
    """What a whole run costs one item.

    Attributes:
        prices: each search step's calls.
        ahead: calls still to come when each search step begins.
    """

    cost: Cost
    prices: list[int]
    ahead: list[int]


class _Nothing:
    """A flow of one-pixel latents, so that the search itself can be run to be counted."""

    def __init__(self, sigmas: Sequence[float], forwards_per_call: int):
        self.sigmas = torch.tensor(sigmas)
        self.forwards_per_call = forwards_per_call

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        return 0.5 * x

    def gradients(self) -> AbstractContextManager:
        return torch.enable_grad()

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, :1, :, None]

    def score(self, images: Tensor) -> RewardBatch:
        return RewardBatch(images.mean((1, 2, 3)))


def plan(settings: SearchSettings, sigmas: Sequence[float], forwards_per_call: int = 1) -> Plan:
    """Cost per item of a search over ``sigmas`` [T + 1] that nothing stops early.

    Stops (max_calls and the like) are left out; a step whose rewards tie costs less than planned.
    """
    from .search import search

    free = replace(settings, max_calls=0, max_seconds=0, target_reward=None, micro_batch=0)
    flow = _Nothing(sigmas, forwards_per_call)
    with torch.inference_mode(False):
        result = search(flow, torch.ones(1, 4, 1), free, KeyedNoise(0))
    prices = [record.price for record in result.records]
    ahead = [result.cost.calls - record.calls + record.price for record in result.records]
    return Plan(result.cost, prices, ahead)
