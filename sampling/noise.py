"""Keyed noise: every draw is fixed by (seed, item, step, candidate) and by nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeyedNoise:
    """Standard normal draws that depend on their key alone.

    Neither the batch size, nor micro-batches, nor what was drawn before changes a draw; they are
    made on the CPU, so that they are the same on every device.

    Attributes:
        first_item: number of the batch's first item, where the batch is part of a larger one.
    """

    seed: int
    first_item: int = 0

    def draw(self, item: int, step: int, candidate: int, shape: torch.Size) -> Tensor:
        """float32 noise of ``shape`` for one candidate of one batch item at one step."""
        key = f"{self.seed} {self.first_item + item} {step} {candidate}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(shape, generator=generator)

    def group(self, step: int, candidates: int, like: Tensor) -> Tensor:
        """Noise [candidates, *like.shape] for every item of the batch ``like`` [B, ...]."""
        draws = [
            torch.stack([self.draw(b, step, g, like.shape[1:]) for b in range(len(like))])
            for g in range(candidates)
        ]
        return torch.stack(draws).to(like.device)
