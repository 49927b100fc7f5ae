"""The update: where the group's rewards move the latent. Small pieces that recombine.

``cotangent`` turns rewards into a descent direction in the space of the step's mean; an *advance*
carries the latent to the next level along it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .bands import band_sizes, octaves
from .objectives import advantages, grpo_loss, prdp_loss, tied
from .settings import SearchSettings
from .steps import Step, log_prob


@dataclass(frozen=True)
class Group:
    """G candidates of one search step, drawn from one latent.

    Attributes:
        s, h: the level they were drawn from and the step's length.
        x, v: the latent [B, ...] they were drawn from and its velocity.
        mean: mean of the step from there [B, ...].
        reference: mean of the same step on the reference trajectory [B, ...].
        noise: the candidates' draws [G, B, ...].
        rewards: their look-ahead rewards [G, B].
        prdp: whether the objective is PRDP; GRPO otherwise.
    """

    step: Step
    s: float
    h: float
    x: Tensor
    v: Tensor
    mean: Tensor
    reference: Tensor
    noise: Tensor
    rewards: Tensor
    prdp: bool

    @property
    def samples(self) -> Tensor:
        return self.mean + self.step.std * self.noise


def _dims(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """``values`` [..., B] shaped to broadcast over ``like`` [B, ...]."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - 1))


def norm(x: Tensor) -> Tensor:
    """Norm of each item, shaped to broadcast."""
    return x.square().sum(_dims(x), keepdim=True).sqrt()


def unit(x: Tensor) -> Tensor:
    """Each item divided by its norm; zeros stay zeros."""
    return x / norm(x).clamp(min=torch.finfo(x.dtype).tiny)


def cotangent(group: Group, mean: Tensor, settings: SearchSettings) -> Tensor:
    """Gradient [B, ...] of the objective with respect to the step's mean, at ``mean``.

    The loss is differentiated with respect to the candidates' log-ratios, and those by hand:
    d log p / d mean = (x' - mean) / (std^2 D). Items whose rewards tie get zeros.
    """
    step, dims = group.step, tuple(range(2, group.noise.ndim))
    elements = mean[0].numel()
    if settings.rationorm and not group.prdp:
        # std * (log-ratio + mean-shift bias), which is linear in the mean
        log_ratio = ((mean - group.mean) * group.noise).mean(dims)
        slope = group.noise / elements
    else:
        rival = group.reference if group.prdp else group.mean
        at_mean, at_rival = (log_prob(step, group.samples, m, dims) for m in (mean, rival))
        log_ratio = at_mean - at_rival
        slope = (group.samples - mean) / (step.std**2 * elements)
    gradient = (per_item(_loss_gradient(log_ratio, group, settings), mean) * slope).sum(0)
    if not group.prdp:
        if settings.beta2:
            gradient += settings.beta2 * (mean - group.reference) / (step.std**2 * elements)
        if settings.rationorm:
            gradient /= group.h
    return gradient.masked_fill(per_item(tied(group.rewards), mean), 0)


def _loss_gradient(log_ratio: Tensor, group: Group, settings: SearchSettings) -> Tensor:
    """d loss / d log-ratio [G, B]."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf, rewards = log_ratio.clone().requires_grad_(), group.rewards.clone()
        if group.prdp:
            loss = prdp_loss(
                leaf,
                rewards,
                beta=settings.beta1,
                clip=settings.clip,
                threshold=settings.reward_diff_threshold,
            )
        else:
            loss = grpo_loss(leaf, advantages(rewards, settings.adv_clip_max), settings.clip)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return gradient


def add(x: Tensor, direction: Tensor, size: float) -> Tensor:
    """``x`` moved by ``size`` of its own norm along ``direction``. Lengthens x."""
    return x + size * norm(x) * unit(direction)


def rotate(x: Tensor, direction: Tensor, angle: float) -> Tensor:
    """``x`` turned by ``angle`` radians towards ``direction``, its norm kept.

    An item whose direction is zero, or parallel to x, stays.
    """
    across = _across(direction, x)
    turned = math.cos(angle) * x + math.sin(angle) * norm(x) * unit(across)
    return torch.where(norm(across) > 0, turned, x)


def rotate_noise(x: Tensor, v: Tensor, s: float, direction: Tensor, angle: float) -> Tensor:
    """``x`` with its noise estimate e = x + (1 - s) v turned, its data estimate x - s v kept."""
    e = x + (1 - s) * v
    turned = rotate(e, direction, angle)
    # x itself where nothing turned: put together again from its parts it would be rounded
    return torch.where(norm(turned - e) > 0, (1 - s) * (x - s * v) + s * turned, x)


def move(kind: str, x: Tensor, v: Tensor, s: float, direction: Tensor, size: float) -> Tensor:
    """``x`` moved along ``direction`` by the rule ``kind``: the paper's, or one of the mends.

    ``size`` is in radians for the rotations, in the latent's own norm for ``additive`` and a
    factor on ``direction`` itself for ``scale_factor``.
    """
    match kind:
        case "rotation":
            return rotate(x, direction, size)
        case "noise_rotation":
            return rotate_noise(x, v, s, direction, size)
        case "additive":
            return add(x, direction, size)
    return x + size * direction


def temper(noise: Tensor, mean: Tensor) -> Tensor:
    """``noise`` [B, ...] made typical, octave by octave, and at right angles to ``mean``.

    In every band it has exactly the energy that white noise has on average, so that ``mean + std
    noise`` is as energetic as any sample of the step, whatever chose the noise. Zeros stay zeros.
    """
    parts = zip(octaves(noise), octaves(mean), band_sizes(mean), strict=True)
    return sum(size**0.5 * unit(_across(part, along)) for part, along, size in parts)


def steer(group: Group, direction: Tensor) -> Tensor:
    """The stochastic step itself, with its noise along ``direction`` instead of at random.

    Items without a direction take the deterministic step.
    """
    steered = group.mean + group.step.std * temper(direction, group.mean)
    return torch.where(norm(direction) > 0, steered, group.x - group.v * group.h)


def _across(direction: Tensor, x: Tensor) -> Tensor:
    """The part of ``direction`` at right angles to ``x``."""
    overlap = (direction * x).sum(_dims(x), keepdim=True)
    return direction - x * overlap / norm(x).square().clamp(min=torch.finfo(x.dtype).tiny)
