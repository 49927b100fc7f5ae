"""The all-in-one node: KSampler's wires, and the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.samplers
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..plots import captioned
from ..rewards import Judge, RewardMix
from ..sampling import SearchSettings, make_settings
from ..version import VERSION
from .prompt_text import judged_text
from .routes import finish_asked
from .types import (
    CATEGORY,
    as_images,
    prompt_input,
    reward_input,
    run_outputs,
    schema,
    settings_input,
    vae_input,
)

if TYPE_CHECKING:
    from ..sampling.hosts.comfy import Candidates
    from ..sampling.hosts.comfy_sampler import SearchSampler

_PATIENCE = 8
"""Look-aheads that a reward may fail on at first; a run is not to end over a single one."""


class SDELatentSearch(io.ComfyNode):
    """KSampler's wires plus VAE, reward and prompt: to a searched and a plain latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLSDELatentSearch",
            display_name="SDE Latent Search",
            category=CATEGORY,
            description=(
                "Samples like KSampler with 'euler' and searches on the way, which finds more than "
                "the best of N: it tries out noise, looks ahead at the images, scores them and "
                "goes on with what scores well."
            ),
            search_aliases=["ttrl", "flow-ttrl", "reward", "test-time search", "prompt following"],
            inputs=[
                io.Model.Input("model", tooltip="A flow-matching model: FLUX, SD3.5 and others."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to avoid. Needed where cfg is not 1, does nothing where it is.",
                ),
                io.Latent.Input("latent_image", tooltip="The latent to start from."),
                vae_input(),
                reward_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Fixes the starting noise, as in KSampler, and the search's draws.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10_000, tooltip="Sampling steps in all."
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance. 1: none, and right for FLUX.1-dev, whose "
                    "guidance is set by FluxGuidance.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="Spacing of the noise levels, as in KSampler.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the latent to redraw. 1: all of it.",
                ),
                prompt_input(),
                io.Boolean.Input(
                    "baseline",
                    default=True,
                    tooltip="Also sample plainly from the same seed, bit for bit as KSampler with "
                    "'euler' does, for comparison. Off saves that time; nothing that is wired to "
                    "the baseline runs then.",
                ),
                settings_input(),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            outputs=[
                io.Latent.Output(display_name="latent"),
                *run_outputs(),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent_image,
        vae,
        reward: RewardMix,
        seed,
        steps,
        cfg,
        scheduler,
        denoise,
        prompt,
        baseline,
        negative=None,
        settings: SearchSettings | None = None,
    ) -> io.NodeOutput:
        from ..sampling.hosts.comfy_ksampler import check_inputs, plain_latents, sample_latents
        from ..sampling.hosts.comfy_sampler import SearchSampler

        settings = settings or make_settings()
        check_target(settings, reward)
        if negative is None and cfg != 1:
            raise ValueError(
                f"expected a negative conditioning for cfg {cfg:g}, got none; wire one (an empty "
                "text will do), or set cfg to 1"
            )
        schedule = {"steps": steps, "scheduler": scheduler, "denoise": denoise}
        check_inputs(model, vae, latent_image, settings, **schedule)
        text = judged_text(prompt, cls.hidden.dynprompt, cls.hidden.unique_id, reward.needs_prompt)
        judge = judge_of(reward, text)
        sampler = SearchSampler(
            settings,
            vae,
            judge,
            baseline=baseline,
            models=reward.patchers,
            judging=reward.working_memory,
            finish_asked=finish_asked,
        )
        searched = sample_latents(
            model,
            positive,
            negative,
            latent_image,
            sampler,
            seed=seed,
            cfg=cfg,
            **schedule,
        )
        plain = plain_latents(searched, sampler) if baseline else ExecutionBlocker(None)
        if sampler.result is None:  # denoise 0
            return io.NodeOutput(searched, plain, ExecutionBlocker(None), ExecutionBlocker(None))
        return io.NodeOutput(searched, plain, full_report(sampler), sheet(sampler.candidates))


def full_report(sampler: SearchSampler) -> dict:
    """The last run's report, with what it was made by."""
    from comfyui_version import __version__ as host

    versions = {"flow_ttrl": VERSION, "comfyui": host, "torch": torch.__version__}
    return sampler.report() | {"versions": versions}


def sheet(candidates: Candidates | None) -> torch.Tensor | ExecutionBlocker:
    """The candidates [N, H, W, 3] with their scores below; nothing runs on where there are none."""
    if candidates is None:
        return ExecutionBlocker(None)
    several = int(candidates.items.max()) > 0
    captions = []
    for number, item in enumerate(candidates.items.tolist()):
        lines = [f"{value[number].item():.3f}  {name}" for name, value in candidates.values.items()]
        captions.append("\n".join([*lines, *([f"image {item}"] if several else [])]))
    return as_images(captioned(candidates.images, captions))


def check_target(settings: SearchSettings, reward: RewardMix) -> None:
    """Raise ValueError for a target_reward that the rewards have no scale for."""
    if settings.target_reward is not None and reward.mode != "raw":
        raise ValueError(
            f"expected no target_reward with rewards mixed by mode {reward.mode!r}, which only "
            f"compares images, got {settings.target_reward}; take mode 'raw' or clear it"
        )


def judge_of(reward: RewardMix, text: str) -> Judge:
    """``reward`` at work on ``text`` for a whole run."""
    return reward.judge([text], patience=_PATIENCE)
