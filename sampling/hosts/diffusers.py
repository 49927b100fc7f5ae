"""Flow models as diffusers loads them: a pipeline's call as the search's flow.

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16)
found = search_images(pipe.to("cuda"), reward, make_settings(budget=6), prompt="a red fox")
found.images[0].save("fox.png")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..budget import plan
from ..flow import Judge, Values
from ..report import OnStep, SearchResult, StepEvent, fallen_witnesses
from ..search import search
from ..settings import SearchSettings
from ..strategies import STRATEGIES, make_settings
from .diffusers_call import PipelineCall
from .diffusers_pipelines import call_of

DECODED_AT_ONCE = 2**17
"""Images are decoded in groups of about this many pixels, one by one where one has more: larger
groups take memory and no less time."""
SAMPLED_AT_ONCE = 2**21
"""Pixels of the images that go through the transformer together, of which SD3's guided candidates
are two each: two of 1024 x 1024 keep a GPU busy."""

RECOMPUTED_FROM = 512 * 512
"""Pixels of an image from which on a gradient's graph keeps no activations of blocks: a third more
time, and a fraction of the memory."""


class DiffusersFlow:
    """A pipeline's call as a flow.

    Args:
        call: made ready up to its loop.
        judge: what images are scored by.
        decoder: what decodes images to be judged, such as an ``AutoencoderTiny``; by default the
            pipeline's VAE.
    """

    def __init__(self, call: PipelineCall, judge: Judge, decoder=None):
        self.call, self.judge = call, judge
        self.decoder = decoder or call.pipe.vae
        self.sigmas, self.forwards_per_call = call.sigmas, call.forwards_per_call
        self.dtype = call.noise.dtype

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        return noise

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        with torch.set_grad_enabled(x.requires_grad):
            v = self.call.velocity(x.to(self.dtype), sigma, item)
        if v.requires_grad:
            v.register_hook(_bringing_back(self.call.pipe.transformer))
        return v

    def euler(self, x: Tensor, v: Tensor, sigma: float, to: float) -> Tensor:
        """As the pipeline's scheduler steps, which rounds to the pipeline's precision."""
        ends = torch.tensor([sigma, to], device=x.device)
        return (x + (ends[1] - ends[0]) * v.to(self.dtype)).to(self.dtype).float()

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        with torch.set_grad_enabled(x0.requires_grad):
            raw = self.call.raw(x0, self.decoder).to(self.decoder.dtype)
            parts = raw.split(max(1, DECODED_AT_ONCE // self.call.pixels))
            images = [self._decoded(part) for part in parts]
            return (images[0] if len(images) == 1 else torch.cat(images)).movedim(1, -1)

    def _decoded(self, raw: Tensor) -> Tensor:
        """Images [N, 3, H, W] in 0..1; beyond it, where they have a gradient."""
        images = self.decoder.decode(raw, return_dict=False)[0].float()
        if images.requires_grad:
            return images / 2 + 0.5
        return images.div_(2).add_(0.5).clamp_(0, 1)

    def score(self, images: Tensor, item: Tensor) -> Values:
        return self.judge.score(images, item)

    def totals(self, values: Values, seen: Values) -> Tensor:
        return self.judge.totals(values, seen)

    def gradients(self) -> AbstractContextManager:
        return self._recomputing(self.call.pipe.transformer)

    def image_gradients(self) -> AbstractContextManager:
        self.judge.check_differentiable()
        return self._recomputing(self.call.pipe.transformer, self.decoder)

    @contextmanager
    def _recomputing(self, *models) -> Iterator[None]:
        """Gradients; of large images with the blocks' activations computed anew, not kept."""
        large = self.call.pixels >= RECOMPUTED_FROM
        changed = [model for model in models if large and not model.is_gradient_checkpointing]
        for model in changed:
            model.enable_gradient_checkpointing()
        try:
            with torch.enable_grad():
                yield
        finally:
            for model in changed:
                model.disable_gradient_checkpointing()


class Reward(Protocol):
    """What images are judged by: a reward mix."""

    def judge(self, prompts: list[str]) -> Judge:
        """It at work on ``prompts``, one an image."""
        ...


@dataclass(frozen=True)
class SearchedImages:
    """What a search of a pipeline's call gave.

    Attributes:
        images: in the call's ``output_type``, one an item.
        plain: the plain samples from the same noise in the same form, where they were made.
        result: latents, rewards and cost; see :class:`SearchResult`.
        report: everything but images and latents, as a JSON object.
    """

    images: Any
    plain: Any
    result: SearchResult
    report: dict


