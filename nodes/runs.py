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
    """What is kept of one.

    Attributes:
        plain: plain latents on the CPU, where they were asked for.
        report: the run's.
        candidates: the last that it compared, if any (``hosts.comfy.Candidates``).
    """

    plain: Tensor | None
    report: dict
    candidates: object | None


class Handle:
    """A TTRL Sampler's own, so that its runs are told from others that gave the same latent."""

    def remember(self, latents: Tensor, run: FinishedRun) -> None:
        """Keep a run under what its sampler returned."""
        key = (id(self), _hash(latents))
        _runs.pop(key, None)
        _runs[key] = run
        _handles[id(self)] = self  # so that no other handle gets this one's number
        while len(_runs) > MOST:
            (owner, _), _ = _runs.popitem(last=False)
            if all(owner != other for other, _ in _runs):
                _handles.pop(owner, None)

    def find(self, latents: Tensor) -> FinishedRun:
        """The run that gave these latents: this handle's, or else the newest that did.

        Raises:
            ValueError: there is none, or it is too long ago.
        """
        wanted = _hash(latents)
        if (id(self), wanted) in _runs:
            return _runs[id(self), wanted]
        others = [run for (_, found), run in _runs.items() if found == wanted]
        if not others:
            raise ValueError(
                "Expected the LATENT of a sampler that TTRL Sampler is wired to, as it came out, "
                f"got another one (or one of more than {MOST} runs ago, or of an empty schedule); "
                "wire the sampler's own output, or queue again with another seed"
            )
        return others[-1]


_runs: OrderedDict[tuple[int, str], FinishedRun] = OrderedDict()
_handles: dict[int, Handle] = {}


def _hash(latents: Tensor) -> str:
    """The same whether the host hands the latents on in half precision or not."""
    data = latents.detach().cpu().half().contiguous()
    return hashlib.sha256(f"{list(data.shape)}".encode() + data.numpy().tobytes()).hexdigest()
