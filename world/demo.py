"""The tiny world's demo: one prompt before and after the search."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from ..plots import reward_curve, side_by_side, to_pil
from ..sampling import SearchSettings, search
from .diffusers import start_noise, world_flow
from .rewards import accurate, driven_by, judges


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
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    flow = world_flow(arch, [prompt], driven_by(reward), steps)
    result = search(flow, start_noise(seed), settings, seed=seed, baseline=True)
    item = torch.zeros(1, dtype=torch.long)
    plain, searched = (flow.decode(x, item) for x in (result.plain.latents, result.latents))

    measure = judges(reward)

    def verdict(images: Tensor) -> dict:
        scores = measure.score(images, [prompt])
        return {
            "reward": round(scores.total.item(), 4),
            "accurate": accurate(images, [prompt])[0],
            **{name: round(value.item(), 4) for name, value in scores.values.items()},
        }

    before, after = verdict(plain), verdict(searched)
    report = result.report() | {
        "prompt": prompt,
        "arch": arch,
        "reward": reward,
        "plain": before,
        "search": after,
    }

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
        "cost": result.cost.report(result.plain_calls),
        "seconds": round(time.monotonic() - began, 1),
        "files": [str(path) for path in files.values()],
    }
