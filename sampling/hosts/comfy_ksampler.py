"""KSampler's way of sampling, by the search."""

from __future__ import annotations

import inspect

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
from torch import Tensor

from ..settings import SearchSettings
from .comfy_checks import check_model
from .comfy_memory import KEY, reserve
from .comfy_sampler import SearchSampler, check, rows_of, sized

SIZES = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""Keys of an empty latent by which newer hosts give it the model's own size."""


def check_inputs(
    model,
    vae,
    latent: dict,
    settings: SearchSettings,
    *,
    steps: int,
    scheduler: str,
    denoise: float,
) -> None:
    """What :func:`sample_latents` would raise for, before any model is loaded, a reward's too."""
    check_model(model)
    image, sigmas = _image(model, latent), _sigmas(model, steps, scheduler, denoise)
    if len(sigmas):
        check(settings, vae, model, image, sigmas)


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
) -> dict:
    """The LATENT that the host's KSampler returns for these arguments, by ``search_sampler``.

    Everything that can be checked is, before the first model call. At denoise 0 there is nothing to
    sample, and the latent comes back as it is.

    Raises:
        ValueError: not a flow model, a VAE or latent of another model, or a schedule that no flow
            has.
    """
    check_model(model)
    image = _image(model, latent)
    sigmas = _sigmas(model, steps, scheduler, denoise)
    if len(sigmas) == 0:
        return _like(latent, image)
    search_sampler.check(model, image, sigmas)
    if search_sampler.models:
        # first of all, so that the diffusion model takes what memory they leave
        comfy.model_management.load_models_gpu(search_sampler.models)
    beside = model.clone()
    beside.set_additional_models(KEY, [search_sampler.vae.patcher, *search_sampler.models])
    settings = sized(search_sampler.settings, model.model, image.shape)
    rows = rows_of(settings, model, image.shape)
    reserve(beside, search_sampler.vae, rows, search_sampler.judging)
    guider = comfy.samplers.CFGGuider(beside)
    if negative is None:  # as the host's BasicGuider does
        guider.inner_set_conds({"positive": positive})
    else:
        guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    samples = guider.sample(
        comfy.sample.prepare_noise(image, seed, latent.get("batch_index")),
        image,
        search_sampler.sampler(),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return _like(latent, samples)


def plain_latents(latent: dict, search_sampler: SearchSampler) -> dict:
    """The LATENT of the last run's plain sample; ``latent`` itself where nothing was sampled."""
    plain = search_sampler.plain
    return latent if plain is None else _like(latent, plain)


def _sigmas(model, steps: int, scheduler: str, denoise: float) -> Tensor:
    """KSampler's noise levels."""
    options = {"device": model.load_device, "sampler": "euler", "scheduler": scheduler}
    return comfy.samplers.KSampler(
        model, steps=steps, denoise=denoise, model_options=model.model_options, **options
    ).sigmas


def _image(model, latent: dict) -> Tensor:
    """The latents to start from, an empty one in the model's own channels and size."""
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    sizes = {name: latent.get(name) for name in SIZES if name in known}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **sizes)


def _like(latent: dict, samples: Tensor) -> dict:
    """``samples`` with the keys of ``latent`` that KSampler keeps, as it hands them on."""
    management = comfy.model_management
    dtype = getattr(management, "intermediate_dtype", lambda: samples.dtype)()
    kept = {key: value for key, value in latent.items() if key not in SIZES}
    return {**kept, "samples": samples.to(management.intermediate_device(), dtype)}
