"""Plain sampling: what a search is held against, and what a search that is off comes to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .flow import Flow
from .report import OnStep, PlainSample, StepEvent
from .run import Run
from .state import State
from .strategies import make_settings

_PLAIN = make_settings("best_of_n", budget=1.0)


@torch.no_grad()
def sample(flow: Flow, noise: Tensor) -> Tensor:
    """Plain Euler sampling from starting ``noise`` [B, ...] to the schedule's end [B, ...]."""
    return _sampled(flow, noise, lambda run, state: None)[1].x[0]


def plain_sample(run: Run, on_step: OnStep | None, planned: int) -> PlainSample:
    """The plain sample of the search ``run``: the strategy's own, or else made here."""
    if run.plain is not None:
        return PlainSample(run.plain.x[0], run.finish(run.plain)[1], run.plain.values)

    def tell(plain: Run, state: State) -> None:
        if on_step is not None:
            calls = run.calls_spent + plain.calls_spent
            shown = state.denoised[0]
            on_step(StepEvent(state.index, run.steps, state.x[0], shown, calls, planned))

    plain, state = _sampled(run.flow, run.noise, tell)
    latents, clean, values = plain.finish(state)
    tell(plain, state)
    return PlainSample(latents, clean, values, plain.cost)


def _sampled(flow: Flow, noise: Tensor, tell: Callable[[Run, State], None]) -> tuple[Run, State]:
    run = Run(flow, noise, seed=0, settings=_PLAIN)
    state = run.first_state()
    for reached in run.onward(state.x, state.index):
        state = reached
        if state.index < run.steps:
            tell(run, state)
    return run, state
