"""Flow models as ComfyUI loads them: MODEL, conditioning and VAE as the search's flow.

The search runs as a ``KSAMPLER`` function, so that every node that a user has wired to the MODEL or
its conditioning (LoRA, masks, skip-layer guidance, area conditioning) takes part as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..flow import RewardBatch
from ..noise import KeyedNoise
from ..report import SearchResult, StepEvent
from ..search import sample, search
from ..settings import SearchSettings
from .comfy_gradients import differentiable, gradient_options

Score = Callable[[Tensor], RewardBatch]


def check_model(model) -> None:
    """Raise ValueError unless ``model`` (a ModelPatcher) is a flow-matching model."""
    sampling = model.get_model_object("model_sampling")
    # One subclass of CONST, for image-to-image flows, gives an output of another form.
    other = getattr(comfy.model_sampling, "IMG_TO_IMG_FLOW", ())
    if not isinstance(sampling, comfy.model_sampling.CONST) or isinstance(sampling, other):
        raise ValueError(
            "Expected a flow-matching MODEL (FLUX, SD3.5, Qwen-Image, Wan, ...), got "
            f"{type(model.model).__name__} with {type(sampling).__name__} sampling; wire a flow "
            "model, since the search's steps are those of rectified flow"
        )


def decode(vae, base_model, x0: Tensor) -> Tensor:
    """Images [N, H, W, 3] (0..1) of latents ``x0`` [N, ...] in ``base_model``'s space.

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
        return vae.process_output(decoded)

    decoded = torch.cat([images(rows) for rows in latents.split(at_once)])
    decoded = decoded[:, :, 0] if decoded.ndim == 5 else decoded
    return decoded.movedim(1, -1).to(x0.device)


class ComfyFlow:
    """One sampling run of the host as a flow.

    Args:
        model: what a KSAMPLER function is given: denoised = model(x, sigma, **extra_args).
        sigmas: noise levels [T + 1], a tensor on the sampling device.
        items: the batch of the user's latents.
        vae: a ``comfy.sd.VAE``, loaded beside the model.
        score: images [N, H, W, 3] to rewards; row n belongs to item n modulo ``items``.
    """

    def __init__(self, model, sigmas: Tensor, extra_args: dict, items: int, vae, score: Score):
        self.model, self.sigmas, self.items = model, sigmas, items
        self.vae, self.score = vae, score
        self.extra_args = extra_args
        self.base_model = model.inner_model.inner_model
        guider = model.inner_model
        guided = bool(guider.conds.get("negative")) and getattr(guider, "cfg", 1.0) != 1.0
        self.forwards_per_call = 2 if guided else 1

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        # Masks and conditioning that differ by item are as long as the user's batch; a batch of
        # one is broadcast to any number of rows.
        rows = len(x) if self.items == 1 else self.items
        return torch.cat([self._call(part, sigma) for part in x.split(rows)])

    def _call(self, x: Tensor, sigma: float) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        level = torch.full((1,) * x.ndim, sigma, device=x.device)
        denoised = self.model(x, level.flatten().expand(len(x)), **self.extra_args)
        return (x - denoised) / level

    @contextmanager
    def gradients(self):
        usual = self.extra_args
        options = gradient_options(usual["model_options"])
        self.extra_args = {**usual, "model_options": options}
        try:
            with differentiable(self.base_model):
                yield
        finally:
            self.extra_args = usual

    def decode(self, x0: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return decode(self.vae, self.base_model, x0)


class SearchSampler:
    """Makes a SAMPLER of the search and keeps what a run of it found.

    Args:
        score: images to rewards.
        models: patchers of what ``score`` needs on the device, loaded beside the model.

    Attributes:
        result: the last run's result, None before one.
        plain: the last run's plain sample in the VAE's latent space, where one was asked for.
    """

    def __init__(
        self,
        settings: SearchSettings,
        vae,
        score: Score,
        *,
        with_plain: bool,
        models: Sequence = (),
    ):
        self.settings, self.vae, self.score, self.models = settings, vae, score, list(models)
        self.with_plain = with_plain or settings.keep_better
        self.result: SearchResult | None = None
        self.plain: Tensor | None = None

    def sampler(self) -> comfy.samplers.KSAMPLER:
        """The SAMPLER. ComfyUI reads its function's name, so that it has to be a plain function."""

        def flow_ttrl(model, x, sigmas, extra_args=None, callback=None, disable=None):
            return self._run(model, x, sigmas, extra_args or {}, callback)

        return comfy.samplers.KSAMPLER(flow_ttrl)

    def _run(self, model, x: Tensor, sigmas: Tensor, extra_args: dict, callback) -> Tensor:
        flow = ComfyFlow(model, sigmas, extra_args, len(x), self.vae, self.score)
        check_model(flow.base_model.current_patcher)
        self.settings.check(sigmas.tolist())

        def on_step(event: StepEvent) -> None:
            if callback:
                sigma = sigmas[event.index]
                told = {"x": event.latent, "denoised": event.denoised, "i": event.index}
                callback({**told, "sigma": sigma, "sigma_hat": sigma})

        plain = sample(flow, x, on_step) if self.with_plain else None
        noise = KeyedNoise(extra_args.get("seed") or 0)
        self.result = search(flow, x, self.settings, noise, on_step, plain=plain)
        if plain is not None:
            base = flow.base_model
            clean = base.model_sampling.inverse_noise_scaling(sigmas[-1], plain)
            self.plain = base.process_latent_out(clean.float())
        return self.result.latents

    def report(self) -> dict:
        """The last run's report."""
        return self.result.report()


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
        ValueError: not a flow model, a VAE of another model, or settings that do not fit.
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
    search_sampler.settings.check(sigmas.tolist())

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
