"""Drives one strategy: limits, progress, the better of searched and plain, and the result."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .budget import plan
from .flow import Flow
from .report import PlainSample, SearchResult, StepEvent, step_record
from .run import Run
from .settings import SearchSettings
from .state import State, per_item
from .strategies import STRATEGIES, make_settings, states

OnStep = Callable[[StepEvent], None]


_PLAIN = make_settings("best_of_n", budget=1.0)


@torch.no_grad()
def sample(flow: Flow, noise: Tensor) -> Tensor:
    """Plain Euler sampling from starting ``noise`` [B, ...] to clean latents [B, ...]."""
    run = Run(flow, noise, seed=0, settings=_PLAIN)
    state = run.first_state()
    for reached in run.onward(state.x, state.index):
        state = reached
    return state.x[0]


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
        if run.calls_to_finish(state) < ahead and (stopped := stop_reason()):
            state = run.finish_early(state)
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
        plain = _plain_sample(run, on_step, whole, preview=latents)
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
        plain_calls=run.steps + run.tail,
        planned=planned.cost.calls,
        records=tuple(records),
        cost=run.cost,
        stopped=stopped,
        plain=plain,
        plain_rewards=plain_rewards,
        kept_plain=kept,
        seconds=time.monotonic() - began,
    )


def _tell(on_step, run: Run, state: State, calls: float, planned: int, record=None, preview=None):
    """Tell ``on_step`` of ``state``; ``preview`` [B, ...] is shown in its place, if given."""
    if on_step is None:
        return
    if preview is None:
        best = state.x[0] if run.best is None else run.best.clean
        preview = best if state.denoised is None else state.denoised[0]
    on_step(StepEvent(state.index, run.steps, state.x[0], preview, calls, planned, record))


def _plain_sample(run: Run, on_step, planned: int, preview: Tensor) -> PlainSample:
    """The plain sample of the search ``run``: the strategy's own, or else made here.

    The search's result stays in sight meanwhile, as ``preview`` [B, ...].
    """
    if run.plain is not None:
        return PlainSample(run.plain.x[0], run.plain.values)
    plain = Run(run.flow, run.noise, seed=0, settings=_PLAIN)
    state, searched = plain.first_state(), run.cost.calls / run.items
    for reached in plain.onward(state.x, state.index):
        state = reached
        calls = searched + plain.cost.calls / plain.items
        _tell(on_step, plain, state, calls, planned, preview=preview)
    latents, values = plain.finish(state)
    return PlainSample(latents, values, plain.cost)
