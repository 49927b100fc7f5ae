"""Group-relative advantages and the two objectives: PRDP early, GRPO after.

Log-probabilities and rewards are [G, B]: candidates first, batch items second. Each loss is one
number per item [B].
"""

from __future__ import annotations

import torch
from torch import Tensor


def tied(rewards: Tensor) -> Tensor:
    """Items [B] whose candidates' rewards [G, B] do not differ beyond rounding."""
    spread = rewards.amax(0) - rewards.amin(0)
    return spread <= 1e-6 * rewards.abs().amax(0).clamp(min=1)


def advantages(rewards: Tensor, clip: float) -> Tensor:
    """(r - mean) / (std + 1e-4) over the group, clipped to +-``clip``; zeros where rewards tie."""
    deviation = rewards - rewards.mean(0)
    std = rewards.std(0) if len(rewards) > 1 else torch.zeros_like(rewards[0])
    scaled = (deviation / (std + 1e-4)).clamp(-clip, clip)
    return scaled.masked_fill(tied(rewards), 0)


def prdp_loss(
    log_ratio: Tensor, rewards: Tensor, *, beta: float, clip: float, threshold: float
) -> Tensor:
    """Proximal reward difference prediction (PRDP, arXiv 2402.08714) over ordered pairs.

    Args:
        log_ratio: log p under the current latent less that under the reference trajectory.
        beta: the reward difference is predicted as ``(r_i - r_j) / beta``.
        threshold: pairs count whose rewards differ by more than this.
    """
    clipped = log_ratio.clamp(-clip, clip)
    target = (rewards[:, None] - rewards[None]) / beta

    def error(logs: Tensor) -> Tensor:
        return (logs[:, None] - logs[None] - target).square()

    pairs = rewards[:, None] - rewards[None] > threshold
    worst = torch.maximum(error(log_ratio), error(clipped)) * pairs
    return worst.sum((0, 1)) / pairs.sum((0, 1)).clamp(min=1)


def grpo_loss(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped surrogate: mean of max(-A ratio, -A clip(ratio, 1 +- clip))."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean(0)
