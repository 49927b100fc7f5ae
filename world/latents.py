"""Latent spaces: the bundled VAE's own, and the scaled spaces that SD3 and FLUX see.

The stored VAE gives *unit* latents (each channel of zero mean and unit variance over the data).
``to_family`` rewrites its two 1x1 convolutions so that the raw latents it hands out are, after the
family's published shift and scale, those same unit latents: (raw - shift) * scale = unit.
"""

from __future__ import annotations

from torch import Tensor

SCALE_SHIFT = {"sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159)}
"""scaling_factor and shift_factor of the families' published VAEs."""


def to_family(state_dict: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
    """The VAE's weights with its latents moved from unit space into ``arch``'s raw space."""
    scale, shift = SCALE_SHIFT[arch]
    return _affine(state_dict, 1 / scale, shift)


def normalise(state_dict: dict[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The VAE's weights with its latents shifted and scaled to zero mean and unit variance.

    Args:
        mean, std: per channel [C], of the latents that ``state_dict`` gives over the data.
    """
    return _affine(state_dict, 1 / std, -mean / std)


def _affine(state_dict, scale, shift):
    """Latents z become ``scale * z + shift``, per channel or not; decoding is inverted."""
    sd = {k: v.clone() for k, v in state_dict.items()}
    channels = sd["post_quant_conv.weight"].shape[1]
    ones = sd["post_quant_conv.weight"].new_ones(channels)
    scale, shift = scale * ones, shift * ones
    w, b = sd["quant_conv.weight"], sd["quant_conv.bias"]
    w[:channels] *= scale[:, None, None, None]
    b[:channels] = b[:channels] * scale + shift
    b[channels:] += 2 * scale.log()
    w = sd["post_quant_conv.weight"]
    w /= scale[None, :, None, None]
    sd["post_quant_conv.bias"] -= (w[..., 0, 0] * shift).sum(1)
    return sd


def kl_to_standard_normal(mean: Tensor, std: Tensor) -> Tensor:
    """Mean over elements of KL(N(mean, std^2) || N(0, 1))."""
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
