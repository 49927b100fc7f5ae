"""What a run will cost, found by making the run on a flow that computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .flow import Cost, Values
from .run import Run
from .settings import SearchSettings
from .strategies import states


@dataclass(frozen=True)
class Plan:
    """What a whole search costs one item: an upper bound, exact for strategies that do not adapt.

    Attributes:
        ahead: calls still to come, before the first state and after each.
        makes_plain: whether a plain sample is among what the strategy makes anyway.
    """

    cost: Cost
    ahead: tuple[int, ...]
    makes_plain: bool


class _Nothing:
    """A flow of latents of a few numbers, so that the search itself can be run to be counted."""

    def __init__(self, sigmas: Sequence[float], forwards_per_call: int):
        self.sigmas = torch.tensor(sigmas, dtype=torch.float64)
        self.forwards_per_call = forwards_per_call

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        return noise

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        return 0.5 * x

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        return x0[..., None]

    def score(self, images: Tensor, item: Tensor) -> Values:
        return {"none": torch.nan * images.mean((1, 2, 3))}

    def totals(self, values: Values, seen: Values) -> Tensor:
        return values["none"]

    def gradients(self) -> AbstractContextManager:
        return torch.enable_grad()

    def image_gradients(self) -> AbstractContextManager:
        return torch.enable_grad()


def plan(settings: SearchSettings, sigmas: Sequence[float], forwards_per_call: int = 1) -> Plan:
    """Cost per item of a search over ``sigmas`` [T + 1] that nothing stops early.

    Without verdicts an adaptive strategy spends all that it may. The plain sample that
    ``keep_better`` or a baseline asks for comes on top.

    Raises:
        ValueError: levels that no flow's schedule has.
    """
    with torch.inference_mode(False), torch.no_grad():
        noise = torch.arange(4.0).view(1, 2, 2)
        run = Run(_Nothing(sigmas, forwards_per_call), noise, seed=0, settings=settings)
        state, spent = run.first_state(), [0]
        for reached in states(run, state, settings.parameters):
            state = reached
            spent.append(run.cost.calls)
        run.finish(state)
    total = run.cost.calls
    ahead = tuple(total - calls for calls in spent)
    return Plan(run.cost, ahead, makes_plain=run.plain is not None)


def idle_budget(
    settings: SearchSettings, sigmas: Sequence[float], planned: Plan, plain: int
) -> Iterator[str]:
    """What is to be said of a budget above 1 that pays for no search of its strategy's kind.

    Args:
        plain: calls of a plain sample.
    """

    def calls(budget: float) -> int:
        return plan(replace(settings, budget=budget), sigmas).cost.calls

    if settings.budget <= 1 or planned.cost.calls > plain:
        return
    enough = (tenths / 10 for tenths in range(11, 101))
    least = next((budget for budget in enough if calls(budget) > plain), None)
    told = "none up to 10 is" if least is None else f"from {least:g} on it is"
    yield (
        f"budget {settings.budget:g} pays for no search by {settings.strategy} over "
        f"{len(sigmas) - 1} steps, and the result is the plain sample: {told} enough"
    )
