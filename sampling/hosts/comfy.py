"""Flow models as ComfyUI loads them: MODEL, conditioning and VAE as the search's flow.

The search runs as a ``KSAMPLER`` function, so that every node that a user has wired to the MODEL or
its conditioning (LoRA, masks, skip-layer guidance, area conditioning) takes part as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..flow import Judge, Values
from ..report import SearchResult, StepEvent
from ..schedules import distinct_levels
from ..search import search
from ..settings import SearchSettings
from ..strategies import STRATEGIES
from .comfy_gradients import differentiable, gradient_options

_NO_IMAGE_GRADIENTS = (
    "Expected a strategy that needs no gradient of the image, got one that does, which ComfyUI "
    "does not offer yet; choose another strategy"
)


def check_model(model) -> None:
    """Raise ValueError unless ``model`` (a ModelPatcher) is a flow model on unit noise."""
    sampling = model.get_model_object("model_sampling")
    # One subclass of CONST, for image-to-image flows, gives an output of another form.
    other = getattr(comfy.model_sampling, "IMG_TO_IMG_FLOW", ())
    if not isinstance(sampling, comfy.model_sampling.CONST) or isinstance(sampling, other):
        raise ValueError(
            "Expected a flow-matching MODEL (FLUX, SD3.5, Qwen-Image, Wan, ...), got "
            f"{type(model.model).__name__} with {type(sampling).__name__} sampling; wire a flow "
            "model, since the search's steps are those of rectified flow"
        )
    scale = getattr(sampling, "noise_scale", 1.0)
    if scale != 1:
        raise ValueError(
            f"Expected a MODEL whose noise has a standard deviation of 1, got one of {scale:g} "
            f"({type(model.model).__name__}); wire another flow model, since the search's steps "
            "assume 1"
        )


def decode(vae, base_model, x0: Tensor) -> Tensor:
    """Images [N, H, W, 3], clamped to 0..1, of latents ``x0`` [N, ...] in ``base_model``'s space.

    The VAE must be loaded. Unlike ``vae.decode`` this neither moves models, which would offload the
    one that is sampling, nor falls back to tiles; it takes as many images at once as memory holds.
    Of a latent with frames the first frame counts.
    """
    latents = base_model.process_latent_out(x0).to(vae.device)
    dtype = vae.vae_dtype
    need = vae.memory_used_decode((1, *latents.shape[1:]), dtype)
    at_once = max(1, int(comfy.model_management.get_free_memory(vae.device) / max(need, 1)))

    def images(rows: Tensor) -> Tensor:
        decoded = vae.first_stage_model.decode(rows.to(dtype)).float()
        return vae.process_output(decoded).clamp(0, 1)

    decoded = torch.cat([images(rows) for rows in latents.split(at_once)])
    decoded = decoded[:, :, 0] if decoded.ndim == 5 else decoded
    return decoded.movedim(1, -1).to(x0.device)


class ComfyFlow:
    """One sampling run of the host as a flow.

    Args:
        model: what a KSAMPLER function is given (``KSamplerX0Inpaint``): denoised = model(x, sigma,
            **extra_args), with the batch's raw noise and latent image [B, ...] beside it.
        sigmas: noise levels [T + 1], a tensor on the sampling device.
        vae: a ``comfy.sd.VAE``, loaded beside the model.
        judge: what images are scored by.
    """

    def __init__(self, model, sigmas: Tensor, extra_args: dict, vae, judge: Judge):
        self.model, self.sigmas, self.extra_args = model, sigmas, extra_args
        self.vae, self.judge = vae, judge
        self.items = len(model.noise)
        self.base_model = model.inner_model.inner_model
        guider = model.inner_model
        guided = bool(guider.conds.get("negative")) and getattr(guider, "cfg", 1.0) != 1.0
        self.forwards_per_call = 2 if guided else 1

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        # of the host's own noise the very bits that its sampler starts from
        noise = noise.to(self.model.noise.dtype)
        latent = self.model.latent_image[item]
        return self.base_model.model_sampling.noise_scaling(self.sigmas[0], noise, latent)

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        if self.items == 1:
            return self._call(x, sigma)
        # The host takes row k of a batch for item k: its conditioning, masks and noise.
        turn = occurrence(item, self.items)
        batches = x.new_zeros(int(turn.max()) + 1, self.items, *x.shape[1:])
        batches[turn, item] = x
        return torch.stack([self._call(batch, sigma) for batch in batches])[turn, item]

    def _call(self, x: Tensor, sigma: float) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        extra_args = dict(self.extra_args)
        if x.requires_grad:
            extra_args["model_options"] = gradient_options(extra_args["model_options"])
        level = torch.full((1,) * x.ndim, sigma, device=x.device)
        denoised = self.model(x, level.flatten().expand(len(x)), **extra_args)
        return (x - denoised) / level

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return decode(self.vae, self.base_model, x0)

    def score(self, images: Tensor, item: Tensor) -> Values:
        return self.judge.score(images, item)

    def totals(self, values: Values, seen: Values) -> Tensor:
        return self.judge.totals(values, seen)

    @contextmanager
    def gradients(self) -> Iterator[None]:
        # only what the caller turns gradients on for gets a graph: not decodes, not rewards
        with differentiable(self.base_model), torch.no_grad():
            yield

    def image_gradients(self) -> AbstractContextManager:
        raise ValueError(_NO_IMAGE_GRADIENTS)


def occurrence(item: Tensor, items: int) -> Tensor:
    """How many rows before it each row of ``item`` [N] shares its item with, [N]."""
    counted = torch.nn.functional.one_hot(item, items).cumsum(0)
    return counted.gather(1, item[:, None])[:, 0] - 1


class SearchSampler:
    """Makes a SAMPLER of the search and keeps what a run of it found.

    Args:
        judge: what images are scored by.
        baseline: also sample plainly, for comparison.
        models: patchers of what ``judge`` needs on the device, loaded beside the model.

    Attributes:
        result: the last run's result, None before one.
        plain: the last run's plain sample in the VAE's latent space, where one was made.
    """

    def __init__(
        self,
        settings: SearchSettings,
        vae,
        judge: Judge,
        *,
        baseline: bool = False,
        models: Sequence = (),
    ):
        self.settings, self.vae, self.judge = settings, vae, judge
        self.baseline, self.models = baseline, list(models)
        self.result: SearchResult | None = None
        self.plain: Tensor | None = None

    def sampler(self) -> comfy.samplers.KSAMPLER:
        """The SAMPLER. ComfyUI reads its function's name, so that it has to be a plain function."""

        def flow_ttrl(model, x, sigmas, extra_args=None, callback=None, disable=None):
            return self._run(model, sigmas, extra_args or {}, callback)

        return comfy.samplers.KSAMPLER(flow_ttrl)

    def _run(self, model, sigmas: Tensor, extra_args: dict, callback) -> Tensor:
        self.result = self.plain = None
        flow = ComfyFlow(model, sigmas, extra_args, self.vae, self.judge)
        base = flow.base_model
        check_model(base.current_patcher)
        self.result = search(
            flow,
            model.noise,
            self.settings,
            seed=extra_args.get("seed") or 0,
            baseline=self.baseline,
            on_step=progress(callback, sigmas.tolist()) if callback else None,
        )
        if self.result.plain is not None:
            plain = self.result.plain.latents
            clean = base.model_sampling.inverse_noise_scaling(sigmas[-1], plain)
            self.plain = base.process_latent_out(clean.float())
        return self.result.latents

    def report(self) -> dict:
        """The last run's report."""
        return self.result.report()


