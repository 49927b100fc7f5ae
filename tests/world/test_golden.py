"""A golden latent per strategy version: what a version does, it goes on doing.

A released version never changes. One that is changed on purpose before its release, or a new one:

    python tests/world/test_golden.py STRATEGY...

writes its entry in golden.json anew (without names: of every strategy that has none).
"""

import json
import sys
from pathlib import Path

import pytest
import torch

from flow_ttrl.rewards import RewardMix
from flow_ttrl.sampling import STRATEGIES, make_settings, sample, search
from flow_ttrl.world.diffusers import start_noise, world_flow
from flow_ttrl.world.rewards import world_reward

FILE = Path(__file__).parent / "golden.json"
PROMPT, STEPS, SEED, BUDGET = "a red circle and a blue square", 4, 7, 3.0
TOLERANCE = 2e-3
CHANGES = {
    "flow_ttrl": {"budget": 0, "scale_factor": 2e4},
    "paths": {"budget": 6.0, "draft_steps": 2},
    "evolution": {"budget": 6.0},
    "steered": {"budget": 6.0},
    "reward_gradient": {"begin": 0.0, "ascent": 0.2},
}
"""What makes a strategy search for certain over so few steps, and by enough to be seen."""


def name_of(strategy: str) -> str:
    return f"{strategy} v{STRATEGIES[strategy].parameters.version}"


def run(strategy: str):
    """A small search, and its flow and start."""
    flow = world_flow("flux", [PROMPT], RewardMix(((world_reward("scorer"), 1.0),)), STEPS)
    changes = {"budget": BUDGET, "keep_better": False} | CHANGES.get(strategy, {})
    settings = make_settings(strategy, **changes)
    noise = start_noise(SEED)
    return flow, noise, search(flow, noise, settings, seed=SEED)


def numbers(latents: torch.Tensor) -> list[float]:
    """Eight numbers that any change of the latents shows in."""
    parts = latents.flatten().chunk(4)
    found = [part.mean() for part in parts] + [part.abs().mean() for part in parts]
    return [round(value.item(), 5) for value in found]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_version_still_gives_the_same_latent(strategy):
    golden, name = json.loads(FILE.read_text("utf-8")), name_of(strategy)
    assert name in golden, f"no golden latent of {name}: python {Path(__file__).name} {strategy}"
    *_, result = run(strategy)
    assert numbers(result.latents) == pytest.approx(golden[name]["latent"], abs=TOLERANCE)
    assert result.cost.calls == golden[name]["calls"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_golden_search_is_a_search(strategy):
    """Not a fall-back to the plain sample, which would be the same for any version."""
    flow, noise, result = run(strategy)
    assert result.cost.calls > STEPS
    moved = zip(numbers(result.latents), numbers(sample(flow, noise)), strict=True)
    assert max(abs(ours - plain) for ours, plain in moved) > 5 * TOLERANCE


def test_every_golden_latent_is_of_a_known_strategy():
    """An older version's stays, as long as that version does."""
    golden = json.loads(FILE.read_text("utf-8"))
    assert {name.split(" v")[0] for name in golden} <= set(STRATEGIES)


def regenerate(strategies: list[str]) -> None:
    golden = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    for strategy in strategies or [s for s in STRATEGIES if name_of(s) not in golden]:
        *_, result = run(strategy)
        entry = {"latent": numbers(result.latents), "calls": result.cost.calls}
        golden[name_of(strategy)] = entry
    FILE.write_text(json.dumps(golden, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    regenerate(sys.argv[1:])
