"""What the tests look through: flows that wrap another, and what to hold their calls against."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flow_ttrl.rewards import Reward, RewardMix
from flow_ttrl.sampling import STRATEGIES, Run, SearchSettings, make_settings, search, updates
from flow_ttrl.sampling.noise import KeyedNoise, item_keys

search_module = importlib.import_module("flow_ttrl.sampling.search")  # its name is the function's

NAN = float("nan")
EACH = pytest.mark.parametrize("strategy", STRATEGIES)
ADAPTING = ("rbf",)
"""Strategies whose cost depends on the rewards."""
SELECTING = [name for name in STRATEGIES if name not in ("flow_ttrl", "reward_gradient")]
"""Strategies that choose among candidates; the others move one latent."""


def only_search(strategy: str, **changes) -> SearchSettings:
    """Settings whose result is the search's own: no plain sample is made or kept."""
    return make_settings(strategy, **{"keep_better": False} | changes)


def run(flow, strategy: str, x: Tensor, seed: int = 0, **changes):
    """A search of ``x``, at budget 4 unless told another."""
    return search(flow, x, only_search(strategy, **{"budget": 4.0} | changes), seed=seed)


def keyed_noise(seed: int, noise: Tensor) -> KeyedNoise:
    """The draws of a search of ``noise``, made anew."""
    return KeyedNoise(seed, item_keys(noise))


class Wrapped:
    """A flow that passes everything on to another; the base of the probes."""

    def __init__(self, flow):
        self.flow = flow
        self.sigmas, self.forwards_per_call = flow.sigmas, flow.forwards_per_call

    def start(self, noise, item):
        return self.flow.start(noise, item)

    def velocity(self, x, sigma, item):
        return self.flow.velocity(x, sigma, item)

    def decode(self, x0, item):
        return self.flow.decode(x0, item)

    def score(self, images, item):
        return self.flow.score(images, item)

    def totals(self, values, seen):
        return self.flow.totals(values, seen)

    def gradients(self):
        return self.flow.gradients()

    def image_gradients(self):
        return self.flow.image_gradients()


@dataclass(frozen=True)
class Call:
    x: Tensor
    sigma: float
    item: Tensor


class Recorder(Wrapped):
    """Remembers every velocity call, and how many images were decoded and scored."""

    def __init__(self, flow):
        super().__init__(flow)
        self.calls: list[Call] = []
        self.decoded = self.scored = 0

    def velocity(self, x, sigma, item):
        self.calls.append(Call(x.detach().clone(), sigma, item.clone()))
        return super().velocity(x, sigma, item)

    def decode(self, x0, item):
        self.decoded += len(x0)
        return super().decode(x0, item)

    def score(self, images, item):
        self.scored += len(images)
        return super().score(images, item)

    def at(self, sigma: float, rows: int) -> list[Tensor]:
        """Latents of the calls at level ``sigma`` with that many rows, in order."""
        return [call.x for call in self.calls if call.sigma == sigma and len(call.x) == rows]


class Rewarded(Wrapped):
    """A flow whose rewards [N] are passed through ``change``."""

    def __init__(self, flow, change):
        super().__init__(flow)
        self.change = change

    def score(self, images, item):
        return {name: self.change(v) for name, v in super().score(images, item).items()}


class Telling(Wrapped):
    """A flow whose reward is ``tell(number)`` of the how manieth image of a run it is."""

    def __init__(self, flow, tell):
        super().__init__(flow)
        self.tell, self.told = tell, 0

    def score(self, images, item):
        numbers = range(self.told, self.told + len(images))
        self.told += len(images)
        told = torch.tensor([float(self.tell(number)) for number in numbers])
        # keeps a gradient where there is one, for what differentiates it
        return {
            n: 0 * value.nan_to_num() + told for n, value in super().score(images, item).items()
        }


class Weighted(Wrapped):
    """A model with a weight that wants a gradient, and a note of the calls that autograd saw."""

    def __init__(self, flow):
        super().__init__(flow)
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.graphs = 0

    def velocity(self, x, sigma, item):
        v = self.weight * super().velocity(x, sigma, item)
        self.graphs += v.requires_grad
        return v


@dataclass(frozen=True)
class Looked:
    """One look-ahead of a population: latents [P, B, ...], their level, their totals [P, B]."""

    x: Tensor
    index: int
    totals: Tensor


def spy_on_look_aheads(monkeypatch, flow) -> list[Looked]:
    """Every look-ahead that runs of ``flow`` make from now on, in order; all else is as before."""
    seen, original = [], Run.look_ahead

    def spied(run, x, index, *args, **keywords):
        look = original(run, x, index, *args, **keywords)
        if run.flow is flow:  # and not a plan's
            seen.append(Looked(x.clone(), index, run.totals(look.values)))
        return look

    monkeypatch.setattr(Run, "look_ahead", spied)
    return seen


def spy_on_losses(monkeypatch) -> list[tuple[str, Tensor]]:
    """Every log-ratio [G, B] that a loss is given from now on, with the objective's name.

    A search's plan is a run of its own, and its losses come first: as many again.
    """
    seen = []

    def spy(objective: str, loss):
        def spied(log_ratio, *args, **keywords):
            seen.append((objective, log_ratio.detach().clone()))
            return loss(log_ratio, *args, **keywords)

        return spied

    for objective in ("grpo", "prdp"):
        name = f"{objective}_loss"
        monkeypatch.setattr(updates, name, spy(objective, getattr(updates, name)))
    return seen


def euler(flow, x: Tensor, index: int = 0) -> Tensor:
    """``x`` [B, ...] sampled from level ``index`` to the last, written out."""
    levels = flow.sigmas.tolist()
    for s, s_next in zip(levels[index:], levels[index + 1 :], strict=False):
        if s_next < s:
            x = x + flow.velocity(x, s, torch.arange(len(x))) * (s_next - s)
    return x


def stop_after(steps: int):
    """A ``finish_now`` that says yes after so many times."""
    answers = iter([False] * steps)
    return lambda: next(answers, True)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between the items of two batches [B]."""
    return torch.cosine_similarity(a.flatten(1), b.flatten(1))


class Named(Reward):
    units, typical = "any", (0.0, 1.0)

    def __init__(self, name: str):
        self.name = name

    def _score(self, images, prompts):
        raise NotImplementedError("the flow below scores")


class Mixed(Wrapped):
    """The world's reward twice, in unlike units, and a third that never differs; mixed.

    Args:
        lost: says by an image's number in the run where the first of them has no value.
        sign: -1 leads a search astray.
    """

    def __init__(self, world, mode: str, lost=lambda number: False, sign=1.0):
        super().__init__(world)
        parts = ((Named("large"), sign), (Named("small"), sign), (Named("same"), 1.0))
        self.mix, self.lost, self.scored = RewardMix(parts, mode), lost, 0

    def score(self, images, item):
        (reward,) = super().score(images, item).values()
        numbers = range(self.scored, self.scored + len(images))
        self.scored += len(images)
        large = torch.stack(
            [
                reward.new_tensor(NAN) if self.lost(n) else 1000 * r
                for n, r in zip(numbers, reward, strict=True)
            ]
        )
        return {"large": large, "small": 0.01 * reward, "same": 0 * reward + 7.0}

    def totals(self, values, seen):
        return self.mix.totals(values, seen)