def progress(callback: Callable[[dict], None], sigmas: list[float]) -> Callable[[StepEvent], None]:
    """Tells the host's ``callback`` of a search: previews, and its bar by the calls spent.

    The host counts the ``sigmas``' steps, one by one from 0; the search's differ much in price.
    """
    last, levels = len(sigmas) - 2, distinct_levels(sigmas)

    def on_step(event: StepEvent) -> None:
        done = round(event.calls / event.planned * (last + 1)) - 1
        sigma = levels[event.index]
        told = {"x": event.latent, "denoised": event.denoised, "i": min(max(done, 0), last)}
        callback({**told, "sigma": sigma, "sigma_hat": sigma})

    return on_step


def sample_latents(
    model,
    positive,
    negative,
    latent: dict,
    search_sampler: SearchSampler,
    *,
    seed: int,
    steps: int,
    cfg: float,
    scheduler: str,
    denoise: float,
) -> Tensor:
    """What the host's KSampler does with these arguments, by ``search_sampler``.

    Everything that can be checked is, before the first model call.

    Returns:
        Latents in the VAE's space.

    Raises:
        ValueError: not a flow model, a VAE of another model, or a schedule that no flow has.
    """
    check_model(model)
    vae = search_sampler.vae
    wanted, had = model.get_model_object("latent_format").latent_channels, vae.latent_channels
    if wanted != had:
        raise ValueError(
            f"Expected a VAE with the model's {wanted} latent channels, got one with {had}; wire "
            "the VAE that belongs to the model"
        )
    options = {"device": model.load_device, "sampler": "euler", "scheduler": scheduler}
    sigmas = comfy.samplers.KSampler(
        model, steps=steps, denoise=denoise, model_options=model.model_options, **options
    ).sigmas
    if STRATEGIES[search_sampler.settings.strategy].needs_image_gradients:
        raise ValueError(_NO_IMAGE_GRADIENTS)
    distinct_levels(sigmas.tolist())

    if search_sampler.models:
        # first of all, so that the diffusion model takes what memory they leave
        comfy.model_management.load_models_gpu(search_sampler.models)
    beside = model.clone()
    beside.set_additional_models("flow_ttrl", [vae.patcher, *search_sampler.models])
    image = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
    guider = comfy.samplers.CFGGuider(beside)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    samples = guider.sample(
        noise,
        image,
        search_sampler.sampler(),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return samples.to(comfy.model_management.intermediate_device())
