"""The search as a ComfyUI SAMPLER."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import comfy.samplers
import torch
from torch import Tensor

from ..budget import plan
from ..flow import Judge
from ..report import SearchResult, StepEvent, fallen_witnesses
from ..schedules import distinct_levels
from ..search import search
from ..settings import SearchSettings
from ..strategies import STRATEGIES
from .comfy import NO_IMAGE_GRADIENTS, Candidates, ComfyFlow
from .comfy_checks import check_latent, check_model, check_vae
from .comfy_memory import (
    KEY,
    load_beside,
    patch_of,
    peak_memory,
    rows_at_once,
    watch_memory,
)
from .comfy_patches import patches
from .comfy_prepare import Prepared, prepare
from .comfy_progress import Progress


class SearchSampler:
    """Makes a SAMPLER of the search and keeps what a run of it found.

    Args:
        judge: what images are scored by.
        baseline: also sample plainly, for comparison.
        models: patchers of what ``judge`` needs on the device, loaded beside the model.
        judging: bytes that ``judge`` takes while it runs, kept free.
        finish_asked: of a time.monotonic(), asked before each step; where it says yes for the run's
            beginning, the search ends and finishes the best so far.
        on_result: told of a run's sampler when it has its result.

    Attributes:
        result: the last run's result, None before one.
        latents, plain: the last run's latents in the VAE's latent space, as the host will return
            them, and its plain sample, where one was made.
        candidates: the last that the last run compared, if any.
    """

    def __init__(
        self,
        settings: SearchSettings,
        vae,
        judge: Judge,
        *,
        baseline: bool = False,
        models: Sequence = (),
        judging: int = 0,
        finish_asked: Callable[[float], bool] = lambda since: False,
        on_result: Callable[[SearchSampler], None] | None = None,
    ):
        self.settings, self.vae, self.judge = settings, vae, judge
        self.baseline, self.models, self.judging = baseline, list(models), judging
        self.finish_asked, self.on_result = finish_asked, on_result
        self.result: SearchResult | None = None
        self.latents: Tensor | None = None
        self.plain: Tensor | None = None
        self.candidates: Candidates | None = None
        self.host: dict = {}
        self._made: float | None = time.monotonic()

    def sampler(self) -> comfy.samplers.KSAMPLER:
        """The SAMPLER. ComfyUI reads its function's name, so that it has to be a plain function."""

        def flow_ttrl(model, x, sigmas, extra_args=None, callback=None, disable=None):
            return self._run(model, sigmas, extra_args or {}, callback)

        return comfy.samplers.KSAMPLER(flow_ttrl)

    def check(self, model, image: Tensor, sigmas: Tensor) -> None:
        """Raise ValueError for what can be known to be wrong before the model is loaded."""
        check(self.settings, self.vae, model, image, sigmas)

    def report(self) -> dict:
        """The last run's report."""
        return self.result.report() | {"host": self.host, "reward": self.judge.report()}

    def _run(self, model, sigmas: Tensor, extra_args: dict, callback) -> Tensor:
        began = time.monotonic()
        # a click while the model was loading counts, one after an earlier run does not
        since, self._made = self._made or began, None
        device = model.noise.device
        watch_memory(device)
        self.forget()
        self.judge.begin()
        flow = ComfyFlow(model, sigmas, extra_args, self.vae, self.judge)
        base, shape = flow.base_model, model.noise.shape
        self.check(base.current_patcher, model.latent_image, sigmas)
        settings = sized(self.settings, base, shape)
        if KEY not in base.current_patcher.additional_models:  # a host's sampler loaded the model
            rows = rows_of(settings, base.current_patcher, shape)
            load_beside(model.inner_model, self.vae, self.models, shape, rows, self.judging)
        prepared, progress = self._prepare(flow, settings, sigmas, callback)

        def on_step(event: StepEvent) -> None:
            if not event.part:
                shown = flow.take_shown()
                if event.record and shown:
                    self.candidates = shown
            progress.on_step(event)

        found = search(
            flow,
            model.noise,
            settings,
            seed=extra_args.get("seed") or 0,
            baseline=self.baseline,
            on_step=on_step,
            finish_now=lambda: self.finish_asked(since),
        )
        fallen = fallen_witnesses(found, self.judge.report()["weights"])
        found = replace(found, settings=self.settings, warnings=(*found.warnings, *fallen))
        self.result = found
        self.latents = _returned(base, sigmas, found.latents)
        if found.plain is not None:
            self.plain = _returned(base, sigmas, found.plain.latents)
        rows_alone = 1 if flow.one_at_a_time else settings.micro_batch
        self.host = {
            "rows_at_once": flow.items if flow.items > 1 else rows_alone,
            "ran_out_of_memory": flow.rationing.halved,
            "peak_memory_gib": peak_memory(device),
            **(prepared.report() if prepared else {}),
            "verdict": progress.on_end(found, time.monotonic() - began),
        }
        if self.on_result is not None:
            self.on_result(self)
        return found.latents

    def _prepare(
        self, flow: ComfyFlow, settings: SearchSettings, sigmas: Tensor, callback
    ) -> tuple[Prepared | None, Progress]:
        """What is checked before the search, where there is one, and what counts the calls."""
        planned = plan(settings, sigmas.tolist())
        levels = distinct_levels(sigmas.tolist())
        plain_calls = len(levels) - 1 + (levels[-1] > 0)
        searches = planned.cost.calls > plain_calls or not planned.makes_plain
        prepared = prepare(flow, settings) if searches else None
        extra = (self.baseline or settings.keep_better) and not planned.makes_plain
        progress = Progress(
            flow.base_model.current_patcher,
            flow.items,
            planned.cost.calls + extra * plain_calls,
            prepared.calls if prepared else 0,
            planned.cost.calls / plain_calls,
            callback,
        )
        flow.on_call = progress.on_call
        if prepared:
            prepared.check()
        return prepared, progress

    def forget(self) -> None:
        """Keep nothing of the last run: a SAMPLER stays in the host's cache."""
        self.result = self.latents = self.plain = self.candidates = None


def check(settings: SearchSettings, vae, model, image: Tensor, sigmas: Tensor) -> None:
    """Raise ValueError for what can be known to be wrong before the model is loaded."""
    check_model(model)
    check_latent(model, image)
    check_vae(model, vae)
    if STRATEGIES[settings.strategy].needs_image_gradients:
        raise ValueError(NO_IMAGE_GRADIENTS)
    distinct_levels(sigmas.tolist())


def sized(settings: SearchSettings, base, shape) -> SearchSettings:
    """``settings`` with the rows that run at once, where they leave that open."""
    if settings.micro_batch:
        return settings
    return replace(settings, micro_batch=rows_at_once(shape, patch_of(base)))


def rows_of(settings: SearchSettings, patcher, shape) -> int:
    """Rows of each latent that run at once: one in a batch, and under patches."""
    alone = shape[0] > 1 or bool(patches(patcher, patcher.model_options))
    return 1 if alone else settings.micro_batch


def _returned(base, sigmas: Tensor, latents: Tensor) -> Tensor:
    """What the host makes of a sampler's ``latents``."""
    clean = base.model_sampling.inverse_noise_scaling(sigmas[-1], latents)
    return base.process_latent_out(clean.to(torch.float32))
