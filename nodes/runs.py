"""Finished runs that the process remembers: plain latent and report, by the latents they gave."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

MOST = 16
"""Runs that are remembered; the oldest goes first."""


@dataclass(frozen=True)
class FinishedRun:
    """
    Attributes:
        plain: plain latents on the CPU, where they were made.
        report: the run's.
        candidates: the last that it compared, if any (``comfy_sampler.Candidates``).
    """

    plain: Tensor | None
    report: dict
    candidates: object | None


_runs: OrderedDict[str, FinishedRun] = OrderedDict()


def remember(latents: Tensor, run: FinishedRun) -> None:
    """Keep a run under what its sampler returned."""
    key = _key(latents)
    _runs.pop(key, None)
    _runs[key] = run
    while len(_runs) > MOST:
        _runs.popitem(last=False)


def find(latents: Tensor) -> FinishedRun:
    """The run that gave these latents.

    Raises:
        ValueError: there is none, or it is too long ago.
    """
    run = _runs.get(_key(latents))
    if run is None:
        raise ValueError(
            "Expected the LATENT of a sampler that TTRL Sampler is wired to, as it came out, got "
            f"another one (or one of more than {MOST} runs ago); wire the sampler's own output, or "
            "queue again with another seed"
        )
    return run


def _key(latents: Tensor) -> str:
    """Hash of latents, the same whether the host hands them on in half precision or not."""
    data = latents.detach().cpu().half().contiguous()
    return hashlib.sha256(f"{list(data.shape)}".encode() + data.numpy().tobytes()).hexdigest()
