"""The search loop of Flow-TTRL: roll out, look ahead, update, advance (METHOD.md, section 2)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .budget import plan
from .flow import Comparison, Flow, Meter, RewardBatch
from .noise import KeyedNoise
from .report import SearchResult, StepEvent, StepRecord
from .settings import SearchSettings
from .steps import Step, cps_step, largest_eta, matched_step, midpoint_step, sde_step
from .updates import Group, cotangent, move, per_item, steer, temper

_UNCAPPED = {"matched": matched_step, "midpoint": midpoint_step, "cps": cps_step}
"""Steps that any eta leaves right; the SDE's is capped."""

OnStep = Callable[[StepEvent], None]


@torch.no_grad()
def sample(flow: Flow, x: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Plain Euler sampling of ``x`` [B, ...]; a search that is off gives the same bits."""
    return _Trajectory(flow, Meter(flow, len(x)), on_step).onward(x.float(), 0)


def search(
    flow: Flow,
    x: Tensor,
    settings: SearchSettings,
    noise: KeyedNoise,
    on_step: OnStep | None = None,
    finish_now: Callable[[], bool] | None = None,
    plain: Tensor | None = None,
) -> SearchResult:
    """Sample ``x`` with the search; one result per batch item.

    Args:
        x: latents [B, ...] at ``flow.sigmas[0]``, of any rank.
        on_step: told of every step; may raise to cancel.
        finish_now: asked before each search step; True ends the search and samples on from the
            best so far.
        plain: ``sample(flow, x)``, if it is known already: the result then says what it scores.

    Raises:
        ValueError: settings that this schedule cannot carry out, before the first model call.
    """
    return _Search(flow, x, settings, noise, on_step, finish_now, plain).run()


class _Trajectory:
    """Ordinary sampling, which the search falls back to."""

    def __init__(self, flow: Flow, meter: Meter, on_step: OnStep | None):
        self.flow, self.meter, self.on_step = flow, meter, on_step
        self.sigmas = [float(s) for s in flow.sigmas]
        self.dt = [float(d) for d in flow.sigmas.diff()]
        self.steps = len(self.dt)
        # where a look-ahead leads: past the last level, if that is not a clean one
        self.levels = self.sigmas + [0.0] * (self.sigmas[-1] > 0)

    def euler(self, x: Tensor, v: Tensor, index: int) -> Tensor:
        return x + v * self.dt[index]

    def onward(self, x: Tensor, start: int | Tensor, v: Tensor | None = None) -> Tensor:
        """Latents at level ``start`` (velocity ``v`` there, if known) sampled to clean ones.

        With one start per item [B], an item waits until the others have come to its level.
        """
        starts = torch.as_tensor(start, device=x.device).expand(len(x))
        for index in range(int(starts.min()), self.steps):
            if v is None:
                v = self.meter.velocity(x, self.sigmas[index])
            moving = per_item(starts <= index, x)
            self.tell(index, x, v, None)
            x, v = torch.where(moving, self.euler(x, v, index), x), None
        return x

    def tell(self, index: int, x: Tensor, v: Tensor, record: StepRecord | None) -> None:
        if self.on_step is not None:
            sigma = self.sigmas[index]
            self.on_step(StepEvent(index, self.steps, sigma, x, x - sigma * v, record))


@dataclass
class _Best:
    """The best look-ahead so far of each item: its rewards, latent [B, ...] and level [B]."""

    comparison: Comparison
    latent: Tensor
    level: Tensor
    rewards: RewardBatch | None = None

    @property
    def total(self) -> Tensor:
        """Its total [B] as things stand now."""
        if self.rewards is None:
            return torch.full((len(self.level),), -torch.inf, device=self.level.device)
        return _or_worst(self.comparison.totals(self.rewards)[0])

    def offer(self, rewards: RewardBatch, latent: Tensor, level: int) -> None:
        better = _or_worst(self.comparison.totals(rewards)[0]) > self.total
        self.rewards = rewards if self.rewards is None else rewards.where(better, self.rewards)
        self.latent = torch.where(per_item(better, latent), latent, self.latent)
        self.level = torch.where(better, level, self.level)


class _Search(_Trajectory):
    def __init__(self, flow, x, settings, noise, on_step, finish_now, plain):
        super().__init__(flow, Meter(flow, len(x), settings.micro_batch), on_step)
        settings.check(self.sigmas)
        self.start, self.settings, self.noise = x.float(), settings, noise
        self.finish_now, self.plain = finish_now, plain
        last_look = int(self.sigmas[-1] > 0)
        self.closing = last_look + settings.keep_better * (self.steps + last_look)
        self.plan = plan(settings, self.sigmas) if settings.max_calls else None
        self.started = time.monotonic()
        self.records: list[StepRecord] = []
        items = len(x)
        self.comparison = Comparison(items)
        level = torch.zeros(items, dtype=torch.long, device=x.device)
        self.best = _Best(self.comparison, self.start, level)

    @torch.no_grad()
    def run(self) -> SearchResult:
        x, v, index, stopped = self.start, None, 0, None
        reference = x
        searching = self.settings.search_steps(self.steps)
        while searching and index <= searching[-1]:
            spent = self.meter.cost.calls
            if index in searching and (stopped := self.stop()):
                break
            if v is None:
                v = self.meter.velocity(x, self.sigmas[index])
            if index == 0 or not self.settings.needs_reference(index, self.steps):
                reference, v_reference = x, v
            else:
                v_reference = self.meter.velocity(reference, self.sigmas[index])
            before, v_before, record = x, v, None
            if index in searching:
                x, v, record = self.search_step(index, x, v, reference, v_reference, spent)
                self.records.append(record)
            else:
                x, v = self.euler(x, v, index), None
            self.tell(index, before, v_before, record)
            reference = self.euler(reference, v_reference, index)
            index += 1
        if stopped and self.records and self.back <= self.left:
            latents = self.onward(self.best.latent, self.best.level)
        else:
            latents = self.onward(x, index, v)
        return self.result(latents, stopped)

    def search_step(
        self, index: int, x: Tensor, v: Tensor, reference: Tensor, v_reference: Tensor, spent: int
    ) -> tuple[Tensor, Tensor | None, StepRecord]:
        """The next latent, its velocity where that is known already, and what was seen.

        ``spent``: calls of the run before this step.
        """
        settings, began = self.settings, time.monotonic()
        look_ahead = settings.look_ahead(index, self.steps)
        step, eta, eta_asked = self.stochastic_step(index)
        noise = self.noise.group(index, settings.group_size, x)
        mean = step.mean(x, v)
        if settings.update == "steered":
            noise = torch.stack([temper(draw, mean) for draw in noise])
        samples = (mean + step.std * noise).flatten(0, 1)
        v_samples = self.velocity_or_zero(samples, index + 1)
        ahead = self.look_ahead(samples, v_samples, index + 1, look_ahead)
        self.comparison.add(ahead)
        total = self.comparison.totals(ahead)
        rewards = _mended(total)
        group = Group(
            step=step,
            s=self.sigmas[index],
            h=-self.dt[index],
            x=x,
            v=v,
            mean=mean,
            reference=step.mean(reference, v_reference),
            noise=noise,
            rewards=rewards,
            prdp=settings.is_prdp(index, self.steps),
        )
        pick = _or_worst(total).argmax(0)
        rows = pick * len(pick) + torch.arange(len(pick), device=pick.device)
        chosen, best = samples[rows], ahead[rows]
        self.best.offer(best, chosen, index + 1)

        x, v_next, kept = self.advance(index, group, eta), None, None
        if settings.elitist and settings.update == "steered":
            v_next = self.velocity_or_zero(x, index + 1)
            seen = self.look_ahead(x, v_next, index + 1, look_ahead)
            self.comparison.add(seen)
            self.best.offer(seen, x, index + 1)
            kept, rival = (_or_worst(self.comparison.totals(batch)[0]) for batch in (seen, best))
            worse = per_item(rival > kept, x)
            x = torch.where(worse, chosen, x)
            v_next = torch.where(worse, v_samples[rows], v_next)
        values = {name: value.view_as(rewards) for name, value in ahead.values.items()}
        record = StepRecord(
            index=index,
            sigma=self.sigmas[index],
            eta=eta,
            eta_asked=eta_asked,
            objective="prdp" if group.prdp else "grpo",
            look_ahead=look_ahead,
            rewards=rewards.T.tolist(),
            values={name: value.T.tolist() for name, value in values.items()},
            kept=None if kept is None else kept.tolist(),
            not_finite=int((~total.isfinite()).sum()),
            missing=_missing(ahead.values),
            flat=[name for name, value in values.items() if _flat(value)],
            price=self.meter.cost.calls - spent,
            calls=self.meter.cost.calls,
            seconds=round(time.monotonic() - began, 4),
        )
        return x, v_next, record

    def advance(self, index: int, group: Group, eta: float) -> Tensor:
        """The next latent: a steered stochastic step, or moves and an ordinary step."""
        settings, sigma = self.settings, group.s
        x, v = group.x, group.v
        if settings.update == "steered":
            return steer(group, self.direction(group, x, v)[0])
        size = settings.move_size(
            index, self.steps, eta=eta, h=group.h, elements=x[0].numel(), prdp=group.prdp
        )
        for iteration in range(settings.rl_iterations):
            known = v if iteration == 0 else None
            direction, v = self.direction(group, x, known)
            x = move(settings.update, x, v, sigma, direction, size)
        if not torch.equal(x, group.x):
            v = self.meter.velocity(x, sigma)
        return self.euler(x, v, index)

    def direction(self, group: Group, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where the objective falls, in the latent's space, and the velocity at ``x``.

        The variants differ by J alone.
        """

        def descent(v: Tensor) -> Tensor:
            return -cotangent(group, group.step.mean(x, v), self.settings)

        if self.settings.gradient == "exact":
            return self.meter.pullback(
                group.step, x, group.s, lambda again: descent(again if v is None else v)
            )
        v = self.meter.velocity(x, group.s) if v is None else v
        return descent(v), v

    def stochastic_step(self, index: int) -> tuple[Step, float, float]:
        """The step at ``index``, its eta and the eta asked for."""
        s, s_next = self.sigmas[index], self.sigmas[index + 1]
        asked = self.settings.at(self.settings.noise_range, index, self.steps)
        if self.settings.step != "sde":
            return _UNCAPPED[self.settings.step](s, s_next, asked), asked, asked
        eta = min(asked, largest_eta(s, s_next, self.sigmas[1]))
        return sde_step(s, s_next, eta, self.sigmas[1]), eta, asked

    def velocity_or_zero(self, x: Tensor, index: int) -> Tensor:
        """Velocity at level ``index``; not needed, and not asked for, at the clean end."""
        sigma = self.sigmas[index]
        return self.meter.velocity(x, sigma) if sigma > 0 else torch.zeros_like(x)

    def look_ahead(self, x: Tensor, v: Tensor, index: int, steps: int = 1) -> RewardBatch:
        """Rewards of the images that ``x`` [N, ...] at level ``index`` comes to.

        Seen by Euler steps over as many levels of the schedule, evenly spaced in it: one step is
        the posterior mean, blurred while noise is high; a few draw nearly the final image.
        """
        levels, last = self.levels, len(self.levels) - 1
        count = min(steps, last - index)
        stops = [index + round(k * (last - index) / count) for k in range(1, count + 1)]
        for stop in stops:
            x = x + v * (levels[stop] - levels[index])
            v, index = self.meter.velocity(x, levels[stop]) if stop < last else v, stop
        return self.meter.score(x)

    def judge(self, latents: Tensor) -> RewardBatch:
        """Rewards of finished latents; a schedule that ends above 0 leaves a look-ahead to do."""
        return self.look_ahead(latents, self.velocity_or_zero(latents, self.steps), self.steps)

    def aside(self, latents: Tensor) -> RewardBatch:
        """The same, for comparison alone: it is not in the run's cost."""
        counted = self.meter
        self.meter = Meter(self.flow, len(latents), self.settings.micro_batch)
        try:
            return self.judge(latents)
        finally:
            self.meter = counted

    def stop(self) -> str | None:
        """Why to search no further before the next search step, if anything says so."""
        settings = self.settings
        if self.finish_now is not None and self.finish_now():
            return "finish_now"
        if settings.max_seconds and time.monotonic() - self.started >= settings.max_seconds:
            return "max_seconds"
        target = settings.target_reward
        if target is not None and bool((self.best.total >= target).all()):
            return "target_reward"
        if settings.max_calls:
            price, ahead = (part[len(self.records)] for part in (self.plan.prices, self.plan.ahead))
            # one more step, and then on from the best so far; or else simply all that is planned
            if min(price + self.back, ahead) > self.left:
                return "max_calls"
        return None

    @property
    def left(self) -> float:
        """Calls that an item may still spend."""
        return (self.settings.max_calls or math.inf) - self.meter.cost.calls / len(self.start)

    @property
    def back(self) -> int:
        """Calls that an item needs to go on from the best so far to the end."""
        return self.steps - int(self.best.level.min()) + self.closing

    def result(self, latents: Tensor, stopped: str | None) -> SearchResult:
        final, kept_plain = self.judge(latents), None
        self.comparison.add(final)
        plain, rival, plain_rewards = self.plain, None, None
        if self.settings.keep_better:
            if plain is None:
                plain = _Trajectory(self.flow, self.meter, None).onward(self.start, 0)
            rival = self.judge(plain)
        elif plain is not None:
            rival = self.aside(plain)
        if rival is not None:
            self.comparison.add(rival)
            plain_rewards = self.comparison.totals(rival)[0]
        if self.settings.keep_better:
            ours = self.comparison.totals(final)[0]
            worse = (plain_rewards > ours) | ours.isnan()
            latents = torch.where(per_item(worse, latents), plain, latents)
            final = final.where(~worse, rival)
            kept_plain = worse.tolist()
        return SearchResult(
            latents=latents,
            rewards=self.comparison.totals(final)[0],
            values=final.values,
            settings=self.settings,
            seed=self.noise.seed,
            steps=self.steps,
            records=tuple(self.records),
            cost=self.meter.cost,
            stopped=stopped,
            kept_plain=kept_plain,
            plain_rewards=plain_rewards,
            seconds=time.monotonic() - self.started,
        )


def _mended(rewards: Tensor) -> Tensor:
    """Rewards [G, B] with NaN and infinities at the mean of the group's others: no advantage."""
    finite = rewards.isfinite()
    known = rewards.where(finite, 0)
    return known.where(finite, known.sum(0) / finite.sum(0).clamp(min=1))


def _or_worst(rewards: Tensor) -> Tensor:
    """Rewards with NaN and infinities below every other, so that they are never chosen."""
    return rewards.where(rewards.isfinite(), -torch.inf)


def _missing(values: dict[str, Tensor]) -> dict[str, int]:
    """How many images each reward could not judge, where there are any."""
    counts = {name: int((~value.isfinite()).sum()) for name, value in values.items()}
    return {name: count for name, count in counts.items() if count}


def _flat(values: Tensor) -> bool:
    """Whether values [G, B] are the same for all candidates of every item."""
    return bool((values == values[:1]).all())
