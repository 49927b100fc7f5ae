"""Keyed noise: every draw is fixed by (seed, the item's own key, step, candidate) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeyedNoise:
    """Random draws that depend on their key alone.

    Neither the batch size, nor micro-batches, nor which items of a batch were selected, nor what
    was drawn before changes a draw; they are made on the CPU, so that they are the same on every
    device.

    Attributes:
        keys: a name for each item of the batch; see :func:`item_keys`.
    """

    seed: int
    keys: tuple[str, ...]

    def normal(self, step: int | str, candidates: Sequence[int], like: Tensor) -> Tensor:
        """float32 standard normal draws [candidates, *like.shape] for a batch ``like`` [B, ...]."""
        draws = torch.empty(len(candidates), *like.shape, dtype=torch.float32, device="cpu")
        for row, candidate in zip(draws, candidates, strict=True):
            for item, key in zip(row, self.keys, strict=True):
                item.normal_(generator=self._generator(key, step, candidate))
        return draws.to(like.device)

    def uniform(self, step: int | str) -> Tensor:
        """One number in 0..1 for every item [B], on the CPU."""
        draws = torch.empty(len(self.keys), dtype=torch.float32, device="cpu")
        for draw, key in zip(draws, self.keys, strict=True):
            draw.uniform_(generator=self._generator(key, step, -1))
        return draws

    def _generator(self, key: str, step: int | str, candidate: int) -> torch.Generator:
        name = f"{self.seed} {key} {step} {candidate}".encode()
        digest = hashlib.blake2b(name, digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def item_keys(noise: Tensor) -> tuple[str, ...]:
    """A key for each item of starting noise [B, ...]: its hash; its row where it is all zero."""

    def key(row: int, item: Tensor) -> str:
        if not item.any():
            return f"row {row}"
        return hashlib.blake2b(item.contiguous().numpy().tobytes(), digest_size=16).hexdigest()

    return tuple(key(row, item) for row, item in enumerate(noise.float().cpu()))
