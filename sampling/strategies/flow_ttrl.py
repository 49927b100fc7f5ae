"""Flow-TTRL as published (ICML 2026), its known faults mended: docs/METHOD.md, sections 2 and 3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from ..flow import Values
from ..run import Run
from ..settings import Parameters, chosen, ranged
from ..state import State, cat_values, per_item, width
from ..steps import LinearStep, largest_eta, sde_step
from ..updates import Group, average_where_missing, cotangent
from .common import steps_of, whole_samples

GRADIENTS = ("exact", "jacobian_free")

ELEMENTS_AT_1024 = 16 * 128 * 128
"""Elements of an SD3 or FLUX latent at 1024 px, for which the paper's constants were chosen."""


@dataclass(frozen=True)
class FlowTTRL(Parameters):
    """The paper's hyper-parameters under its names, at its demo's values for SD3.

    Mended: eta is capped where it would turn the update round and really ends at the second value
    of ``noise_range``; scale_factor means the same at every resolution, and no update is wider than
    the step's noise; the KL term carries its 1/h. ``clip`` alone has another value (published:
    1e-4), since the published one leaves the second iteration without a gradient.

    Attributes:
        group_size: candidates per search step (G), at least 2.
        rl_iterations: updates per search step (K).
        internal_reward_timestep: share of the steps, from the start, whose loss is PRDP.
        external_reward_timestep: share of the steps that search at all; GRPO after PRDP. A budget
            shortens it.
        noise_range: the stochastic step's eta, linear from first to last search step.
        gradient: ``exact`` differentiates through the model; ``jacobian_free`` takes the
            derivative of the step's mean for the identity and never runs a backward.
        scale_factor, prdp_scale, grpo_scale: the step size and its multipliers by phase, meant for
            1024 px and rescaled to any other size.
        beta1: PRDP's temperature. beta2: weight of the KL to the reference trajectory.
        clip: clip of PRDP's log-ratios and GRPO's ratios.
        adv_clip_max: clip of the advantages.
        reward_diff_threshold: PRDP compares pairs whose rewards differ by more.
        rationorm: GRPO's ratio normalised per sample.
    """

    strategy = "flow_ttrl"

    group_size: int = ranged(6, 2, 256, "advantages compare candidates")
    rl_iterations: int = ranged(2, 1, 64)
    internal_reward_timestep: float = ranged(0.2, 0, 1)
    external_reward_timestep: float = ranged(0.5, 0, 1)
    noise_range: tuple[float, float] = ranged((1.5, 0.5), 1e-3, 10, "eta 0 makes candidates alike")
    gradient: str = chosen("exact", GRADIENTS)
    scale_factor: float = ranged(500.0, 0, 1e9)
    prdp_scale: float = ranged(0.01, 0, 1e9)
    grpo_scale: float = ranged(10.0, 0, 1e9)
    beta1: float = ranged(2e-4, 1e-9, 1e9)
    beta2: float = ranged(2e-4, 0, 1e9)
    clip: float = ranged(0.02, 1e-9, 1e9)
    adv_clip_max: float = ranged(5.0, 1e-9, 1e9)
    reward_diff_threshold: float = ranged(0.0, 0, 1e9)
    rationorm: bool = True

    def own_calls(self, steps: int, tail: int) -> int:
        return self._price(self._window(steps), steps, tail)

    def window(self, steps: int, tail: int, calls: int) -> int:
        """Search steps at the start of ``steps``, as many of the window as ``calls`` pay for."""
        longest = self._window(steps)
        return next((n for n in range(longest, 0, -1) if self._price(n, steps, tail) <= calls), 0)

    def is_prdp(self, index: int, steps: int) -> bool:
        """Whether search step ``index`` uses PRDP; GRPO otherwise."""
        return index < steps * self.internal_reward_timestep - 1e-9

    def needs_reference(self, index: int, steps: int) -> bool:
        """Whether the loss looks at the reference trajectory, at step ``index`` or later."""
        return self.is_prdp(index, steps) or self.beta2 > 0

    def step_size(self, index: int, steps: int, *, eta: float, h: float, elements: int) -> float:
        """scale_factor sqrt(linspace(1, 0.5, T)[i]) eta sqrt(h) C, with C by phase.

        In proportion to the latent's ``elements``, since log-probabilities are means over them.
        """
        fade = math.sqrt(1 - 0.5 * index / max(steps - 1, 1))
        phase = self.prdp_scale if self.is_prdp(index, steps) else self.grpo_scale
        return self.scale_factor * fade * eta * math.sqrt(h) * phase * elements / ELEMENTS_AT_1024

    def _window(self, steps: int) -> int:
        return steps_of(self.external_reward_timestep, steps)

    def _price(self, window: int, steps: int, tail: int) -> int:
        """Calls of a whole run, a backward counted as two, with that many search steps."""
        exact = self.gradient == "exact"
        # candidates at the clean end need no velocity
        candidates = self.group_size * (window - (window == steps and not tail))
        # the first iteration's call is the rollout's; the latent that it leaves takes one more
        own = window * (self.rl_iterations * (3 if exact else 1) + 1)
        reference = sum(self.needs_reference(index, steps) for index in range(1, window))
        return candidates + own + reference + steps - window + tail


