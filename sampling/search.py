"""Drives one strategy: limits, progress, the better of searched and plain, and the result."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .budget import plan
from .flow import Flow
from .report import PlainSample, SearchResult, StepEvent, step_record
from .run import Run, State, per_item
from .settings import SearchSettings
from .strategies import STRATEGIES, make_settings, states

OnStep = Callable[[StepEvent], None]


_PLAIN = make_settings("best_of_n", budget=1.0)


@torch.no_grad()
def sample(flow: Flow, noise: Tensor, on_step: OnStep | None = None) -> Tensor:
    """Plain Euler sampling from starting ``noise`` [B, ...] to clean latents [B, ...]."""
    run = Run(flow, noise, seed=0, settings=_PLAIN)
    return _sampled(run, run.first_state(), on_step, run.steps).x[0]


@torch.no_grad()
def search(
    flow: Flow,
    noise: Tensor,
    settings: SearchSettings,
    *,
    seed: int = 0,
    baseline: bool = False,
    on_step: OnStep | None = None,
    finish_now: Callable[[], bool] | None = None,
) -> SearchResult:
    """Sample with the search; one result per batch item.

    Args:
        noise: starting noise [B, ...], white and of any rank, as the host draws it.
        seed: fixes the search's own draws, which each item's noise is part of the key of.
        baseline: also sample plainly, for comparison; changes nothing else.
        on_step: told of every step; may raise to cancel.
        finish_now: asked before each step; True ends the search and finishes the best so far.

    Raises:
        ValueError: what this flow or schedule cannot carry out, before the first model call.
    """
    strategy, began = STRATEGIES[settings.strategy], time.monotonic()
    if strategy.needs_image_gradients:
        flow.image_gradients()
    planned = plan(settings, flow.sigmas.tolist(), flow.forwards_per_call)
    run = Run(flow, noise, seed=seed, settings=settings)
    wants_plain = baseline or settings.keep_better
    beside = wants_plain and not planned.makes_plain
    whole = planned.cost.calls + beside * (run.steps + run.tail)

    def stop_reason() -> str | None:
        if finish_now is not None and finish_now():
            return "finish_now"
        if settings.max_seconds and time.monotonic() - began >= settings.max_seconds:
            return "max_seconds"
        target = settings.target_reward
        if target is not None and run.best and (run.totals(run.best.values) >= target).all():
            return "target_reward"
        return None

    state, records, stopped = run.first_state(), [], None
    reached = states(run, state, settings.parameters)
    for ahead in planned.ahead[:-1]:
        # stopping is of use only where the best so far is finished sooner than the search is
        if _finishing_calls(run, state) < ahead and (stopped := stop_reason()):
            state = _finished(run, state)
            break
        calls, start = run.cost.calls, time.monotonic()
        state = next(reached)
        record = step_record(run, state, calls_before=calls, seconds=time.monotonic() - start)
        if record:
            records.append(record)
        _tell(on_step, run, state, run.cost.calls / run.items, whole, record)
    reached.close()
    latents, values = run.finish(state)

    plain, kept, plain_rewards = None, None, None
    if wants_plain:
        plain = _plain_sample(run, on_step, whole)
        run.compare(plain.values)
        plain_rewards = run.totals(plain.values)[0]
    rewards = run.totals(values)[0]
    if settings.keep_better:
        worse = plain_rewards > rewards
        latents = torch.where(per_item(worse, latents), plain.latents, latents)
        values = {n: torch.where(worse, plain.values[n], value) for n, value in values.items()}
        rewards, kept = torch.where(worse, plain_rewards, rewards), worse.tolist()
    return SearchResult(
        latents=latents,
        rewards=rewards,
        values={name: value[0] for name, value in values.items()},
        settings=settings,
        seed=seed,
        steps=run.steps,
        planned=planned.cost.calls,
        records=tuple(records),
        cost=run.cost,
        stopped=stopped,
        plain=plain,
        plain_rewards=plain_rewards,
        kept_plain=kept,
        seconds=time.monotonic() - began,
    )


def _tell(on_step, run: Run, state: State, calls: float, planned: int, record=None) -> None:
    if on_step is not None:
        denoised = state.denoised
        if denoised is None:
            denoised = state.x if run.best is None else run.best.clean[None]
        event = StepEvent(state.index, run.steps, state.x[0], denoised[0], calls, planned, record)
        on_step(event)


def _sampled(run: Run, state: State, on_step, planned: int, before: float = 0.0) -> State:
    """``state`` sampled on to the end of the schedule; calls of the step count from ``before``."""
    for reached in run.onward(state.x, state.index, state.v):
        state = reached
        _tell(on_step, run, state, before + run.cost.calls / run.items, planned)
    return state


def _finishing_calls(run: Run, state: State) -> int:
    """Calls that an item takes at most to be finished from the best so far, or from ``state``."""
    index = state.index if run.best is None else int(run.best.index.min())
    return run.steps - index + run.tail


def _finished(run: Run, state: State) -> State:
    """The best look-ahead so far sampled to the end; the first candidate where there is none."""
    if run.best is None:
        first = State(state.x[:1], state.index)
        return _sampled(run, first, None, run.steps)
    return State(run.resume(run.best.x, run.best.index)[None], run.steps)


def _plain_sample(run: Run, on_step, planned: int) -> PlainSample:
    """The plain sample of the search ``run``: the strategy's own, or else made here."""
    if run.plain is not None:
        return PlainSample(run.plain.x[0], run.plain.values)
    plain = Run(run.flow, run.noise, seed=0, settings=_PLAIN)
    state = _sampled(plain, plain.first_state(), on_step, planned, run.cost.calls / run.items)
    latents, values = plain.finish(state)
    return PlainSample(latents, values, plain.cost)
