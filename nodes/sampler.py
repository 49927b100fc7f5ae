"""The search for graphs with a sampler of their own: a SAMPLER, and what its run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..rewards import RewardMix
from ..sampling import SearchSettings, make_settings
from .prompt_text import judged_text
from .routes import finish_asked
from .runs import FinishedRun, Handle
from .search import check_target, full_report, judge_of, sheet
from .types import (
    CATEGORY,
    Run,
    prompt_input,
    reward_input,
    run_outputs,
    schema,
    settings_input,
    vae_input,
)

if TYPE_CHECKING:
    from ..sampling.hosts.comfy_sampler import SearchSampler


class TTRLSampler(io.ComfyNode):
    """A SAMPLER that searches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLSampler",
            display_name="TTRL Sampler",
            category=CATEGORY,
            description=(
                "A SAMPLER for SamplerCustomAdvanced, SamplerCustom and the like: it samples like "
                "'euler' and searches on the way."
            ),
            search_aliases=["ttrl", "flow-ttrl", "reward", "test-time search", "best of n"],
            inputs=[
                vae_input(),
                reward_input(),
                prompt_input(),
                io.Boolean.Input(
                    "baseline",
                    default=True,
                    tooltip="Also sample plainly from the same noise, for TTRL Run Result.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The guider's positive conditioning, for its text alone.",
                ),
                settings_input(),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            outputs=[
                io.Sampler.Output(display_name="sampler"),
                Run.Output(display_name="run"),
            ],
        )

    @classmethod
    def execute(
        cls,
        vae,
        reward: RewardMix,
        prompt: str,
        baseline: bool,
        positive=None,
        settings: SearchSettings | None = None,
    ) -> io.NodeOutput:
        from ..sampling.hosts.comfy_sampler import SearchSampler

        settings = settings or make_settings()
        check_target(settings, reward)
        text = judged_text(prompt, cls.hidden.dynprompt, cls.hidden.unique_id, reward.needs_prompt)
        handle = Handle()
        sampler = SearchSampler(
            settings,
            vae,
            judge_of(reward, text),
            baseline=baseline,
            models=reward.patchers,
            judging=reward.working_memory,
            finish_asked=finish_asked,
            on_result=lambda run: _remember(handle, run),
        )
        return io.NodeOutput(sampler.sampler(), handle)


def _remember(handle: Handle, sampler: SearchSampler) -> None:
    plain = sampler.plain.cpu() if sampler.baseline else None
    run = FinishedRun(plain, full_report(sampler), sampler.candidates)
    handle.remember(sampler.latents, run)
    sampler.forget()


class TTRLRunResult(io.ComfyNode):
    """The run of a TTRL Sampler, found by the latent that it gave."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLRunResult",
            display_name="TTRL Run Result",
            category=CATEGORY,
            description="The plain latent and the report of what a TTRL Sampler has sampled.",
            search_aliases=["ttrl", "report", "baseline"],
            inputs=[
                Run.Input("run", tooltip="From TTRL Sampler."),
                io.Latent.Input("latent", tooltip="The sampler's output, as it came out."),
            ],
            outputs=run_outputs(),
        )

    @classmethod
    def execute(cls, run: Handle, latent: dict) -> io.NodeOutput:
        found = run.find(latent["samples"])
        plain = ExecutionBlocker(None)
        if found.plain is not None:
            plain = {**latent, "samples": found.plain.to(latent["samples"])}
        return io.NodeOutput(plain, found.report, sheet(found.candidates))
