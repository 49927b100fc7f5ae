"""The tiny world's experiments: one prompt before and after, and rates over held-out prompts."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..plots import reward_curve, side_by_side, to_pil
from ..rewards import RewardMix, Scores
from ..sampling import Cost, KeyedNoise, SearchSettings, plan, sample, search, shifted_sigmas
from .bundle import SHIFT
from .diffusers import start_noise, world_flow
from .prompts import FAMILIES, held_out, parse
from .rewards import WORLD_REWARDS, accurate, world_reward

log = logging.getLogger("flow_ttrl")

BATCH = 10
"""Prompts evaluated side by side; results do not depend on it beyond rounding."""


def judges(driver: str) -> RewardMix:
    """Both of the world's judges, ``driver`` giving the total and the other one only measured."""
    return RewardMix(tuple((world_reward(name), float(name == driver)) for name in WORLD_REWARDS))


def driven_by(name: str) -> RewardMix:
    """The judge ``name`` alone, to drive a search."""
    return RewardMix(((world_reward(name), 1.0),))


def demo(
    prompt: str,
    *,
    arch: str,
    reward: str,
    settings: SearchSettings,
    steps: int,
    seed: int,
    out: Path,
) -> dict:
    """Sample ``prompt`` plainly and with the search from one seed; write pictures and a report."""
    began = time.monotonic()
    flow = world_flow(arch, [prompt], driven_by(reward), steps)
    noise = KeyedNoise(seed)
    start = start_noise(noise)
    with torch.inference_mode(settings.gradient != "exact"):
        plain = flow.decode(sample(flow, start))
        result = search(flow, start, settings, noise)
        searched = flow.decode(result.latents)

    measure = judges(reward)

    def verdict(images: Tensor) -> dict:
        scores = measure.score(images, [prompt])
        return {
            "reward": round(scores.total.item(), 4),
            "accurate": accurate(images, [prompt])[0],
            **{name: round(value.item(), 4) for name, value in scores.values.items()},
        }

    before, after = verdict(plain), verdict(searched)
    report = result.report() | {"plain_rewards": [before["reward"]]}
    report |= {"prompt": prompt, "arch": arch, "reward": reward, "plain": before, "search": after}

    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / name for name in ("comparison.png", "rewards.png", "report.json")}
    captions = [
        f"{name}: {judged['reward']:.3f} {'accurate' if judged['accurate'] else 'not accurate'}"
        for name, judged in (("plain", before), ("searched", after))
    ]
    pictures = [to_pil(plain[0]), to_pil(searched[0])]
    side_by_side(pictures, captions, scale=3).save(files["comparison.png"])
    reward_curve(report).save(files["rewards.png"])
    files["report.json"].write_text(json.dumps(report, indent=1), encoding="utf-8")
    return {
        "prompt": prompt,
        "plain": before,
        "search": after,
        "cost": result.cost.report(steps),
        "seconds": round(time.monotonic() - began, 1),
        "files": [str(path) for path in files.values()],
    }


def evaluate(
    n: int, *, half: str, arch: str, reward: str, settings: SearchSettings, steps: int, seed: int
) -> dict:
    """Plain sampling, best-of-N at equal calls and search on ``n`` held-out prompts of ``half``."""
    prompts = held_out(half, n)
    mix, measure = driven_by(reward), judges(reward)
    price = plan(settings, shifted_sigmas(steps, SHIFT).tolist()).cost.calls
    rivals = max(1, math.ceil(price / steps))
    tallies = {name: _Tally(prompts) for name in ("plain", "best_of_n", "search")}
    cost = Cost()
    with torch.inference_mode(settings.gradient != "exact"):
        for first in range(0, n, BATCH):
            asked = prompts[first : first + BATCH]
            flow = world_flow(arch, asked, mix, steps)
            noise = KeyedNoise(seed, first)

            starts = [start_noise(noise, len(asked), variant) for variant in range(rivals)]

            def judged(latents: Tensor, flow=flow, asked=asked) -> tuple[Tensor, Scores]:
                images = flow.decode(latents)
                return images, measure.score(images, asked)

            draws = [judged(sample(flow, start)) for start in starts]
            result = search(flow, starts[0], settings, noise)
            tallies["plain"].add(*draws[0])
            tallies["best_of_n"].add(*_best(draws))
            tallies["search"].add(*judged(result.latents))
            for name, spent in asdict(result.cost).items():
                setattr(cost, name, getattr(cost, name) + spent)
            log.info("%d of %d prompts", first + len(asked), n)
    return {
        "prompts": n,
        "half": half,
        "arch": arch,
        "driver": reward,
        "best_of": rivals,
        **{name: tally.rates() for name, tally in tallies.items()},
        "cost": cost.report(n * steps),
    }


def _best(draws: list[tuple[Tensor, Scores]]) -> tuple[Tensor, Scores]:
    """Of each item the draw with the highest total: images and scores."""
    pick = torch.stack([scores.total for _, scores in draws]).argmax(0)
    rows = torch.arange(len(pick))

    def chosen(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors)[pick, rows]

    values = {
        name: chosen([scores.values[name] for _, scores in draws]) for name in draws[0][1].values
    }
    total = chosen([scores.total for _, scores in draws])
    return chosen([images for images, _ in draws]), Scores(total, values)


class _Tally:
    """Running rates of one method: strict accuracy, in all and by family, and mean rewards."""

    def __init__(self, prompts: list[str]):
        self.prompts, self.accurate = prompts, []
        self.totals: list[float] = []
        self.values: dict[str, list[float]] = {}

    def add(self, images: Tensor, scores: Scores) -> None:
        start = len(self.accurate)
        self.accurate += accurate(images, self.prompts[start : start + len(images)])
        self.totals += scores.total.tolist()
        for name, value in scores.values.items():
            self.values.setdefault(name, []).extend(value.tolist())

    def rates(self) -> dict:
        families = [parse(prompt).family for prompt in self.prompts]
        by_family = {
            family: _mean([a for a, f in zip(self.accurate, families, strict=True) if f == family])
            for family in FAMILIES
        }
        return {
            "accuracy": _mean(self.accurate),
            "reward": _mean(self.totals),
            **{name: _mean(values) for name, values in self.values.items()},
            "families": by_family,
        }


def _mean(values: list) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
