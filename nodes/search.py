"""The search: its settings and the all-in-one node."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor

from ..rewards import RewardMix
from ..sampling import PRESETS, RewardBatch, SearchSettings, preset
from ..sampling.settings import GRADIENTS, STEPS, UPDATES
from .types import ADVANCED, CATEGORY, Report, Reward, Settings, schema

_PRESETS = [f"{name} v{version}" for name, version in sorted(PRESETS, key=lambda p: (p[0], -p[1]))]
"""Labels of the drop-down, each name's newest version first."""

_UNWIRED = preset("balanced", 2)
"""What a search without settings does; never another, since saved workflows count on it."""

_APPENDED = {"search_every": 1, "look_ahead_first": 1, "look_ahead_last": 1}
"""Neutral values of inputs that graphs saved before they were appended lack."""

_PATIENCE = 8
"""Look-aheads that a reward may fail on at first; a run is not to end over a single one."""

_NEVER = 1e6
"""A target_reward that no reward reaches."""


def _custom(text: str) -> dict:
    return {"tooltip": f"{text} Only with preset 'custom'.", "extra_dict": dict(ADVANCED)}


class SearchSettingsNode(io.ComfyNode):
    """Presets and every parameter of the search."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        start = _UNWIRED
        return schema(
            node_id="TTRLSearchSettings",
            display_name="TTRL Search Settings",
            category=CATEGORY,
            description=(
                "How the search goes about it. The first six inputs always count; the others count "
                "with preset 'custom' and start at the values of 'balanced'."
            ),
            search_aliases=["ttrl", "preset"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[*_PRESETS, "custom"],
                    default=_PRESETS[0],
                    tooltip="balanced: our best by measurement. paper: the published "
                    "hyper-parameters with their faults mended; needs gradients through the model. "
                    "custom: the inputs below. A preset's version never changes.",
                ),
                io.Boolean.Input(
                    "keep_better",
                    default=False,
                    tooltip="Also sample plainly and return whichever scores higher. Off: return "
                    "the searched image whatever it scores.",
                ),
                io.Int.Input(
                    "max_calls",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="End the search so that an image costs at most this many model calls "
                    "(a backward counts two). 0: no limit.",
                ),
                io.Float.Input(
                    "max_seconds",
                    default=0.0,
                    min=0.0,
                    max=86_400.0,
                    step=1.0,
                    tooltip="End the search after this long and sample on from the best so far. "
                    "0: no limit.",
                ),
                io.Float.Input(
                    "target_reward",
                    default=_NEVER,
                    min=-_NEVER,
                    max=_NEVER,
                    step=0.01,
                    tooltip="End the search once a look-ahead scores this. 1000000: never.",
                ),
                io.Int.Input(
                    "micro_batch",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Candidates run through the model at once; lower it when memory is "
                    "short. 0: the whole group.",
                ),
                io.Int.Input(
                    "group_size",
                    default=start.group_size,
                    min=2,
                    max=256,
                    **_custom("Candidates per search step. More: better and dearer."),
                ),
                io.Int.Input(
                    "rl_iterations",
                    default=start.rl_iterations,
                    min=1,
                    max=64,
                    **_custom("Updates per search step; 1 with update 'steered'."),
                ),
                io.Float.Input(
                    "internal_reward_timestep",
                    default=start.internal_reward_timestep,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    **_custom("Share of the steps, from the start, that use PRDP. 0: GRPO only."),
                ),
                io.Float.Input(
                    "external_reward_timestep",
                    default=start.external_reward_timestep,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    **_custom("Share of the steps that search. 0: no search, plain Euler."),
                ),
                io.Combo.Input(
                    "step",
                    options=list(STEPS),
                    default=start.step,
                    **_custom(
                        "The stochastic step: matched (energy kept octave by octave), Flow-GRPO's "
                        "SDE, Flow-CPS, or midpoint, the mean of those two."
                    ),
                ),
                io.Float.Input(
                    "noise_first",
                    default=start.noise_range[0],
                    min=0.001,
                    max=10.0,
                    step=0.01,
                    **_custom("Noise level (eta) of the first search step."),
                ),
                io.Float.Input(
                    "noise_last",
                    default=start.noise_range[1],
                    min=0.001,
                    max=10.0,
                    step=0.01,
                    **_custom("Noise level (eta) of the last search step."),
                ),
                io.Combo.Input(
                    "gradient",
                    options=list(GRADIENTS),
                    default=start.gradient,
                    **_custom("jacobian_free: no backward pass, least memory. exact: through it."),
                ),
                io.Combo.Input(
                    "update",
                    options=list(UPDATES),
                    default=start.update,
                    **_custom("How the latent moves."),
                ),
                io.Float.Input(
                    "update_first",
                    default=start.update_range[0],
                    min=0.0,
                    max=3.14,
                    step=0.01,
                    **_custom(
                        "Size of the first move: radians (rotations), share of the norm "
                        "(additive). 0: no move."
                    ),
                ),
                io.Float.Input(
                    "update_last",
                    default=start.update_range[1],
                    min=0.0,
                    max=3.14,
                    step=0.01,
                    **_custom("Size of the last move. 0: no move."),
                ),
                io.Boolean.Input(
                    "elitist",
                    default=start.elitist,
                    **_custom("Go on from the best candidate where it beats the steered latent."),
                ),
                io.Float.Input(
                    "scale_factor",
                    default=start.scale_factor,
                    min=0.0,
                    max=1e6,
                    step=1.0,
                    **_custom("The paper's step size, for update 'scale_factor'."),
                ),
                io.Float.Input(
                    "prdp_scale",
                    default=start.prdp_scale,
                    min=0.0,
                    max=1e6,
                    step=0.001,
                    round=1e-6,
                    **_custom("Multiplies scale_factor in the PRDP steps."),
                ),
                io.Float.Input(
                    "grpo_scale",
                    default=start.grpo_scale,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    **_custom("Multiplies scale_factor in the GRPO steps."),
                ),
                io.Float.Input(
                    "beta1",
                    default=start.beta1,
                    min=1e-6,
                    max=1e6,
                    step=1e-4,
                    round=1e-6,
                    **_custom("PRDP's temperature."),
                ),
                io.Float.Input(
                    "beta2",
                    default=start.beta2,
                    min=0.0,
                    max=1e6,
                    step=1e-4,
                    round=1e-6,
                    **_custom("Weight of the KL to the reference trajectory. 0: none."),
                ),
                io.Float.Input(
                    "clip",
                    default=start.clip,
                    min=1e-6,
                    max=1e6,
                    step=0.01,
                    round=1e-6,
                    **_custom("Clip of the log-ratios (PRDP) and ratios (GRPO)."),
                ),
                io.Float.Input(
                    "adv_clip_max",
                    default=start.adv_clip_max,
                    min=0.01,
                    max=1e6,
                    step=0.1,
                    **_custom("Clip of the advantages."),
                ),
                io.Float.Input(
                    "reward_diff_threshold",
                    default=start.reward_diff_threshold,
                    min=0.0,
                    max=1e6,
                    step=0.01,
                    **_custom("PRDP compares pairs whose rewards differ by more. 0: all pairs."),
                ),
                io.Boolean.Input(
                    "rationorm",
                    default=start.rationorm,
                    **_custom("GRPO's ratio normalised per sample."),
                ),
                io.Int.Input(
                    "search_every",
                    default=start.search_every,
                    min=1,
                    max=10_000,
                    optional=True,
                    **_custom("Search on every n-th step of the window. 1: on every step."),
                ),
                io.Int.Input(
                    "look_ahead_first",
                    default=start.look_ahead_range[0],
                    min=1,
                    max=64,
                    optional=True,
                    **_custom(
                        "Model calls of a look-ahead in the first search step: more see the final "
                        "image clearer. 1: the paper's single step."
                    ),
                ),
                io.Int.Input(
                    "look_ahead_last",
                    default=start.look_ahead_range[1],
                    min=1,
                    max=64,
                    optional=True,
                    **_custom("The same for the last search step. 1: a single step."),
                ),
            ],
            outputs=[Settings.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, preset: str, **inputs) -> io.NodeOutput:
        always = ("keep_better", "max_calls", "max_seconds", "target_reward", "micro_batch")
        common = {name: inputs.pop(name) for name in always}
        if common["target_reward"] >= _NEVER:
            common["target_reward"] = None
        if preset != "custom":
            return io.NodeOutput(_named(preset, **common))
        inputs = _APPENDED | inputs
        for name in ("noise", "update", "look_ahead"):
            ends = inputs.pop(f"{name}_first"), inputs.pop(f"{name}_last")
            inputs[f"{name}_range"] = ends
        return io.NodeOutput(SearchSettings(**inputs, **common))


def _named(label: str, **changes) -> SearchSettings:
    """The preset behind a label of the drop-down, such as "balanced v1"."""
    name, version = label.rsplit(" v", 1)
    return preset(name, int(version), **changes)


class SDELatentSearch(io.ComfyNode):
    """KSampler's wires plus VAE, reward and prompt: to a searched and a plain latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLSDELatentSearch",
            display_name="SDE Latent Search",
            category=CATEGORY,
            description=(
                "Samples like KSampler with 'euler' and searches on the way: it tries out noise, "
                "looks ahead at the image, scores it and steers towards what scores well."
            ),
            search_aliases=["ttrl", "flow-ttrl", "reward", "test-time search", "prompt following"],
            inputs=[
                io.Model.Input("model", tooltip="A flow-matching model: FLUX, SD3.5 and others."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", tooltip="What to avoid; does nothing at cfg 1."),
                io.Latent.Input("latent_image", tooltip="The latent to start from."),
                io.Vae.Input("vae", tooltip="The model's VAE, to look ahead at images."),
                Reward.Input("reward", tooltip="What images are judged by."),
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
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the rewards look for; usually the positive prompt's own text.",
                ),
                io.Boolean.Input(
                    "baseline",
                    default=True,
                    tooltip="Also sample plainly from the same seed, bit for bit as KSampler with "
                    "'euler' does, for comparison. Off saves that time; nothing that is wired to "
                    "the baseline runs then.",
                ),
                Settings.Input(
                    "settings",
                    optional=True,
                    tooltip="From TTRL Search Settings. Without: preset 'balanced v2'.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Latent.Output(display_name="baseline"),
                Report.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
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
        settings: SearchSettings | None = None,
    ) -> io.NodeOutput:
        from ..sampling.hosts.comfy import SearchSampler, sample_latents

        settings = settings or _UNWIRED
        if settings.target_reward is not None and reward.mode != "raw":
            raise ValueError(
                f"expected no target_reward with rewards mixed by mode {reward.mode!r}, which only "
                f"compares images, got {settings.target_reward}; take mode 'raw' or clear it"
            )
        judge = reward.judge([prompt], patience=_PATIENCE)

        def score(images: Tensor) -> RewardBatch:
            scores = judge.score(images)
            return RewardBatch(scores.total, scores.values, reward.totals)

        sampler = SearchSampler(settings, vae, score, with_plain=baseline, models=reward.patchers)
        samples = sample_latents(
            model,
            positive,
            negative,
            latent_image,
            sampler,
            seed=seed,
            steps=steps,
            cfg=cfg,
            scheduler=scheduler,
            denoise=denoise,
        )
        searched = {**latent_image, "samples": samples}
        plain = ExecutionBlocker(None)
        if baseline:
            plain = {**latent_image, "samples": sampler.plain.to(samples.device)}
        return io.NodeOutput(searched, plain, sampler.report() | {"reward": judge.report()})
