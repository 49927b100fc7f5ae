"""What a person sees of a run in ComfyUI: one bar in model calls, a preview, a line of text."""

from __future__ import annotations

import sys
import time

import comfy.utils
import latent_preview
from comfy_execution.utils import get_executing_context

from ..report import SearchResult, StepEvent

_PAUSE = 0.3
"""Seconds between two lines of text at least."""


class Progress:
    """Of a run.

    Args:
        items, planned: calls of each of the batch's items, the plain sample's included.
        times: what the search may cost, in times a plain sample.
        checks: calls beside them that patches are checked with.
        callback: the host's own, told of the last step (some samplers take their output from it).
    """

    def __init__(self, patcher, items: int, planned: int, checks: int, times: float, callback=None):
        context = get_executing_context()
        self.node = None if context is None else context.node_id
        self.items, self.planned, self.times = items, planned, times
        self.callback, self.spare = callback, checks * items
        self.total = planned * items + self.spare
        self.bar = comfy.utils.ProgressBar(self.total)
        self.previewer = latent_preview.get_previewer(
            patcher.load_device, patcher.model.latent_format
        )
        self.done, self.began, self.told = 0, time.monotonic(), 0.0
        self.event: StepEvent | None = None
        self.text(f"{planned} calls, the search {times:.3g} times plain")

    def on_call(self, rows: int) -> None:
        """``rows`` latents have been through the model."""
        self._advance(self.done + rows)
        if time.monotonic() - self.told >= _PAUSE:
            self.text(self._line())

    def on_step(self, event: StepEvent) -> None:
        """A step of the search or of the plain sample."""
        preview = None
        if self.previewer is not None:
            preview = self.previewer.decode_latent_to_preview_image("JPEG", event.denoised)
        self.event = event
        self._advance(max(self.done, self.spare + round(event.calls * self.items)), preview)
        self.text(self._line())

    def on_end(self, result: SearchResult, seconds: float) -> str:
        """The verdict, which it returns."""
        self._advance(self.total)
        if self.callback is not None:
            shown = {"x": result.latents, "denoised": result.clean, "i": result.steps - 1}
            self.callback({**shown, "sigma": 0.0, "sigma_hat": 0.0})
        verdict = _verdict(result, seconds)
        self.text(verdict)
        return verdict

    def text(self, line: str) -> None:
        """``line`` under the node."""
        self.told = time.monotonic()
        # of a host that runs without its server nobody looks on, and importing it starts much
        server = getattr(sys.modules.get("server"), "PromptServer", None)
        instance = getattr(server, "instance", None)
        if self.node is not None and instance is not None:
            instance.send_progress_text(line, self.node)

    def _advance(self, done: int, preview=None) -> None:
        self.done = min(done, self.total)
        self.bar.update_absolute(self.done, self.total, preview)

    def _line(self) -> str:
        event, parts = self.event, []
        if event is not None:
            parts.append(f"step {event.index} of {event.steps}")
            if event.best:
                parts.append(f"best {_mean(event.best):.3f}")
            if event.plain:
                parts.append(f"plain {_mean(event.plain):.3f}")
        parts.append(f"{round(self.done / self.items)} of {round(self.total / self.items)} calls")
        if self.done:
            left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
            parts.append(f"{left:.0f} s left")
        return ", ".join(parts)


def _verdict(result: SearchResult, seconds: float) -> str:
    parts = [f"{_mean(result.rewards.tolist()):.3f}"]
    if result.plain_rewards is not None:
        parts.append(f"plain {_mean(result.plain_rewards.tolist()):.3f}")
    if result.kept_plain is not None:
        kept = sum(result.kept_plain)
        plain = "plain" if kept == len(result.kept_plain) else f"plain for {kept}"
        parts.append(f"kept {plain if kept else 'searched'}")
    calls = result.cost.calls + (result.plain.cost.calls if result.plain else 0)
    parts.append(f"{round(calls / len(result.rewards))} calls")
    parts.append(f"{seconds:.0f} s")
    if result.stopped:
        parts.append(f"stopped by {result.stopped}")
    return "\n".join([", ".join(parts), *result.warnings])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
