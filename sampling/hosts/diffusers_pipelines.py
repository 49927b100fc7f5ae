"""The pipelines of diffusers that the search runs on. Another is another class in ``CALLS``."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from torch import Tensor

from .diffusers_call import Encoded, PipelineCall
from .diffusers_networks import flux_velocity, sd3_velocity, unpacked


class SD3Call(PipelineCall):
    """Of a ``StableDiffusion3Pipeline``: classifier-free and skip-layer guidance."""

    pipeline = StableDiffusion3Pipeline
    pairs = True

    def _encode(self) -> tuple[Encoded, Encoded | None]:
        guided = self.arguments["guidance_scale"] > 1
        embeds, negative, pooled, negative_pooled = self._encoded(
            do_classifier_free_guidance=guided
        )
        return Encoded(embeds, pooled), Encoded(negative, negative_pooled) if guided else None

    def begin(self) -> None:
        super().begin()
        self.pipe._clip_skip = self.arguments["clip_skip"]
        self.pipe._skip_layer_guidance_scale = self.arguments["skip_layer_guidance_scale"]

    def embeddings(self) -> dict[str, Tensor]:
        """As it batches them: with guidance the negative ones go before the others."""
        known = super().embeddings()
        if self.negative is not None:
            for name in ("prompt_embeds", "pooled_prompt_embeds"):
                known[name] = torch.cat([known[f"negative_{name}"], known[name]])
        return known

    def _set_timesteps(self) -> None:
        mu, config = self.arguments["mu"], self.pipe.transformer.config
        if mu is None and self.pipe.scheduler.config.get("use_dynamic_shifting"):
            high, wide = self.noise.shape[-2:]
            mu = self._shift((high // config.patch_size) * (wide // config.patch_size), 1.16)
        self._schedule(self.arguments["sigmas"], **({} if mu is None else {"mu": mu}))

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        network, level = self.pipe.transformer, x.new_full((len(x),), sigma, dtype=torch.float32)
        embeds, pooled = self.positive.of(item)
        if not self.guided:
            return sd3_velocity(network, x, level, embeds, pooled, **self.options)
        features, summary = self.negative.of(item)
        both = sd3_velocity(
            network,
            torch.cat([x, x]),
            torch.cat([level, level]),
            torch.cat([features, embeds]),
            torch.cat([summary, pooled]),
            **self.options,
        )
        negative, positive = both.chunk(2)
        v = negative + self.arguments["guidance_scale"] * (positive - negative)
        if self._skips_layers(sigma):
            layers = self.arguments["skip_guidance_layers"]
            without = sd3_velocity(
                network, x, level, embeds, pooled, skip_layers=layers, **self.options
            )
            v = v + (positive - without) * self.arguments["skip_layer_guidance_scale"]
        return v

    def unpack(self, latents: Tensor) -> Tensor:
        return latents

    def _skips_layers(self, sigma: float) -> bool:
        """Whether skip-layer guidance takes part at a level, as in the step that it is in."""
        if self.arguments["skip_guidance_layers"] is None:
            return False
        steps = len(self.sigmas) - 1
        index = max(int((self.sigmas >= sigma).sum()) - 1, 0)
        first, last = (self.arguments[f"skip_layer_guidance_{end}"] for end in ("start", "stop"))
        return steps * first < index < steps * last


class FluxCall(PipelineCall):
    """Of a ``FluxPipeline``: distilled guidance, and true guidance by a negative prompt."""

    pipeline = FluxPipeline
    in_channels = 4

    def _encode(self) -> tuple[Encoded, Encoded | None]:
        asked, negative = self.arguments, None
        given = asked["negative_prompt"] is not None or (
            asked["negative_prompt_embeds"] is not None
            and asked["negative_pooled_prompt_embeds"] is not None
        )
        embeds, pooled, _ = self._encoded()
        if asked["true_cfg_scale"] > 1 and given:
            features, summary, _ = self._encoded("negative_")
            if len(features) != len(embeds):
                raise ValueError(
                    f"expected as many negative prompts as prompts, got {len(features)} for "
                    f"{len(embeds)} images; give a list of them"
                )
            negative = Encoded(features, summary)
        return Encoded(embeds, pooled), negative

    def begin(self) -> None:
        super().begin()
        self.pipe._current_timestep = None
        if self.pipe._joint_attention_kwargs is None:
            self.pipe._joint_attention_kwargs = {}

    def _set_timesteps(self) -> None:
        steps, config = self.arguments["num_inference_steps"], self.pipe.scheduler.config
        sigmas = self.arguments["sigmas"]
        if sigmas is None:
            sigmas = np.linspace(1.0, 1 / steps, steps)
        if config.get("use_flow_sigmas"):
            sigmas = None
        self._schedule(sigmas, mu=self._shift(self.noise.shape[1], 1.15))

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        level = x.new_full((len(x),), sigma, dtype=torch.float32)

        def ask(prompts: Encoded, context: str) -> Tensor:
            with self.pipe.transformer.cache_context(context):
                return flux_velocity(
                    self.pipe.transformer,
                    x,
                    level,
                    *prompts.of(item),
                    self.arguments["guidance_scale"],
                    self.places[0],
                    **self.options,
                )

        v = ask(self.positive, "cond")
        if not self.guided:
            return v
        negative = ask(self.negative, "uncond")
        return negative + self.arguments["true_cfg_scale"] * (v - negative)

    def unpack(self, latents: Tensor) -> Tensor:
        sized, step = self._sized(), 2 * self.pipe.vae_scale_factor
        return unpacked(latents, sized["height"] // step, sized["width"] // step)


CALLS = (SD3Call, FluxCall)


def call_of(pipe) -> type[PipelineCall]:
    """What makes calls of ``pipe`` ready, up to their loop.

    Raises:
        ValueError: a pipeline that the search does not run on.
    """
    for kind in CALLS:
        if isinstance(pipe, kind.pipeline):
            return kind
    known = " or ".join(kind.pipeline.__name__ for kind in CALLS)
    raise ValueError(
        f"expected a {known} of diffusers, got {type(pipe).__name__}; load the model as one of "
        "these"
    )
