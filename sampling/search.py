"""Drives one strategy: limits, progress, the better of searched and plain, and the result."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .budget import Plan, idle_budget, plan
from .flow import Flow
from .plain import plain_sample
from .report import OnStep, PlainSample, SearchResult, StepRecord, step_event, step_record, trouble
from .run import Run
from .settings import SearchSettings
from .state import State, per_item, width
from .strategies import STRATEGIES, states


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
        baseline: also sample plainly, for comparison; changes nothing of what is searched.
        on_step: told of every step; may raise to cancel.
        finish_now: asked before each step; True ends the search and finishes the best so far.

    Raises:
        ValueError: what this flow or schedule cannot carry out, before the first model call.
    """
    began = time.monotonic()
    if STRATEGIES[settings.strategy].needs_image_gradients:
        flow.image_gradients()
    planned = plan(settings, flow.sigmas.tolist(), flow.forwards_per_call)
    run = Run(flow, noise, seed=seed, settings=settings)
    wants_plain = baseline or settings.keep_better
    whole = planned.cost.calls + (wants_plain and not planned.makes_plain) * run.plain_calls

    plain = None
    if wants_plain and not planned.makes_plain:
        plain = plain_sample(run, on_step, whole)
    searching = time.monotonic()

    def stop_reason() -> str | None:
        if finish_now is not None and finish_now():
            return "finish_now"
        if settings.max_seconds and time.monotonic() - searching >= settings.max_seconds:
            return "max_seconds"
        target = settings.target_reward
        if target is not None and run.best and (run.totals(run.best.values) >= target).all():
            return "target_reward"
        return None

    def tell(state: State, record: StepRecord | None) -> None:
        if on_step is not None:
            on_step(step_event(run, state, whole, record, plain))

    start = run.first_state()
    state, records, stopped = _drive(run, start, planned, settings, stop_reason, tell, plain)
    latents, clean, values = run.finish(state)
    plain_rewards, kept_plain = None, None
    if wants_plain:
        plain = plain or plain_sample(run, on_step, whole)
        if plain.cost.calls:  # only now: no toggle changes what totals are relative to on the way
            run.compare(plain.values)
        plain_rewards = run.totals(plain.values)[0]
    if settings.keep_better:
        better = plain_rewards > run.totals(values)[0]
        latents = torch.where(per_item(better, latents), plain.latents, latents)
        clean = torch.where(per_item(better, clean), plain.clean, clean)
        values = {n: torch.where(better, plain.values[n], value) for n, value in values.items()}
        kept_plain = better.tolist()
    usual = width(start.x[0] if plain is None else plain.latents)
    return SearchResult(
        latents=latents,
        clean=clean,
        rewards=run.totals(values)[0],
        values={name: value[0] for name, value in values.items()},
        settings=settings,
        seed=seed,
        steps=run.steps,
        plain_calls=run.plain_calls,
        planned=planned.cost.calls,
        records=tuple(records),
        cost=run.cost,
        stopped=stopped,
        plain=plain,
        plain_rewards=plain_rewards,
        kept_plain=kept_plain,
        warnings=(
            *idle_budget(settings, flow.sigmas.tolist(), planned, run.plain_calls),
            *trouble(latents, usual),
        ),
        seconds=time.monotonic() - began,
    )


def _drive(
    run: Run,
    state: State,
    planned: Plan,
    settings: SearchSettings,
    stop_reason: Callable[[], str | None],
    tell: Callable[[State, StepRecord | None], None],
    plain: PlainSample | None,
) -> tuple[State, list[StepRecord], str | None]:
    """The strategy's last state, the records of its steps, and why it was stopped, if it was."""
    records: list[StepRecord] = []
    reached = states(run, state, settings.parameters)
    calls, began = run.cost.calls, time.monotonic()

    def record(state: State) -> StepRecord | None:
        nonlocal calls, began
        found = step_record(run, state, calls_before=calls, seconds=time.monotonic() - began)
        records.extend([found] if found else [])
        calls, began = run.cost.calls, time.monotonic()
        return found

    for ahead in planned.ahead[:-1]:
        # stopping is of use only where the best so far is finished sooner than the search is
        if run.calls_to_finish(state) < ahead and (stopped := stop_reason()):
            if run.best is None and plain is not None:  # nothing else is known yet
                x, clean = plain.latents[None], plain.clean[None]
                return State(x, run.steps, values=plain.values, denoised=clean), records, stopped
            if run.judged:  # by a part of what would have been told as one
                tell(state, record(run.samples or state))
            for finishing in run.finish_early(state):
                state = finishing
                tell(state, None)
            if planned.makes_plain:  # the first that it comes to is the plain one
                state = run.finished(state)
                run.plain = run.plain or state
            return state, records, stopped
        state = next(reached)
        tell(state, None if state.part else record(state))
    return state, records, None