def flow_ttrl(run: Run, start: Tensor, settings: FlowTTRL) -> Iterator[State]:
    window = settings.window(run.steps, run.tail, run.calls)
    if not window:
        yield from whole_samples(run, start)
        return
    x = reference = start
    for index in range(window):
        s, s_next = run.sigmas[index : index + 2]
        progress = index / (window - 1) if window > 1 else 0.0
        first, last = settings.noise_range
        asked = first + (last - first) * progress
        eta = min(asked, largest_eta(s, s_next, run.sigmas[1]))
        step = sde_step(s, s_next, eta, run.sigmas[1])
        v_reference = None
        if index and settings.needs_reference(index, run.steps):
            v_reference = run.velocity(reference, s)
        x, v_first = _updated(run, index, x, reference, v_reference, step, eta, settings)
        if index == 0:
            v_reference = v_first
        v = run.velocity(x, s)
        denoised, x = x - s * v, run.euler(x, v, index)
        if v_reference is not None:
            reference = run.euler(reference, v_reference, index)
        detail = {
            "eta": eta,
            "eta_asked": asked,
            "objective": "prdp" if settings.is_prdp(index, run.steps) else "grpo",
        }
        yield State(x, index + 1, denoised=denoised, detail=detail)
    yield from run.onward(x, window)


def _updated(
    run: Run,
    index: int,
    x: Tensor,
    reference: Tensor,
    v_reference: Tensor | None,
    step: LinearStep,
    eta: float,
    settings: FlowTTRL,
) -> tuple[Tensor, Tensor]:
    """``x`` [1, B, ...] after the search step's updates, and the velocity before them."""
    s, h = run.sigmas[index], run.sigmas[index] - run.sigmas[index + 1]
    noise = run.draw(index, settings.group_size)
    size = settings.step_size(index, run.steps, eta=eta, h=h, elements=x[0, 0].numel())
    group, v_first = None, None
    for _ in range(settings.rl_iterations):
        with _linearised(run, x[0], s, settings.gradient) as (v, pull):
            mean = step.mean(x[0], v)
            if group is None:
                v_first = v[None]
                group = _rollout(run, index, x, v, reference, v_reference, step, noise, settings)
            c = cotangent(group, mean, settings)
            x = x - _trusted(size * (step.on_x * c + step.on_v * pull(c) if pull else c), step.std)
    return x, v_first


def _trusted(move: Tensor, std: float) -> Tensor:
    """``move`` [B, ...] shortened to the width of the noise that the candidates were drawn with.

    Beyond it they say nothing of the loss. The published step's length does not fall with the level
    while that noise does, so that below a level of 0.1 (a low denoise) it would diverge.
    """
    return move * per_item((std / width(move)).clamp(max=1), move)


@contextmanager
def _linearised(run: Run, x: Tensor, s: float, gradient: str):
    """The velocity at ``x`` [B, ...] and its pullback; None where the Jacobian is left out."""
    if gradient == "exact":
        with run.linearised(x, s) as pair:
            yield pair
    else:
        yield run.velocity(x[None], s)[0], None


def _rollout(run, index, x, v, reference, v_reference, step, noise, settings) -> Group:
    """Candidates drawn from ``x`` [1, B, ...] with velocity ``v`` [B, ...], and their rewards."""
    mean = step.mean(x[0], v)
    values: Values = {}
    for part in run.parts(len(noise)):
        drawn = mean + step.std * noise[part.start : part.stop]
        values = cat_values(values, run.look_ahead(drawn, index + 1, 1).values)
    return Group(
        step=step,
        h=run.sigmas[index] - run.sigmas[index + 1],
        mean=mean,
        reference=mean if v_reference is None else step.mean(reference[0], v_reference[0]),
        noise=noise,
        rewards=average_where_missing(run.totals(values)),
        prdp=settings.is_prdp(index, run.steps),
    )
