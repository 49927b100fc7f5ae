"""The two losses against their formulas, within their clips and beyond."""

import math

import pytest
import torch

from flow_ttrl.sampling.objectives import advantages, grpo_loss, prdp_loss, tied

CLIP = 0.1
LOGS = torch.tensor([0.05, -0.02, 0.7, -0.4])
"""Of one item's candidates: two within the clip, one beyond it on either side."""


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("number", range(4))
def test_grpo_takes_the_worse_of_the_clipped_and_the_whole_ratio(number, sign):
    advantage, log_ratio = torch.zeros(4, 1), torch.zeros(4, 1)
    advantage[number], log_ratio[number] = sign * 2, LOGS[number]
    ratio = math.exp(LOGS[number])
    clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
    expected = max(-sign * 2 * ratio, -sign * 2 * clipped) / 4
    found = grpo_loss(log_ratio, advantage, CLIP)
    torch.testing.assert_close(found, torch.tensor([expected]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", LOGS.tolist())
def test_grpo_pushes_no_ratio_further_than_its_clip(log_ratio, sign):
    """No gradient where the ratio has gone as far as the advantage wants; the whole one else."""
    leaf = torch.full((2, 1), log_ratio, requires_grad=True)
    grpo_loss(leaf, torch.full((2, 1), sign), CLIP).sum().backward()
    ratio = math.exp(log_ratio)
    gone = ratio > 1 + CLIP if sign > 0 else ratio < 1 - CLIP
    expected = 0.0 if gone else -sign * ratio / 2
    torch.testing.assert_close(leaf.grad, torch.full((2, 1), expected))


@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_prdp_takes_the_worse_of_the_clipped_and_the_whole_difference(threshold):
    """Pair by pair, over those whose rewards differ by more than the threshold; item by item."""
    rewards = torch.tensor([[0.1, 3.0], [0.3, 1.0], [0.9, 2.0], [0.2, 2.1]])
    logs = torch.stack([LOGS, LOGS.flip(0)], 1)
    found = prdp_loss(logs, rewards, beta=2.0, clip=CLIP, threshold=threshold)
    for item in range(2):
        errors = []
        for i in range(4):
            for j in range(4):
                gap = (rewards[i, item] - rewards[j, item]).item()
                if gap <= threshold:
                    continue
                a, b = logs[i, item].item(), logs[j, item].item()
                ca, cb = (min(max(value, -CLIP), CLIP) for value in (a, b))
                errors.append(max((a - b - gap / 2) ** 2, (ca - cb - gap / 2) ** 2))
        assert found[item].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_ties_say_nothing():
    same, none = torch.full((4, 1), 0.3), torch.zeros(1)
    assert torch.equal(prdp_loss(LOGS[:, None], same, beta=1.0, clip=CLIP, threshold=0.0), none)
    assert torch.equal(advantages(same, 5.0), torch.zeros(4, 1))


def test_advantages_are_clipped_deviations():
    rewards = torch.tensor([[0.0], [0.0], [0.0], [0.0], [10.0]])
    scaled = (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-4)
    torch.testing.assert_close(advantages(rewards, math.inf), scaled)
    torch.testing.assert_close(advantages(rewards, 1.0), scaled.clamp(-1, 1))
    assert scaled.max() > 1


def test_ties_are_what_rounding_leaves():
    rewards = torch.tensor([[1.0, 5.0, 2.0], [2.0, 5.0, 2.0], [6.0, 5.0, 2.0 + 1e-7]])
    assert tied(rewards).tolist() == [False, True, True]
