"""Where the group's rewards move the latent: the paper's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .objectives import advantages, grpo_loss, prdp_loss, tied
from .state import per_item
from .steps import LinearStep, log_prob


class Objective(Protocol):
    """The numbers of the two losses; :class:`.strategies.flow_ttrl.FlowTTRL` has them."""

    beta1: float
    beta2: float
    clip: float
    adv_clip_max: float
    reward_diff_threshold: float
    rationorm: bool


@dataclass(frozen=True)
class Group:
    """G candidates of one search step, drawn from one latent.

    Attributes:
        h: the step's length.
        mean: mean of the step from the latent they were drawn from [B, ...].
        reference: mean of the same step on the reference trajectory [B, ...]; read by PRDP and by
            the KL (beta2) alone.
        noise: the candidates' draws [G, B, ...].
        rewards: their look-ahead rewards [G, B], all finite.
        prdp: whether the objective is PRDP; GRPO otherwise.
    """

    step: LinearStep
    h: float
    mean: Tensor
    reference: Tensor
    noise: Tensor
    rewards: Tensor
    prdp: bool

    @property
    def samples(self) -> Tensor:
        return self.mean + self.step.std * self.noise


def dims(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def norm(x: Tensor) -> Tensor:
    """Norm of each item, shaped to broadcast."""
    return x.square().sum(dims(x), keepdim=True).sqrt()


def unit(x: Tensor) -> Tensor:
    """Each item divided by its norm; zeros stay zeros."""
    return x / norm(x).clamp(min=torch.finfo(x.dtype).tiny)


def average_where_missing(totals: Tensor) -> Tensor:
    """Totals [G, B] with those that are not finite at the mean of the others: no advantage."""
    finite = totals.isfinite()
    known = totals.where(finite, 0)
    return known.where(finite, known.sum(0) / finite.sum(0).clamp(min=1))


def cotangent(group: Group, mean: Tensor, objective: Objective) -> Tensor:
    """Gradient [B, ...] of the objective with respect to the step's mean, at ``mean``.

    The loss is differentiated with respect to the candidates' log-ratios, and those by hand:
    d log p / d mean = (x' - mean) / (std^2 D). Items whose rewards tie get zeros.
    """
    step, inner = group.step, tuple(range(2, group.noise.ndim))
    elements = mean[0].numel()
    if objective.rationorm and not group.prdp:
        # std * (log-ratio + mean-shift bias), which is linear in the mean
        log_ratio = ((mean - group.mean) * group.noise).mean(inner)
        slope = group.noise / elements
    else:
        rival = group.reference if group.prdp else group.mean
        at_mean, at_rival = (log_prob(step, group.samples, m, inner) for m in (mean, rival))
        log_ratio = at_mean - at_rival
        slope = (group.samples - mean) / (step.std**2 * elements)
    gradient = (per_item(_loss_gradient(log_ratio, group, objective), mean) * slope).sum(0)
    if not group.prdp:
        if objective.beta2:
            gradient += objective.beta2 * (mean - group.reference) / (step.std**2 * elements)
        if objective.rationorm:
            gradient /= group.h
    return gradient.masked_fill(per_item(tied(group.rewards), mean), 0)


def _loss_gradient(log_ratio: Tensor, group: Group, objective: Objective) -> Tensor:
    """d loss / d log-ratio [G, B]."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf, rewards = log_ratio.clone().requires_grad_(), group.rewards.clone()
        if group.prdp:
            loss = prdp_loss(
                leaf,
                rewards,
                beta=objective.beta1,
                clip=objective.clip,
                threshold=objective.reward_diff_threshold,
            )
        else:
            loss = grpo_loss(leaf, advantages(rewards, objective.adv_clip_max), objective.clip)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return gradient
