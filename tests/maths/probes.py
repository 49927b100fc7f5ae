"""What the tests look through: a flow that remembers its calls, and what to hold them against."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_ttrl.sampling import KeyedNoise, RewardBatch, search, updates
from flow_ttrl.sampling.steps import Step, cps_step, matched_step, midpoint_step, sde_step


class Wrapped:
    """A flow that passes everything on to another; the base of the probes."""

    def __init__(self, flow):
        self.flow = flow
        self.sigmas, self.forwards_per_call = flow.sigmas, flow.forwards_per_call

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        return self.flow.velocity(x, sigma)

    def gradients(self):
        return self.flow.gradients()

    def decode(self, x0: Tensor) -> Tensor:
        return self.flow.decode(x0)

    def score(self, images: Tensor) -> RewardBatch:
        return self.flow.score(images)


class Recorder(Wrapped):
    """Remembers the latents and level of every velocity call."""

    def __init__(self, flow):
        super().__init__(flow)
        self.calls: list[tuple[Tensor, float]] = []

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        self.calls.append((x.detach().clone(), sigma))
        return super().velocity(x, sigma)

    def at(self, sigma: float, rows: int) -> list[Tensor]:
        """Latents of the calls at level ``sigma`` with that many rows, in order."""
        return [x for x, level in self.calls if level == sigma and len(x) == rows]


class Rewarded(Wrapped):
    """A flow whose total reward is passed through a function."""

    def __init__(self, flow, change):
        super().__init__(flow)
        self.change = change

    def score(self, images: Tensor) -> RewardBatch:
        return RewardBatch(self.change(super().score(images).total))


class Events:
    """An ``on_step`` that keeps what it is told."""

    def __init__(self):
        self.seen = []

    def __call__(self, event):
        self.seen.append(event)


def spy_on_losses(monkeypatch) -> list[tuple[str, Tensor]]:
    """Every log-ratio [G, B] that a loss is given from now on, with the objective's name."""
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


def evolution(record, seed: int, like: Tensor) -> Tensor:
    """sum_g A_g eps_g [B, ...] of one search step, from the record and the noise's keys alone."""
    rewards = torch.tensor(record.rewards).T
    advantage = (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-4)
    noise = KeyedNoise(seed).group(record.index, len(rewards), like)
    return torch.einsum("gb,gb...->b...", advantage, noise)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between the items of two batches [B]."""
    return torch.cosine_similarity(a.flatten(1), b.flatten(1))


def label(settings) -> str:
    """Settings as a test's id."""
    return f"{settings.preset}-v{settings.version}"


def step_of(settings, record, sigmas: Tensor) -> Step:
    """The stochastic step that a search step's candidates were drawn by."""
    s, s_next = (float(sigma) for sigma in sigmas[record.index : record.index + 2])
    if settings.step == "sde":
        return sde_step(s, s_next, record.eta, float(sigmas[1]))
    kinds = {"cps": cps_step, "midpoint": midpoint_step, "matched": matched_step}
    return kinds[settings.step](s, s_next, record.eta)


def applied_updates(flow, x: Tensor, settings, seed: int = 0):
    """Runs a search of one item and yields (record, latent, how the update moved it) by step.

    A steered step moves the latent off the stochastic step's mean; any other update moves it at
    its own level, where the model is then asked for its velocity.
    """
    recorder, events = Recorder(flow), Events()
    result = search(recorder, x, settings, KeyedNoise(seed), on_step=events)
    for record in result.records:
        index, sigma = record.index, record.sigma
        latent = events.seen[index].latent
        if settings.update == "steered":
            step = step_of(settings, record, flow.sigmas)
            moved = events.seen[index + 1].latent - step.mean(latent, flow.velocity(latent, sigma))
        else:
            moved = recorder.at(sigma, 1)[-1] - latent
        yield record, latent, moved
