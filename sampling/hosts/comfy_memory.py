"""Memory under ComfyUI: rows that run at once, what is kept free for them, and running short.

How many rows run at once follows the latent's token count, never the memory that happens to be
free: a seed is the same image on every machine. ComfyUI is told of them before it loads the model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.patcher_extension
import torch
from torch import Tensor

log = logging.getLogger("flow_ttrl")

TOKENS = 8192
"""Tokens, of 2 x 2 latent pixels each, that run through a model at once: two images of 1024 px."""

KEY = "flow_ttrl"
"""Of what is put on a model's clone."""


def rows_at_once(shape: Sequence[int]) -> int:
    """Candidates of latents [B, C, ...] of this ``shape`` that run through the model at once."""
    tokens = math.prod(shape[2:]) / 4
    return max(1, int(TOKENS / (tokens * shape[0])))


def reserve(model, vae, rows: int) -> None:
    """Have ComfyUI keep free what ``rows`` candidates take, or decoding one image does.

    Args:
        model: a clone, which the reservation stays on.
    """

    def prepared(executor, patcher, noise_shape, *args, **kwargs):
        batch, *shape = noise_shape
        image = memory_of_decode(vae, (1, *shape))
        each = max(patcher.model.memory_required([batch, *shape]), 1)
        wanted = max(rows, math.ceil(image / each))
        return executor(patcher, [batch * wanted, *shape], *args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    model.add_wrapper_with_key(kind, KEY, prepared)


def memory_of_decode(vae, shape: Sequence[int]) -> float:
    """Bytes that decoding a latent of ``shape`` [N, C, ...] takes, of a video's the first frame."""
    if len(shape) == 5:
        shape = (*shape[:2], 1, *shape[3:])
    return max(vae.memory_used_decode(shape, vae.vae_dtype), 1)


def images_at_once(vae, shape: Sequence[int]) -> int:
    """Latents of ``shape`` [N, C, ...] that there is memory to decode at once."""
    patcher_knows = getattr(vae.patcher, "get_free_memory", None)
    free = (patcher_knows or comfy.model_management.get_free_memory)(vae.device)
    return max(1, int(free / memory_of_decode(vae, (1, *shape[1:]))))


def out_of_memory(error: Exception) -> bool:
    """Whether ``error`` is the host's out-of-memory error."""
    known = getattr(comfy.model_management, "is_oom", None)
    return known(error) if known else isinstance(error, comfy.model_management.OOM_EXCEPTION)


class Rationing:
    """Runs functions of rows in parts that halve where memory runs out, and stay so.

    Attributes:
        halved: rows that were left at once, by what ran short.
    """

    def __init__(self):
        self.halved: dict[str, int] = {}

    def run(
        self,
        what: str,
        function: Callable[[Tensor, Tensor], Tensor],
        rows: Tensor,
        item: Tensor,
        last: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """``function`` of ``rows`` and the item of each [N], all in one call while memory lasts.

        Args:
            what: runs short: "model", "decode" or "reward".
            last: takes one row where ``function`` has no memory for a single one.
        """
        while True:
            at_once = self.halved.get(what, len(rows))
            parts = zip(rows.split(max(at_once, 1)), item.split(max(at_once, 1)), strict=True)
            try:
                if at_once == 0:
                    return torch.cat([last(part) for part, _ in parts])
                return torch.cat([function(*part) for part in parts])
            except Exception as error:
                if not out_of_memory(error):
                    raise
            # Out of the except clause, whose traceback holds the tensors that were made so far.
            comfy.model_management.soft_empty_cache()
            at_once = min(at_once, len(rows))
            if at_once <= 1 and (last is None or at_once == 0):
                raise MemoryError(_SHORT[what])
            self.halved[what] = at_once // 2
            left = at_once // 2 or "tiles"
            log.warning("out of memory (%s): going on with %s at once", what, left)


_MORE = (
    "lower the resolution, close what else uses the card, take a smaller file of the model (fp8, "
    "GGUF), or start ComfyUI with --lowvram"
)
_SHORT = {
    "model": f"Expected memory for one latent at a time, ran out of it in the model; {_MORE}",
    "decode": f"Expected memory to decode one image, ran out of it in the VAE, with tiles too; "
    f"{_MORE}, or wire a TAESD as VAE",
    "reward": f"Expected memory to judge one image, ran out of it in a reward; take a smaller "
    f"reward (clipscore, aesthetic), or {_MORE}",
}
