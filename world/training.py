"""What every stage of training shares: endless captioned data and a resumable run."""

from __future__ import annotations

import copy
import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .draw import draw
from .prompts import FAMILIES, training_compositions

log = logging.getLogger("flow_ttrl.train")

FAMILY_WEIGHTS = {"single": 1, "two": 2, "position": 3, "counting": 2}


class Data:
    """Training images and their captions, drawn anew for ever from one seed."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.pools = {family: training_compositions(family) for family in FAMILIES}

    def batch(self, n: int) -> tuple[Tensor, list[str]]:
        """Images [n, 3, H, W] in 0..1 and their captions."""
        families = self.rng.choices(FAMILIES, list(FAMILY_WEIGHTS.values()), k=n)
        chosen = [self.rng.choice(self.pools[family]) for family in families]
        images = torch.stack([draw(c, self.rng) for c in chosen]).permute(0, 3, 1, 2)
        return images, [c.prompt for c in chosen]


class Training:
    """One model's training: AdamW, warm-up and cosine decay, a running average, checkpoints.

    A run whose checkpoint exists goes on from it.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        *,
        steps: int,
        lr: float,
        warmup: int = 200,
        average_decay: float = 0.999,
    ):
        self.model, self.path, self.steps = model, path, steps
        self.lr, self.warmup, self.average_decay = lr, warmup, average_decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.seconds = 0, 0.0
        if path.exists():
            state = torch.load(path, weights_only=True)
            for part in ("model", "average", "optimiser"):
                getattr(self, part).load_state_dict(state[part])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        state = {p: getattr(self, p).state_dict() for p in ("model", "average", "optimiser")}
        partial = self.path.with_suffix(".partial")
        torch.save(state | {"step": self.step, "seconds": self.seconds}, partial)
        partial.replace(self.path)

    def train(self, loss_at: Callable[[int], Tensor], every: int = 500) -> nn.Module:
        """Minimise ``loss_at(step)`` until the last step; the averaged model."""
        started = time.monotonic() - self.seconds
        total = 0.0
        while self.step < self.steps:
            decay = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * self.step / self.steps))
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr * min(1, (self.step + 1) / self.warmup) * decay
            torch.manual_seed(self.step)
            loss = loss_at(self.step)
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            rate = 1 - min(self.average_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.model.parameters()), rate
                )
            self.step += 1
            total += loss.item()
            if self.step % every == 0 or self.step == self.steps:
                self.seconds = time.monotonic() - started
                name, mean = self.path.stem, total / (self.step % every or every)
                log.info("%s step %d loss %.4f (%.0f s)", name, self.step, mean, self.seconds)
                total = 0.0
                self.save()
        return self.average