def search_images(
    pipe,
    reward: Reward,
    settings: SearchSettings | None = None,
    *,
    seed: int = 0,
    baseline: bool = False,
    judged_as: list[str] | None = None,
    decoder=None,
    on_step: OnStep | None = None,
    finish_now: Callable[[], bool] | None = None,
    **call,
) -> SearchedImages:
    """Sample a pipeline's call with the search.

    Args:
        pipe: a ``StableDiffusion3Pipeline`` or ``FluxPipeline``, with adapters, offloading,
            quantisation and VAE tiling as the user has set them.
        reward: what images are judged by.
        settings: of the search; :func:`make_settings`' own by default. With budget 1 nothing is
            searched, and the images are those of ``pipe(**call)``, bit by bit.
        seed: fixes the search's draws and, unless ``generator`` or ``latents`` is given, the
            starting noise: that of ``generator=torch.Generator().manual_seed(seed)``.
        baseline: also sample plainly, for comparison.
        judged_as: what rewards are told that the images are asked for, one an image; the prompts
            by default.
        decoder: decodes images to be judged, not those that are returned; e.g. ``AutoencoderTiny``.
        on_step: told of every step; may raise to cancel.
        finish_now: asked before each step; True ends the search and finishes the best so far.
            Besides, the pipeline's own ``interrupt`` does.
        call: arguments of the pipeline's own call (prompt, negative_prompt, height, width,
            num_inference_steps, guidance_scale, ...). A ``callback_on_step_end`` may watch the
            latents, not change them.

    Raises:
        ValueError: what cannot be carried out, before the first model call.
    """
    settings = settings or make_settings()
    if call.get("generator") is None:
        call["generator"] = torch.Generator().manual_seed(seed)
    kind = call_of(pipe)
    with _at_work(pipe):
        made = kind(pipe, call)
        made.begin()
        prompts = judged_as or made.prompts
        if prompts is None or len(prompts) != len(made.noise):
            raise ValueError(
                f"expected judged_as of {len(made.noise)} texts, one an image, got "
                f"{'none' if prompts is None else len(prompts)}; prompts that are embeddings "
                "cannot be read back"
            )
        judge = reward.judge(prompts)
        flow = DiffusersFlow(made, judge, decoder)
        if STRATEGIES[settings.strategy].needs_image_gradients:
            flow.image_gradients()
        planned = plan(settings, made.sigmas.tolist(), made.forwards_per_call)
        extra = (baseline or settings.keep_better) and not planned.makes_plain
        whole = planned.cost.calls + extra * (len(made.sigmas) - 1)
        reached = 0
        with pipe.progress_bar(total=whole) as bar:

            def tell(event: StepEvent) -> None:
                nonlocal reached
                bar.update(event.calls - bar.n)
                if event.index not in (0, reached):  # what only judges is no step
                    _call_back(made, event)
                reached = event.index
                if on_step is not None:
                    on_step(event)

            result = search(
                flow,
                made.noise,
                _rationed(settings, made),
                seed=seed,
                baseline=baseline,
                on_step=tell,
                finish_now=lambda: pipe.interrupt or (finish_now is not None and finish_now()),
            )
            fallen = fallen_witnesses(result, judge.report()["weights"])
            result = replace(result, settings=settings, warnings=(*result.warnings, *fallen))
            images = made.images(result.latents)
            plain = None if result.plain is None else made.images(result.plain.latents)
    report = result.report() | {"prompts": prompts, "reward": judge.report()}
    return SearchedImages(images, plain, result, report)


def _bringing_back(network: torch.nn.Module) -> Callable[[Tensor], None]:
    """A hook of its output's gradient: has the network where it is now.

    An offloaded one may have left for the VAE since, and a gradient goes through its weights.
    """
    device = network.device

    def bring(_: Tensor) -> None:
        if device.type != "meta" and network.device != device:
            network.to(device)

    return bring


@contextmanager
def _at_work(pipe) -> Iterator[None]:
    """As the pipeline's own call ends, an offloaded model goes back; here after an error, too."""
    try:
        yield
    finally:
        pipe.maybe_free_model_hooks()


def _rationed(settings: SearchSettings, made: PipelineCall) -> SearchSettings:
    """With the candidates of an item that go through the transformer at once."""
    if settings.micro_batch:
        return settings
    rows = len(made.noise) * (2 if made.pairs and made.guided else 1)
    candidates = SAMPLED_AT_ONCE // (made.pixels * rows)
    return replace(settings, micro_batch=min(max(candidates, 1), 4096))


def _call_back(made: PipelineCall, event: StepEvent) -> None:
    """Tell the call's own callback of a step, in the pipeline's terms."""
    callback = made.arguments["callback_on_step_end"]
    if callback is None:
        return
    names = made.arguments["callback_on_step_end_tensor_inputs"]
    known = {"latents": event.latent.to(made.noise.dtype), **made.embeddings()}
    given = {name: known[name] for name in names if name in known}
    step = event.index - 1
    answer = callback(made.pipe, step, made.timesteps[step], dict(given)) or {}
    changed = [name for name, value in answer.items() if value is not given.get(name)]
    if changed:
        raise ValueError(
            f"expected a callback that only watches, got one that changes {', '.join(changed)}; "
            "return its tensors as they came"
        )
