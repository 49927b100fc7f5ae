"""What can be known of a ComfyUI run before its first model call, and is refused there."""

from __future__ import annotations

import comfy.model_sampling
import torch
from torch import Tensor


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


def check_latent(model, image: Tensor) -> None:
    """Raise ValueError unless ``model`` draws latents like ``image``."""
    if image.is_nested:
        raise ValueError(
            "Expected a LATENT of images, got several latents in one (sound and video); sample "
            "those without the search"
        )
    wanted = model.get_model_object("latent_format").latent_channels
    if image.ndim < 3 or image.shape[1] != wanted:
        raise ValueError(
            f"Expected a LATENT with the model's {wanted} channels, got one of the shape "
            f"{list(image.shape)}; encode the image with the model's own VAE, or wire an empty "
            "latent"
        )


def check_vae(model, vae) -> None:
    """Raise ValueError for a VAE that cannot be the model's.

    The number of channels is all that is known of it: VAEs of one number are told apart by what
    their images look like, not here.
    """
    wanted = model.get_model_object("latent_format").latent_channels
    if wanted != vae.latent_channels:
        raise ValueError(
            f"Expected a VAE with the model's {wanted} latent channels, got one with "
            f"{vae.latent_channels}; wire the VAE that belongs to the model"
        )
    if getattr(vae, "output_channels", 3) < 3:
        raise ValueError(
            f"Expected a VAE of images, got one with {vae.output_channels} channels (sound?); wire "
            "the VAE that belongs to the model"
        )


def check_answer(model, velocity: Tensor) -> None:
    """Raise ValueError where the model's first ``velocity`` is not finite."""
    if not bool(torch.isfinite(velocity).all()):
        raise ValueError(
            f"Expected numbers from the MODEL ({type(model.model).__name__}), got NaN or infinity "
            "at its first call; its weights are damaged, or its precision is too low (try bf16 or "
            "fp32 in place of fp16 or fp8), or a node between loader and sampler is set to an "
            "extreme"
        )
