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
"""Tokens that run through a model at once: two images of 1024 px in FLUX.1 and SD3.5."""

KEY = "flow_ttrl"
"""Of what is put on a model's clone."""


def rows_at_once(shape: Sequence[int], patch: int = 4) -> int:
    """Candidates of latents [B, C, ...] of this ``shape`` that run through the model at once.

    Args:
        patch: latent pixels of a token; see :func:`patch_of`.
    """
    tokens = math.prod(shape[2:]) / patch
    return max(1, int(TOKENS / (tokens * shape[0])))


def patch_of(base_model) -> int:
    """Latent pixels that a token of the host's ``base_model`` stands for."""
    size = getattr(base_model.diffusion_model, "patch_size", 2)
    return math.prod(size) if isinstance(size, (tuple, list)) else int(size) ** 2


def reserve(model, vae, rows: int, judging: int = 0) -> None:
    """Have ComfyUI keep free what ``rows`` candidates take, or decoding one image, or judging.

    Args:
        model: a clone, which the reservation stays on.
        judging: bytes that rewards take while they run.
    """

    def prepared(executor, patcher, noise_shape, *args, **kwargs):
        batch, *shape = noise_shape
        wanted = _wanted(patcher.model, vae, noise_shape, rows, judging)
        return executor(patcher, [batch * wanted, *shape], *args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    model.add_wrapper_with_key(kind, KEY, prepared)


def load_beside(
    guider, vae, models: Sequence, shape: Sequence[int], rows: int, judging: int = 0
) -> None:
    """Load what a search needs beside what ``guider`` has loaded, none of which may leave for it.

    For a sampler that the host calls once its model is loaded; with memory as :func:`reserve`.
    """
    patcher = guider.model_patcher
    batch, *rest = shape
    wanted = batch * _wanted(patcher.model, vae, shape, rows, judging)
    comfy.model_management.load_models_gpu(
        [patcher, *getattr(guider, "loaded_models", []), vae.patcher, *models],
        memory_required=patcher.model.memory_required([2 * wanted, *rest]),
        minimum_memory_required=patcher.model.memory_required([wanted, *rest]),
    )


def _wanted(base_model, vae, shape: Sequence[int], rows: int, judging: int) -> int:
    """Rows of each latent of ``shape`` that take as much as ``rows``, a decode or ``judging``."""
    each = max(base_model.memory_required(list(shape)), 1)
    return max(rows, math.ceil(max(memory_of_decode(vae, shape), judging) / each))


def for_vae(vae, latents: Tensor) -> Tensor:
    """Latents [N, C, ...] as ``vae`` takes them: of a latent with frames the first frame."""
    if latents.ndim == 5:
        latents = latents[:, :, :1]
        return latents[:, :, 0] if vae.latent_dim == 2 else latents
    return latents[:, :, None] if latents.ndim == 4 and vae.latent_dim == 3 else latents


def memory_of_decode(vae, shape: Sequence[int]) -> float:
    """Bytes that decoding one latent of ``shape`` [N, C, ...] takes."""
    one = for_vae(vae, torch.empty((1, *shape[1:]), device="meta"))
    return max(vae.memory_used_decode(tuple(one.shape), vae.vae_dtype), 1)


def images_at_once(vae, shape: Sequence[int]) -> int:
    """Latents of ``shape`` [N, C, ...] that there is memory to decode at once."""
    patcher_knows = getattr(vae.patcher, "get_free_memory", None)
    free = (patcher_knows or comfy.model_management.get_free_memory)(vae.device)
    return max(1, int(free / memory_of_decode(vae, shape)))


def decoded(vae, latents: Tensor) -> Tensor:
    """Images [N, (T,) H, W, C] of ``latents``, as ``vae`` takes them."""
    pixels = vae.first_stage_model.decode(latents.to(vae.vae_dtype)).float()
    return vae.process_output(pixels).movedim(1, -1)


def decoded_in_tiles(vae, latents: Tensor) -> Tensor:
    """The same in tiles. Unlike ``vae.decode_tiled``, which may put a model off the card."""
    tile = max(256 // vae.spacial_compression_decode(), 1)
    sizes = {"tile_x": tile, "tile_y": tile}
    if getattr(vae, "handles_tiling", False):
        pixels = vae._decode_tiled_owned(latents, **sizes, overlap=tile // 4)
    elif latents.ndim == 5:
        pixels = vae.decode_tiled_3d(latents, **sizes, overlap=(1, tile // 4, tile // 4))
    else:
        pixels = vae.decode_tiled_(latents)
    return pixels.float().movedim(1, -1)


def watch_memory(device: torch.device) -> None:
    """Begin to count what :func:`peak_memory` says."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float | None:
    """GiB that PyTorch held on ``device`` at most; None where it does not count."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 1024**3, 2)


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
                raise MemoryError(SHORT[what])
            self.halved[what] = at_once // 2
            left = at_once // 2 or "tiles"
            log.warning("out of memory (%s): going on with %s at once", what, left)


def advising(function: Callable[[], Tensor], what: str) -> Tensor:
    """``function()``, where nothing can be halved; out of memory, an error that says what to do."""
    try:
        return function()
    except Exception as error:
        if not out_of_memory(error):
            raise
    comfy.model_management.soft_empty_cache()
    raise MemoryError(SHORT[what])


_MORE = (
    "lower the resolution, close what else uses the card, take a smaller file of the model (fp8, "
    "GGUF), or start ComfyUI with --lowvram"
)
SHORT = {
    "model": f"Expected memory for one latent at a time, ran out of it in the model; {_MORE}",
    "decode": f"Expected memory to decode one image, ran out of it in the VAE, with tiles too; "
    f"{_MORE}, or wire a TAESD as VAE",
    "reward": f"Expected memory to judge one image, ran out of it in a reward; take a smaller "
    f"reward (clipscore, aesthetic), or {_MORE}",
}
