"""The call of a diffusers pipeline, made ready up to its denoising loop.

Of a pipeline only public parts are used (check_inputs, encode_prompt, prepare_latents, scheduler,
transformer, vae, image_processor), in the order and the arithmetic of its own call, so that plain
sampling gives its very bits. ``diffusers_pipelines.py`` has what the pipelines differ in.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

IMAGE_PROMPTS = (
    "ip_adapter_image",
    "ip_adapter_image_embeds",
    "negative_ip_adapter_image",
    "negative_ip_adapter_image_embeds",
)
"""Arguments of a pipeline's call that the search cannot carry out."""


@dataclass(frozen=True)
class Encoded:
    """Encoded prompts, an item each: features [B, L, F] and pooled [B, P]."""

    embeds: Tensor
    pooled: Tensor

    def of(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """Features and pooled vectors of rows of ``item`` [N]."""
        return self.embeds[item], self.pooled[item]


class PipelineCall(ABC):
    """A pipeline's call of B images, up to its loop.

    Args:
        pipe: the pipeline, its models as the user has placed, adapted and hooked them.
        given: arguments of the pipeline's own call; the others are its defaults.

    Attributes:
        arguments: all of them.
        prompts: what each image is asked for [B]; None where prompts came as embeddings.
        noise: what the pipeline starts from [B, ...], in its own layout and precision.
        sigmas: noise levels [T + 1], float32.
        forwards_per_call: network evaluations per model call.

    Raises:
        ValueError: an argument that the pipeline does not have or the search cannot carry out.
    """

    pipeline: type
    in_channels: int = 1
    """Channels of the transformer's input to one of the latents."""
    pairs: bool = False
    """Whether a guided candidate goes through the transformer as two rows of one call."""

    def __init__(self, pipe, given: dict):
        self.pipe = pipe
        self.arguments = arguments_of(type(pipe), given)
        _check(pipe, self.arguments)
        _call(pipe.check_inputs, self._sized())
        with torch.no_grad():
            self.positive, self.negative = self._encode()
            self.guided = self.negative is not None
            self.forwards_per_call = 2 if self.guided else 1
            self._prepare()
        self.prompts = self._prompts()
        self.options = {"joint_attention_kwargs": self.arguments["joint_attention_kwargs"]}

    @abstractmethod
    def _encode(self) -> tuple[Encoded, Encoded | None]:
        """The prompts and, where there is guidance by them, the negative ones."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        """Guided velocity [N, ...] of latents ``x`` [N, ...] in the pipeline's precision."""

    @abstractmethod
    def unpack(self, latents: Tensor) -> Tensor:
        """Latents [N, C, H, W] of those of the pipeline's layout."""

    @abstractmethod
    def _set_timesteps(self) -> None:
        """Have the scheduler make the schedule of this call."""

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        sized = self._sized()
        return sized["height"] * sized["width"]

    def begin(self) -> None:
        """Have the pipeline say of itself what its own call does, to callbacks that ask."""
        self.pipe._guidance_scale = self.arguments["guidance_scale"]
        self.pipe._joint_attention_kwargs = self.arguments["joint_attention_kwargs"]
        self.pipe._num_timesteps = len(self.timesteps)
        self.pipe._interrupt = False

    def embeddings(self) -> dict[str, Tensor]:
        """The encoded prompts by the names that callbacks know them by."""
        known = {}
        for prefix, encoded in (("", self.positive), ("negative_", self.negative)):
            if encoded is not None:
                known[f"{prefix}prompt_embeds"] = encoded.embeds
                known[f"{prefix}pooled_prompt_embeds"] = encoded.pooled
        return known

    def raw(self, latents: Tensor, vae) -> Tensor:
        """Latents [N, C, H, W] as ``vae`` decodes them."""
        config = vae.config
        return self.unpack(latents) / config.scaling_factor + (config.shift_factor or 0)

    def images(self, latents: Tensor):
        """Final latents [B, ...] decoded by the pipeline's own VAE to its ``output_type``."""
        kind = self.arguments["output_type"]
        latents = latents.to(self.noise.dtype)
        if kind == "latent":
            return latents
        with torch.no_grad():
            raw = self.raw(latents, self.pipe.vae).to(self.pipe.vae.dtype)
            image = self.pipe.vae.decode(raw, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(image, output_type=kind)

    def _sized(self) -> dict:
        """The arguments with a height and a width."""
        usual = self.pipe.default_sample_size * self.pipe.vae_scale_factor
        sizes = {side: self.arguments[side] or usual for side in ("height", "width")}
        return self.arguments | sizes

    def _encoded(self, prefix: str = "", **options) -> tuple:
        """What ``encode_prompt`` gives of the prompts that have this prefix."""
        scale = (self.arguments["joint_attention_kwargs"] or {}).get("scale")
        named = {"device": None, "lora_scale": scale} | self.arguments | options
        if prefix:
            names = ("prompt", "prompt_2", "prompt_embeds", "pooled_prompt_embeds")
            named |= {name: self.arguments[prefix + name] for name in names}
        return _call(self.pipe.encode_prompt, named)

    def _prepare(self) -> None:
        sized, embeds = self._sized(), self.positive.embeds
        found = self.pipe.prepare_latents(
            len(embeds),
            self.pipe.transformer.config.in_channels // self.in_channels,
            sized["height"],
            sized["width"],
            embeds.dtype,
            self.pipe._execution_device,
            self.arguments["generator"],
            self.arguments["latents"],
        )
        self.noise, *self.places = found if isinstance(found, tuple) else (found,)
        self._set_timesteps()
        self.sigmas = self.pipe.scheduler.sigmas.clone()
        self.timesteps = self.pipe.scheduler.timesteps.clone()

    def _schedule(self, sigmas, **options) -> None:
        steps = self.arguments["num_inference_steps"]
        retrieve_timesteps(self.pipe.scheduler, steps, self.noise.device, sigmas=sigmas, **options)

    def _shift(self, tokens: int, most: float) -> float:
        """The shift of a schedule that depends on the size of the image."""
        config = self.pipe.scheduler.config
        return calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", most),
        )

    def _prompts(self) -> list[str] | None:
        prompt, count = self.arguments["prompt"], self.arguments["num_images_per_prompt"]
        if prompt is None:
            return None
        asked = [prompt] if isinstance(prompt, str) else prompt
        return [one for one in asked for _ in range(count)]


def arguments_of(kind: type, given: dict) -> dict:
    """All arguments of the call of a pipeline class by name.

    Raises:
        ValueError: it has no such argument.
    """
    signature = inspect.signature(kind.__call__)
    known = {n: p.default for n, p in signature.parameters.items() if n != "self"}
    strange = [name for name in given if name not in known]
    if strange:
        raise ValueError(
            f"expected arguments of {kind.__name__}'s call ({', '.join(known)}), got "
            f"{', '.join(strange)}; check the spelling"
        )
    return known | given


def _check(pipe, arguments: dict) -> None:
    """Raise ValueError for what the search cannot carry out."""
    asked = [name for name in IMAGE_PROMPTS if arguments.get(name) is not None]
    if asked:
        raise ValueError(
            f"expected a call without image prompts, got {', '.join(asked)}; leave out"
        )
    if isinstance(arguments["callback_on_step_end"], (PipelineCallback, MultiPipelineCallbacks)):
        raise ValueError(
            "expected a callback that only watches, got one of diffusers' own, which change the "
            "sampling on the way; leave it out"
        )
    scheduler = pipe.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            "expected a FlowMatchEulerDiscreteScheduler, the model's own, got "
            f"{type(scheduler).__name__}; set pipe.scheduler back"
        )
    odd = [n for n in ("stochastic_sampling", "invert_sigmas") if scheduler.config.get(n)]
    if odd:
        raise ValueError(f"expected a scheduler of plain Euler steps, got {odd[0]}; turn it off")
    if getattr(pipe.transformer, "is_cache_enabled", False):
        raise ValueError(
            "expected a transformer that computes every step, got one with a cache, which takes "
            "candidates for steps of one path; call pipe.transformer.disable_cache()"
        )


def _call(function, named: dict):
    """``function`` with what it takes of ``named``."""
    taken = inspect.signature(function).parameters
    return function(**{name: value for name, value in named.items() if name in taken})
